"""Holes from mask files of every convention, boxes, painted strokes or an image's alpha; and their faults."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from imaging.image_file import ImageFile, read_colors
from utils import UserError

MAX_GREY = 0.01  # share of a mask's pixels that may be neither black nor white
MAX_ASPECT_ERROR = 0.02  # of a mask of another size
LARGE = 0.6  # share of a picture above which a completion is guesswork


@dataclass
class Hole:
    """What is to be filled, (H, W) bool, upright, True = missing; and what a user should know of it.

    Attributes:
        notes: sentences that name the mask file.
        findings: the same by kind, without the name, as `summarise` takes them.
    """

    missing: np.ndarray
    notes: list[str] = field(default_factory=list)
    findings: dict[str, str] = field(default_factory=dict)


def binarise(
    colors: np.ndarray, alpha: np.ndarray | None = None, invert: bool = False
) -> tuple[np.ndarray, dict[str, str]]:
    """What is missing by the pixels of a mask, whatever it was drawn with: the one rule for all mask files.

    White, from 50 % up, is missing; black, if `invert`. Where the mask has transparency, that is the mask:
    of white strokes on nothing, the strokes are white; of anything else, what was erased. Of integers of
    which none is above 1, 1 is white.

    Shapes:
        colors (H, W, 1 or 3) unsigned integer or float in [0, 1]; alpha (H, W) float in [0, 1].

    Returns:
        (H, W) bool, True = missing, and what a user should know, by kind: `0/1`, `grey` or `alpha`. Each is
        a sentence without its subject, which is the mask.
    """
    white = to_light(colors)  # (H, W) in [0, 1]
    findings: dict[str, str] = {}
    if not white.size:
        return np.zeros(white.shape, bool), findings
    if alpha is not None and alpha.min() < 0.5 <= alpha.max():
        painted = bool((white[alpha >= 0.5] >= 0.9).all())
        white = alpha if painted else 1 - alpha
        part = "painted" if painted != invert else "transparent"
        findings["alpha"] = f"has transparency: its {part} part was taken as missing"
    elif alpha is not None and alpha.max() < 0.5 and np.ptp(white) == 0:
        white = np.zeros_like(white)
        findings["alpha"] = "is more than half transparent everywhere: nothing is painted"
    else:
        if alpha is not None and alpha.max() < 0.5:
            findings["alpha"] = "is more than half transparent everywhere: the colours under it were taken"
        integers = colors.dtype.kind == "u" and colors.max() == 1
        if integers and (colors == colors[:, :, :1]).all():
            white = colors[:, :, 0].astype(np.float32)
            end, value = ("full", 0) if invert else ("empty", 1)
            findings["0/1"] = (
                f"holds only 0 and 1, which would be {end} at 50 %: {value} was taken as missing"
            )
    grey = float(np.mean((white > 0.01) & (white < 0.99)))
    if grey > MAX_GREY:
        findings["grey"] = f"is grey in {grey:.0%} of its pixels; white from 50 % up"
    return (white >= 0.5) != invert, findings


def read_mask(path: Path, invert: bool = False) -> Hole:
    """The hole of a mask file, in the file's own size; the rule is that of `binarise`.

    Raises:
        UserError: if the file is missing or not a readable image.
    """
    missing, findings = binarise(*read_colors(path), invert)
    return Hole(missing, [f"mask {path.name} {text}" for text in findings.values()], findings)


def read_hole(path: Path, shape: tuple[int, int], invert: bool = False) -> Hole:
    """The hole of a mask file for a picture of `shape` (H, W).

    A mask of another size but the same proportions is scaled.

    Raises:
        UserError: if the file is not a readable picture, or of other proportions.
    """
    hole = read_mask(path, invert)
    if hole.missing.shape != shape:
        aspects = [width / height for height, width in (hole.missing.shape, shape)]
        if abs(aspects[0] / aspects[1] - 1) > MAX_ASPECT_ERROR:
            sizes = [f"{width}×{height}" for height, width in (hole.missing.shape, shape)]
            raise UserError(f"the mask is {sizes[0]} pixels, but the image is {sizes[1]}: {path}")
        resized = cv2.resize(hole.missing.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST)
        hole.missing = resized > 0
    return hole


def extremes(missing: np.ndarray) -> dict[str, str]:
    """The finding of a mask that is entirely empty or full, as of `binarise`."""
    if missing.all():
        return {"full": "is full: everything is missing"}
    return {} if missing.any() else {"empty": "is empty: nothing is missing"}


def summarise(masks: Iterable[tuple[str, dict[str, str]]]) -> list[str]:
    """The findings of many masks, (name, findings) each: every kind once, of the first, with the count."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    masks = list(masks)
    for name, findings in masks:
        counts.update(findings.keys())
        for kind, text in findings.items():
            first.setdefault(kind, f"{name} {text}")
    return [f"{text} ({counts[kind]:,} of {len(masks):,} masks)" for kind, text in first.items()]


