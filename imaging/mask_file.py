"""Masks read from files of every convention, boxes, painted strokes or alpha channels, and checked."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from imaging.image_file import ImageFile, read_colors
from utils import UserError

MAX_GREY = 0.01  # share of a mask's pixels that may be neither black nor white
MAX_ASPECT_ERROR = 0.02  # relative difference in aspect ratio of a mask that is scaled to its image
LARGE = 0.6  # mask ratio above which a completion is unreliable

Findings = dict[str, str]  # remarks for the user on a mask, by kind: sentences whose subject is the mask


def binarise(
    colors: np.ndarray, alpha: np.ndarray | None = None, invert: bool = False
) -> tuple[np.ndarray, Findings]:
    """The mask that a mask file's pixels show, whatever program drew it.

    White, from 50 % up, is missing; black, if `invert`. A mask with transparency is read from its alpha: if
    all that is opaque is white, the opaque strokes are the white; otherwise the erased part is. Integers of
    0 and 1 alone are read as black and white.

    Shapes:
        colors (H, W, 1 or 3) unsigned integer or float in [0, 1]; alpha (H, W) float in [0, 1].

    Returns:
        The mask (H, W) bool, True = missing, and findings of the kinds `0/1`, `grey` or `alpha`.
    """
    white = to_brightness(colors)  # (H, W) in [0, 1]
    findings: Findings = {}
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
            extreme, value = ("full", 0) if invert else ("empty", 1)
            findings["0/1"] = (
                f"holds only 0 and 1, which would be {extreme} at 50 %: {value} was taken as missing"
            )
    grey = float(np.mean((white > 0.01) & (white < 0.99)))
    if grey > MAX_GREY:
        findings["grey"] = f"is grey in {grey:.0%} of its pixels; white from 50 % up"
    return (white >= 0.5) != invert, findings


def read_mask(path: Path, invert: bool = False) -> tuple[np.ndarray, Findings]:
    """Read a mask file in its own size; result as for `binarise`.

    Raises:
        UserError: if the file is missing or not a readable image.
    """
    return binarise(*read_colors(path), invert)


def read_mask_for(path: Path, shape: tuple[int, int], invert: bool = False) -> tuple[np.ndarray, list[str]]:
    """Read the mask file of an image of `shape` (H, W); a mask of the same aspect ratio is scaled to it.

    Returns:
        The mask (H, W) bool, True = missing, and notes for the user.

    Raises:
        UserError: if the file is not a readable image, or has another aspect ratio.
    """
    mask, findings = read_mask(path, invert)
    if mask.shape != shape:
        aspects = [width / height for height, width in (mask.shape, shape)]
        if abs(aspects[0] / aspects[1] - 1) > MAX_ASPECT_ERROR:
            sizes = [f"{width}×{height}" for height, width in (mask.shape, shape)]
            raise UserError(f"the mask is {sizes[0]} pixels, but the image is {sizes[1]}: {path}")
        mask = cv2.resize(mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return mask, [f"mask {path.name} {finding}" for finding in findings.values()]


def extremes(mask: np.ndarray) -> Findings:
    """Finding, as in `binarise`, for a mask that is entirely empty or full; else none."""
    if mask.all():
        return {"full": "is full: everything is missing"}
    return {} if mask.any() else {"empty": "is empty: nothing is missing"}


def summarise(masks: Iterable[tuple[str, Findings]]) -> list[str]:
    """Findings on many masks, given as (name, findings): each kind once, with its first mask and count."""
    masks = list(masks)
    counts = Counter(kind for _, findings in masks for kind in findings)
    first = {kind: f"{name} {text}" for name, findings in reversed(masks) for kind, text in findings.items()}
    return [f"{first[kind]} ({count:,} of {len(masks):,} masks)" for kind, count in counts.items()]


def masks_by_image(files: list[Path], root: Path) -> tuple[dict[str, Path], list[str]]:
    """Mask files by the names of their images, for masks named like the image, with or without `_mask`.

    Returns:
        The mask file for each image's path in its root without extension, and for each stem that is unique;
        of two masks of one image, the last. And a note that names two such masks, if there are any.
    """
    names = [path.relative_to(root).with_suffix("").as_posix().removesuffix("_mask") for path in files]
    stems = [name.rpartition("/")[2] for name in names]
    counts = Counter(stems)
    by_name = {stem: path for stem, path in zip(stems, files, strict=True) if counts[stem] == 1}
    by_name |= dict(zip(names, files, strict=True))
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if not repeated:
        return by_name, []
    *_, former, last = (path for path, name in zip(files, names, strict=True) if name == repeated[0])
    pair = f"{former.relative_to(root)} and {last.relative_to(root)}"
    count = f" (so for {len(repeated):,} images)" if len(repeated) > 1 else ""
    return by_name, [f"{pair} are masks of one image: the last was taken{count}"]


def colors_of(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """The colours (H, W, 1 or 3) of a PIL image, and its alpha (H, W) in [0, 1], as `binarise` takes them.

    Samples of 32 bits are scaled by their largest value: up to 1, up to 255 or up to 65535.
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


