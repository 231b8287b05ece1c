"""Metrics of papers equal their definitions in float64; the Fréchet distance is its formula's."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import metrics
from evaluation.paper_metrics import FrechetDistance, fitting, paper_scores
from utils import UserError

needs_torchmetrics = pytest.mark.skipif(
    importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is optional"
)


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 60, 70, generator=generator)
    output, uncomposited = (
        target.clone(),
        (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1),
    )
    output[..., 20:40, 30:50] = uncomposited[..., 20:40, 30:50]
    return output, uncomposited, target


def test_each_variant_equals_its_definition(images: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    output, uncomposited, target = images
    scores = paper_scores(output, uncomposited, target)
    grey, truth = (
        (image[0].double().numpy() * np.array([0.2125, 0.7154, 0.0721])[:, None, None]).sum(axis=0)
        for image in (output, target)
    )
    assert scores["psnr_grey"] == pytest.approx(-10 * np.log10(np.square(grey - truth).mean()), abs=1e-9)
    assert scores["relative_mae"] == pytest.approx(np.abs(grey - truth).sum() / (grey + truth).sum())

    # a uniform window of 51 pixels by cumulative sums, with the variances of a sample, wherever it fits
    def window(image: np.ndarray) -> np.ndarray:
        total = np.pad(image, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        return (total[51:, 51:] - total[:-51, 51:] - total[51:, :-51] + total[:-51, :-51]) / 51**2

    n = 51**2 / (51**2 - 1)
    x, y = window(grey), window(truth)
    variances = (window(grey**2) - x**2 + window(truth**2) - y**2) * n
    covariance = (window(grey * truth) - x * y) * n
    similarity = (2 * x * y + 1e-4) * (2 * covariance + 9e-4) / ((x**2 + y**2 + 1e-4) * (variances + 9e-4))
    assert scores["ssim_grey_51"] == pytest.approx(similarity.mean(), abs=1e-9)
    eight = [(image * 255).round().double() / 255 for image in (output, target)]
    assert scores["psnr_8bit"] == pytest.approx(metrics.psnr(*eight).item(), abs=1e-9)
    assert scores["psnr_uncomposited"] == metrics.psnr(uncomposited, target).item() < scores["psnr_8bit"]
    assert scores["l1_full"] == pytest.approx((output - target).abs().mean().item(), rel=1e-6)


def test_equal_images_get_the_best_values() -> None:
    image = torch.rand(1, 3, 20, 30)
    scores = paper_scores(image, image, image)
    assert scores["psnr_grey"] == scores["psnr_8bit"] == metrics.MAX_PSNR
    assert scores["ssim_grey_51"] == pytest.approx(1) and scores["relative_mae"] == 0


def test_unknown_uncomposited_images_are_left_out() -> None:
    image = torch.rand(1, 3, 20, 30)
    assert not any("uncomposited" in name for name in paper_scores(image, None, image))


def test_windows_shrink_to_small_images() -> None:
    assert [fitting(51, (60, 70)), fitting(51, (20, 70)), fitting(7, (5, 5))] == [51, 19, 5]


class MeanColor(nn.Module):
    """Features of two dimensions: means of red and of green, in [0, 255]."""

    num_features = 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().mean(dim=(2, 3))[:, :2]


@needs_torchmetrics
def test_the_frechet_distance_is_that_of_two_gaussians() -> None:
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


@needs_torchmetrics
def test_one_image_has_no_frechet_distance() -> None:
    distance = FrechetDistance(None, torch.device("cpu"), feature=MeanColor())
    distance.update(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4))
    assert distance.compute() is None


@needs_torchmetrics
def test_missing_and_foreign_inception_weights_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="--use_fid: no InceptionV3 weights: put weights-inception"):
        FrechetDistance(None, torch.device("cpu"))
    torch.save({"x": torch.ones(1)}, tmp_path / "foreign.pth")
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is optional")
    with pytest.raises(UserError, match="--fid_weights: not InceptionV3's") as error:
        FrechetDistance(str(tmp_path / "foreign.pth"), torch.device("cpu"))
    assert "\n" not in str(error.value)
