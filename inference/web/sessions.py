"""Browser sessions: the files that each has uploaded or was given, which no other session can read."""

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
MAX_FILES = 500  # of a session; the editor uploads three a stroke
MAX_TABS = 100  # of a session
SESSION_BYTES = 2**30  # on the disk, of one session
TOTAL_BYTES = 8 * 2**30  # and of all
IDLE_SECONDS = 86400  # after which a session is forgotten
NAME_BYTES = 150  # of an uploaded file, so that "_filled" and a temporary suffix still fit
GONE = "this file is not here any more: open it again"


@dataclass
class Entry:
    """One file of a session: its size in bytes, when it was last used, and whether a handler opened it."""

    size: int
    used: float
    opened: bool = False


class Session:
    """What one browser has uploaded and was given.

    Args:
        folder: of all sessions; this one makes its own in it.

    Attributes:
        name: of its folder, and the start of what gradio calls its session hash.
        tabs: gradio's session hashes of the pages that have called a function, the last `MAX_TABS`.
        checked: paths of the files that were decoded once, in time; and whether as masks.
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
        """Give a file that was written for this session to it; returns its path.

        Beyond `SESSION_BYTES` or `MAX_FILES` the file goes that was used longest ago, first those that no
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

    def find(self, named: Any) -> Path:
        """The file that a browser names, if this session has it and it is a regular file.

        Raises:
            UserError: for everything else, whatever it is.
        """
        entry = self.files.get(named) if isinstance(named, str) else None
        if entry is None:
            raise UserError(GONE)
        try:
            regular = os.path.realpath(named) == named and stat.S_ISREG(os.lstat(named).st_mode)
        except OSError:
            regular = False
        if not regular or not Path(named).is_relative_to(self.folder):
            raise UserError(GONE)
        entry.used = time.monotonic()
        return Path(named)

    def open(self, file: Any) -> Path | None:
        """The path of a gradio file, as the page sends it; None where there is none.

        Raises:
            UserError: as `find`.
        """
        if file is None:
            return None
        path = self.find(file.get("path") if isinstance(file, dict) else None)
        self.files[str(path)].opened = True
        return path


class Sessions:
    """All sessions, by a secret that each browser keeps in a cookie.

    Args:
        folder: where their files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_token: dict[str, Session] = {}
        self.lock = threading.Lock()

    def begin(self) -> str:
        """A new session's token; if there are too many, the one ends that was used longest ago.

        Sessions without files go first, so that a stranger who opens the page again and again ends no
        session in use.
        """
        token = secrets.token_urlsafe(32)
        with self.lock:
            now = time.monotonic()
            for old in [key for key, each in self.by_token.items() if now - each.used > IDLE_SECONDS]:
                self._end(old)
            while len(self.by_token) >= MAX_SESSIONS:
                self._end(
                    min(self.by_token, key=lambda key: (bool(self._get(key).files), self._get(key).used))
                )
            self.by_token[token] = Session(self.folder)
        return token

    def find(self, token: str | None) -> Session | None:
        """The session of a cookie."""
        session = self.by_token.get(token or "")
        if session is not None:
            session.used = time.monotonic()
        return session

    def named(self, session_hash: str | None) -> Session:
        """The session whose name gradio's session hash starts with, as the guard made it.

        Raises:
            UserError: if it has ended.
        """
        for session in [*self.by_token.values()]:
            if (session_hash or "").startswith(session.name):
                return session
        raise UserError("this page was open for too long: reload it")

    def make_room(self, keep: Session) -> None:
        """End the sessions that were used longest ago, but `keep`, until all fit into `TOTAL_BYTES`."""
        with self.lock:
            while sum(each.size for each in self.by_token.values()) > TOTAL_BYTES:
                others = [key for key, each in self.by_token.items() if each is not keep and each.files]
                if not others:
                    return
                self._end(min(others, key=lambda key: self._get(key).used))

    def _get(self, token: str) -> Session:
        return self.by_token[token]

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
