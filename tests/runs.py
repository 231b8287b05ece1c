"""Small training runs and comparisons of their states, shared by several tests."""

from pathlib import Path
from typing import Any

import pytest
import torch

from config import Config, get_config
from inference.checkpoints import load_checkpoint
from training import step
from training.state import TrainingState

CPU = torch.device("cpu")
MUON = {"optimizer": "muon", "base_channels": 16}


def small_config(folder: Path, save_dir: Path, **changes: Any) -> Config:
    """A run of three epochs of three steps on the six images of `folder`."""
    settings = {"base_channels": 4, "bottleneck_depth": 1, "prior_rank": 32, "epochs": 3, "image_size": 32}
    settings |= {"train_root": str(folder), "val_root": str(folder), "val_subset": 3, "device": "cpu"}
    return get_config("debug", **settings | {"save_dir": str(save_dir)} | changes)


def read_checkpoint(folder: str | Path, name: str = "last.pth") -> dict[str, Any]:
    return load_checkpoint(Path(folder) / "checkpoints" / name, "--resume")


def assert_same(a: Any, b: Any, where: str = "", skipped: tuple[str, ...] = ()) -> None:
    """Check that two states are bit-identical, apart from times and what depends on the folder."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key not in ("elapsed_s", "seconds", "images_per_s", "config", *skipped):
                assert_same(a[key], b[key], f"{where}.{key}", skipped)
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]", skipped)
    else:
        assert a == b, where


def make_nonfinite(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the images of these training steps NaN on their way to the network."""
    to_device, count = step.to_device, 0

    def with_nan(batch: dict[str, Any], state: TrainingState) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal count
        count += torch.is_grad_enabled()  # not in validation
        image, mask = to_device(batch, state)
        return (image * float("nan") if torch.is_grad_enabled() and count in steps else image), mask

    monkeypatch.setattr(step, "to_device", with_nan)
