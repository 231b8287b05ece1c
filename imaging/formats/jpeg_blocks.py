"""Which 8×8 blocks of a JPEG a hole touches, and which pixels it leaves as they are."""

import cv2
import numpy as np

from imaging.formats.jpeg_segments import Frame


def touched_blocks(changed: np.ndarray, ratio: tuple[int, int]) -> np.ndarray:
    """Which 8×8 blocks of a component cover a pixel of `changed` (H, W) bool; `ratio` as `Frame.ratios`."""
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


def untouched(changed: np.ndarray, sampling: list[tuple[int, int]]) -> np.ndarray:
    """Which pixels (H, W) bool decode as before when only the blocks under `changed` are encoded anew.

    Those outside the blocks, and, of components with fewer samples than pixels, more than one sample away:
    decoders interpolate between neighbouring samples.

    Args:
        changed: (H, W) bool.
        sampling: the sampling factors of each component, (horizontal, vertical).
    """
    height, width = changed.shape
    kept = np.ones(changed.shape, bool)
    for down, across in set(Frame(0, 8, 0, 0, [(0, h, v, 0) for h, v in sampling]).ratios):
        samples = _enlarge(touched_blocks(changed, (down, across)).astype(np.uint8), 8, 8)
        if down > 1 or across > 1:
            samples = cv2.dilate(samples, np.ones((3 if down > 1 else 1, 3 if across > 1 else 1), np.uint8))
        kept &= _enlarge(samples, down, across)[:height, :width] == 0
    return kept


def _enlarge(values: np.ndarray, down: int, across: int) -> np.ndarray:
    """Each value repeated, so many times down and across."""
    return cv2.resize(values, None, fx=across, fy=down, interpolation=cv2.INTER_NEAREST)
