"""Random changes of training images at every use: crop, rotation and colours."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from imaging.read import resize_image

LUMA = np.array([0.299, 0.587, 0.114])  # weights of R, G and B, ITU-R BT.601


class Crop(NamedTuple):
    """A square of an image: its corner and side in pixels, and its rotation in degrees."""

    top: int
    left: int
    side: int
    angle: float = 0.0

    def apply(self, image: np.ndarray, size: int, nearest: bool = False) -> np.ndarray:
        """The crop, scaled to (size, size, ...), of `image` (H, W, ...), which is mirrored beyond its border.

        Args:
            nearest: interpolate by nearest neighbour, for masks.
        """
        top, left, side, angle = self
        if angle == 0:
            square = image[top : top + side, left : left + side]
            if nearest:
                return cv2.resize(square, (size, size), interpolation=cv2.INTER_NEAREST)
            return resize_image(square, size)
        center = np.array([left, top]) + (side - 1) / 2
        matrix = cv2.getRotationMatrix2D(center.tolist(), angle, size / side)
        matrix[:, 2] = matrix[:, 2] + (size - 1) / 2 - center
        flags = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
        return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; by default only the position of the crop is random.

    Attributes:
        min_crop: least side of a crop, as a share of the image's shorter side; drawn uniformly up to 1.
        rotate: largest rotation in degrees, in either direction.
        color_jitter: largest change of brightness, contrast and saturation, each as a share.
    """

    min_crop: float = 1.0
    rotate: float = 0.0
    color_jitter: float = 0.0

    def draw_crop(
        self, shape: tuple[int, ...], size: int, generator: np.random.Generator, centered: bool = False
    ) -> Crop:
        """A random crop, of `size` pixels or more, of an image of `shape` (H, W, ...).

        Args:
            centered: take the centre instead, without rotation.
        """
        side, short_side = size, min(shape[:2])
        if self.min_crop < 1:
            side = round(short_side * generator.uniform(max(self.min_crop, size / short_side), 1))
        margin = np.array(shape[:2]) - side
        top, left = margin // 2 if centered else generator.integers(0, margin + 1)
        angle = generator.uniform(-self.rotate, self.rotate) if self.rotate and not centered else 0.0
        return Crop(int(top), int(left), side, angle)

    def recolor(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Change brightness, contrast and saturation of `image`, (H, W, 3) float32 in [0, 1], and clip it."""
        if not self.color_jitter:
            return image
        brightness, contrast, saturation = 1 + generator.uniform(-self.color_jitter, self.color_jitter, 3)
        mean = float(LUMA @ image.mean(axis=(0, 1), dtype=np.float64))
        matrix = saturation * np.eye(3) + (1 - saturation) * LUMA  # scales each pixel's distance to its grey
        matrix = brightness * np.column_stack([contrast * matrix, np.full(3, (1 - contrast) * mean)])
        return np.clip(cv2.transform(image, matrix), 0, 1)


UNCHANGED = Augmentation()
