"""Metrics of completions, per image, and the one rule for their means over images."""

import functools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from utils import UserError, load_tensors

MAX_PSNR = 100.0  # dB, for equal images
MAX_SHARPNESS = 4.0  # above it a completion is noise, and its ratio would decide a mean by itself
# energy per pixel of the Laplacian, whose squared weights sum to 20, of errors of rounding to 8 bits
ROUNDING_ENERGY = 20 / 12 / 255**2


class Metric(NamedTuple):
    """A row of `METRICS`: the texts and rules for the scores of one name.

    Attributes:
        region: the pixels it is about (`hole`, `boundary` or `image`); see `has_region`.
        better: `higher`, `lower`, `zero` or `one` (nearest to 0 or to 1), or "" if no value is better.
        headline: whether the table by bucket and ablations show it.
    """

    name: str
    label: str
    unit: str = ""
    region: str = "image"
    better: str = ""
    digits: int = 4
    about: str = ""
    headline: bool = True

    @property
    def title(self) -> str:
        """The label with its unit, for an axis or a column."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def rank(self, value: float) -> float:
        """A number that is larger for a better value."""
        ranks = {"higher": value, "lower": -value, "zero": -abs(value), "one": -abs(value - 1)}
        return ranks[self.better]


# fmt: off
METRICS = {metric.name: metric for metric in (
    Metric("psnr",          "PSNR (hole)",     "dB", "hole",     "higher", 2,
           "peak signal-to-noise ratio in the hole; higher is better"),
    Metric("ssim",          "SSIM (hole)",     "",   "hole",     "higher", 4,
           "structural similarity in the hole; higher is better"),
    Metric("boundary_psnr", "PSNR (boundary)", "dB", "boundary", "higher", 2,
           "PSNR over the missing pixels next to known ones; low where a seam shows"),
    Metric("seam_jump",     "seam",            "",   "boundary", "zero",   4,
           "step across the hole's edge, minus the true one; positive where a seam shows, negative where the "
           "edge is smoother than in the truth", headline=False),
    Metric("sharpness",     "sharpness",       "",   "hole",     "one",    3,
           "energy of the Laplacian in the hole, divided by the truth's; 1 is as sharp as the truth, less is "
           "blurred"),
    Metric("l1",            "L1 (hole)",       "",   "hole",     "lower",  5,
           "mean absolute difference in the hole, of a range of 1; lower is better"),
    Metric("lpips",         "LPIPS",           "",   "image",    "lower",  4,
           "distance between AlexNet's features, close to human judgement; lower is better"),
    Metric("psnr_full",     "PSNR (image)",    "dB", "image",    "higher", 2,
           "PSNR over the whole image, known pixels included", headline=False),
    Metric("ssim_full",     "SSIM (image)",    "",   "image",    "higher", 4,
           "SSIM over the whole image, known pixels included", headline=False),
)}
# fmt: on


def has_region(name: str, mask_ratio: float) -> bool:
    """Whether an image of this mask ratio has the region that a metric is about: a hole, or a boundary."""
    region = METRICS[name].region if name in METRICS else "image"
    return {"hole": mask_ratio > 0, "boundary": 0 < mask_ratio < 1, "image": True}[region]


def mean_over_images(name: str, values: Sequence[float], mask_ratios: Sequence[float]) -> float:
    """The mean of a metric over the images that have its region (`has_region`), or over all if none has."""
    pairs = zip(values, mask_ratios, strict=True)
    return float(np.mean([value for value, ratio in pairs if has_region(name, ratio)] or values))


def psnr(
    pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, data_range: float = 1.0
) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image over its hole: 20 log₁₀(data_range / √MSE).

    Shapes:
        pred, target (B, C, H, W); mask (B, 1, H, W), 1 = missing, or None for the whole image. Returns (B,)
        in dB, at most `MAX_PSNR`, which equal images and empty holes get.
    """
    mask = torch.ones_like(target[:, :1]) if mask is None else mask
    mse = _mean((to_float64(pred) - to_float64(target)).square(), mask)
    return (10 * torch.log10(data_range**2 / mse)).clamp_max(MAX_PSNR)


def boundary_psnr(
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    boundary_width: int = 5,
    data_range: float = 1.0,
) -> torch.Tensor:
    """PSNR of each image over the missing pixels within `boundary_width` pixels of a known one.

    Shapes, range and cap are those of `psnr`; a mask without a boundary (empty or full) gets the cap.
    """
    return psnr(pred, target, boundary_band(mask.float(), boundary_width) * mask, data_range)


