"""What every command line shares: the user's errors, in one line and with exit status 2."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class UserError(Exception):
    """A mistake that the user can mend: printed as one line, exit status 2, no traceback."""


def one_line(error: UserError) -> str:
    """What the user is told; of an error in a loader process, which torch wraps in its traceback, the end."""
    return str(error).strip().splitlines()[-1].removeprefix("cli.UserError: ")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s: one line, without the usage."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def print_any_name() -> None:
    """Let names that the terminal's encoding does not have be printed as escapes, and not end a program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_program(main: Callable[[], int], program: str) -> NoReturn:
    """Run a command and end the process with its status; 2 if what it printed cannot be written."""
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
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EPIPE, errno.EIO):
            raise  # of something else than printing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again at its end
        print(f"{program}: error: cannot print: {error.strerror}", file=sys.stderr)
        status = 2
    sys.exit(status)
