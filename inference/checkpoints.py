"""Checkpoint files: read, written, and opened as a network."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from utils import UserError, atomic_path, load_tensors

CHECKPOINT_FORMAT = "msse-inpainting-1"


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain Python values to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save({"format": CHECKPOINT_FORMAT, **state}, temporary)


def load_checkpoint(path: Path, flag: str) -> dict[str, Any]:
    """Read a checkpoint of this project on the CPU without running any code in it.

    Raises:
        UserError: naming `flag`, if the file is missing, damaged, or another program's.
    """
    state = load_tensors(path, flag, "checkpoint")
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"{flag}: not a checkpoint of this project: {path}")
    return state


def weights_digest(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().numpy().tobytes())  # in C order, whatever the strides
    return digest.hexdigest()
