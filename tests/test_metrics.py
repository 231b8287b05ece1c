"""Metrics equal their references, count only where they mean something, and have one rule for means."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photograph
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from evaluation.ablation_table import Result
from evaluation.report import Scored, means
from metrics import (
    MAX_PSNR,
    MAX_SHARPNESS,
    METRICS,
    ROUNDING_ENERGY,
    MetricsCalculator,
    all_metrics,
    boundary_band,
    boundary_psnr,
    dilate,
    l1,
    load_trunk,
    lpips_score,
    mean_interval,
    mean_over_images,
    psnr,
    seam_jump,
    sharpness,
    ssim,
    why_no_lpips,
)
from metrics import _lpips_network as lpips_network
from utils import UserError

WANG = {
    "gaussian_weights": True,
    "sigma": 1.5,
    "use_sample_covariance": False,
    "data_range": 1,
    "channel_axis": 2,
}

Batch = tuple[torch.Tensor, torch.Tensor]


def pair(height: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image and a noisy copy, (1, 3, height, width) in [0, 1]."""
    target = photograph(height, width, seed).astype(np.float32) / 255
    noise = np.random.default_rng(seed).normal(0, 0.1, target.shape)
    pred = (target + noise).clip(0, 1).astype(np.float32)
    return tuple(torch.from_numpy(x.transpose(2, 0, 1)[None].copy()) for x in (pred, target))  # type: ignore


def numpy_image(x: torch.Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 0).double().numpy()


@pytest.mark.parametrize("size", [(11, 11), (37, 51), (64, 64)])
def test_psnr_and_ssim_equal_scikit_images_on_full_masks(size: tuple[int, int]) -> None:
    for seed in range(3):
        pred, target = pair(*size, seed)
        a, b = numpy_image(pred), numpy_image(target)
        assert psnr(pred, target).item() == pytest.approx(
            peak_signal_noise_ratio(b, a, data_range=1), abs=1e-5
        )
        expected = structural_similarity(a, b, **WANG)
        assert ssim(pred, target).item() == pytest.approx(expected, abs=1e-5)
        assert ssim(pred, target, torch.ones(1, 1, *size)).item() == pytest.approx(expected, abs=1e-5)


def test_ssim_of_black_and_white_keeps_its_digits() -> None:
    target = torch.zeros(1, 3, 48, 48)
    target[..., 24:] = 1
    pred = (target + 0.01 * torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    expected = structural_similarity(numpy_image(pred), numpy_image(target), **WANG)
    assert ssim(pred, target).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_over_a_hole_is_the_mean_of_scikit_images_map() -> None:
    pred, target = pair(40, 52, 1)
    mask = torch.zeros(1, 1, 40, 52)
    mask[..., 2:20, 30:] = 1  # reaches into the border, where windows are cut
    _, similarity = structural_similarity(numpy_image(pred), numpy_image(target), **WANG, full=True)
    assert ssim(pred, target, mask).item() == pytest.approx(similarity[5:20, 30:-5].mean(), abs=1e-5)
    border = torch.zeros(1, 1, 40, 52)
    border[..., :3, :] = 1  # nothing else is missing
    assert -1 <= ssim(pred, target, border).item() <= 1


def test_psnr_by_hand() -> None:
    target = torch.zeros(2, 3, 2, 2)
    mask = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]], [[[1.0, 0.0], [0.0, 0.0]]]])
    pred = target.clone()
    pred[0, :, 0, 0] = 0.1  # MSE over the two missing pixels: 0.005
    pred[1] = 0.5  # 0.25
    assert psnr(pred, target, mask).tolist() == pytest.approx([23.0103, 6.0206], abs=1e-3)
    assert psnr(255 * pred, 255 * target, mask, data_range=255)[1].item() == pytest.approx(6.0206, abs=1e-3)
    assert l1(pred, target, mask).tolist() == pytest.approx([0.05, 0.5])


def test_equal_images_and_empty_holes_get_the_best_value() -> None:
    pred, target = pair(20, 20, 0)
    empty = torch.zeros(1, 1, 20, 20)
    for metric, best in ((psnr, MAX_PSNR), (ssim, 1.0), (l1, 0.0), (boundary_psnr, MAX_PSNR)):
        assert metric(target, target, 1 - empty).item() == pytest.approx(best, abs=1e-6)
        assert metric(pred, target, empty).item() == best


def test_small_images_have_an_ssim() -> None:
    for size in ((1, 1), (3, 9), (6, 6)):
        x = torch.rand(1, 3, *size)
        assert ssim(x, x).item() == pytest.approx(1)
        assert torch.isfinite(ssim(x, torch.rand(1, 3, *size)))


