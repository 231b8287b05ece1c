"""The 8×8 blocks of a JPEG that a hole touches, and the pixels that stay unchanged."""

import cv2
import numpy as np


def touched_blocks(changed: np.ndarray, ratio: tuple[int, int]) -> np.ndarray:
    """(rows, columns) bool: whether each block of a component covers a pixel of `changed` (H, W) bool.

    Args:
        ratio: an element of `Frame.ratios`.
    """
    height, width = changed.shape
    high, wide = 8 * ratio[0], 8 * ratio[1]
    rows, columns = -(-height // high), -(-width // wide)
    touched = np.zeros((rows, columns), bool)
    found = np.flatnonzero(changed.any(axis=1))
    if len(found):
        top, bottom = found[0] // high, found[-1] // high + 1
        part = changed[top * high : bottom * high]
        padded = np.zeros(((bottom - top) * high, columns * wide), bool)
        padded[: len(part), :width] = part
        strips = np.any(padded.reshape(bottom - top, high, -1), axis=1)
        touched[top:bottom] = np.any(strips.reshape(bottom - top, columns, wide), axis=2)
    return touched


def untouched_pixels(changed: np.ndarray, ratios: list[tuple[int, int]]) -> np.ndarray:
    """(H, W) bool: the pixels that decode as before if only the blocks under `changed` are re-encoded.

    These lie outside the touched blocks and, for subsampled components, more than one sample away, because
    decoders interpolate between neighbouring samples.

    Args:
        changed: (H, W) bool.
        ratios: see `Frame.ratios`.
    """
    height, width = changed.shape
    kept = np.ones(changed.shape, bool)
    for down, across in set(ratios):
        samples = _enlarge(touched_blocks(changed, (down, across)).astype(np.uint8), 8, 8)
        if down > 1 or across > 1:
            samples = cv2.dilate(samples, np.ones((3 if down > 1 else 1, 3 if across > 1 else 1), np.uint8))
        kept &= _enlarge(samples, down, across)[:height, :width] == 0
    return kept


def _enlarge(values: np.ndarray, down: int, across: int) -> np.ndarray:
    """Each value repeated `down` times vertically and `across` times horizontally."""
    return cv2.resize(values, None, fx=across, fy=down, interpolation=cv2.INTER_NEAREST)
