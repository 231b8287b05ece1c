"""The processes of a run: how they find each other, and what each sets up before it trains."""

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

PATIENCE = datetime.timedelta(hours=6)  # of processes that wait for the first to validate or to decode


@contextlib.contextmanager
def process_group(device: str = "auto") -> Iterator[tuple[int, int]]:
    """Join the processes that `torchrun` started: (rank, number of processes); (0, 1) without it.

    Args:
        device: as of `select_device`; processes with CUDA devices talk through nccl, others through gloo.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes == 1:
        yield 0, 1
        return
    cuda = torch.cuda.is_available() and device.partition(":")[0] in ("auto", "cuda")
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield torch.distributed.get_rank(), num_processes
    finally:
        torch.distributed.destroy_process_group()


def set_up_process(seed: int) -> None:
    """Seed every generator, and set what makes training fast: TF32, no denormal numbers, memory kept."""
    seed_everything(seed)
    torch.set_flush_denormal(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks for the next step instead of returning them to the system.

    Their pages would be cleared again at every step: a fifth of the time of one at 256 px.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            trim_threshold, mmap_threshold = -1, -3
            libc.mallopt(mmap_threshold, 2**30)
            libc.mallopt(trim_threshold, 2**31 - 1)


class Interrupted(Exception):
    """A signal asked the run to end; what it had done is saved."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


class WorkerLost(Exception):
    """Another process of the run ended, or cannot be reached any more."""


class StopSignal:
    """Turns SIGINT and SIGTERM into a flag that the loop looks at after each step; a second ends at once.

    Attributes:
        received: the signal that this process got; written by the handler alone.
        agreed: the one that all processes know of after the same step, and act on.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.agreed: int | None = None
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
        for each in self.previous:
            signal.signal(each, signal.SIG_DFL)


def is_connection_error(error: RuntimeError) -> bool:
    """Whether torch.distributed says that another process did not answer; gloo has no type for it."""
    return isinstance(error, torch.distributed.DistError) or "onnection" in str(error) or "gloo" in str(error)