def test_boundary_psnr_counts_missing_pixels_near_known_ones_alone() -> None:
    target = torch.zeros(1, 3, 40, 40)
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 20:] = 1
    pred = target.clone()
    pred[..., :20] = 1  # known side: must not count
    pred[..., 25:] = 1  # sixth missing column and on: too far
    assert boundary_psnr(pred, target, mask).item() == MAX_PSNR
    pred[..., 24] = 0.5  # the fifth: one of five columns
    assert boundary_psnr(pred, target, mask).item() == pytest.approx(10 * np.log10(5 / 0.25), abs=1e-4)
    assert boundary_psnr(pred, target, mask, boundary_width=4).item() == MAX_PSNR
    assert boundary_psnr(pred, target, torch.ones_like(mask)).item() == MAX_PSNR  # no boundary


def test_the_means_do_not_depend_on_the_batches() -> None:
    pairs = [pair(24, 24, seed) for seed in range(5)]
    pred, target = (torch.cat(each) for each in zip(*pairs, strict=True))
    mask = (torch.rand(5, 1, 24, 24, generator=torch.Generator().manual_seed(0)) > 0.6).float()
    results = []
    for size in (1, 2, 5):
        calculator = MetricsCalculator()
        for start in range(0, 5, size):
            part = slice(start, start + size)
            calculator.update(pred[part], target[part], mask[part])
        results.append(calculator.compute())
    for other in results[1:]:
        assert other == pytest.approx(results[0], abs=1e-6)
    assert results[0]["psnr"] == pytest.approx(psnr(pred, target, mask).mean().item(), abs=1e-5)


def test_images_without_a_hole_or_a_boundary_do_not_count() -> None:
    pred, target = pair(24, 24, 0)
    hole = torch.zeros(1, 1, 24, 24)
    hole[..., :12] = 1
    calculator = MetricsCalculator()
    calculator.update(pred, target, hole)
    alone = calculator.compute()
    calculator.update(pred, target, torch.zeros_like(hole))
    assert calculator.compute()["psnr"] == alone["psnr"]
    calculator.update(pred, target, torch.ones_like(hole))
    assert calculator.compute()["boundary_psnr"] == alone["boundary_psnr"]
    assert calculator.compute()["psnr"] != alone["psnr"]
    nothing = MetricsCalculator()
    assert nothing.compute() == {}
    nothing.update(pred, target, torch.zeros_like(hole))
    assert nothing.compute()["psnr"] == MAX_PSNR


def test_every_metric_has_a_row_in_the_table_and_counts_only_in_its_region() -> None:
    pred, target = pair(24, 24, 0)
    names = [*all_metrics(pred, target, torch.ones(1, 1, 24, 24)), "lpips"]
    assert set(names) == METRICS.keys() and all(name == metric.name for name, metric in METRICS.items())
    for name, metric in METRICS.items():
        counted = {"hole": [2, 3], "boundary": [2], "image": [1, 2, 3]}[metric.region]
        assert mean_over_images(name, [1, 2, 3], [0.0, 0.4, 1.0]) == np.mean(counted)
        assert mean_over_images(name, [4], [0.0]) == 4  # nothing else is there
        best = max((-0.2, 0.1, 0.8, 1.4), key=metric.rank)
        assert best == {"higher": 1.4, "lower": -0.2, "zero": 0.1, "one": 0.8}[metric.better]


def test_one_rule_for_the_means_of_a_hole_and_an_empty_mask() -> None:
    target = torch.full((1, 3, 20, 20), 0.5)
    hole = torch.zeros(1, 1, 20, 20)
    hole[..., :4] = 1
    pred = target + 0.1 * hole  # 20 dB
    calculator = MetricsCalculator()
    for mask in (hole, torch.zeros_like(hole)):
        calculator.update(pred if mask is hole else target, target, mask)
    assert calculator.compute()["psnr"] == pytest.approx(20, abs=1e-5)
    values, ratios = calculator.values["psnr"], calculator.mask_ratios
    assert values[1] == MAX_PSNR
    scored = [Scored(str(i), str(i), "other", ratios[i], {"output": {"psnr": values[i]}}) for i in (0, 1)]
    assert means(scored, "output") == {"psnr": calculator.compute()["psnr"]}
    holes = [{"name": str(i), "bucket": "other", "mask_ratio": ratios[i], "psnr": values[i]} for i in (0, 1)]
    assert Result("row", 1, 1, 1, 1.0, "", holes).means()["psnr"] == calculator.compute()["psnr"]


