"""Masks as people have them: files of every convention, boxes, a picture's own alpha; and their faults."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cli import UserError
from pictures import Picture

MAX_GREY = 0.01  # share of a mask's pixels that may be neither black nor white
MAX_ASPECT_ERROR = 0.02  # of a mask of another size
LARGE = 0.6  # share of a picture above which a completion is guesswork


@dataclass
class Hole:
    """What is to be filled, (H, W) bool, upright, True = missing; and what a user should know of it."""

    missing: np.ndarray
    notes: list[str]


def read_hole(path: Path, shape: tuple[int, int], invert: bool = False) -> Hole:
    """The hole of a mask file for a picture of `shape` (H, W).

    White, from half up, is missing; black, if `invert`. Where the file has transparency, it is the mask: of
    white strokes on nothing, the strokes are missing; of anything else, what was erased. A mask of another
    size but the same proportions is scaled.

    Raises:
        UserError: if the file is not a readable picture, or of other proportions.
    """
    picture = Picture(path)
    light = to_light(picture.colors)
    notes = []
    if picture.alpha is not None and picture.alpha.min() < 0.5 <= picture.alpha.max():
        opaque = picture.alpha >= 0.5
        painted = bool((light[opaque] >= 0.9).all())
        missing = (opaque if painted else ~opaque) != invert
        notes.append(
            f"{path}: the {'painted' if painted != invert else 'transparent'} part was taken as the hole"
        )
    else:
        missing = (light >= 0.5) != invert
        grey = float(np.mean((light > 0.01) & (light < 0.99)))
        if grey > MAX_GREY:
            notes.append(f"{grey:.0%} of the mask {path.name} is grey; missing from 50 % up")
    if missing.shape != shape:
        aspects = [width / height for height, width in (missing.shape, shape)]
        if abs(aspects[0] / aspects[1] - 1) > MAX_ASPECT_ERROR:
            sizes = [f"{width}×{height}" for height, width in (missing.shape, shape)]
            raise UserError(f"the mask is {sizes[0]} pixels, but the image is {sizes[1]}: {path}")
        resized = cv2.resize(missing.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST)
        missing = resized > 0
    return Hole(missing, notes)


def to_light(colors: np.ndarray) -> np.ndarray:
    """Brightness (H, W) in [0, 1] of (H, W, 1 or 3) of any type."""
    scale = np.iinfo(colors.dtype).max if colors.dtype.kind == "u" else 1
    return np.asarray(colors.mean(axis=2, dtype=np.float32) / np.float32(scale))


def alpha_hole(picture: Picture) -> Hole:
    """What is more transparent than not in the picture itself.

    Raises:
        UserError: if it has no transparency.
    """
    if picture.alpha is None:
        raise UserError(f"has no transparency to take the hole from: {picture.path}")
    return Hole(picture.alpha < 0.5, [])


def box_hole(box: tuple[int, int, int, int], shape: tuple[int, int]) -> Hole:
    """A rectangle (left, top, width, height) of a picture of `shape` (H, W).

    Raises:
        UserError: if it is empty or wholly outside.
    """
    left, top, width, height = box
    missing = np.zeros(shape, bool)
    missing[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = True
    if not missing.any():
        raise UserError(f"--box: {','.join(map(str, box))} holds no pixel of {shape[1]}×{shape[0]}")
    return Hole(missing, [])


def painted_hole(strokes: np.ndarray, shape: tuple[int, int]) -> Hole:
    """What was painted over a copy of a picture of `shape` (H, W), from half covered up.

    Args:
        strokes: opacity (h, w) uint8 of the paint; the copy may be smaller or larger than the picture.
    """
    if strokes.shape != shape:
        larger = strokes.size < shape[0] * shape[1]
        kind = cv2.INTER_LINEAR if larger else cv2.INTER_AREA
        strokes = cv2.resize(strokes, shape[::-1], interpolation=kind)
    return Hole(strokes >= 128, [])


def grow(missing: np.ndarray, pixels: int) -> np.ndarray:
    """The hole and `pixels` around it, in a disc."""
    if pixels == 0:
        return missing
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return cv2.dilate(missing.astype(np.uint8), disc) > 0


def doctor(missing: np.ndarray, trained: tuple[float, float] | None = None) -> list[str]:
    """What looks wrong with a hole: empty, full, larger than can be filled well, or inverted.

    Args:
        trained: the range of shares that the network was trained on.
    """
    share = float(missing.mean()) if missing.size else 0.0
    if share == 0:
        return ["the mask is empty: nothing was filled"]
    if share == 1:
        return ["the mask covers the whole picture: there is nothing to go by"]
    notes = []
    border = np.concatenate([missing[0], missing[-1], missing[:, 0], missing[:, -1]])
    if share > 0.5 and border.mean() > 0.9:
        notes.append(
            f"{share:.0%} of the picture is missing, its border too: is the mask inverted? (--invert_mask)"
        )
    elif share > LARGE:
        notes.append(f"{share:.0%} of the picture is missing: the result is guesswork")
    elif trained is not None and share > trained[1]:
        notes.append(
            f"{share:.0%} of the picture is missing; the network was trained on up to {trained[1]:.0%}"
        )
    return notes


def feather(filled: np.ndarray, before: np.ndarray, missing: np.ndarray, width: int) -> np.ndarray:
    """Blend the completion into what was under the hole, over `width` pixels inside its edge.

    Shapes:
        filled and before (H, W, C) of one type; missing (H, W) bool. Returns (H, W, C) of that type.
    """
    depth = cv2.distanceTransform(missing.astype(np.uint8), cv2.DIST_L2, 5)
    weight = np.clip(depth / (width + 1), 0, 1)[:, :, None]
    blended = weight * filled + (1 - weight) * before
    return (np.rint(blended) if filled.dtype.kind == "u" else blended).astype(filled.dtype)
