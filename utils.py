"""User errors, the command line, and files written atomically; imports no torch."""

import argparse
import contextlib
import csv
import errno
import io
import json
import os
import pickle
import re
import signal
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

DEFAULT_MASK_RATIO = (0.1, 0.4)  # range of the share of missing pixels in random masks


class UserError(Exception):
    """An error that the user can fix: printed as one line with exit status 2, without a traceback."""


def one_line(error: UserError) -> str:
    """The message of a user error; one from a loader process ends the traceback that torch makes of it."""
    return str(error).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut at 120 characters; the name of its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default in ("", None, []) or action.default is False
        return action.help if empty else super()._get_help_string(action)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s: one line, without the usage.

    Args:
        renamed: flags by their earlier names, without dashes: they work, but `--help` does not show them.
    """

    def __init__(self, renamed: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=DefaultsFormatter, **kwargs)
        self.renamed = renamed or {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments = sys.argv[1:] if args is None else args
        current = [
            re.sub(r"^--(\w+)", lambda m: f"--{self.renamed.get(m[1], m[1])}", text) for text in arguments
        ]
        return super().parse_known_args(current, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def print_any_name() -> None:
    """Print file names that the terminal's encoding lacks with escapes, where Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_program(main: Callable[[], int], program: str) -> NoReturn:
    """Run a command and exit with its status, or with 2 if its output cannot be printed."""
    for number in range(3):  # a closed standard stream would become the first file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    print_any_name()
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPIPE, errno.EIO):
            raise
        if error.filename is None:  # printing failed, and Python flushes again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        failed = "print" if error.filename is None else f"write {error.filename}"
        print(f"{program}: error: cannot {failed}: {error.strerror}", file=sys.stderr)
        status = 2
    sys.exit(status)


def split_roots(root: str) -> list[str]:
    """Split folders or shards joined by the system's path separator, unless the whole is an existing path."""
    return [root] if os.path.exists(root) else root.split(os.pathsep)


def is_shards(root: str) -> bool:
    """Whether a root names tar files rather than folders."""
    return any(part.endswith(".tar") and not os.path.isdir(part) for part in split_roots(root))


def make_folder(folder: Path, flag: str) -> None:
    """Make the folder of results and its parents.

    Raises:
        UserError: naming `flag`, if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}: cannot write to {folder}: {error.strerror}") from None


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` on success, remove it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    start = os.fsdecode(os.fsencode(path.name)[:200])  # names have at most 255 bytes
    temporary = path.with_name(f".{start}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a full disk, for one, names no file
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    with atomic_path(path) as temporary:
        # file names in the text that are not UTF-8 keep their bytes
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A table as CSV; a cell is empty if the row has no such column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_json(content: dict[str, Any], path: Path) -> None:
    write_text(json.dumps(content, indent=2) + "\n", path)


# raised by torch.load on a damaged or foreign file
READ_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    OSError,
)


def load_tensors(path: Path, flag: str, kind: str) -> Any:
    """Tensors and plain values of a file, on the CPU, read without running any code in it.

    Args:
        flag, kind: the flag and the kind of file that errors name.

    Raises:
        UserError: if the file is missing, damaged, or another program's.
    """
    import torch  # slow to import

    if not path.is_file():
        raise UserError(f"{flag}: no such file: {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other programs: they are refused in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        raise UserError(f"{flag}: not a readable {kind}: {path} ({first_line(error)})") from None