def l1(pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean absolute difference of each image over its hole, (B,) in [0, 1]; 0 for an empty hole."""
    mask = torch.ones_like(target[:, :1]) if mask is None else mask
    return _mean((to_float64(pred) - to_float64(target)).abs(), mask)


def seam_jump(pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Step across the hole's edge, minus the true one, (B,) in [-1, 1]; 0 for a mask without an edge.

    The step is the mean absolute difference over the pairs of neighbours (in a row or a column) of which one
    is known and the other missing. A seam is positive, an edge that is smoother than in the truth negative.

    Shapes:
        pred, target (B, C, H, W); mask (B, 1, H, W), 1 = missing.
    """
    mask = to_float64(mask)
    excess, is_edge = [], []
    for dim in (2, 3):
        is_edge.append(mask.diff(dim=dim).ne(0).flatten(1))
        step, true_step = (to_float64(image).diff(dim=dim).abs().mean(dim=1) for image in (pred, target))
        excess.append((step - true_step).flatten(1))
    edges = torch.cat(is_edge, dim=1)
    return (torch.cat(excess, dim=1) * edges).sum(dim=1) / edges.sum(dim=1).clamp_min(1)


def sharpness(pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Fine detail in the hole as a share of the truth's: 1 is as sharp as the truth, less is blurred.

        E(pred) / E(target),    E(x) = max(mean over the hole of (Δ x̄)², `ROUNDING_ENERGY`)

    x̄ is the mean over the channels, and Δ the Laplacian of 3×3 pixels without diagonals. Pixels at the
    image's border, which lack a neighbour, do not count. The lower bound gives a smooth completion of a
    smooth truth the value 1, instead of a quotient of rounding errors.

    Shapes:
        pred (composited), target (B, C, H, W) in [0, 1]; mask (B, 1, H, W), 1 = missing. Returns (B,), more
        than 0 and at most `MAX_SHARPNESS`; 1 for holes without a pixel that counts.
    """
    region = mask[..., 1:-1, 1:-1]
    energies = [_mean(_laplacian(x).square(), region).clamp_min(ROUNDING_ENERGY) for x in (pred, target)]
    return (energies[0] / energies[1]).clamp_max(MAX_SHARPNESS)


def _laplacian(image: torch.Tensor) -> torch.Tensor:
    """Laplacian of the mean over the channels at pixels with four neighbours, (B, 1, H-2, W-2) float64."""
    x = to_float64(image).mean(dim=1, keepdim=True)
    rows, columns = x[..., 1:-1], x[..., 1:-1, :]
    return (
        rows[..., :-2, :] + rows[..., 2:, :] + columns[..., :-2] + columns[..., 2:] - 4 * x[..., 1:-1, 1:-1]
    )


def to_float64(image: torch.Tensor) -> torch.Tensor:
    """An image in float64, so that no mean depends on the order of its sum; MPS lacks it, the CPU is used."""
    return image.to("cpu" if image.device.type == "mps" else image.device, torch.float64)


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of (B, C, H, W) over the mask of each image, (B,); 0 for an empty mask."""
    mask = mask.to(values)
    return (values * mask).sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) * values.shape[1]).clamp_min(1)


def ssim(
    pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, data_range: float = 1.0
) -> torch.Tensor:
    """Structural similarity of each image, its map averaged over the hole.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, eq. 13,
    per channel, Gaussian window of 11×11 pixels and σ = 1.5. As in scikit-image, positions whose window
    crosses the image's border do not count, unless no other missing pixel exists.

    Shapes:
        pred, target (B, C, H, W); mask (B, 1, H, W), 1 = missing, or None for the whole image. Returns (B,)
        in [-1, 1]; 1 for equal images and empty holes.
    """
    return _mean_ssim(
        _ssim_map(pred, target, data_range), torch.ones_like(target[:, :1]) if mask is None else mask
    )


