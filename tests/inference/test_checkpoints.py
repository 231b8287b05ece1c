import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photograph, randomize_zero_init

import inference.checkpoints
import inference.inpainter
from inference.checkpoints import (
    find_weights,
    load_checkpoint,
    load_network,
    open_network,
    save_checkpoint,
    weights_digest,
)
from inference.inpainter import Inpainter, inpaint
from models import InpaintingNetwork
from utils import UserError


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    save_checkpoint({"weights": torch.arange(3.0), "name": "x"}, tmp_path / "a" / "c.pth")
    state = load_checkpoint(tmp_path / "a" / "c.pth", "--resume")
    assert torch.equal(state["weights"], torch.arange(3.0))
    assert state["name"] == "x"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["c.pth"]


class Malicious:
    def __reduce__(self) -> tuple:
        return (Path("executed").write_text, ("x",))


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", pickle.dumps({"a": 1}), pickle.dumps(Malicious()), b"PK\x03\x04 cut"],
)
def test_a_bad_checkpoint_is_refused_in_one_line_and_not_executed(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"--resume: not a") as error:
        load_checkpoint(path, "--resume")
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()


def test_a_truncated_checkpoint_and_another_programs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    save_checkpoint({"weights": torch.rand(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(path, "--checkpoint")
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        load_checkpoint(path, "--checkpoint")
    with pytest.raises(UserError, match="--checkpoint: no such file"):
        load_checkpoint(tmp_path / "none.pth", "--checkpoint")


def test_weights_are_found_by_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    architecture = {"base_channels": 4, "bottleneck_depth": 1}
    network = randomize_zero_init(InpaintingNetwork(**architecture)).eval()  # type: ignore[arg-type]
    half = {name: value.half() for name, value in network.state_dict().items()}
    save_checkpoint({"architecture": architecture, "ema": half, "config": {}}, tmp_path / "default.pth")
    monkeypatch.setattr(inference.checkpoints, "WEIGHTS", tmp_path)
    assert find_weights(None) == find_weights("default") == tmp_path / "default.pth"
    assert find_weights(tmp_path / "default.pth") == tmp_path / "default.pth"
    image, mask = photograph(32, 32), np.zeros((32, 32), bool)
    mask[8:17, 10:22] = True
    inference.inpainter._bundled.cache_clear()
    filled = inpaint(image, mask)
    inference.inpainter._bundled.cache_clear()
    assert np.abs(filled.astype(int) - Inpainter(network)(image, mask)).max() <= 1
    with pytest.raises(UserError, match="--checkpoint: no such file: fast"):
        load_network("fast", torch.device("cpu"))
    save_checkpoint({"architecture": {"base_channels": 6}, "ema": half, "config": {}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="another version of this project"):
        load_network("other", torch.device("cpu"))


def test_a_bundled_network_comes_with_its_settings_and_digest() -> None:
    trained = open_network("default", torch.device("cpu"), "--checkpoint")
    state = load_checkpoint(find_weights("default"), "--checkpoint")
    assert trained.weights_sha256 == weights_digest(state["ema"])
    assert trained.settings == state["config"] and trained.settings["image_size"] > 0
    assert isinstance(trained.network, InpaintingNetwork) and not trained.network.training
