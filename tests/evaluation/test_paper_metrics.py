"""The papers' variants are what their names say, beside float64 by hand and metrics.py."""

import numpy as np
import pytest
import torch

import metrics
from evaluation.paper_metrics import fitting, paper_scores


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 60, 70, generator=generator)
    output, raw = target.clone(), (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    output[..., 20:40, 30:50] = raw[..., 20:40, 30:50]
    return output, raw, target


def test_each_variant_is_what_it_says(pictures: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    output, raw, target = pictures
    scores = paper_scores(output, raw, target)
    grey, truth = (
        (image[0].double().numpy() * np.array([0.2125, 0.7154, 0.0721])[:, None, None]).sum(axis=0)
        for image in (output, target)
    )
    assert scores["psnr_grey"] == pytest.approx(-10 * np.log10(np.square(grey - truth).mean()), abs=1e-9)
    assert scores["relative_mae"] == pytest.approx(np.abs(grey - truth).sum() / (grey + truth).sum())

    # a uniform window of 51 pixels by cumulated sums, with the variances of a sample, where it fits
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
    assert scores["psnr_uncomposited"] == metrics.psnr(raw, target).item() < scores["psnr_8bit"]
    assert scores["l1_full"] == pytest.approx((output - target).abs().mean().item(), rel=1e-6)


def test_equal_pictures_get_the_best_values() -> None:
    image = torch.rand(1, 3, 20, 30)
    scores = paper_scores(image, image, image)
    assert scores["psnr_grey"] == scores["psnr_8bit"] == metrics.MAX_PSNR
    assert scores["ssim_grey_51"] == pytest.approx(1) and scores["relative_mae"] == 0


def test_what_is_not_at_hand_is_left_out() -> None:
    image = torch.rand(1, 3, 20, 30)
    assert not any("uncomposited" in name for name in paper_scores(image, None, image))


def test_windows_shrink_to_small_images() -> None:
    assert [fitting(51, (60, 70)), fitting(51, (20, 70)), fitting(7, (5, 5))] == [51, 19, 5]
