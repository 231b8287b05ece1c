"""What every command line shares: the user's errors, in one line and with exit status 2."""

import argparse
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
