"""Random masks of a requested mask ratio: brush strokes, rectangles, and their mixture."""

from collections.abc import Callable

import cv2
import numpy as np

MaskRatio = float | tuple[float, float]


Draw = Callable[[np.ndarray, np.random.Generator], tuple[float, float]]


def random_free_form_mask(
    height: int, width: int, mask_ratio: MaskRatio = (0.1, 0.4), generator: np.random.Generator | None = None
) -> np.ndarray:
    """Brush strokes that turn at random, as if drawn by hand, until the requested share is missing.

    After Yu et al., "Free-Form Image Inpainting with Gated Convolution", ICCV 2019, algorithm 1; ours
    ends, if need be in the middle of a stroke, at the requested mask ratio.

    Args:
        mask_ratio: the share of missing pixels, in [0, 1]; of a range, a share is drawn evenly.

    Returns:
        (height, width) uint8 in {0, 1}, 1 = missing; the share is met to one pixel.
    """
    generator = generator or np.random.default_rng()
    canvas = np.zeros((height, width), np.uint8)
    return _fill_to(draw_mask_ratio(mask_ratio, generator), canvas, _draw_stroke, generator)


def random_rectangular_mask(
    height: int, width: int, mask_ratio: MaskRatio = (0.1, 0.4), generator: np.random.Generator | None = None
) -> np.ndarray:
    """Rectangles, some across the border, until the requested share is missing.

    Arguments and result as of `random_free_form_mask`.
    """
    generator = generator or np.random.default_rng()
    canvas = np.zeros((height, width), np.uint8)
    return _fill_to(draw_mask_ratio(mask_ratio, generator), canvas, _draw_rectangle, generator)


def random_mask(height: int, width: int, mask_ratio: MaskRatio, generator: np.random.Generator) -> np.ndarray:
    """The mixture: half of the masks strokes, a quarter rectangles, a quarter equal areas of both.

    Arguments and result as of `random_free_form_mask`.
    """
    kind = generator.integers(4)
    if kind < 2:
        return random_free_form_mask(height, width, mask_ratio, generator)
    if kind == 2:
        return random_rectangular_mask(height, width, mask_ratio, generator)
    share = draw_mask_ratio(mask_ratio, generator)
    canvas = random_rectangular_mask(height, width, share / 2, generator)
    return _fill_to(share, canvas, _draw_stroke, generator)


def draw_mask_ratio(mask_ratio: MaskRatio, generator: np.random.Generator) -> float:
    """A share of missing pixels, drawn evenly from a range, or the one given."""
    low, high = mask_ratio if isinstance(mask_ratio, tuple | list) else (mask_ratio, mask_ratio)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"mask_ratio must be a share in [0, 1] or a range of shares, got {mask_ratio}")
    return float(generator.uniform(low, high))


def _fill_to(share: float, canvas: np.ndarray, draw: Draw, generator: np.random.Generator) -> np.ndarray:
    """Draw shapes on `canvas` until `share` of it is 1; the last shape is cut across at the exact pixel."""
    target = round(share * canvas.size)
    while cv2.countNonZero(canvas) < target:
        before = canvas.copy()
        direction_x, direction_y = draw(canvas, generator)
        excess = cv2.countNonZero(canvas) - target
        if excess > 0:
            rows, columns = np.nonzero(canvas > before)
            along = columns * direction_x + rows * direction_y
            last = np.argpartition(along, -excess)[-excess:]
            canvas[rows[last], columns[last]] = 0
    return canvas


def _draw_stroke(canvas: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    height, width = canvas.shape
    side = (height + width) / 2
    chance = generator.random(5 + 2 * 8)
    angle, thickness = 2 * np.pi * chance[0], side * (0.03 + 0.09 * chance[1])
    vertices = 2 + int(7 * chance[2])
    turns = angle + np.cumsum(2.4 * chance[5 : 5 + vertices] - 1.2)
    lengths = side * (0.04 + 0.12 * chance[13 : 13 + vertices])
    points = np.empty((vertices + 1, 2))
    points[0] = chance[3] * width, chance[4] * height
    points[1:, 0] = points[0, 0] + np.cumsum(lengths * np.cos(turns))
    points[1:, 1] = points[0, 1] + np.cumsum(lengths * np.sin(turns))
    cv2.polylines(canvas, [points.round().astype(np.int32)], False, 1, max(1, round(thickness)))
    return float(np.cos(angle)), float(np.sin(angle))


def _draw_rectangle(canvas: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    height, width = canvas.shape
    h = max(1, round(height * generator.uniform(0.1, 0.5)))
    w = max(1, round(width * generator.uniform(0.1, 0.5)))
    top, left = generator.integers(-h // 2, height - h // 2), generator.integers(-w // 2, width - w // 2)
    canvas[max(top, 0) : max(top + h, 1), max(left, 0) : max(left + w, 1)] = 1
    return (1.0, 0.0) if generator.integers(2) else (0.0, 1.0)
