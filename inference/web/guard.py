"""Guards the page: checks the sender of each request, its size, and the files that it names."""

import asyncio
import contextlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, urlencode, urlsplit

from python_multipart.exceptions import FormParserError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from inference.web.sessions import MAX_TABS, Session, Sessions
from utils import UserError

COOKIE = "inpaint_{port}"  # browsers send a machine's cookies to all of its ports
HEADERS = {
    # nothing is loaded from, or sent to, another host
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
API = "/gradio_api"
STATIC_PAGES = ("/theme.css", "/manifest.json", "/favicon.ico")  # the same for everybody
STATIC_FOLDERS = ("/assets/", "/static/")
STATIC_PATH = re.compile(r"(?:/[\w.~@+ -]+)+")
IMAGE_TYPES = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp",
    ".gif": "image/gif", ".bmp": "image/bmp", ".avif": "image/avif",
}  # fmt: skip
HEAD_SECONDS = 10  # longest time to send the head of a request
PAUSE_SECONDS = 10  # longest pause between two pieces of a body
BODY_SECONDS = 600  # longest time to send a body
JSON_BYTES = 2**17  # largest call
FORM_BYTES = 2**16  # largest part of an upload that is not its files
MAX_FILES = 4  # per upload
DRAINED_BYTES = 2**23  # read of a refused body, so that the client comes to read the answer
TAB = re.compile(r"[A-Za-z0-9_-]{1,64}")  # gradio's session hash, one for each open page
HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?")
FOREIGN = """<!doctype html><meta charset="utf-8"><title>Inpaint</title>
<p>Another site has sent you here. <a href="/">Open the page</a></p>"""
RELOAD = "This page was open for too long, or its server was started anew: reload it."


