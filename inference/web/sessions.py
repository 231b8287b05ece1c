"""Browser sessions, each with the files that it has uploaded or was given; no other session can read them."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from utils import UserError

MAX_SESSIONS = 256
MAX_FILES = 500  # per session; the editor uploads three per stroke
MAX_TABS = 100  # per session
SESSION_BYTES = 2**30  # files of one session on the disk
TOTAL_BYTES = 8 * 2**30  # files of all sessions
IDLE_SECONDS = 86400  # idle time until a session ends
NAME_BYTES = 150  # longest name of an upload, so that "_filled" and a temporary suffix still fit
GONE = "this file is not here any more: open it again"


@dataclass
class Entry:
    """One file of a session: its size in bytes, when it was last used, and whether a handler opened it."""

    size: int
    used: float
    opened: bool = False


class Session:
    """The files that one browser has uploaded and was given.

    Args:
        folder: folder of all sessions, in which this one makes its own.

    Attributes:
        name: name of its folder, and start of gradio's session hashes.
        tabs: gradio's session hashes of the pages that have called a function, the last `MAX_TABS`.
        checked: paths of the files that could be decoded in time, and whether as masks.
    """

    def __init__(self, folder: Path) -> None:
        self.name = secrets.token_hex(16)
        self.folder = Path(os.path.realpath(folder)) / self.name
        self.files: dict[str, Entry] = {}
        self.tabs: list[str] = []
        self.checked: set[tuple[str, bool]] = set()
        self.used = time.monotonic()
        self.lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(entry.size for entry in [*self.files.values()])

    def new_path(self, name: str) -> Path:
        """A path for a new file, in a folder of its own."""
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir(0o700, parents=True)
        return folder / name

    def store(self, content: BinaryIO, name: str) -> str:
        """Keep an uploaded file, once however often it is uploaded; returns its path."""
        digest = hashlib.sha256()
        for block in iter(lambda: content.read(2**20), b""):
            digest.update(block)
        content.seek(0)
        path = self.folder / digest.hexdigest()[:32] / safe_name(name)
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        with temporary.open("wb") as file:
            shutil.copyfileobj(content, file)
        temporary.replace(path)
        return self.add(path)

    def add(self, path: Path) -> str:
        """Add a file that was written for this session; returns its path.

        Beyond `SESSION_BYTES` or `MAX_FILES` the least recently used file is deleted, first those that no
        handler has opened, such as older strokes.
        """
        with self.lock:
            self.files[str(path)] = Entry(path.stat().st_size, time.monotonic())
            while len(self.files) > MAX_FILES or (self.size > SESSION_BYTES and len(self.files) > 1):
                others = [name for name in self.files if name != str(path)]
                oldest = min(others, key=lambda name: (self.files[name].opened, self.files[name].used))
                del self.files[oldest]
                self.checked -= {(oldest, False), (oldest, True)}
                with contextlib.suppress(OSError):
                    Path(oldest).unlink()
                    Path(oldest).parent.rmdir()
        return str(path)

    def find(self, name: Any) -> Path:
        """The file of this session that a browser names by its path.

        Raises:
            UserError: if it is anything else than a regular file of this session.
        """
        entry = self.files.get(name) if isinstance(name, str) else None
        if entry is None:
            raise UserError(GONE)
        try:
            is_regular = os.path.realpath(name) == name and stat.S_ISREG(os.lstat(name).st_mode)
        except OSError:
            is_regular = False
        if not is_regular or not Path(name).is_relative_to(self.folder):
            raise UserError(GONE)
        entry.used = time.monotonic()
        return Path(name)

    def open(self, file: Any) -> Path | None:
        """The path of a gradio file that the page has sent; None without one.

        Raises:
            UserError: see `find`.
        """
        if file is None:
            return None
        path = self.find(file.get("path") if isinstance(file, dict) else None)
        self.files[str(path)].opened = True
        return path


class Sessions:
    """All sessions, by a secret token that each browser keeps in a cookie.

    Args:
        folder: folder of their files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_token: dict[str, Session] = {}
        self.lock = threading.Lock()

    def begin(self) -> str:
        """Begin a session and return its token; if there are too many, the least recently used one ends.

        Sessions without files end first, so that opening the page again and again ends no session in use.
        """
        token = secrets.token_urlsafe(32)
        with self.lock:
            now = time.monotonic()
            for old in [key for key, session in self.by_token.items() if now - session.used > IDLE_SECONDS]:
                self._end(old)
            while len(self.by_token) >= MAX_SESSIONS:
                sessions = self.by_token
                self._end(min(sessions, key=lambda key: (bool(sessions[key].files), sessions[key].used)))
            self.by_token[token] = Session(self.folder)
        return token

    def find(self, token: str | None) -> Session | None:
        """The session of a cookie."""
        session = self.by_token.get(token or "")
        if session is not None:
            session.used = time.monotonic()
        return session

    def named(self, session_hash: str | None) -> Session:
        """The session of gradio's session hash, which the guard has begun with the session's name.

        Raises:
            UserError: if it has ended.
        """
        for session in [*self.by_token.values()]:
            if (session_hash or "").startswith(session.name):
                return session
        raise UserError("this page was open for too long: reload it")

    def make_room(self, keep: Session) -> None:
        """End the least recently used sessions, but `keep`, until all fit into `TOTAL_BYTES`."""
        with self.lock:
            while sum(session.size for session in self.by_token.values()) > TOTAL_BYTES:
                others = {k: s for k, s in self.by_token.items() if s is not keep and s.files}
                if not others:
                    return
                self._end(min(others, key=lambda key: others[key].used))

    def _end(self, token: str) -> None:
        shutil.rmtree(self.by_token.pop(token).folder, ignore_errors=True)


def safe_name(name: str) -> str:
    """The last part of an uploaded file's name, without control characters, and not too long."""
    last = re.split(r"[/\\]", name)[-1]
    last = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "_", last)
    if last.strip(". ") == "":
        return "picture"
    stem, dot, suffix = last.rpartition(".")
    if not dot or not stem or len(suffix) > 10:
        stem, dot, suffix = last, "", ""
    room = NAME_BYTES - len((dot + suffix).encode())
    return stem.encode()[:room].decode(errors="ignore") + dot + suffix
