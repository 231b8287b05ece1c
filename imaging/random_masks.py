"""Random masks of a requested mask ratio: brush strokes, rectangles, and a mixture of both."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator

from utils import DEFAULT_MASK_RATIO

MAX_SEGMENTS = 8  # straight segments of a brush stroke

MaskRatio = float | tuple[float, float]
# draws one shape on a canvas (H, W) and returns the direction (x, y) along which it may be cut short
DrawShape = Callable[[np.ndarray, Generator], tuple[float, float]]


def random_free_form_mask(
    height: int, width: int, mask_ratio: MaskRatio = DEFAULT_MASK_RATIO, generator: Generator | None = None
) -> np.ndarray:
    """Brush strokes that turn at random, as if drawn by hand.

    After Yu et al., "Free-Form Image Inpainting with Gated Convolution", ICCV 2019, algorithm 1; ours
    stops, if need be in the middle of a stroke, at the requested mask ratio.

    Args:
        mask_ratio: share of missing pixels, in [0, 1], or a range from which it is drawn uniformly.

    Returns:
        (height, width) uint8 in {0, 1}, 1 = missing; its mask ratio is exact to one pixel.
    """
    generator = generator or np.random.default_rng()
    canvas = np.zeros((height, width), np.uint8)
    return _fill_to(draw_mask_ratio(mask_ratio, generator), canvas, _draw_stroke, generator)


def random_rectangular_mask(
    height: int, width: int, mask_ratio: MaskRatio = DEFAULT_MASK_RATIO, generator: Generator | None = None
) -> np.ndarray:
    """Rectangles, some across the border; arguments and result are those of `random_free_form_mask`."""
    generator = generator or np.random.default_rng()
    canvas = np.zeros((height, width), np.uint8)
    return _fill_to(draw_mask_ratio(mask_ratio, generator), canvas, _draw_rectangle, generator)


def random_mask(height: int, width: int, mask_ratio: MaskRatio, generator: Generator) -> np.ndarray:
    """Mixture of masks: half are strokes, a quarter rectangles, a quarter half rectangles and half strokes.

    Arguments and result are those of `random_free_form_mask`.
    """
    kind = generator.integers(4)
    if kind < 2:
        return random_free_form_mask(height, width, mask_ratio, generator)
    if kind == 2:
        return random_rectangular_mask(height, width, mask_ratio, generator)
    ratio = draw_mask_ratio(mask_ratio, generator)
    canvas = random_rectangular_mask(height, width, ratio / 2, generator)
    return _fill_to(ratio, canvas, _draw_stroke, generator)


def draw_mask_ratio(mask_ratio: MaskRatio, generator: Generator) -> float:
    """A mask ratio drawn uniformly from a range, or the one given."""
    low, high = mask_ratio if isinstance(mask_ratio, tuple | list) else (mask_ratio, mask_ratio)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"mask_ratio must be a number in [0, 1] or a range in it, got {mask_ratio}")
    return float(generator.uniform(low, high))


def _fill_to(ratio: float, canvas: np.ndarray, draw_shape: DrawShape, generator: Generator) -> np.ndarray:
    """Draw shapes on `canvas` until its mask ratio is `ratio`; the last shape is cut at the exact pixel."""
    target = round(ratio * canvas.size)
    while cv2.countNonZero(canvas) < target:
        before = canvas.copy()
        direction_x, direction_y = draw_shape(canvas, generator)
        excess = cv2.countNonZero(canvas) - target
        if excess > 0:
            rows, columns = np.nonzero(canvas > before)
            along = columns * direction_x + rows * direction_y
            last = np.argpartition(along, -excess)[-excess:]
            canvas[rows[last], columns[last]] = 0
    return canvas


def _draw_stroke(canvas: np.ndarray, generator: Generator) -> tuple[float, float]:
    height, width = canvas.shape
    side = (height + width) / 2
    angle, thickness, length, x, y = generator.random(5)  # all in [0, 1), scaled below
    turns, lengths = generator.random((2, MAX_SEGMENTS))
    angle, thickness = 2 * np.pi * angle, side * (0.03 + 0.09 * thickness)
    count = 2 + int((MAX_SEGMENTS - 1) * length)  # segments, from 2 to MAX_SEGMENTS
    angles = angle + np.cumsum(2.4 * turns[:count] - 1.2)
    lengths = side * (0.04 + 0.12 * lengths[:count])
    points = np.empty((count + 1, 2))
    points[0] = x * width, y * height
    points[1:, 0] = points[0, 0] + np.cumsum(lengths * np.cos(angles))
    points[1:, 1] = points[0, 1] + np.cumsum(lengths * np.sin(angles))
    cv2.polylines(canvas, [points.round().astype(np.int32)], False, 1, max(1, round(thickness)))
    return float(np.cos(angle)), float(np.sin(angle))


def _draw_rectangle(canvas: np.ndarray, generator: Generator) -> tuple[float, float]:
    height, width = canvas.shape
    h = max(1, round(height * generator.uniform(0.1, 0.5)))
    w = max(1, round(width * generator.uniform(0.1, 0.5)))
    top, left = generator.integers(-h // 2, height - h // 2), generator.integers(-w // 2, width - w // 2)
    canvas[max(top, 0) : max(top + h, 1), max(left, 0) : max(left + w, 1)] = 1
    return (1.0, 0.0) if generator.integers(2) else (0.0, 1.0)
