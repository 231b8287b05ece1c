"""The prior is fitted once, before training, and only kept if it helps."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import read_checkpoint

from config import Config
from inference.checkpoints import load_checkpoint
from train import train
from utils import UserError


def test_the_prior_is_fitted_once_and_stays(config: Config, finished: Config, tmp_path: Path) -> None:
    fitted = read_checkpoint(finished.save_dir)
    basis = fitted["model"]["prior.basis"]
    assert basis.any() and torch.equal(basis, fitted["ema"]["prior.basis"])
    last = f"{finished.save_dir}/checkpoints/last.pth"
    train(dataclasses.replace(config, epochs=4, resume=last, seed=7))
    assert torch.equal(read_checkpoint(config.save_dir)["ema"]["prior.basis"], basis)
    again = dataclasses.replace(config, epochs=1, save_dir=str(tmp_path / "again"), init=last, seed=7)
    train(again)
    assert torch.equal(read_checkpoint(again.save_dir)["ema"]["prior.basis"], basis)


def test_a_prior_that_guesses_worse_than_push_pull_is_left_out(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for i in range(8):  # smooth, where the training images are not
        ramp = np.linspace(10 * i, 255 - 10 * i, 64).astype(np.uint8)
        image = np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 99)], 2)
        Image.fromarray(image.astype(np.uint8)).save(others / f"{i}.png")
    checkpoint = train(dataclasses.replace(config, epochs=1, val_root=str(others)))
    assert "worse than push-pull" in capsys.readouterr().err
    state = load_checkpoint(checkpoint, "")
    assert not state["model"]["prior.basis"].any() and not state["ema"]["prior.basis"].any()
    train(dataclasses.replace(config, epochs=2, resume="auto"))  # not fitted in the middle of a run
    assert not read_checkpoint(config.save_dir)["model"]["prior.basis"].any()


def test_weights_without_a_prior_are_given_one(config: Config, tmp_path: Path) -> None:
    without = dataclasses.replace(config, epochs=1, prior_rank=0, save_dir=str(tmp_path / "without"))
    weights = train(without)
    assert "prior.basis" not in read_checkpoint(tmp_path / "without")["model"]
    train(dataclasses.replace(config, epochs=1, lr=1e-12, init=str(weights)))
    state = read_checkpoint(config.save_dir)
    assert state["architecture"]["prior_rank"] == config.prior_rank and state["ema"]["prior.basis"].any()
    kept = load_checkpoint(weights, "--init")["ema"]["embed.weight"]
    assert torch.allclose(state["ema"]["embed.weight"], kept, atol=1e-6)
    with pytest.raises(UserError, match=r"--init: .* another architecture: prior_rank 32 there, 8 here"):
        path = Path(config.save_dir) / "checkpoints" / "last.pth"
        again = tmp_path / "again"
        train(dataclasses.replace(config, prior_rank=8, init=str(path), save_dir=str(again)))