def test_lpips_equals_the_packages_own_network(alexnet_file: Path) -> None:
    lpips = pytest.importorskip("lpips")
    pred, target = pair(64, 64, 0)
    score = lpips_score(pred, target, str(alexnet_file))
    assert score.shape == (1,)
    assert lpips_score(target, target, str(alexnet_file)).item() == 0
    trunk = torch.load(alexnet_file, weights_only=True)
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    names = {
        f"net.slice{k}.{n}.{kind}": trunk[f"features.{n}.{kind}"]
        for k, n in enumerate((0, 3, 6, 8, 10), start=1)
        for kind in ("weight", "bias")
    }
    assert not reference.load_state_dict(names, strict=False).unexpected_keys
    with torch.no_grad():
        expected = reference(2 * pred - 1, 2 * target - 1).item()
    assert score.item() == pytest.approx(expected, abs=1e-6)
    calculator = MetricsCalculator(use_lpips=True, lpips_weights=str(alexnet_file))
    calculator.update(pred, target, torch.ones(1, 1, 64, 64))
    assert calculator.compute()["lpips"] == pytest.approx(expected, abs=1e-6)


def test_lpips_of_tiny_images_is_refused() -> None:
    x = torch.rand(1, 3, 16, 40)
    with pytest.raises(UserError, match="at least 32×32 pixels, got 40×16"):
        lpips_score(x, x)


def test_lpips_is_at_hand_if_its_package_and_weights_are(
    alexnet_file: Path, torch_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lpips")
    assert why_no_lpips(None, 64).startswith("no weights at hand; put alexnet-owt-7be5be79.pth into")
    assert why_no_lpips(str(alexnet_file), 64) == ""
    shutil.copy(alexnet_file, torch_cache / "alexnet-owt-7be5be79.pth")
    assert why_no_lpips(None, 32) == ""
    assert why_no_lpips(None, 31) == "needs images of at least 32×32 pixels, got 31×31"
    assert "no such file" in why_no_lpips(str(torch_cache / "none.pth"), 64)
    lpips_network.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert why_no_lpips(None, 64) == "needs the lpips package: pip install lpips"


@pytest.mark.parametrize(("count", "draw"), [
    (12, lambda generator, shape: generator.normal(1, 2, shape)),
    (100, lambda generator, shape: generator.normal(1, 2, shape)),
    (100, lambda generator, shape: generator.gamma(2, 1, shape) - 1),  # skewed, as gains are
])  # fmt: skip
def test_the_interval_of_a_paired_gain_covers_it_in_95_of_100_simulations(
    count: int, draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
) -> None:
    generator = np.random.default_rng(0)
    baselines = generator.normal(18, 3, (1000, count))  # dB, as different as those of holes
    outputs = baselines + draw(generator, (1000, count))  # a gain of 1 dB
    hits = []
    for seed, gains in enumerate(outputs - baselines):
        interval = mean_interval(gains.tolist(), num_resamples=800, seed=seed)
        assert interval is not None
        hits.append(interval[0] <= 1 <= interval[1])
    assert 0.93 <= np.mean(hits) <= 0.97


def test_the_interval_does_not_depend_on_the_order_of_the_images() -> None:
    gains = np.random.default_rng(0).normal(1, 2, 50).tolist()
    assert mean_interval(gains) == mean_interval(gains[::-1])


def test_the_seam_jump_is_the_steps_excess_over_the_truth() -> None:
    target = torch.zeros(1, 3, 4, 4)
    target[..., 2:] = 0.5  # an edge of the truth
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 2:] = 1  # the hole begins there
    assert seam_jump(target, target, mask).item() == 0
    higher = torch.where(mask > 0, target + 0.25, target)
    assert seam_jump(higher, target, mask).item() == pytest.approx(0.25)
    smooth = torch.where(mask > 0, 0.0, target)
    assert seam_jump(smooth, target, mask).item() == pytest.approx(-0.5)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1, 1] = 1  # four pairs: in two rows and two columns
    dot = torch.where(mask > 0, 1.0, torch.zeros(1, 3, 4, 4))
    assert seam_jump(dot, torch.zeros_like(dot), mask).item() == pytest.approx(1)
    for empty in (torch.zeros_like(mask), torch.ones_like(mask)):
        assert seam_jump(dot, target, empty).item() == 0


def test_sharpness_by_hand() -> None:
    target = torch.zeros(1, 3, 5, 5)
    target[..., 2, 2] = 0.5  # Laplacian -2 here, and 0.5 at its four neighbours
    mask = torch.zeros(1, 1, 5, 5)
    mask[..., 1:4, 1:4] = 1
    pred = target.clone()
    pred[:, 0, 2, 2] = 0.2  # mean over the channels: 0.4
    assert sharpness(pred, target, mask).item() == pytest.approx((0.4 / 0.5) ** 2)
    dot = torch.zeros_like(mask)
    dot[..., 2, 1] = 1  # the hole holds a neighbour alone: energy 0.5²
    assert sharpness(torch.zeros_like(target), target, dot).item() == pytest.approx(ROUNDING_ENERGY / 0.25)
    pred = target + 0.01 * torch.arange(5)  # a ramp has no second derivative
    assert sharpness(pred, target, mask).item() == pytest.approx(1)


