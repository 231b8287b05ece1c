"""The page under attack, in plain HTTP: only the page's own requests are answered, and it goes on."""

import importlib.util
import io
import json
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, photograph
from PIL import Image
from web_server import Server, Visitor, needs_gradio

pytestmark = needs_gradio
FILL = ["default", 0, 0, 100, False]  # the inputs of `fill` after picture, mask and canvas
MIB = 2**20
HOLE = np.s_[20:40, 30:60]


@pytest.fixture(scope="module")
def visitor(server: Server) -> Visitor:
    return server.visit()


@pytest.fixture(scope="module")
def other(server: Server) -> tuple[Visitor, str, list[str]]:
    """Somebody else, an image that they have uploaded, and the files that the server made from it."""
    somebody = server.visit()
    picture = somebody.upload(png(photograph(60, 80, seed=5)), "private.png")
    mask = somebody.upload(png(strokes()), "mask.png")
    shown = somebody.call("show", [picture, None])["data"][1]["background"]["path"]
    filled = somebody.call("fill", [picture, mask, None, *FILL])["data"]
    made = [shown, filled[2]["value"]["path"], filled[0][0]["path"], filled[0][1]["path"]]
    assert all(somebody.download(path).status_code == 200 for path in made)
    return somebody, picture["path"], made


@pytest.fixture(autouse=True)
def still_answers(server: Server, visitor: Visitor) -> Iterator[None]:
    """After every attack the server is there and answers at once."""
    yield
    if server.process.poll() is None:
        start = time.monotonic()
        assert visitor.http.get("/theme.css").status_code == 200
        assert time.monotonic() - start < 30


def strokes() -> np.ndarray:
    opacity = np.zeros((60, 80), np.uint8)
    opacity[HOLE] = 255
    return opacity


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def png_of(width: int, height: int, data: bytes) -> bytes:
    """A PNG whose header says any size, whatever the compressed data is."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def file_of(path: Any, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}} | more


def raw(server: Server, *pieces: bytes, patience: float = 20, pause: float = 0) -> bytes:
    """The server's answer to bytes, until it closes the connection or falls silent."""
    host, port = server.url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=patience) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            while block := connection.recv(65536):
                answer += block
        except (ConnectionError, TimeoutError):
            pass
    return answer


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer.split()[1])


