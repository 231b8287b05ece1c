"""Inpaint in the browser: open an image, paint over the part to fill, compare, download the result."""

import argparse
import contextlib
import multiprocessing.util
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from utils import OneLineParser, UserError, one_line

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
LOOPBACK = (None, "", "localhost", "127.0.0.1", "::1")
STOP_SECONDS = 2  # time for open connections to end when the server is told to stop
END_SECONDS = 6  # time until it ends, whatever still runs


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: for a flag that is unknown or out of range.
    """
    parser = OneLineParser(prog="app.py", description=__doc__)
    parser.add_argument("--checkpoint", action="append", default=[], metavar="FILE",
                        help="checkpoint to offer beside the bundled ones; repeatable")  # fmt: skip
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cuda, cuda:1, mps or cpu")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen at; 0.0.0.0 serves other machines",
    )
    parser.add_argument("--allow_host", action="append", default=[], metavar="NAME",
                        help="another name by which browsers may call this machine; repeatable")  # fmt: skip
    parser.add_argument(
        "--port", type=int, default=7860, metavar="N", help="port to listen at; 0 for any free one"
    )
    parser.add_argument(
        "--max_memory", type=float, default=2.0, metavar="GIB", help="memory that filling should need at most"
    )
    parser.add_argument("--max_upload", type=int, default=64, metavar="MIB", help="largest uploaded file")
    parser.add_argument("--max_megapixels", type=float, default=50.0, metavar="MP", help="largest image")
    parser.add_argument(
        "--max_seconds", type=float, default=30.0, metavar="S", help="longest time to read an image"
    )
    args = parser.parse_args(argv)
    if not 0 <= args.port < 65536:
        raise UserError(f"--port: must be from 0 to 65535, got {args.port}")
    for name in ("max_memory", "max_upload", "max_megapixels", "max_seconds"):
        value = getattr(args, name)
        if not 0 < value < 1e6:  # false for nan
            raise UserError(f"--{name}: must be above 0 and below a million, got {value:g}")
    return args


def load_networks(args: argparse.Namespace) -> dict[str, Any]:
    """Load the `Networks` to choose from, by name; those of the command line first.

    Raises:
        UserError: if one cannot be read.
    """
    from inference.checkpoints import WEIGHTS, load_network
    from inference.device import select_device
    from inference.inpainter import Inpainter

    device = select_device(args.device)
    networks: dict[str, Any] = {}
    for file in [*args.checkpoint, *sorted(WEIGHTS.glob("*.pth"))]:
        network, state = load_network(file, device)
        name = Path(file).stem if Path(file).stem not in networks else str(file)
        inpainter = Inpainter(network, max_memory=args.max_memory * 2**30)
        networks[name] = inpainter, tuple(state["config"]["mask_ratio"])
    return networks


def stay_here(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook (PEP 578) that refuses every connection of this process to another machine."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in LOOPBACK:
        raise PermissionError(f"this page stays on this machine, and does not connect to {host}")


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for browsers.

    Raises:
        UserError: if the address is not this machine's, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(f"--host, --port: cannot listen at {host}:{port}: {error.strerror}") from None


def host_names(args: argparse.Namespace) -> set[str]:
    """The names by which browsers may call this machine, besides the address that they connect to."""
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), args.host, *args.allow_host}
    return {name.lower().strip("[]") for name in names}


@contextlib.contextmanager
def own_folder() -> Iterator[str]:
    """Yield a folder for all that the process writes; at the end remove it, and restore the settings."""
    environment, tempdir = dict(os.environ), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="inpaint-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        os.environ |= {"GRADIO_TEMP_DIR": f"{folder}/page", "MPLCONFIGDIR": folder}
        try:
            yield folder
        finally:
            tempfile.tempdir = tempdir
            os.environ.clear()
            os.environ.update(environment)


def serve(args: argparse.Namespace, networks: dict[str, Any], listener: socket.socket, folder: str) -> None:
    """Serve the page, writing to `folder` only, until the process is told to stop."""
    import gradio as gr  # slow to import, and reads the environment
    import uvicorn
    from fastapi import FastAPI

    from inference.web.guard import Guard, ImpatientProtocol
    from inference.web.page import CSS, Page
    from inference.web.sessions import Sessions
    from inference.web.uploads import Limits

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            """Stop, and if something that hangs prevents it, end."""
            timer = threading.Timer(END_SECONDS, end_now, (128 + sig, folder))
            timer.daemon = True
            timer.start()
            super().handle_exit(sig, frame)

    sessions = Sessions(Path(folder, "page"))
    page = Page(networks, sessions, Limits(args.max_megapixels, args.max_seconds)).build().queue(max_size=100)
    theme = gr.themes.Soft(font=FONTS, font_mono=["ui-monospace", "monospace"])
    theme.set(block_title_background_fill="none", block_title_padding="0")
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None), page, path="/", theme=theme, css=CSS,
        max_file_size=args.max_upload * 2**20, footer_links=[], run_history=False, ssr_mode=False, pwa=False,
        mcp_server=False, show_error=False,
    )  # fmt: skip
    page.has_launched = True  # otherwise gradio does not check which files it is told to read
    guard = Guard(
        app,
        sessions,
        names=host_names(args),
        functions={
            number: [block.get_block_name() for block in function.inputs]
            for number, function in page.fns.items()
        },
        public={os.path.realpath(path) for path in Path(folder, "page").rglob("*") if path.is_file()},
        max_upload=args.max_upload * 2**20,
    )
    sys.addaudithook(stay_here)
    host, port = listener.getsockname()[:2]
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    config = uvicorn.Config(
        guard, log_level="warning", http=ImpatientProtocol, ws="none", proxy_headers=False,
        server_header=False, limit_concurrency=256, timeout_graceful_shutdown=STOP_SECONDS,
    )  # fmt: skip
    Server(config).run(sockets=[listener])


def end_now(status: int, folder: str) -> None:
    """End this process without waiting for its threads, and remove its files."""
    for path in (folder, multiprocessing.util.get_temp_dir()):
        shutil.rmtree(path, ignore_errors=True)
    os._exit(status)


def main(argv: list[str] | None = None) -> int:
    """Serve the page as the command line says; returns the exit status: 2 for a user error."""
    try:
        args = parse_args(argv)
        if find_spec("gradio") is None:
            raise UserError("the page needs gradio: pip install -r requirements-app.txt")
        from imaging.trial_decode import start_forkserver

        networks = load_networks(args)
        start_forkserver()  # its files outlive the folder below
        with listen(args.host, args.port) as listener:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed
            with own_folder() as folder:
                serve(args, networks, listener, folder)
    except UserError as error:
        print(f"app.py: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