def to_brightness(colors: np.ndarray) -> np.ndarray:
    """Brightness (H, W) in [0, 1] of colours (H, W, 1 or 3) of any type."""
    scale = np.iinfo(colors.dtype).max if colors.dtype.kind == "u" else 1
    return np.asarray(colors.mean(axis=2, dtype=np.float32) / np.float32(scale))


def alpha_mask(image: ImageFile) -> np.ndarray:
    """Mask (H, W) bool of the pixels that are more transparent than opaque.

    Raises:
        UserError: if the image has no transparency.
    """
    alpha = image.alpha
    if alpha is None:
        raise UserError(f"has no transparency to take the hole from: {image.path}")
    return alpha < 0.5


def box_mask(box: tuple[int, int, int, int], shape: tuple[int, int]) -> np.ndarray:
    """Mask (H, W) bool of a rectangle (left, top, width, height) in an image of `shape` (H, W).

    Raises:
        UserError: if the rectangle is empty or wholly outside.
    """
    left, top, width, height = box
    mask = np.zeros(shape, bool)
    mask[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = True
    if not mask.any():
        raise UserError(f"--box: {','.join(map(str, box))} holds no pixel of {shape[1]}×{shape[0]}")
    return mask


def painted_mask(strokes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mask (H, W) bool of the pixels of an image of `shape` (H, W) that strokes cover by half or more.

    Args:
        strokes: opacity (h, w) uint8 of the paint on a copy of the image, smaller or larger.
    """
    if strokes.shape != shape:
        enlarge = strokes.size < shape[0] * shape[1]
        interpolation = cv2.INTER_LINEAR if enlarge else cv2.INTER_AREA
        strokes = cv2.resize(strokes, shape[::-1], interpolation=interpolation)
    return strokes >= 128


def dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Dilate a mask (H, W) bool by a disc of radius `pixels`."""
    if pixels == 0 or not mask.any():
        return mask
    spans = []  # rows and columns that the dilated mask can reach
    for axis in (1, 0):
        found = np.flatnonzero(mask.any(axis=axis))
        spans.append(slice(max(0, int(found[0]) - pixels), int(found[-1]) + pixels + 1))
    region = spans[0], spans[1]
    distance = cv2.distanceTransform((~mask[region]).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    dilated = mask.copy()
    dilated[region] = distance <= pixels + 0.5
    return dilated


def mask_warnings(mask: np.ndarray, trained: tuple[float, float] | None = None) -> list[str]:
    """Warnings about a mask (H, W) bool that is empty, full, inverted, or too large to be filled well.

    Args:
        trained: range of mask ratios that the network was trained on.
    """
    ratio = float(mask.mean()) if mask.size else 0.0
    if ratio == 0:
        return ["the mask is empty: nothing was filled"]
    if ratio == 1:
        return ["the mask covers the whole image: there are no known pixels"]
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if ratio > 0.5 and border.mean() > 0.9:
        return [f"{ratio:.0%} of the image is missing, its border too: is the mask inverted? (--invert_mask)"]
    if ratio > LARGE:
        return [f"{ratio:.0%} of the image is missing: the result is unreliable"]
    if trained is not None and ratio > trained[1]:
        return [f"{ratio:.0%} of the image is missing; the network was trained on up to {trained[1]:.0%}"]
    return []


def feather(filled: np.ndarray, before: np.ndarray, mask: np.ndarray, width: int) -> np.ndarray:
    """Blend the completion with the original pixels of the hole, over `width` pixels inside its edge.

    Shapes:
        filled and before (H, W, C) of one type; mask (H, W) bool. Returns (H, W, C) of that type.
    """
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    weight = np.clip(depth / (width + 1), 0, 1)[:, :, None]
    blended = weight * filled + (1 - weight) * before
    return (np.rint(blended) if filled.dtype.kind == "u" else blended).astype(filled.dtype)
