"""`app.py` as a process of its own, and a visitor that calls it like a browser."""

import functools
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
HAS_GRADIO = importlib.util.find_spec("gradio") is not None
NO_GRADIO = "gradio is not installed (requirements-app.txt)"
needs_gradio = pytest.mark.skipif(not HAS_GRADIO, reason=NO_GRADIO)
WATCH = """
import os, sys
log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        mode, flags = arguments[1] or "", arguments[2] or 0
        if set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            os.write(log, f"write {arguments[0]}\\n".encode())
    elif event in ("os.mkdir", "os.rename", "os.symlink"):
        os.write(log, f"write {arguments[0 if event == 'os.mkdir' else 1]}\\n".encode())
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        os.write(log, f"connect {arguments[1][0]}\\n".encode())
    elif event == "socket.getaddrinfo":
        os.write(log, f"look up {arguments[0]}\\n".encode())
sys.addaudithook(watch)
"""


class Server:
    """`app.py` on a free port, with a home, a folder for temporary files and a log of what it touches."""

    def __init__(self, root: Path, *flags: str) -> None:
        self.root, self.temporary, self.log = root, root / "tmp", root / "log"
        (root / "watch").mkdir()
        (root / "watch" / "sitecustomize.py").write_text(WATCH)
        self.temporary.mkdir()
        environment = os.environ | {
            "PYTHONPATH": str(root / "watch"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "WATCH_LOG": str(self.log),
            "TMPDIR": str(self.temporary),
            "HOME": str(root / "home"),
        }
        self.errors = (root / "errors").open("w+")
        limits = ["--max_upload", "1", "--max_megapixels", "4"]
        self.process = subprocess.Popen(
            [sys.executable, "app.py", "--port", "0", *limits, *flags],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.visitors: list[Visitor] = []

    @functools.cached_property
    def url(self) -> str:
        """The address of the page; waits until it is served."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def visit(self) -> "Visitor":
        self.visitors.append(Visitor(self.url))
        return self.visitors[-1]

    def stop(self) -> int:
        for visitor in self.visitors:
            visitor.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()
        return self.process.wait(30)


FUNCTIONS = {"show": 0, "choose": 1, "fill": 2, "explain": 3}  # by gradio's number


class Visitor:
    """A browser in plain HTTP: it keeps the cookie, uploads, calls the page's functions and downloads."""

    def __init__(self, url: str) -> None:
        import httpx

        self.http = httpx.Client(base_url=url, timeout=60, verify=False)
        self.page = self.http.get("/").text

    def upload(self, content: bytes, name: str) -> dict[str, Any]:
        answer = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        assert answer.status_code == 200, answer.text
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    def join(self, name: str, data: Any, **more: Any) -> Any:
        """Call a function of the page; returns the response and the tab that has the answer."""
        tab = secrets.token_hex(8)
        call = {"fn_index": FUNCTIONS[name], "data": data, "session_hash": tab} | more
        return self.http.post("/gradio_api/queue/join", json=call), tab

    def call(self, name: str, data: Any) -> dict[str, Any]:
        """The answer of a function; it has `data`, or else `error`. Warnings are added as `said`."""
        joined, tab = self.join(name, data)
        assert joined.status_code == 200, joined.text
        said = ""
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": tab}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line else {}
                if message.get("msg") == "log":
                    said = message["log"]
                if message.get("msg") == "process_completed":
                    return message["output"] | {"said": said}
        raise AssertionError("no answer")

    def download(self, path: str) -> Any:
        return self.http.get(f"/gradio_api/file={path}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all modules, as starting it takes seconds; the last test of `test_app.py` stops it."""
    if not HAS_GRADIO:
        pytest.skip(NO_GRADIO)
    running = Server(
        tmp_path_factory.mktemp("server"), "--allow_host", "inpaint.example", "--max_seconds", "20"
    )
    yield running
    running.stop()
