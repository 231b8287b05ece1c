"""Completions without a trained network, which a network has to beat."""

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from prior import push_pull
from utils import UserError

RADIUS = 3  # pixels, for cv2.inpaint
PATCH_RADIUS = 5  # pixels, for PatchMatch: patches of 11×11


def mean_fill(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Fill the hole with the mean colour of the known pixels; with 0.5 if there are none.

    Shapes, here and below:
        image (B, 3, H, W) in [0, 1], any value under the hole; mask (B, 1, H, W), 1 = missing. Returns
        (B, 3, H, W) in [0, 1], equal to `image` where known.
    """
    known = 1 - mask
    count = known.sum(dim=(2, 3), keepdim=True)
    total = image.masked_fill(mask > 0, 0).sum(dim=(2, 3), keepdim=True)
    mean = torch.where(count > 0, total / count.clamp_min(1), 0.5)
    return torch.where(mask > 0, mean, image)


def push_pull_fill(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Fill the hole smoothly; a network without a prior starts from this."""
    return torch.where(mask > 0, push_pull(image.masked_fill(mask > 0, 0), mask), image)


def telea(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Telea, "An Image Inpainting Technique Based on the Fast Marching Method", 2004, by OpenCV on 8 bits."""
    return fill_each(image, mask, lambda pixels, missing: opencv(pixels, missing, cv2.INPAINT_TELEA))


def navier_stokes(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Bertalmio et al., "Navier-Stokes, Fluid Dynamics, and Image and Video Inpainting", CVPR 2001, by OpenCV
    on 8 bits."""
    return fill_each(image, mask, lambda pixels, missing: opencv(pixels, missing, cv2.INPAINT_NS))


def biharmonic(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Damelin and Hoang, "On Surface Completion and Image Inpainting by Biharmonic Functions", 2018."""
    from skimage.restoration import inpaint_biharmonic  # slow to import

    def fill(pixels: np.ndarray, missing: np.ndarray) -> np.ndarray:
        return inpaint_biharmonic(pixels, missing, split_into_regions=True, channel_axis=2).clip(0, 1)

    return fill_each(image, mask, fill)


def patchmatch(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Copies of known patches, by the pypatchmatch package on 8 bits; its random search starts from seed 0.

    Barnes et al., "PatchMatch: A Randomized Correspondence Algorithm for Structural Image Editing", 2009, for
    the search, and Wexler et al., "Space-Time Completion of Video", PAMI 2007, for the votes of the patches.

    Raises:
        UserError: without the package, or if it has no library for this machine.
    """
    try:
        import patchmatch as package  # optional
    except ModuleNotFoundError:
        raise UserError(
            "--use_patchmatch: needs the pypatchmatch package: pip install pypatchmatch"
        ) from None
    if not package.patchmatch_available:
        raise UserError("--use_patchmatch: the installed pypatchmatch has no library for this machine")

    def fill(pixels: np.ndarray, missing: np.ndarray) -> np.ndarray:
        package.set_random_seed(0)
        return from_bytes(package.inpaint(to_bytes(pixels), missing, patch_size=PATCH_RADIUS))

    return fill_each(image, mask, fill)


def fsr(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Frequency selective reconstruction, by OpenCV's xphoto on 8 bits, with its fast settings.

    Genser et al., "Signal and Loss Geometry Aware Frequency Selective Extrapolation for Error Concealment",
    PCS 2018. Holes of images of fewer than about 16 pixels per side may get one constant colour.

    Raises:
        UserError: if the installed OpenCV lacks xphoto.
    """
    xphoto: Any = getattr(cv2, "xphoto", None)  # in OpenCV's contributed modules alone
    if xphoto is None:
        raise UserError(
            "--use_fsr: needs OpenCV's xphoto: pip uninstall opencv-python-headless, "
            "then pip install opencv-contrib-python-headless"
        )

    def fill(pixels: np.ndarray, missing: np.ndarray) -> np.ndarray:
        bgr = np.ascontiguousarray(to_bytes(pixels)[:, :, ::-1])  # it works in YCrCb
        filled = np.zeros_like(bgr)
        xphoto.inpaint(bgr, np.where(missing, 0, 255).astype(np.uint8), filled, xphoto.INPAINT_FSR_FAST)
        return from_bytes(filled[:, :, ::-1])

    return fill_each(image, mask, fill)


def opencv(pixels: np.ndarray, missing: np.ndarray, method: int) -> np.ndarray:
    """Run `cv2.inpaint` on (H, W, 3) in [0, 1], rounded to 8 bits."""
    return from_bytes(cv2.inpaint(to_bytes(pixels), missing.astype(np.uint8), RADIUS, method))


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """An image in [0, 1], rounded to 8 bits."""
    return (pixels * 255).round().astype(np.uint8)


def from_bytes(pixels: np.ndarray) -> np.ndarray:
    """An 8-bit image as float32 in [0, 1]."""
    return pixels.astype(np.float32) / 255


def fill_each(
    image: torch.Tensor, mask: torch.Tensor, fill: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> torch.Tensor:
    """Fill every image by a function of (H, W, 3) float in [0, 1], 0 under the hole, and (H, W) bool."""
    images = image.masked_fill(mask > 0, 0).permute(0, 2, 3, 1).cpu().numpy()
    masks = mask[:, 0].cpu().numpy() > 0
    filled = [fill(np.ascontiguousarray(image), mask) for image, mask in zip(images, masks, strict=True)]
    result = torch.from_numpy(np.stack(filled).astype(np.float32)).permute(0, 3, 1, 2)
    return torch.where(mask > 0, result.to(image.device), image)


class Baseline(NamedTuple):
    """A row of `BASELINES`.

    One that is slow or needs an optional package is scored on request only: a report must not take ten times
    as long, or have another best baseline, because a package is installed.
    """

    fill: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    on_request: bool = False


BASELINES = {
    "mean_fill": Baseline(mean_fill),
    "push_pull": Baseline(push_pull_fill),
    "telea": Baseline(telea),
    "navier_stokes": Baseline(navier_stokes),
    "biharmonic": Baseline(biharmonic, on_request=True),
    "patchmatch": Baseline(patchmatch, on_request=True),
    "fsr": Baseline(fsr, on_request=True),
}
OPENCV = ("telea", "navier_stokes")  # the two methods of cv2.inpaint
