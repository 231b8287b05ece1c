"""Processes of a training run: how they connect, their settings, and the signals that stop them."""

import contextlib
import ctypes
import datetime
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

from inference.device import seed_everything

TIMEOUT = datetime.timedelta(hours=6)  # while the first process validates or decodes images


class Interrupted(Exception):
    """A signal asked the run to stop."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


class WorkerLost(Exception):
    """Another process of the run ended or cannot be reached."""


@contextlib.contextmanager
def process_group(device: str = "auto") -> Iterator[tuple[int, int]]:
    """Join the processes that `torchrun` started: (rank, number of processes); (0, 1) without it.

    Args:
        device: see `select_device`; CUDA devices communicate through NCCL, all others through Gloo.

    Raises:
        WorkerLost: if another process ended.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes == 1:
        yield 0, 1
        return
    cuda = torch.cuda.is_available() and device.partition(":")[0] in ("auto", "cuda")
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    try:
        yield torch.distributed.get_rank(), num_processes
    except RuntimeError as error:
        if is_connection_error(error):
            raise WorkerLost from error
        raise
    finally:
        torch.distributed.destroy_process_group()


def is_connection_error(error: RuntimeError) -> bool:
    """Whether another process did not answer; Gloo reports this as a plain `RuntimeError`."""
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or "connection" in text or "gloo" in text


def set_up_process(seed: int) -> None:
    """Seed every generator and make training fast: TF32, no denormal numbers, freed memory kept.

    These settings stay until the process ends.
    """
    seed_everything(seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks for the next step, until the process ends.

    Otherwise their pages are returned to the system and cleared again: a fifth of a step's time at 256 px.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            trim_threshold, mmap_threshold = -1, -3
            libc.mallopt(mmap_threshold, 2**30)
            libc.mallopt(trim_threshold, 2**31 - 1)


class StopSignal:
    """Context that records a first SIGINT or SIGTERM in `received`; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received = 0
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self.previous = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        for handled in self.previous:
            signal.signal(handled, signal.SIG_DFL)