def test_sharpness_is_the_square_of_the_contrast_and_ignores_what_is_outside_the_hole() -> None:
    _, target = pair(40, 44, 0)
    mask = torch.zeros(1, 1, 40, 44)
    mask[..., 10:30, 12:30] = 1
    assert sharpness(target, target, mask).item() == 1
    for contrast in (0.5, 0.9, 1.5):
        pred = 0.5 + contrast * (target - 0.5)
        assert sharpness(pred, target, mask).item() == pytest.approx(contrast**2, rel=1e-5)
    far = torch.rand(target.shape, generator=torch.Generator().manual_seed(0))
    pred = torch.where(dilate(mask, 1) > 0, target, far)
    assert sharpness(pred, target, mask).item() == 1
    other = torch.where(dilate(mask, 1) > 0, target, 1 - far)
    assert sharpness(pred, other, mask).item() == 1


def test_sharpness_falls_with_blur_and_is_bounded_where_the_truth_is_smooth() -> None:
    target = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, 40, 40)
    blurred = [target]
    for _ in range(3):
        blurred.append(torch.nn.functional.avg_pool2d(blurred[-1], 3, 1, 1))
    values = [sharpness(image, target, mask).item() for image in blurred]
    assert values[0] == 1 and values == sorted(values, reverse=True) and values[1] < 0.2
    grey = torch.full((1, 3, 40, 40), 0.5)
    rounded = ((grey + 0.003 * torch.linspace(-1, 1, 40)) * 255).round() / 255  # as an 8-bit file
    assert sharpness(rounded, grey, mask).item() == 1  # no detail in either
    assert sharpness(target, grey, mask).item() == MAX_SHARPNESS
    assert 0 < sharpness(grey, target, mask).item() < 1e-4
    noise = torch.rand(1, 1, 200, 200, generator=torch.Generator().manual_seed(0)).expand(1, 3, -1, -1) / 255
    ones = torch.ones(1, 1, 200, 200)  # noise of one step of 8 bits has the energy of the lower bound
    level = MAX_SHARPNESS / 2
    target = noise * level**0.5
    assert sharpness(target, torch.zeros_like(target), ones).item() == pytest.approx(level, rel=0.03)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 7), (3, 3)])
def test_a_hole_without_a_pixel_of_four_neighbours_is_as_sharp_as_the_truth(size: tuple[int, int]) -> None:
    pred, target = torch.rand(2, 2, 3, *size)
    border = torch.ones(2, 1, *size)
    border[..., 1:-1, 1:-1] = 0
    for mask in (border, torch.zeros_like(border)):
        assert sharpness(pred, target, mask).tolist() == [1, 1]


def test_the_interval_of_one_value_is_unknown_and_of_equal_values_is_that_value() -> None:
    assert mean_interval([3.0]) is None
    assert mean_interval([3.0] * 5) == (3.0, 3.0)


def test_l1_and_boundary_psnr_by_hand_in_float64() -> None:
    pred, target = pair(40, 44, 3)
    hole = np.zeros((40, 44), bool)
    hole[5:30, 8:36] = True
    mask = torch.from_numpy(hole[None, None].astype(np.float32))
    difference = numpy_image(pred) - numpy_image(target)
    assert l1(pred, target, mask).item() == pytest.approx(np.abs(difference[hole]).mean(), abs=1e-12)
    band = hole.copy()
    band[10:25, 13:31] = False  # further than 5 pixels from the known
    expected = -10 * np.log10(np.square(difference[band]).mean())
    assert boundary_psnr(pred, target, mask, 5).item() == pytest.approx(expected, abs=1e-10)


def test_the_band_holds_both_sides_of_the_edge_and_nothing_else() -> None:
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 10:] = 1
    band = boundary_band(mask, 3)[0, 0]
    assert torch.equal(band[0].nonzero().flatten(), torch.arange(7, 13))
    assert torch.equal(dilate(mask, 3)[0, 0, 0].nonzero().flatten(), torch.arange(7, 20))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_empty_or_full_hole_has_no_band(value: float) -> None:
    assert boundary_band(torch.full((1, 1, 9, 9), value), 5).sum() == 0


def test_a_trunk_is_refused_if_it_is_missing_or_of_another_network(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--vgg_weights: no such file"):
        load_trunk("vgg16", str(tmp_path / "none.pth"), "--vgg_weights")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"does not hold the features\.\* layers of vgg16"):
        load_trunk("vgg16", str(tmp_path / "other.pth"), "--vgg_weights")
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(UserError, match="not a readable weights file"):
        load_trunk("vgg16", str(tmp_path / "text.pth"), "--vgg_weights")


def test_without_a_network_the_error_says_which_file_to_put_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"put alexnet-owt-\w+\.pth into .*checkpoints, or name a file"):
        load_trunk("alexnet", None, "--lpips_weights")