def request(server: Server, line: str, *headers: str, host: str | None = "") -> bytes:
    """The head of a request, with the server's Host, another or none."""
    lines = [f"{line} HTTP/1.1", *headers, "Connection: close"]
    if host is not None:
        lines.append(f"Host: {host or server.url.removeprefix('http://')}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def cookie(visitor: Visitor) -> str:
    return "Cookie: " + "; ".join(f"{name}={value}" for name, value in visitor.http.cookies.items())


def memory(server: Server) -> int:
    """The largest memory that the server's process has had, in bytes."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


# --- ordinary use ----------------------------------------------------------------------------------------


def test_ordinary_use_with_the_cookie_kept_fills_a_picture(visitor: Visitor) -> None:
    pixels = photograph(60, 80)
    picture = visitor.upload(png(pixels), "a b ü.png")
    said = visitor.call("show", [picture, None])["data"]
    assert said[2] == "80 × 60 pixels, PNG."
    painted = visitor.upload(png(np.dstack([strokes()] * 4)), "layer_0.png")
    canvas = {"background": None, "layers": [painted], "composite": painted}
    answer = visitor.call("fill", [picture, None, canvas, *FILL])["data"]
    result = visitor.download(answer[2]["value"]["path"])
    assert result.headers["content-type"] == "image/png"
    assert result.headers["content-disposition"].startswith("attachment")
    filled = np.asarray(Image.open(io.BytesIO(result.content)))
    changed = (filled != pixels).any(axis=2)
    assert changed[HOLE].any()
    changed[HOLE] = False
    assert not changed.any()
    stages = visitor.call("explain", [picture, None, canvas, "default", 0])["data"][0]["value"]
    assert [visitor.download(each["image"]["path"]).status_code for each in stages] == [200] * 5


def test_an_example_is_opened_by_its_number(visitor: Visitor) -> None:
    picture = visitor.call("choose", [3])["data"][0]
    assert picture["orig_name"] == "rocket.jpg" and visitor.download(picture["path"]).status_code == 200
    for number in (-1, 4, 10**8, "0", None, True, [0]):
        joined, _ = visitor.join("choose", [number])
        if joined.status_code == 200:
            assert "data" not in visitor.call("choose", [number])
        else:
            assert joined.status_code == 400


def test_every_answer_has_the_headers_that_browsers_obey(server: Server, visitor: Visitor) -> None:
    found = [
        visitor.http.get(path) for path in ("/", "/nowhere", "/gradio_api/file=/etc/hostname", "/theme.css")
    ]
    for answer in [*found, visitor.http.get("/", headers={"Origin": "http://evil.example"})]:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert not [name for name in answer.headers if name.startswith("access-control")]
    setting = server.visit().http.get("/", headers={"Cookie": "inpaint=me"}).headers["set-cookie"]
    assert "HttpOnly" in setting and "SameSite=Strict" in setting and "me;" not in setting


# --- files of the server and of others -------------------------------------------------------------------

PATHS = [
    "/etc/hostname",
    str(REPOSITORY / "README.md"),
    "README.md",
    "../../../../../../etc/hostname",
    "/etc/../etc/hostname",
    "file:///etc/hostname",
    "http://192.0.2.1/a.png",
    "https://127.0.0.1/a.png",
    "/dev/zero",
    "/dev/stdin",
    "/",
    "",
    "/etc/hostname\0.png",
    "%2Fetc%2Fhostname",
    "//etc/hostname",
    "\\etc\\hostname",
    "data:image/png;base64,iVBORw0KGgo=",
    "~/x.png",
    "a" * 5000,
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_that_was_not_uploaded_is_opened_by_any_function(visitor: Visitor, path: str) -> None:
    picture = visitor.upload(png(photograph(60, 80)), "a.png")
    file = file_of(path)
    for name, data in [
        ("show", [file, None]),
        ("show", [picture, file]),
        ("show", [{"path": path}, None]),
        ("show", [[file], None]),
        ("fill", [file, picture, None, *FILL]),
        ("fill", [picture, file, None, *FILL]),
        ("fill", [picture, None, {"background": None, "layers": [file], "composite": None}, *FILL]),
        ("fill", [picture, None, file, *FILL]),
        ("explain", [file, picture, None, "default", 0]),
        ("explain", [picture, picture, {"layers": [file]}, "default", 0]),
        ("choose", [file]),
    ]:
        joined, _ = visitor.join(name, data)
        assert joined.status_code in (400, 403), (name, data, joined.text)
        assert path == "" or len(path) < 3 or path not in joined.text


@pytest.mark.parametrize("path", PATHS)
def test_no_path_that_was_not_uploaded_is_served(server: Server, visitor: Visitor, path: str) -> None:
    from urllib.parse import quote

    for prefix in (
        "/gradio_api/file=",
        "/gradio_api/file/",
        "/file=",
        "/gradio_api/proxy=",
        "/static/",
        "/assets/",
    ):
        for named in (quote(path, safe=""), quote(quote(path, safe=""), safe="")):
            answer = visitor.http.get(f"{prefix}{named}")
            assert answer.status_code in (403, 404), (prefix, named, answer.status_code)
    for prefix in ("/static/", "/assets/", "/gradio_api/file="):
        head = request(server, f"GET {prefix}../../../../../../../etc/hostname", cookie(visitor))
        assert status(raw(server, head)) in (403, 404)


def test_the_path_that_counts_is_checked_whatever_else_a_file_says(visitor: Visitor, server: Server) -> None:
    picture = visitor.upload(png(photograph(60, 80)), "a.png")
    hostile = picture | {
        "url": "http://192.0.2.1/x.png", "orig_name": "../../x.svg", "is_stream": True, "size": -1,
        "mime_type": "text/html", "meta": {"_type": "gradio.FileData", "x": "/etc/hostname"},
    }  # fmt: skip
    assert visitor.call("show", [hostile, None])["data"][2] == "80 × 60 pixels, PNG."
    asked = {line for line in server.log.read_text().splitlines() if "192.0.2.1" in line}
    assert asked == set()


def test_files_of_another_session_are_neither_opened_nor_served(
    server: Server, visitor: Visitor, other: tuple[Visitor, str, list[str]]
) -> None:
    somebody, picture, made = other
    own = visitor.upload(png(photograph(60, 80)), "a.png")
    for path in [picture, *made, str(Path(picture).parent), str(Path(picture).parent.parent)]:
        assert visitor.download(path).status_code == 403
        assert visitor.http.head(f"/gradio_api/file={path}").status_code == 403
        for data in ([file_of(path), None], [own, file_of(path)]):
            assert visitor.join("show", data)[0].status_code == 403
        joined, _ = visitor.join("fill", [own, None, {"layers": [file_of(path)]}, *FILL])
        assert joined.status_code == 403
    bare = server.visit()
    for cookies in (
        {},
        dict.fromkeys(bare.http.cookies, "x" * 43),
        dict.fromkeys(bare.http.cookies, ""),
    ):
        bare.http.cookies = cookies  # type: ignore[assignment]
        assert bare.download(picture).status_code == 403
        assert bare.join("show", [file_of(picture), None])[0].status_code == 403
        assert bare.http.post("/gradio_api/upload", files={"files": ("a.png", b"x")}).status_code == 403
    assert somebody.download(picture).status_code == 200


def test_answers_to_another_session_cannot_be_listened_to(
    server: Server, visitor: Visitor, other: tuple[Visitor, str, list[str]]
) -> None:
    somebody, picture, _ = other
    joined, tab = somebody.join("show", [file_of(picture), None])
    assert joined.status_code == 200
    name = Path(picture).parents[1].name
    for named in (tab, f"{name}{tab}", name, "", "x"):
        listened = visitor.http.get("/gradio_api/queue/data", params={"session_hash": named})
        assert listened.status_code in (400, 404) and "process_completed" not in listened.text
    assert visitor.http.get(f"/gradio_api/call/show/{joined.json()['event_id']}").status_code == 404
    with somebody.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": tab}) as stream:
        assert any(b"process_completed" in block for block in stream.iter_bytes())


def test_links_pipes_and_folders_among_the_uploads_are_not_followed(server: Server, visitor: Visitor) -> None:
    path = Path(visitor.upload(png(photograph(60, 80)), "a.png")["path"])
    (path.parent / "link.png").symlink_to("/etc/hostname")
    os.mkfifo(path.parent / "pipe.png")
    path.unlink()
    path.symlink_to("/etc/hostname")  # somebody else on the machine might do this
    for each in (path, path.parent / "link.png", path.parent / "pipe.png", path.parent):
        assert visitor.join("show", [file_of(str(each)), None])[0].status_code == 403
        assert visitor.download(str(each)).status_code == 403


@pytest.mark.parametrize("name", ["x.html", "x.svg", "x.xhtml", "x.js", "x.xml", "x.png.html", "x", "x.pdf"])
def test_an_upload_is_never_served_as_something_that_runs(visitor: Visitor, name: str) -> None:
    script = b"<html><script>alert(1)</script></html>"
    answer = visitor.download(visitor.upload(script, name)["path"])
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"


# --- who asks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("evil.example:7860", 421),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.0.2.1", 421),
        ("127.0.0.2", 421),
        ("[::2]", 421),
        ("localhost@evil.example", 400),
        ("localhost:80:80", 400),
        ("local host", 400),
        ("", 400),
        (None, 400),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:99", 200),
        (socket.gethostname(), 200),
        ("inpaint.example", 200),
    ],
)
def test_only_names_of_this_machine_are_served(server: Server, host: str | None, expected: int) -> None:
    for path in ("/", "/config", "/theme.css", "/gradio_api/file=/etc/hostname"):
        head = request(server, f"GET {path}", *(["Host: "] if host == "" else []), host=host or None)
        answer = raw(server, head)
        if expected != 200 or path in ("/", "/theme.css"):
            assert status(answer) == expected
        assert (
            b"access-control" not in answer.lower()
            and b"evil.example" not in answer.partition(b"\r\n\r\n")[0]
        )


def test_two_hosts_and_a_foreign_address_in_the_request_line_are_refused(server: Server) -> None:
    assert status(raw(server, request(server, "GET /theme.css", "Host: evil.example"))) == 400
    answer = raw(server, request(server, "GET http://evil.example/theme.css", host="evil.example"))
    assert status(answer) == 421


def test_forwarding_headers_do_not_change_the_page(visitor: Visitor) -> None:
    headers = {
        "X-Forwarded-Host": "evil.example",
        "X-Gradio-Server": "http://evil.example",
        "X-Forwarded-For": "::1",
    }
    answer = visitor.http.get("/?deep_link=../x&page=x&__theme=dark", headers=headers)
    assert answer.status_code == 200 and "evil.example" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost"},
        {"Origin": ""},
        {"Referer": "http://evil.example/x"},
        {"Referer": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_sites_are_refused_with_a_cookie_and_without(
    server: Server, visitor: Visitor, headers: dict[str, str]
) -> None:
    picture = visitor.upload(png(photograph(60, 80)), "a.png")
    call = {"fn_index": 0, "data": [picture, None], "session_hash": "x"}
    for answer in [
        visitor.http.get("/", headers=headers),
        visitor.http.get("/theme.css", headers=headers),
        visitor.http.get(f"/gradio_api/file={picture['path']}", headers=headers),
        visitor.http.post("/gradio_api/queue/join", json=call, headers=headers),
        visitor.http.post("/gradio_api/upload", files={"files": ("a.png", b"x")}, headers=headers),
        visitor.http.options(
            "/gradio_api/queue/join", headers=headers | {"Access-Control-Request-Method": "POST"}
        ),
    ]:
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "set-cookie" not in answer.headers


def test_the_pages_own_origin_is_served_and_a_preflight_is_not(server: Server, visitor: Visitor) -> None:
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin", "Referer": f"{server.url}/"}
    answer = visitor.http.post("/gradio_api/upload", files={"files": ("a.png", b"x")}, headers=own)
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
    preflight = own | {"Access-Control-Request-Method": "POST"}
    assert visitor.http.options("/gradio_api/upload", headers=preflight).status_code == 404


def test_a_call_that_a_form_of_another_site_could_send_is_refused(visitor: Visitor) -> None:
    call = json.dumps({"fn_index": 0, "data": [None, None], "session_hash": "x"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = visitor.http.post("/gradio_api/queue/join", content=call, headers={"Content-Type": kind})
        assert answer.status_code == 415


# --- what is asked for -----------------------------------------------------------------------------------


def test_what_the_page_does_not_need_is_not_there(visitor: Visitor) -> None:
    there = (
        "/config /config/ /info /gradio_api/info /gradio_api/openapi.json /openapi.json /docs /redoc "
        "/monitoring /monitoring/summary /monitoring/x /login_check /gradio_api/login_check /token "
        "/gradio_api/token /gradio_api/user /gradio_api/app_id /gradio_api/dev/reload /logout /robots.txt "
        "/pwa_icon /pwa_icon/9 /svelte/x /gradio_api/runs /gradio_api/run-history/buckets "
        "/gradio_api/deep_link?session_hash=x /gradio_api/heartbeat/x /gradio_api/queue/status "
        "/gradio_api/startup-events /gradio_api/theme.css /gradio_api/vibe-code /gradio_api/mcp "
        "/gradio_api/mcp/sse /gradio_api/stream/x/1/1/playlist.m3u8 /gradio_api/stream/x/1/1/playlist-file "
        "/gradio_api/custom_component/x/client/y/z.js /gradio_api/call/show/x /gradio_api/proxy=http://x.hf.space "
        "/gradio_api/profiling/traces /theme.css/ /gradio_api /gradio_api/upload /gradio_api/queue/join"
    )
    for path in there.split():
        assert visitor.http.get(path).status_code == 404, path
    posted = (
        "/login /gradio_api/run/fill /gradio_api/api/fill /gradio_api/run/predict /gradio_api/call/fill "
        "/gradio_api/call/v2/fill /gradio_api/reset /gradio_api/cancel /gradio_api/component_server "
        "/gradio_api/stream/x /gradio_api/stream/x/close /gradio_api/process_recording /gradio_api/vibe-edit "
        "/gradio_api/undo-vibe-edit /gradio_api/vibe-starter-queries /gradio_api/run-history/connect / "
        "/gradio_api/queue/data /gradio_api/upload_progress /gradio_api/upload/ /gradio_api/file=/etc/hostname"
    )
    for path in posted.split():
        answer = visitor.http.post(path, json={"data": [file_of("/etc/hostname"), None], "session_hash": "x"})
        assert answer.status_code == 404, path


def test_other_methods_and_websockets_are_refused(server: Server, visitor: Visitor) -> None:
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "X"):
        for path in ("/", "/gradio_api/upload", "/gradio_api/queue/join", "/theme.css"):
            answer = raw(server, request(server, f"{method} {path}", cookie(visitor)))
            assert status(answer) in (400, 404, 405)
    upgrade = [
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    head = request(server, "GET /gradio_api/queue/join", *upgrade, cookie(visitor))
    assert status(raw(server, head.replace(b"Connection: close", b"Connection: Upgrade"), patience=1)) in (
        400,
        404,
    )


@pytest.mark.parametrize(
    "call",
    [
        {},
        [],
        None,
        "x",
        {"fn_index": 0, "session_hash": "x"},
        {"fn_index": 0, "data": [], "session_hash": "x"},
        {"fn_index": 0, "data": [None] * 3, "session_hash": "x"},
        {"fn_index": 0, "data": {"0": None}, "session_hash": "x"},
        {"fn_index": 99, "data": [None, None], "session_hash": "x"},
        {"fn_index": -1, "data": [None, None], "session_hash": "x"},
        {"fn_index": "0", "data": [None, None], "session_hash": "x"},
        {"fn_index": True, "data": [None], "session_hash": "x"},
        {"fn_index": 0, "data": [None, None]},
        {"fn_index": 0, "data": [None, None], "session_hash": ["x"]},
        {"fn_index": 0, "data": [None, None], "session_hash": "x" * 65},
        {"fn_index": 0, "data": [None, None], "session_hash": "../x"},
        {"fn_index": 0, "data": [{"path": None}, None], "session_hash": "x"},
        {"fn_index": 0, "data": [{"path": ["/etc/hostname"]}, None], "session_hash": "x"},
        {"fn_index": 0, "data": [{"url": "/etc/hostname"}, None], "session_hash": "x", "trigger_id": "x"},
        {"fn_index": 2, "data": [None, None, {"layers": [None]}, *FILL], "session_hash": "x"},
        {"fn_index": 2, "data": [None, None, {"layers": [{"layers": []}]}, *FILL], "session_hash": "x"},
        {"fn_index": 2, "data": [None, None, None, "x" * 301, 0, 0, False], "session_hash": "x"},
        {"fn_index": 2, "data": [None, None, None, "default", 10**30, 0, False], "session_hash": "x"},
    ],
)
def test_calls_of_another_shape_are_refused(visitor: Visitor, call: Any) -> None:
    headers = {"Content-Type": "application/json"}
    answer = visitor.http.post("/gradio_api/queue/join", content=json.dumps(call), headers=headers)
    assert answer.status_code in (400, 403) and "Traceback" not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 60_000,
        b'{"data":' * 14_000,
        b'{"fn_index": 0, "data": [NaN, Infinity], "session_hash": "x"}',
        b'{"fn_index": ' + b"9" * 5000 + b"}",
        b"null",
    ],
)
def test_malformed_json_is_refused(visitor: Visitor, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = visitor.http.post("/gradio_api/queue/join", content=body, headers=headers)
    assert answer.status_code == 400 and "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("default", -1, 0, 100, False), "from 0 to 32 pixels"),
        (("default", 0, -5, 100, False), "from 0 to 32 pixels"),
        (("default", 100_000, 0, 100, False), "from 0 to 32 pixels"),
        (("default", 0, 10**8, 100, False), "from 0 to 32 pixels"),
        (("default", "3", 0, 100, False), "from 0 to 32 pixels"),
        (("default", None, None, None, None), "from 0 to 32 pixels"),
        (("default", True, 0, 100, False), "from 0 to 32 pixels"),
        (("default", 0, 0, 101, False), "The detail must be from 0 to 100 %"),
        (("default", 0, 0, -1, False), "The detail must be from 0 to 100 %"),
        (("default", 0, 0, "100", False), "The detail must be from 0 to 100 %"),
        (("default", 0, 0, None, False), "The detail must be from 0 to 100 %"),
        (("nowhere", 0, 0, 100, False), "no such checkpoint"),
        (("../weights/default", 0, 0, 100, False), "no such checkpoint"),
        ((7, 0, 0, 100, False), "no such checkpoint"),
        ((None, 0, 0, 100, False), "no such checkpoint"),
    ],
)
def test_values_that_no_control_can_have_are_one_line(
    visitor: Visitor, values: tuple[Any, ...], said: str
) -> None:
    picture = visitor.upload(png(photograph(60, 80)), "a.png")
    mask = visitor.upload(png(strokes()), "mask.png")
    answer = visitor.call("fill", [picture, mask, None, *values])
    assert said in answer["error"] and "\n" not in answer["error"] and "data" not in answer


# --- how much --------------------------------------------------------------------------------------------

FORM = "POST /gradio_api/upload", "Content-Type: multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'


def test_a_file_above_the_limit_is_refused_and_not_kept(server: Server, visitor: Visitor) -> None:
    before = sum(path.stat().st_size for path in server.temporary.rglob("*") if path.is_file())
    for size in (MIB + 1, MIB + 2**17, 40 * MIB):
        files = {"files": ("a.png", bytes(size))}
        assert visitor.http.post("/gradio_api/upload", files=files).status_code == 413
    after = sum(path.stat().st_size for path in server.temporary.rglob("*") if path.is_file())
    assert after - before < MIB


def test_a_length_that_is_a_lie_changes_nothing(server: Server, visitor: Visitor) -> None:
    head = request(server, *FORM, cookie(visitor), f"Content-Length: {10**12}")
    assert status(raw(server, head, PART)) == 413
    for wrong in ("Content-Length: -1", "Content-Length: x", "Content-Length: 5\r\nContent-Length: 6"):
        assert status(raw(server, request(server, *FORM, cookie(visitor), wrong), PART)) == 400
    short = request(server, *FORM, cookie(visitor), "Content-Length: 10")
    assert status(raw(server, short, PART + bytes(100) + b"\r\n--x--\r\n")) == 400


def test_an_endless_body_is_cut_off(server: Server, visitor: Visitor) -> None:
    block = b"10000\r\n" + bytes(65536) + b"\r\n"
    part = hex(len(PART))[2:].encode() + b"\r\n" + PART + b"\r\n"
    for line in (FORM, ("POST /gradio_api/queue/join", "Content-Type: application/json")):
        head = request(server, *line, cookie(visitor), "Transfer-Encoding: chunked")
        answer = raw(server, head, part, *[block] * 200, patience=5)
        assert answer == b"" or status(answer) == 413
    assert memory(server) < 3 * 2**30


def test_too_many_parts_and_long_heads_of_parts_are_refused(visitor: Visitor) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    end = b"--x--\r\n"
    field = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
    for body in (
        (PART + b"x\r\n") * 5 + end,
        (field + b"x\r\n") * 5 + end,
        field + b"x" * 10_000 + b"\r\n" + end,
        b"--x\r\n" + b"A: b\r\n" * 9000 + b"\r\n\r\n" + end,
        b"--x\r\nA: " + b"b" * 60_000 + b"\r\n\r\n" + end,
        b"--x\r\n\r\nx\r\n" + end,
        field + b"x\r\n" + end,
        PART + b"never ends",
        PART,
        b"",
        b"nonsense",
        b"\0" * 1000,
    ):
        answer = visitor.http.post("/gradio_api/upload", content=body, headers=headers)
        assert answer.status_code == 400, (body[:60], answer.status_code)
        assert "Traceback" not in answer.text
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 9000,
    ):
        answer = visitor.http.post("/gradio_api/upload", content=PART, headers={"Content-Type": kind})
        assert answer.status_code == 400, kind[:50]
    for kind in ("text/plain", "application/json", "application/x-www-form-urlencoded"):
        answer = visitor.http.post("/gradio_api/upload", content=PART, headers={"Content-Type": kind})
        assert answer.status_code == 415


@pytest.mark.parametrize(
    "name", ["../../x.png", "/etc/x.png", "a/../../b.png", "\\..\\x.png", "..", "", "é" * 300]
)
def test_no_name_of_an_upload_leads_out_of_the_sessions_folder(visitor: Visitor, name: str) -> None:
    own = Path(visitor.upload(b"x", "a.png")["path"]).parents[1]
    body = PART.replace(b"a.png", name.encode()) + b"content\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = visitor.http.post("/gradio_api/upload", content=body, headers=headers)
    if answer.status_code != 400:  # without a name it is a field
        (path,) = answer.json()
        assert Path(path).parents[1] == own and Path(path).resolve() == Path(path)


@pytest.fixture(scope="module", autouse=True)
def slow_requests(server: Server, visitor: Visitor) -> tuple[list[threading.Thread], dict[str, float]]:
    """Requests that go on slowly while the other tests run, and the seconds after which each was ended."""
    ended: dict[str, float] = {}

    def wait(name: str, *pieces: bytes) -> None:
        start = time.monotonic()
        raw(server, *pieces, patience=40)
        ended[name] = time.monotonic() - start

    head = request(server, *FORM, cookie(visitor), "Content-Length: 5000")
    call = request(server, "POST /gradio_api/queue/join", "Content-Type: application/json", cookie(visitor),
                   "Content-Length: 50")  # fmt: skip
    waits = [
        ("nothing",),
        ("head", b"GET / HTTP/1.1\r\nHost: x\r\nX: "),
        ("upload", head, PART),
        ("call", call, b"{"),
    ]
    threads = [threading.Thread(target=wait, args=each) for each in waits]
    for thread in threads:
        thread.start()
    return threads, ended


def test_slow_heads_and_bodies_are_ended(
    visitor: Visitor, slow_requests: tuple[list[threading.Thread], dict[str, float]]
) -> None:
    threads, ended = slow_requests
    assert visitor.http.get("/theme.css").status_code == 200
    for thread in threads:
        thread.join()
    assert max(ended.values()) < 39 and set(ended) == {"nothing", "head", "upload", "call"}


def gif_bomb() -> bytes:
    """60,000 by 60,000 pixels in a few bytes."""
    screen = struct.pack("<HHBBB", 60_000, 60_000, 0x80, 0, 0) + bytes(6)
    return (
        b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x02\x44\x01\x00;"
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{ } loop\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bomb.png", png_of(30_000, 30_000, zlib.compress(bytes(9))), "megapixels"),
        ("full.png", png_of(30_000, 30_000, zlib.compress(bytes(2**26), 9)), "megapixels"),
        ("bomb.gif", gif_bomb(), "megapixels"),
        (
            "bomb.bmp",
            b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 60000, 60000, 1, 24, 0, 9, 0, 0, 0, 0),
            "",
        ),
        ("loop.eps", EPS, "EPS"),
        ("loop.png", EPS, "EPS"),
        ("x.svg", SVG, "SVG"),
        ("x.html", b"<html></html>", "no known format"),
        ("empty.png", b"", "no known format"),
        ("cut.png", png(photograph(60, 80))[:200], "Not a readable image"),
        ("P7.ppm", b"P6 99999 99999 255 ", ""),
    ],
)
def test_hostile_files_are_refused_in_one_line_and_in_time(
    server: Server, visitor: Visitor, name: str, content: bytes, said: str
) -> None:
    file = visitor.upload(content, name)
    good = visitor.upload(png(photograph(60, 80)), "good.png")
    start = time.monotonic()
    for data in ([file, None], [good, file]):
        answer = visitor.call("show", data)
        assert answer["data"][0]["visible"] is False
        assert said in answer["said"] and "\n" not in answer["said"] and "/" not in answer["said"]
        assert "process_id" not in answer["said"]
    assert time.monotonic() - start < 60
    error = visitor.call("fill", [file, good, None, *FILL])["error"]
    assert said in error and str(server.temporary) not in error
    assert memory(server) < 3 * 2**30


def test_layers_that_no_editor_paints_are_refused(visitor: Visitor) -> None:
    picture = visitor.upload(png(photograph(60, 80)), "a.png")
    small = visitor.upload(png(np.full((9, 9, 4), 255, np.uint8)), "layer_0.png")
    for name, content in [
        ("layer_1.png", EPS),
        ("layer_1.png", png_of(30_000, 30_000, zlib.compress(bytes(9)))),
        ("layer_1.png", b"nothing"),
        ("layer_1.png", png(np.full((9, 10, 4), 255, np.uint8))),
        ("layer_1.gif", gif_bomb()),
    ]:
        canvas = {"layers": [small, visitor.upload(content, name)]}
        assert (
            "What was painted cannot be read" in visitor.call("fill", [picture, None, canvas, *FILL])["error"]
        )


# --- the end ---------------------------------------------------------------------------------------------


def test_nothing_was_looked_up_or_run_for_an_attacker(server: Server) -> None:
    touched = {line.strip() for line in server.log.read_text().splitlines()}
    (gradio,) = importlib.util.find_spec("gradio").submodule_search_locations
    seed = f"write {gradio}/hash_seed.txt"  # gradio writes it at its first import
    places = (f"write {server.temporary}", "write /dev/null", seed)
    assert {each for each in touched if not each.startswith(places)} <= {"look up 127.0.0.1"}
    errors = (server.root / "errors").read_text()
    assert "Traceback" not in errors, errors
