"""What training changes in a picture at every use, so that few pictures show many: part, tilt and colours."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from imaging.read import resize_image

LUMA = np.array([0.299, 0.587, 0.114])  # of R, G and B, ITU-R BT.601


class Cut(NamedTuple):
    """A square of a picture: its corner and side in pixels, and the angle in degrees that turns it."""

    top: int
    left: int
    side: int
    angle: float = 0.0

    def take(self, image: np.ndarray, size: int, nearest: bool = False) -> np.ndarray:
        """The square (size, size, ...) of `image` (H, W, ...); beyond its border, the picture is mirrored.

        Args:
            nearest: take values as they are, for masks.
        """
        top, left, side, angle = self
        if angle == 0:
            part = image[top : top + side, left : left + side]
            if nearest:
                return cv2.resize(part, (size, size), interpolation=cv2.INTER_NEAREST)
            return resize_image(part, size)
        center = np.array([left, top]) + (side - 1) / 2
        matrix = cv2.getRotationMatrix2D(center.tolist(), angle, size / side)
        matrix[:, 2] = matrix[:, 2] + (size - 1) / 2 - center
        kind = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
        return cv2.warpAffine(image, matrix, (size, size), flags=kind, borderMode=cv2.BORDER_REFLECT_101)


@dataclass(frozen=True)
class Augmentation:
    """The ranges from which changes are drawn; by default nothing but the place of the crop changes.

    Attributes:
        min_crop: least side of a crop, as a share of the picture's shorter; drawn evenly from there to 1.
        rotate: largest angle in degrees, to either side.
        color_jitter: largest change of brightness, contrast and saturation, each as a share.
    """

    min_crop: float = 1.0
    rotate: float = 0.0
    color_jitter: float = 0.0

    def draw_cut(
        self, shape: tuple[int, ...], size: int, generator: np.random.Generator, centered: bool = False
    ) -> Cut:
        """A square of a picture of `shape` (H, W, ...) that is no smaller than `size`, its place drawn too.

        Args:
            centered: take the middle instead, upright.
        """
        side, short_side = size, min(shape[:2])
        if self.min_crop < 1:
            side = round(short_side * generator.uniform(max(self.min_crop, size / short_side), 1))
        spare = np.array(shape[:2]) - side
        top, left = spare // 2 if centered else generator.integers(0, spare + 1)
        angle = generator.uniform(-self.rotate, self.rotate) if self.rotate and not centered else 0.0
        return Cut(int(top), int(left), side, angle)

    def recolor(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Change the colours of `image` (H, W, 3) float32 in [0, 1], and keep them there."""
        if not self.color_jitter:
            return image
        brightness, contrast, saturation = 1 + generator.uniform(-self.color_jitter, self.color_jitter, 3)
        mean = float(LUMA @ image.mean(axis=(0, 1), dtype=np.float64))
        matrix = saturation * np.eye(3) + (1 - saturation) * LUMA  # of each pixel, about its own grey
        matrix = brightness * np.column_stack([contrast * matrix, np.full(3, (1 - contrast) * mean)])
        return np.clip(cv2.transform(image, matrix), 0, 1)


UNCHANGED = Augmentation()