def _mean_ssim(similarity: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of an SSIM map (B, C, H, W) over the mask of each image, (B,); borders as in `ssim`."""
    mask = mask.to(similarity)
    inside = torch.zeros_like(mask)
    inside[..., 5:-5, 5:-5] = 1
    inner = mask * inside
    region = torch.where(inner.sum(dim=(1, 2, 3), keepdim=True) > 0, inner, mask)
    count = region.sum(dim=(1, 2, 3)) * similarity.shape[1]
    mean = (similarity * region).sum(dim=(1, 2, 3)) / count.clamp_min(1)
    return torch.where(count > 0, mean, 1.0)


def _ssim_map(pred: torch.Tensor, target: torch.Tensor, data_range: float = 1.0) -> torch.Tensor:
    """SSIM at every pixel and channel, (B, C, H, W) float64; the image is reflected at its border."""
    x, y = to_float64(pred) / data_range, to_float64(target) / data_range
    offsets = torch.arange(-5, 6, dtype=x.dtype)
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(image: torch.Tensor) -> torch.Tensor:
        # reflection needs more than 5 pixels
        mode = "reflect" if min(image.shape[-2:]) > 5 else "replicate"
        image = F.pad(image, (5, 5, 5, 5), mode=mode)
        for dim in (2, 3):  # shifted sums: float64 convolutions crawl on CPUs
            length = image.shape[dim] - 10
            total = image.narrow(dim, 0, length) * window[0]
            for offset in range(1, 11):
                total.add_(image.narrow(dim, offset, length), alpha=window[offset].item())
            image = total
        return image

    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x**2
    variance_y = blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)


def why_no_lpips(weights: str | None, side: int) -> str:
    """The reason why LPIPS cannot be scored without a download; empty if it can.

    Args:
        weights: see `lpips_score`.
        side: the images' shorter side, in pixels.
    """
    cached = _cached_weights("alexnet")[1]
    if not weights and not cached.exists():
        return f"no weights at hand; put {cached.name} into torch's cache, or name a file by --lpips_weights"
    try:
        _check_lpips_side(side, side)
        _lpips_network(weights, torch.device("cpu"))
    except UserError as error:
        return str(error).removeprefix("--use_lpips: ")
    return ""


def _check_lpips_side(height: int, width: int) -> None:
    if min(height, width) < 32:
        raise UserError(f"--use_lpips: needs images of at least 32×32 pixels, got {width}×{height}")


@functools.cache
def _lpips_network(weights: str | None, device: torch.device) -> torch.nn.Module:
    try:
        import lpips  # optional
    except ModuleNotFoundError:
        raise UserError("--use_lpips: needs the lpips package: pip install lpips") from None
    trunk = load_trunk("alexnet", weights, "--lpips_weights").state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package uses deprecated arguments of torchvision
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)  # pnet_rand: no download
    for number in range(1, 6):
        piece = getattr(network.net, f"slice{number}")
        piece.load_state_dict({key: trunk[key] for key in piece.state_dict()})
    return network.to(device).eval().requires_grad_(False)


def lpips_score(pred: torch.Tensor, target: torch.Tensor, weights: str | None = None) -> torch.Tensor:
    """Learned perceptual distance of each image, AlexNet, version 0.1; lower is better.

    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018.

    Args:
        weights: file with `features.*` of torchvision's AlexNet; None for torchvision's own download.

    Shapes:
        pred, target (B, 3, H, W) in [0, 1], at least 32×32 pixels. Returns (B,).

    Raises:
        UserError: without the lpips package or the weights, or for smaller images.
    """
    _check_lpips_side(*pred.shape[-2:])
    with torch.no_grad():
        return _lpips_network(weights, pred.device)(pred.float(), target.float(), normalize=True).flatten()


def mean_interval(
    values: Sequence[float], num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % confidence interval of a sample's mean: bootstrap with expanded percentiles.

    The plain percentiles of the resampled means (Efron, "Bootstrap Methods: Another Look at the Jackknife",
    1979) are too narrow for n values, by √((n-1)/n) and by the difference between Student's t and the normal
    distribution. They are expanded accordingly: Hesterberg, "What Teachers Should Know About the Bootstrap",
    The American Statistician 2015, section 3.3. The order of the values does not matter. None for fewer than
    two values.
    """
    from scipy import stats  # slow to import

    sample = np.sort(np.asarray(values, dtype=np.float64))
    n = sample.size
    if n < 2:
        return None
    generator = np.random.default_rng(seed)
    means = sample[generator.integers(n, size=(num_resamples, n))].mean(axis=1)
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def all_metrics(
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    *,
    boundary_width: int = 5,
    use_lpips: bool = False,
    lpips_weights: str | None = None,
) -> dict[str, torch.Tensor]:
    """Every metric of composited images, (B,) each, by the names of `METRICS`; see the single functions."""
    mask = mask.float()
    similarity = _ssim_map(pred, target)
    scores = {
        "psnr": psnr(pred, target, mask),
        "ssim": _mean_ssim(similarity, mask),
        "boundary_psnr": boundary_psnr(pred, target, mask, boundary_width),
        "seam_jump": seam_jump(pred, target, mask),
        "sharpness": sharpness(pred, target, mask),
        "l1": l1(pred, target, mask),
        "psnr_full": psnr(pred, target),
        "ssim_full": _mean_ssim(similarity, torch.ones_like(mask)),
    }
    if use_lpips:
        scores["lpips"] = lpips_score(pred, target, lpips_weights)
    return scores


class MetricsCalculator:
    """Accumulates the metrics of composited images; the means (see `mean_over_images`) ignore the batches.

    Args:
        boundary_width: pixels.
        use_lpips: add `lpips`.
        lpips_weights: see `lpips_score`.
    """

    def __init__(
        self, boundary_width: int = 5, use_lpips: bool = False, lpips_weights: str | None = None
    ) -> None:
        self.settings: dict[str, Any] = {"boundary_width": boundary_width, "use_lpips": use_lpips}
        self.settings["lpips_weights"] = lpips_weights
        self.values: dict[str, list[float]] = {}
        self.mask_ratios: list[float] = []

    def update(self, pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> dict[str, list[float]]:
        """Add a batch: pred, target (B, 3, H, W), mask (B, 1, H, W); returns its values by image."""
        scores = all_metrics(pred, target, mask, **self.settings)
        batch = {name: values.tolist() for name, values in scores.items()}
        for name, values in batch.items():
            self.values.setdefault(name, []).extend(values)
        self.mask_ratios += mask.float().mean(dim=(1, 2, 3)).tolist()
        return batch

    def compute(self) -> dict[str, float]:
        """The mean of every metric over the images so far; empty if there were none."""
        return {name: mean_over_images(name, x, self.mask_ratios) for name, x in self.values.items()}


def dilate(mask: torch.Tensor, width: int) -> torch.Tensor:
    """Grow the ones of a (B, 1, H, W) mask by `width` pixels in every direction (a square)."""
    rows = F.max_pool2d(mask, (2 * width + 1, 1), stride=1, padding=(width, 0))
    return F.max_pool2d(rows, (1, 2 * width + 1), stride=1, padding=(0, width))


def boundary_band(mask: torch.Tensor, width: int) -> torch.Tensor:
    """Boundary band of the hole: pixels on either side within `width` pixels of the other.

    (B, 1, H, W) in {0, 1}; empty if the mask is empty or full. Its missing half is `band * mask`.
    """
    return dilate(mask, width) * dilate(1 - mask, width)


def _cached_weights(name: str) -> tuple[str, Path]:
    """Address of torchvision's weights trained on ImageNet, and their place in torch's cache."""
    import torchvision.models  # slow to import

    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    return url, Path(torch.hub.get_dir(), "checkpoints", Path(url).name)


def load_trunk(name: str, weights: str | None, flag: str) -> torch.nn.Sequential:
    """The convolutional layers of torchvision's `alexnet` or `vgg16`, trained on ImageNet.

    Args:
        weights: file with the `features.*` layers; None for torchvision's download cache.
        flag: the flag that errors name.

    Raises:
        UserError: if there are no weights, with the file to download and its place; or if they do not fit.
    """
    import torchvision.models  # slow to import

    url, place = _cached_weights(name)
    if not weights and not place.exists():
        try:
            torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False)
        except (OSError, RuntimeError):  # no connection, or a damaged download
            raise UserError(
                f"{flag}: cannot download the weights of {name}; put {place.name} into {place.parent}, "
                f"or name a file with its features.* layers by {flag}"
            ) from None
    state = load_tensors(Path(weights) if weights else place, flag, "weights file")
    trunk = torchvision.models.get_model(name, weights=None).features
    try:
        trunk.load_state_dict({key[9:]: state[key] for key in state if key.startswith("features.")})
    except (AttributeError, TypeError, IndexError, RuntimeError):
        raise UserError(
            f"{flag}: does not hold the features.* layers of {name}: {weights or place}"
        ) from None
    return trunk
