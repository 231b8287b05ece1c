"""Geometry of filling in pieces: crops around holes, overlapping tiles, halving and enlarging."""

import math
from collections.abc import Iterator

import cv2
import numpy as np
import torch

from prior import pull

WHOLE = 512  # pixels per side up to which the network completes an image in one piece
CONTEXT = 64  # least pixels of context around a hole; a large hole gets its longer side
OVERLAP = 64  # pixels over which neighbouring tiles overlap and blend
CELL = 16  # pixels per side of the cells in which holes are grouped
STRIP = 512  # rows halved at once
SMALLEST_CROP = 256  # pixels per side

Region = tuple[slice, slice]
Span = tuple[slice, np.ndarray]  # a part of an axis, and its weights against the span before it


def to_unit(image: np.ndarray) -> np.ndarray:
    """An image of any type, in its range (see `Inpainter.__call__`), as float32 in [0, 1]."""
    scale = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
    return image.astype(np.float32) / np.float32(scale)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, C) of any type to (1, C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(to_unit(image).transpose(2, 0, 1)))[None]


def crops(mask: np.ndarray, whole: int) -> list[Region]:
    """Regions of an image that hold its holes with their context; no hole of one region reaches into another.

    An image of up to `whole` pixels per side is one region. Holes closer than two `CONTEXT`s share one.
    """
    if not mask.any():
        return []
    height, width = mask.shape
    if max(height, width) <= whole:
        return [np.s_[0:height, 0:width]]
    starts = [np.arange(0, side, CELL) for side in mask.shape]
    grid = np.logical_or.reduceat(np.logical_or.reduceat(mask, starts[0], axis=0), starts[1], axis=1)
    spread = cv2.dilate(grid.astype(np.uint8), np.ones((2 * CONTEXT // CELL + 1,) * 2, np.uint8))
    boxes = components(spread, grid)
    while True:
        padded_boxes = [surround(box, whole // CELL, grid.shape) for box in boxes]
        covered = np.zeros(grid.shape, np.uint8)
        for box in padded_boxes:
            covered[box] = 1
        merged = components(covered, grid)
        if len(merged) == len(boxes):
            break
        boxes = merged
    return [
        np.s_[
            CELL * rows.start : min(CELL * rows.stop, height),
            CELL * columns.start : min(CELL * columns.stop, width),
        ]
        for rows, columns in padded_boxes
    ]


def components(areas: np.ndarray, grid: np.ndarray) -> list[Region]:
    """The bounding box of the cells of `grid` in each connected area of `areas` that holds any."""
    _, labels = cv2.connectedComponents(areas, connectivity=8)
    rows, columns = np.nonzero(grid)
    label = labels[rows, columns]
    order = np.argsort(label, kind="stable")
    rows, columns = rows[order], columns[order]
    parts = np.flatnonzero(np.diff(label[order], prepend=-1))  # where each area's cells start
    bounds = [
        (np.minimum.reduceat(cells, parts), np.maximum.reduceat(cells, parts)) for cells in (rows, columns)
    ]
    return [
        (slice(int(top), int(bottom) + 1), slice(int(left), int(right) + 1))
        for top, bottom, left, right in zip(*bounds[0], *bounds[1], strict=True)
    ]


def surround(box: Region, whole: int, shape: tuple[int, int]) -> Region:
    """A box of cells and its context, in a grid of `shape`; at most `whole` cells per side if possible."""
    sides = [part.stop - part.start for part in box]
    side = max(SMALLEST_CROP // CELL, 3 * max(sides))
    if max(sides) + 2 * CONTEXT // CELL <= whole:
        side = min(side, whole)
    region = []
    for part, length in zip(box, shape, strict=True):
        start = max(0, min((part.start + part.stop - side) // 2, length - side))
        region.append(slice(start, min(start + side, length)))
    return region[0], region[1]


def halve(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image at half its size, (⌈H/2⌉, ⌈W/2⌉, C) float32 in [0, 1], and its mask; see `prior.pull`."""
    images, masks = [], []
    for top in range(0, len(mask), STRIP):
        m = torch.from_numpy(mask[top : top + STRIP].astype(np.float32))[None, None]
        x, m = pull(to_tensor(image[top : top + STRIP]).masked_fill(m > 0, 0), m)
        images.append(x[0].permute(1, 2, 0).numpy())
        masks.append(m[0, 0].numpy() > 0)
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(masks)


def enlarge(image: np.ndarray, region: Region) -> np.ndarray:
    """Bilinear enlargement to twice the size, of which `region` (even starts) is returned."""
    rows, columns = region
    margin = [max(0, part.start // 2 - 1) for part in region]
    source = image[margin[0] : rows.stop // 2 + 2, margin[1] : columns.stop // 2 + 2]
    enlarged = cv2.resize(source, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    enlarged = enlarged.reshape(*enlarged.shape[:2], image.shape[2])
    top, left = (part.start - 2 * start for part, start in zip(region, margin, strict=True))
    return enlarged[top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]


def tiles(needed: np.ndarray, side: int) -> list[Span]:
    """Overlapping spans of an axis, of `side` pixels with even starts, that cover all that is `needed` (L,).

    The weights (side,) of a span rise smoothly from 0 to 1 where it overlaps the one before it, so that
    writing one after the other blends them. Where the axis is long enough, `OVERLAP` pixels around the needed
    ones are covered as well.
    """
    found = np.flatnonzero(needed)
    if not found.size:
        return []
    low = max(0, int(found[0]) - OVERLAP) // 2 * 2
    high = min(len(needed), int(found[-1]) + 1 + OVERLAP)
    if high - low <= side:
        low = max(0, min((low + high - side) // 2, len(needed) - side)) // 2 * 2
        high = min(len(needed), low + side + 1)
    count = max(1, math.ceil((high - low - OVERLAP) / (side - OVERLAP)))
    spans: list[Span] = []
    for i in range(count):
        start = low + 2 * math.ceil(max(0, high - low - side) * i / max(1, count - 1) / 2)
        span = slice(start, min(start + side, len(needed)))
        overlap = spans[-1][0].stop - start if spans else 0
        rise = (np.arange(span.stop - start, dtype=np.float32) + 0.5) / max(1, overlap)
        rise = np.clip(rise if overlap else np.ones_like(rise), 0, 1)
        spans.append((span, rise * rise * (3 - 2 * rise)))
    return spans


def bands(mask: np.ndarray, side: int) -> Iterator[tuple[Span, list[Span]]]:
    """Yield spans of rows, and the spans of columns in each, of the tiles that cover a mask (H, W) bool."""
    for rows, row_weights in tiles(np.any(mask, axis=1), side):
        columns = [span for span in tiles(np.any(mask[rows], axis=0), side) if mask[rows, span[0]].any()]
        yield (rows, row_weights), columns


def count_runs(mask: np.ndarray, side: int) -> int:
    """The number of tiles of `side` pixels that `Inpainter` completes to fill a mask (H, W) bool."""
    count = 0
    for region in crops(mask, side):
        level = mask[region]
        while max(level.shape) > side:
            count += sum(len(columns) for _, columns in bands(level, side))
            _, level = halve(level[:, :, None], level)
        count += bool(level.any())
    return count
