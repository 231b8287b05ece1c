"""Image and mask files read for training: decoded upright in eight bits, and scaled."""

import contextlib
import functools
import math
import stat
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from imaging.image_file import OPENED, read_colors, reading
from imaging.mask_file import extremes, read_mask
from utils import UserError

MAX_ASPECT = 4  # long side to short side of a kept picture


MAX_PIXELS = 2**28  # of an image that is decoded: no camera has more, but a damaged header may say so


TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how such files begin


@functools.cache
def formats() -> list[str]:
    """Pillow's names of the formats that are opened; of others, EPS for one would be run by Ghostscript."""
    Image.init()
    with contextlib.suppress(ImportError):  # the library is optional
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [name for name in (*OPENED, "HEIF") if name in Image.OPEN]


def open_header(source: Path | BinaryIO) -> tuple[str, tuple[int, int] | None]:
    """Pillow's name of an image file's format, and its width and height; those of an odd TIFF are None.

    Raises:
        UserError: if it cannot be an image that is read here, or is larger than any camera's.
    """
    with reading(source):
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
            raise UserError("not a file")  # reading a pipe would wait for its other end
        try:
            with Image.open(source, formats=formats()) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(f"too large ({image.width}×{image.height} pixels)")
                return image.format or "", image.size
        except UnidentifiedImageError:
            if _begin(source) not in TIFF:
                raise ValueError("of no known format") from None
            return "TIFF", None  # of a type of samples that Pillow has no mode for


def _begin(source: Path | BinaryIO) -> bytes:
    """The first four bytes of a file."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file.read(4)
    source.seek(0)
    return source.read(4)


def read_image(source: Path | BinaryIO, least_side: int = 0) -> np.ndarray:
    """Decode an image of any common kind as it looks: upright, over white where transparent, in eight bits.

    Args:
        source: a file, or an open one whose text names it.
        least_side: pixels that the shorter side needs; a JPEG of more may come at a half, a quarter or an
            eighth of its size. 0 for the whole size.

    Returns:
        (H, W, 3) uint8, RGB. Deeper samples are rounded.

    Raises:
        UserError: if the file is missing or is not a readable image.
    """
    kind, _ = open_header(source)
    if not isinstance(source, Path):
        source.seek(0)
    if kind in ("JPEG", "MPO"):
        with reading(source):
            return _read_jpeg(source, least_side)
    colors, alpha = read_colors(source)
    if colors.dtype != np.uint8 or alpha is not None:
        unit = colors / np.float32(np.iinfo(colors.dtype).max if colors.dtype.kind == "u" else 1)
        if alpha is not None:
            unit = 1 - alpha[:, :, None] * (1 - unit)
        colors = np.rint(255 * unit).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colors, (*colors.shape[:2], 3)))


def _read_jpeg(source: Path | BinaryIO, least_side: int) -> np.ndarray:
    with Image.open(source, formats=["JPEG"]) as file:
        if 0 < least_side < min(file.size):
            scale = least_side / min(file.size)
            file.draft(None, (math.ceil(file.width * scale), math.ceil(file.height * scale)))
        return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))


def short_side_of(path: Path) -> float:
    """Pixels of an image's shorter side, from its header; ∞ if that is unreadable: decoding will say why."""
    try:
        size = open_header(path)[1]
    except UserError:
        return math.inf
    return math.inf if size is None else min(size)


def resize_image(image: np.ndarray, short_side: int) -> np.ndarray:
    """Scale (H, W, ...) uint8 so that its shorter side is `short_side`: areas averaged down, bicubic up."""
    scale = short_side / min(image.shape[:2])
    if scale == 1:
        return image
    height, width = (max(short_side, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def scale_middle(image: np.ndarray, short_side: int) -> np.ndarray:
    """Scale as of `resize_image`; of an image longer than `MAX_ASPECT` widths, the middle."""
    limit = MAX_ASPECT * min(image.shape[:2])
    top, left = (max(0, side - limit) // 2 for side in image.shape[:2])
    return resize_image(image[top : top + limit, left : left + limit], short_side)


def read_scaled(source: Path | BinaryIO, short_side: int) -> np.ndarray:
    """Decode an image as of `read_image` and scale it as of `scale_middle`: (H, W, 3) uint8, RGB.

    Raises:
        UserError: as `read_image`.
    """
    return scale_middle(read_image(source, short_side), short_side)


def read_scaled_mask(path: Path, short_side: int, invert: bool) -> tuple[np.ndarray, dict[str, str]]:
    """Read a mask file as of `read_mask` and scale it as of `scale_middle`; half missing is missing.

    Returns:
        (H, W) uint8 in {0, 1}, 1 = missing, and what a user should know, as of `binarise`; here also whether
        all or nothing is missing.

    Raises:
        UserError: if the file is missing or is not a readable image.
    """
    open_header(path)
    hole = read_mask(path, invert)
    scaled = scale_middle(hole.missing.astype(np.uint8) * 255, short_side) >= 128
    findings = hole.findings | extremes(scaled)
    if "empty" in findings and hole.missing.any():
        findings["empty"] = f"is empty at {short_side} pixels: what it marks is too thin"
    return scaled.astype(np.uint8), findings
