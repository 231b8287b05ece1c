"""Completions without learning, that a network has to beat."""

from collections.abc import Callable

import cv2
import numpy as np
import torch

from prior import push_pull

RADIUS = 3  # pixels, of cv2.inpaint

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean_fill(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The hole in the mean colour of the known pixels; 0.5 if there are none.

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
    """The smooth prefill from which the network starts."""
    return torch.where(mask > 0, push_pull(image.masked_fill(mask > 0, 0), mask), image)


def telea(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Telea, "An Image Inpainting Technique Based on the Fast Marching Method", 2004, by OpenCV on 8 bits."""
    return each_of(image, mask, lambda pixels, hole: opencv(pixels, hole, cv2.INPAINT_TELEA))


def navier_stokes(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Bertalmio et al., "Navier-Stokes, Fluid Dynamics, and Image and Video Inpainting", CVPR 2001, by OpenCV
    on 8 bits."""
    return each_of(image, mask, lambda pixels, hole: opencv(pixels, hole, cv2.INPAINT_NS))


def biharmonic(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Damelin and Hoang, "On Surface Completion and Image Inpainting by Biharmonic Functions", 2018, by
    scikit-image; of all the floors the slowest."""
    from skimage.restoration import inpaint_biharmonic  # slow to import

    return each_of(
        image,
        mask,
        lambda pixels, hole: inpaint_biharmonic(pixels, hole, split_into_regions=True, channel_axis=2).clip(
            0, 1
        ),
    )


def opencv(pixels: np.ndarray, hole: np.ndarray, method: int) -> np.ndarray:
    """`cv2.inpaint` of (H, W, 3) in [0, 1], which it gets as 8 bits."""
    filled = cv2.inpaint((pixels * 255).round().astype(np.uint8), hole.astype(np.uint8), RADIUS, method)
    return filled.astype(np.float32) / 255


def each_of(image: torch.Tensor, mask: torch.Tensor, fill: Fill) -> torch.Tensor:
    """Fill every image by a function of (H, W, 3) float in [0, 1], 0 under the hole, and (H, W) bool."""
    pixels = image.masked_fill(mask > 0, 0).permute(0, 2, 3, 1).cpu().numpy()
    holes = mask[:, 0].cpu().numpy() > 0
    filled = [fill(np.ascontiguousarray(each), hole) for each, hole in zip(pixels, holes, strict=True)]
    result = torch.from_numpy(np.stack(filled).astype(np.float32)).permute(0, 3, 1, 2)
    return torch.where(mask > 0, result.to(image.device), image)


BASELINES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean_fill": mean_fill,
    "push_pull": push_pull_fill,
    "telea": telea,
    "navier_stokes": navier_stokes,
    "biharmonic": biharmonic,
}
OPENCV = ("telea", "navier_stokes")  # what people use
