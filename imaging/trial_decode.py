"""Decodes a file once in a process of its own, which can be stopped, before it is decoded here."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from imaging.image_file import ImageFile, read_colors
from utils import UserError, one_line

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def start_forkserver() -> None:
    """Start the server that the processes are forked from, so that the first file need not wait for it."""
    if METHOD == "forkserver":
        from multiprocessing import forkserver  # absent on Windows

        multiprocessing.set_forkserver_preload([__name__])
        forkserver.ensure_running()


def try_decode(path: Path, is_mask: bool, max_megapixels: float, max_seconds: float) -> None:
    """Decode an image or mask file in another process.

    Raises:
        UserError: if it cannot be read, is too large by its header, or takes too long.
    """
    context: Any = multiprocessing.get_context(METHOD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=decode, args=(path, is_mask, max_megapixels, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(max_seconds):
            raise UserError(f"takes more than {max_seconds:g} seconds to read: {path}")
        message = receiver.recv()
    except EOFError:
        raise UserError(f"not a readable image: {path} (its decoder crashed)") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if message:
        raise UserError(message)


def decode(path: Path, is_mask: bool, max_megapixels: float, sender: Connection) -> None:
    """Read an image or mask file, and send why it cannot be read, or ""."""
    try:
        if is_mask:
            read_colors(path, max_megapixels)
        else:
            ImageFile(path, max_megapixels)
    except UserError as error:
        sender.send(one_line(error))
    else:
        sender.send("")
