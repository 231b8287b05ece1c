"""Geometry of filling in pieces: crops around holes, overlapping tiles, halving and enlarging."""

import math

import cv2
import numpy as np
import torch

from prior import pull

WHOLE = 512  # pixels a side up to which the network completes a picture in one piece


CONTEXT = 64  # pixels that are looked at around a hole at least; around a large one, its longer side


OVERLAP = 64  # pixels by which tiles overlap, and blend


CELL = 16  # pixels a side of the grid on which holes are grouped


STRIP = 512  # rows that are halved at once


SMALLEST_CROP = 256  # pixels a side


Region = tuple[slice, slice]


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """Pixels of any type, its range as of `Inpainter.__call__`, as float32 in [0, 1]."""
    scale = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    return pixels.astype(np.float32) / np.float32(scale)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(H, W, C) of any type to (1, C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(to_unit(pixels).transpose(2, 0, 1)))[None]


def crops(hole: np.ndarray, whole: int) -> list[Region]:
    """Regions of a picture that hold its holes and what to look at around them; the holes of none in another.

    A picture of up to `whole` pixels a side is one region. Holes closer than two `CONTEXT`s share one.
    """
    if not hole.any():
        return []
    if max(hole.shape) <= whole:
        return [np.s_[0 : hole.shape[0], 0 : hole.shape[1]]]
    starts = [np.arange(0, side, CELL) for side in hole.shape]
    grid = np.logical_or.reduceat(np.logical_or.reduceat(hole, starts[0], axis=0), starts[1], axis=1)
    spread = cv2.dilate(grid.astype(np.uint8), np.ones((2 * CONTEXT // CELL + 1,) * 2, np.uint8))
    boxes = components(spread, grid)
    while True:
        padded_boxes = [surround(box, whole // CELL, grid.shape) for box in boxes]
        painted = np.zeros(grid.shape, np.uint8)
        for box in padded_boxes:
            painted[box] = 1
        merged = components(painted, grid)
        if len(merged) == len(boxes):
            break
        boxes = merged
    return [
        (
            slice(CELL * box[0].start, min(CELL * box[0].stop, hole.shape[0])),
            slice(CELL * box[1].start, min(CELL * box[1].stop, hole.shape[1])),
        )
        for box in padded_boxes
    ]


def count_runs(hole: np.ndarray, side: int) -> int:
    """How often `Inpainter.fill` runs the network to fill a hole (H, W) in tiles of `side` pixels."""
    count = 0
    for region in crops(hole, side):
        part = hole[region]
        while max(part.shape) > side and part.any():
            for rows, _ in tiles(np.any(part, axis=1), side):
                columns = [span for span, _ in tiles(np.any(part[rows], axis=0), side)]
                count += sum(bool(part[rows, span].any()) for span in columns)
            part = np.pad(part, [(0, length % 2) for length in part.shape], mode="edge")
            part = part[::2, ::2] & part[1::2, ::2] & part[::2, 1::2] & part[1::2, 1::2]
        count += bool(part.any())
    return count


def components(areas: np.ndarray, grid: np.ndarray) -> list[Region]:
    """The bounding box of what `grid` holds in each connected area of `areas` that holds anything."""
    _, labels = cv2.connectedComponents(areas, connectivity=8)
    rows, columns = np.nonzero(grid)
    label = labels[rows, columns]
    order = np.argsort(label, kind="stable")
    rows, columns = rows[order], columns[order]
    parts = np.flatnonzero(np.diff(label[order], prepend=-1))  # where each area's cells start
    bounds = [
        (np.minimum.reduceat(each, parts), np.maximum.reduceat(each, parts)) for each in (rows, columns)
    ]
    return [
        (slice(int(top), int(bottom) + 1), slice(int(left), int(right) + 1))
        for top, bottom, left, right in zip(*bounds[0], *bounds[1], strict=True)
    ]


def surround(box: Region, whole: int, shape: tuple[int, int]) -> Region:
    """A box of cells and its context, in a grid of `shape`; at most `whole` cells a side if possible."""
    sides = [part.stop - part.start for part in box]
    side = max(SMALLEST_CROP // CELL, 3 * max(sides))
    if max(sides) + 2 * CONTEXT // CELL <= whole:
        side = min(side, whole)
    region = []
    for part, length in zip(box, shape, strict=True):
        start = max(0, min((part.start + part.stop - side) // 2, length - side))
        region.append(slice(start, min(start + side, length)))
    return region[0], region[1]


def halve(pixels: np.ndarray, hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture at half its size, (⌈H/2⌉, ⌈W/2⌉, C) float32 in [0, 1], and its hole: `models.pull`."""
    halves, holes = [], []
    for top in range(0, len(hole), STRIP):
        mask = torch.from_numpy(hole[top : top + STRIP].astype(np.float32))[None, None]
        image, mask = pull(to_tensor(pixels[top : top + STRIP]).masked_fill(mask > 0, 0), mask)
        halves.append(image[0].permute(1, 2, 0).numpy())
        holes.append(mask[0, 0].numpy() > 0)
    return np.ascontiguousarray(np.concatenate(halves)), np.concatenate(holes)


def enlarge(pixels: np.ndarray, region: Region) -> np.ndarray:
    """`region` (even starts) of the picture of twice the size, bilinear."""
    rows, columns = region
    margin = [max(0, part.start // 2 - 1) for part in region]
    source = pixels[margin[0] : rows.stop // 2 + 2, margin[1] : columns.stop // 2 + 2]
    doubled = cv2.resize(source, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    doubled = doubled.reshape(*doubled.shape[:2], pixels.shape[2])
    top, left = (part.start - 2 * start for part, start in zip(region, margin, strict=True))
    return doubled[top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]


def tiles(needed: np.ndarray, side: int) -> list[tuple[slice, np.ndarray]]:
    """Overlapping spans of an axis, of `side` pixels with even starts, that cover what is `needed` (L,).

    With each comes its weight (side,) against those before it: a smooth rise from 0 to 1 where they overlap,
    so that writing one after the other blends them. Where the axis is long enough, `OVERLAP` pixels around
    what is needed are covered as well.
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
    spans: list[tuple[slice, np.ndarray]] = []
    for i in range(count):
        start = low + 2 * math.ceil(max(0, high - low - side) * i / max(1, count - 1) / 2)
        span = slice(start, min(start + side, len(needed)))
        overlap = spans[-1][0].stop - start if spans else 0
        rise = (np.arange(span.stop - start, dtype=np.float32) + 0.5) / max(1, overlap)
        rise = np.clip(rise if overlap else np.ones_like(rise), 0, 1)
        spans.append((span, rise * rise * (3 - 2 * rise)))
    return spans
