"""Selects the device of the computation, and makes its results repeatable."""

import random
from typing import Any

import numpy as np
import torch

from utils import UserError


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, make cuDNN deterministic, and flush denormals to zero."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.set_flush_denormal(True)


def select_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA, else MPS, else CPU.

    Raises:
        UserError: if there is no such device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, available in present.items() if available))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: no such device: {name} (auto, cuda, cuda:1, mps or cpu)") from None
    if not present.get(device.type, False) or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise UserError(f"--device: {name} is not available on this machine")
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16; on others torch emulates it, slowly."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11
    return device.type == "cpu" and any(
        capabilities.get(f"{prefix}bf16") for prefix in ("avx512_", "amx_", "")
    )
