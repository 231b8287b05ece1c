"""Weights files: `load_network` reads what pack.py writes, and refuses a changed file."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, photograph

from config import get_config
from imaging.read import read_image
from inference.checkpoints import load_checkpoint, load_network, save_checkpoint, weights_digest
from inference.inpainter import Inpainter
from models import InpaintingNetwork
from utils import UserError

ARCHITECTURE = {"base_channels": 4, "bottleneck_depth": 1}


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pack", REPOSITORY / "weights" / "pack.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "ema": InpaintingNetwork(**ARCHITECTURE).state_dict(),
    }
    state["config"] = {"lr": 0.1, "train_root": "/home/someone/pictures"}
    state["counters"] = {"epoch": 1, "step": 2, "images": 3, "elapsed_s": 4.0, "size": 64}
    save_checkpoint(state, tmp_path / "best.pth")
    return tmp_path / "best.pth"


def test_packed_weights_complete_an_image_like_the_checkpoint(
    pack: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    report, packed = tmp_path / "report.json", tmp_path / "packed.pth"
    report.write_text(json.dumps({"images": 7, "protocol": {"checkpoint": "/home/someone/x.pth"}}))
    arguments = [str(checkpoint), str(packed), "--data", "seven images", "--metrics", str(report)]
    assert pack.main(arguments) == 0
    state = load_checkpoint(packed, "--checkpoint")
    assert state["data"] == "seven images" and state["metrics"] == [{"images": 7, "protocol": {}}]
    assert state["config"] == {"lr": 0.1}  # no private folders
    assert all(value.dtype == torch.float16 for value in state["ema"].values())
    assert packed.stat().st_size < 0.7 * checkpoint.stat().st_size
    pixels, hole = photograph(40, 40), np.eye(40, dtype=bool)
    results = [
        Inpainter.from_checkpoint(path, "cpu")(pixels, hole).astype(int) for path in (checkpoint, packed)
    ]
    assert np.abs(results[0] - results[1]).max() <= 1


def test_changed_weights_are_refused(pack: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    content = pack.pack(checkpoint, "data", [])
    content["ema"]["embed.bias"][0] += 1
    save_checkpoint(content, tmp_path / "changed.pth")
    with pytest.raises(UserError, match="not what its SHA-256 says"):
        load_network(tmp_path / "changed.pth", torch.device("cpu"))


def test_the_digest_is_of_names_types_shapes_and_values() -> None:
    weights = {"a": torch.arange(6.0).reshape(1, 2, 3, 1), "b": torch.ones(2)}
    digest = weights_digest(weights)
    assert digest == weights_digest(dict(reversed(weights.items())))
    assert digest == weights_digest(weights | {"a": weights["a"].to(memory_format=torch.channels_last)})
    changed = [
        weights | {"a": weights["a"].reshape(2, 3)},
        weights | {"b": torch.ones(2).half()},
        {"a": weights["a"]},
    ]
    assert len({digest, *map(weights_digest, changed)}) == 4


def test_user_errors_are_one_line(
    pack: ModuleType, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = load_checkpoint(checkpoint, "")
    wide["ema"]["embed.bias"][0] = 1e6
    save_checkpoint(wide, tmp_path / "wide.pth")
    for arguments, message in (
        ([str(tmp_path / "none.pth")], "CHECKPOINT: no such file"),
        ([str(tmp_path / "wide.pth")], "embed.bias does not fit half precision"),
        ([str(checkpoint), "--metrics", str(tmp_path / "none.json")], "--metrics: "),
    ):
        first, *rest = arguments
        assert pack.main([first, str(tmp_path / "out.pth"), "--data", "x", *rest]) == 2
        error = capsys.readouterr().err
        assert error.startswith("pack.py: error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(("name", "megabytes"), [("default", 8), ("fast", 3)])
def test_the_bundled_weights_are_small_whole_and_better_than_opencv(name: str, megabytes: int) -> None:
    path = REPOSITORY / "weights" / f"{name}.pth"
    assert path.stat().st_size < megabytes * 10**6
    state = load_checkpoint(path, "--checkpoint")
    assert (
        len(state["metrics"]) == 6 and state["data"] and not any("root" in name for name in state["config"])
    )
    assert state["architecture"] == get_config(name).architecture()
    pixels = read_image(REPOSITORY / "examples" / "astronaut.png")
    hole = read_image(REPOSITORY / "examples" / "astronaut_mask.png")[:, :, 0] > 127
    errors = [
        np.square(filled[hole].astype(float) - pixels[hole]).mean()
        for filled in (
            Inpainter.from_checkpoint(name, "cpu")(pixels, hole),
            cv2.inpaint(pixels, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA),
            cv2.inpaint(pixels, hole.astype(np.uint8), 3, cv2.INPAINT_NS),
        )
    ]
    assert errors[0] < 0.8 * min(errors[1:])


def test_without_a_name_the_default_weights_complete() -> None:
    networks = [Inpainter.from_checkpoint(name, "cpu").network for name in (None, "default", "fast")]
    digests = [weights_digest(network.state_dict()) for network in networks]
    assert digests[0] == digests[1] != digests[2]