class Guard:
    """An ASGI application before gradio's that passes on only the requests of the page itself.

    Uploads and downloads are served here, to the session that they belong to; gradio sees neither. Its
    session hashes begin with the name of the session that sent them, so nobody can name another's.

    Args:
        app: gradio's application.
        names: names of this machine, in lower case, that a Host header may hold.
        functions: gradio's names of the components that each of the page's functions takes, by its number.
        public: paths of files for everybody: small copies of the examples.
        max_upload: largest file, in bytes.
    """

    def __init__(
        self,
        app: ASGIApp,
        sessions: Sessions,
        *,
        names: Collection[str],
        functions: Mapping[int, list[str]],
        public: Collection[str],
        max_upload: int,
    ) -> None:
        self.app = app
        self.sessions = sessions
        self.names = names
        self.functions = functions
        self.public = public
        self.max_upload = max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse or pass on a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        cookies: list[str] = []

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in {name for name in headers if name.startswith("access-control-")}:
                    del headers[name]
                headers.update(HEADERS)
                for cookie in cookies:
                    headers.append("Set-Cookie", cookie)
            await send(message)

        body = Body(receive, self.max_upload + FORM_BYTES)
        request = Request(scope, body)
        try:
            answer = await self.answer(request, self.check_sender(request), cookies)
        except HTTPException as refused:
            await body.drain()
            foreign = refused.status_code == 403 and scope["path"] == "/"
            content = {"detail": refused.detail}
            answer = (HTMLResponse if foreign else JSONResponse)(
                FOREIGN if foreign else content, refused.status_code
            )
        except ClientDisconnect:
            return
        await answer(scope, receive, send_guarded)

    def check_sender(self, request: Request) -> str:
        """Refuse names that are not this machine's (DNS rebinding), and requests of other sites' pages.

        Returns:
            The name of the cookie.
        """
        hosts = request.headers.getlist("host")
        match = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None:
            refuse(400, "A request needs one Host.")
        name = (match[1] or match[2]).lower()
        address = (request.scope.get("server") or ("", 0))[0]  # the connection was made to it
        if name not in self.names and name != address.removeprefix("::ffff:"):
            refuse(421, f"This server is not called {name} (--allow_host).")
        own = {f"{scheme}://{hosts[0].lower()}" for scheme in ("http", "https")}
        senders = [origin.lower() for origin in request.headers.getlist("origin")]
        for referer in request.headers.getlist("referer"):
            with contextlib.suppress(ValueError):
                parts = urlsplit(referer.lower())
                referer = f"{parts.scheme}://{parts.netloc}"
            senders.append(referer)
        sites = request.headers.getlist("sec-fetch-site")
        if not own.issuperset(senders) or not {"same-origin", "none"}.issuperset(sites):
            refuse(403, "Only the page itself may ask.")
        return COOKIE.format(port=match[3] or 80)

    async def answer(self, request: Request, cookie_name: str, cookies: list[str]) -> ASGIApp:
        """The application that answers a request, gradio's or a response; other routes are not found.

        Args:
            cookies: the Set-Cookie headers to answer with; that of a new session is added.
        """
        scope, path = request.scope, request.scope["path"]
        scope["headers"] = [  # gradio would make the address of the page from the others
            (name, value) for name, value in scope["headers"]
            if not name.startswith((b"x-gradio", b"x-forwarded")) or name == b"x-forwarded-proto"
        ]  # fmt: skip
        session = self.sessions.find(request.cookies.get(cookie_name))
        method = "GET" if request.method == "HEAD" else request.method
        if method == "GET" and path == "/":
            scope["query_string"] = b""
            if session is None and request.method == "GET":
                token = self.sessions.begin()
                cookies.append(f"{cookie_name}={token}; Path=/; HttpOnly; SameSite=Strict")
            return self.app
        if method == "GET" and (path in STATIC_PAGES or path.startswith(STATIC_FOLDERS)):
            if len(path) > 300 or not STATIC_PATH.fullmatch(path) or ".." in path:
                refuse(404, "Not found.")
            return self.app
        routes = {
            ("GET", "/file="): self.file,
            ("GET", "/queue/data"): self.listen,
            ("GET", "/upload_progress"): self.progress,
            ("POST", "/upload"): self.upload,
            ("POST", "/queue/join"): self.join,
        }
        route = path.removeprefix(API) if path.startswith(API) else ""
        if route.startswith("/file="):
            route = "/file="
        if (method, route) not in routes:
            refuse(404, "Not found.")
        if session is None:
            refuse(403, RELOAD)
        return await routes[method, route](request, session)

    async def file(self, request: Request, session: Session) -> Response:
        """Answer with a file of this session, to be shown in the page or saved, and never run."""
        name = request.scope["path"].removeprefix(f"{API}/file=")
        try:
            path = Path(name) if name in self.public else session.find(name)
        except UserError:
            refuse(403, "Not a file of this session.")
        media_type = IMAGE_TYPES.get(path.suffix.lower(), "application/octet-stream")
        return FileResponse(
            path, media_type=media_type, filename=path.name, headers={"Cache-Control": "private"}
        )

    async def progress(self, request: Request, session: Session) -> Response:
        """Answer that an upload is done, as gradio's page waits for it: uploads are quick, or fail."""
        return PlainTextResponse('data: {"msg": "done"}\n\n', media_type="text/event-stream")

    async def upload(self, request: Request, session: Session) -> Response:
        """Keep files for this session; returns their paths."""
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            refuse(415, "An upload is multipart/form-data.")
        if stated_length(request) > self.max_upload + FORM_BYTES:
            refuse(413, "The file is too large.")
        try:
            form = await request.form(max_files=MAX_FILES, max_fields=MAX_FILES, max_part_size=4096)
        except (MultiPartException, FormParserError) as error:
            refuse(400, f"Not a multipart/form-data upload: {error}")
        try:
            files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
            if not files:
                refuse(400, "No file was uploaded.")
            if any((file.size or 0) > self.max_upload for file in files):
                refuse(413, "The file is too large.")
            self.sessions.make_room(session)
            paths = [await run_in_threadpool(session.store, file.file, file.filename or "") for file in files]
        except OSError as error:
            refuse(507, f"The file cannot be kept: {error.strerror}")
        finally:
            await form.close()
        return JSONResponse(paths)

    async def join(self, request: Request, session: Session) -> ASGIApp:
        """Pass a call of one of the page's functions on to gradio, rebuilt from its checked inputs."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            refuse(415, "A call is application/json.")
        if stated_length(request) > JSON_BYTES:
            refuse(413, "The call is too large.")
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > JSON_BYTES:
                refuse(413, "The call is too large.")
        try:
            sent = json.loads(body)
        except (ValueError, RecursionError):
            refuse(400, "The call is not JSON.")
        function, data, trigger = (
            [sent.get(key) for key in ("fn_index", "data", "trigger_id")]
            if isinstance(sent, dict)
            else [None] * 3
        )
        if type(function) is not int or function not in self.functions:
            refuse(400, "The page has no such function.")
        components = self.functions[function]
        if not isinstance(data, list) or len(data) != len(components):
            refuse(400, f"The function has {len(components)} inputs.")
        tab = own_tab(sent.get("session_hash"), session)
        call = {
            "fn_index": function,
            "data": [checked(*pair, session) for pair in zip(data, components, strict=True)],
            "trigger_id": trigger if type(trigger) is int else None,
            "session_hash": tab,
        }
        session.tabs = [*(other for other in session.tabs if other != tab), tab][-MAX_TABS:]
        scope, rebuilt = dict(request.scope), json.dumps(call).encode()
        scope["query_string"] = b""
        scope["headers"] = [
            pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"transfer-encoding")
        ] + [(b"content-length", str(len(rebuilt)).encode())]

        async def pass_on(_: Scope, receive: Receive, send: Send) -> None:
            pieces = [rebuilt]

            async def receive_rebuilt() -> Message:
                if pieces:
                    return {"type": "http.request", "body": pieces.pop(), "more_body": False}
                return await receive()

            await self.app(scope, receive_rebuilt, send)

        return pass_on

    async def listen(self, request: Request, session: Session) -> ASGIApp:
        """Pass a request for the answers to a page's calls on to gradio."""
        query = parse_qs(request.url.query)
        tab = own_tab(query.get("session_hash", [""])[0], session)
        if tab not in session.tabs:
            refuse(404, "The page has called no function.")
        request.scope["query_string"] = urlencode({"session_hash": tab}).encode()
        return self.app