def masks_by_image(files: list[Path], root: Path) -> tuple[dict[str, Path], list[str]]:
    """Mask files by the names of the images that they belong to.

    Returns:
        By the image's path in its root without extension, and by its stem where that is unique, the file of
        that name, with or without `_mask`; of two, the last. And a note that names two such, if there are.
    """
    names = [path.relative_to(root).with_suffix("").as_posix().removesuffix("_mask") for path in files]
    stems = [name.rpartition("/")[2] for name in names]
    counts = Counter(stems)
    by_name = {stem: path for stem, path in zip(stems, files, strict=True) if counts[stem] == 1}
    by_name |= dict(zip(names, files, strict=True))
    several = [name for name, count in Counter(names).items() if count > 1]
    if not several:
        return by_name, []
    *_, former, last = (path for path, name in zip(files, names, strict=True) if name == several[0])
    pair = f"{former.relative_to(root)} and {last.relative_to(root)}"
    count = f" (so for {len(several):,} images)" if len(several) > 1 else ""
    return by_name, [f"{pair} are masks of one image: the last was taken{count}"]


def colors_of(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """The colours of a PIL image, (H, W, 1 or 3), and its alpha (H, W) in [0, 1], as `binarise` takes them.

    Thirty-two bits a sample are read by what they hold: up to 1, up to 255 or up to 65535.
    """
    alpha = None
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"), np.float32) / 255
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, np.float64))
        top = values.max(initial=0)
        if image.mode == "I" or top > 1:
            values = values.clip(0, 65535).round().astype(np.uint16 if top > 255 else np.uint8)
        return values[:, :, None], alpha
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[:, :, None], alpha
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))[:, :, None], alpha
    return np.asarray((image if alpha is None else image.convert("RGBA")).convert("RGB")), alpha


def to_light(colors: np.ndarray) -> np.ndarray:
    """Brightness (H, W) in [0, 1] of (H, W, 1 or 3) of any type."""
    scale = np.iinfo(colors.dtype).max if colors.dtype.kind == "u" else 1
    return np.asarray(colors.mean(axis=2, dtype=np.float32) / np.float32(scale))


def alpha_hole(picture: ImageFile) -> Hole:
    """What is more transparent than not in the picture itself.

    Raises:
        UserError: if it has no transparency.
    """
    alpha = picture.alpha
    if alpha is None:
        raise UserError(f"has no transparency to take the hole from: {picture.path}")
    return Hole(alpha < 0.5)


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
    return Hole(missing)


def painted_hole(strokes: np.ndarray, shape: tuple[int, int]) -> Hole:
    """What was painted over a copy of a picture of `shape` (H, W), from half covered up.

    Args:
        strokes: opacity (h, w) uint8 of the paint; the copy may be smaller or larger than the picture.
    """
    if strokes.shape != shape:
        larger = strokes.size < shape[0] * shape[1]
        kind = cv2.INTER_LINEAR if larger else cv2.INTER_AREA
        strokes = cv2.resize(strokes, shape[::-1], interpolation=kind)
    return Hole(strokes >= 128)


def grow(missing: np.ndarray, pixels: int) -> np.ndarray:
    """The hole (H, W) bool and `pixels` around it, in a disc."""
    if pixels == 0 or not missing.any():
        return missing
    spans = []  # of rows and columns that it can reach
    for axis in (1, 0):
        found = np.flatnonzero(missing.any(axis=axis))
        spans.append(slice(max(0, int(found[0]) - pixels), int(found[-1]) + pixels + 1))
    region = spans[0], spans[1]
    distance = cv2.distanceTransform((~missing[region]).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    grown = missing.copy()
    grown[region] = distance <= pixels + 0.5
    return grown


def mask_warnings(missing: np.ndarray, trained: tuple[float, float] | None = None) -> list[str]:
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
