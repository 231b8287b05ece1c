"""The Fréchet distance is the formula's, and its weights are asked for in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.paper_metrics import FrechetDistance
from utils import UserError

pytest.importorskip("torchmetrics", reason="torchmetrics is optional")


class MeanColor(nn.Module):
    """Features of two dimensions: means of red and of green, in [0, 255]."""

    num_features = 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().mean(dim=(2, 3))[:, :2]


def test_it_is_the_distance_of_two_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(40, 3, 4, 4, generator=generator) for _ in range(2))
    distance = FrechetDistance(None, torch.device("cpu"), feature=MeanColor())
    for i in range(40):
        distance.update(pred[i : i + 1], target[i : i + 1])
    x, y = ((image * 255).round().double().mean(dim=(2, 3))[:, :2].numpy() for image in (pred, target))
    product = np.cov(x.T) @ np.cov(y.T)
    root = np.sqrt(np.linalg.eigvals(product)).real.sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(np.cov(x.T) + np.cov(y.T)) - 2 * root
    assert distance.compute() == pytest.approx(expected, rel=1e-4)


def test_one_image_has_no_covariance() -> None:
    distance = FrechetDistance(None, torch.device("cpu"), feature=MeanColor())
    distance.update(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4))
    assert distance.compute() is None


def test_missing_and_foreign_weights_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="--fid: no InceptionV3 weights: put weights-inception"):
        FrechetDistance(None, torch.device("cpu"))
    torch.save({"x": torch.ones(1)}, tmp_path / "foreign.pth")
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is optional")
    with pytest.raises(UserError, match="--fid_weights: not InceptionV3's") as error:
        FrechetDistance(str(tmp_path / "foreign.pth"), torch.device("cpu"))
    assert "\n" not in str(error.value)