def refuse(status: int, detail: str) -> NoReturn:
    """Refuse a request with a status of 400 or above, and a line for the page to show."""
    raise HTTPException(status, detail)


class Body:
    """The `receive` of a request; refuses a body that has more than `limit` bytes or comes slowly."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive, self.limit = receive, limit
        self.now = asyncio.get_running_loop().time
        self.deadline = self.now() + BODY_SECONDS
        self.count = 0
        self.ended = False

    async def __call__(self) -> Message:
        """The next message."""
        patience = min(PAUSE_SECONDS, self.deadline - self.now())
        try:
            message = await asyncio.wait_for(self.receive(), max(0.0, patience))
        except asyncio.TimeoutError:
            refuse(408, "The request came too slowly.")
        self.count += len(message.get("body", b""))
        self.ended = message["type"] != "http.request" or not message.get("more_body")
        if self.count > self.limit:
            refuse(413, "The request is too large.")
        return message

    async def drain(self) -> None:
        """Read a refused body for another second: a client cut off while it writes reads no answer."""
        self.limit += DRAINED_BYTES
        self.deadline = self.now() + 1
        with contextlib.suppress(HTTPException):
            while not self.ended:
                await self()


def stated_length(request: Request) -> int:
    """The Content-Length, not to be trusted; 0 without one."""
    stated = request.headers.get("content-length", "")
    return int(stated[:20]) if stated.isdecimal() else 0


def own_tab(tab: Any, session: Session) -> str:
    """Gradio's session hash of an open page of this session."""
    if not isinstance(tab, str) or not TAB.fullmatch(tab):
        refuse(400, "The call needs a session_hash.")
    return f"{session.name}{tab}"


def checked(value: Any, component: str, session: Session) -> Any:
    """An input of a function, rebuilt: a file of this session, the editor's layers, or a plain value.

    Args:
        component: gradio's name of the component that it comes from.
    """
    if value is None:
        return None
    if component == "file" and isinstance(value, dict):
        try:
            path = session.find(value.get("path"))
        except UserError as error:
            refuse(403, f"{str(error).capitalize()}.")
        return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
    if component == "imageeditor" and isinstance(value, dict):
        layers = value.get("layers")
        if "path" not in value and isinstance(layers, list) and len(layers) <= 8:
            if not all(isinstance(layer, dict) for layer in layers):
                refuse(400, "A layer of the call is not a file.")
            files = [checked(layer, "file", session) for layer in layers]
            return {"background": None, "layers": files, "composite": None}
    elif component not in ("file", "imageeditor"):
        if isinstance(value, str) and len(value) <= 300:
            return value
        if isinstance(value, int | float) and abs(value) < 1e9:
            return value
    return refuse(400, "An input of the call is of a kind that the page does not send.")


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 whose connections end if the head of a request takes longer than `HEAD_SECONDS`."""

    waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self.waiting = self.loop.call_later(HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head, unless a request is being answered."""
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None
        elif not answering and self.waiting is None:
            self.waiting = self.loop.call_later(HEAD_SECONDS, self.transport.close)
