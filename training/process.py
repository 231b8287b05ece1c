"""The processes of a run: how they find each other, and what each sets up before it trains."""

import contextlib
import datetime
import os
from collections.abc import Iterator

import torch

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
