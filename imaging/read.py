"""Image and mask files decoded for training: upright, in eight bits, and scaled."""

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
from imaging.mask_file import Findings, extremes, read_mask
from utils import UserError

MAX_ASPECT = 4  # longer side over shorter side; an image beyond it is cropped to its middle
MAX_PIXELS = 2**28  # no camera has more, but a damaged header may claim so
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@functools.cache
def formats() -> list[str]:
    """Pillow's names of the formats that are opened; others may be unsafe, as EPS, which Ghostscript runs."""
    Image.init()
    with contextlib.suppress(ImportError):  # the library is optional
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [name for name in (*OPENED, "HEIF") if name in Image.OPEN]


def open_header(source: Path | BinaryIO) -> tuple[str, tuple[int, int] | None]:
    """Pillow's name of a file's format, and its (width, height); None for a TIFF that Pillow cannot open.

    Raises:
        UserError: if the file is no image of a supported format, or has more than `MAX_PIXELS`.
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
            if _first_bytes(source) not in TIFF_MAGIC:
                raise ValueError("of no known format") from None
            return "TIFF", None  # its samples have a type that Pillow has no mode for


def _first_bytes(source: Path | BinaryIO) -> bytes:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file.read(4)
    source.seek(0)
    return source.read(4)


def read_image(source: Path | BinaryIO, min_side: int = 0) -> np.ndarray:
    """Decode an image of any common format: upright, transparency over white, in eight bits.

    Args:
        source: a path, or an open file whose `str` names it in errors.
        min_side: pixels needed on the shorter side; a larger JPEG may be decoded at a half, a quarter or an
            eighth of its size. 0 for the full size.

    Returns:
        (H, W, 3) uint8, RGB. Deeper samples are rounded.

    Raises:
        UserError: if the file is missing or is not a readable image.
    """
    form, _ = open_header(source)
    if not isinstance(source, Path):
        source.seek(0)
    if form in ("JPEG", "MPO"):
        with reading(source):
            return _read_jpeg(source, min_side)
    colors, alpha = read_colors(source)
    if colors.dtype != np.uint8 or alpha is not None:
        unit = colors / np.float32(np.iinfo(colors.dtype).max if colors.dtype.kind == "u" else 1)
        if alpha is not None:
            unit = 1 - alpha[:, :, None] * (1 - unit)
        colors = np.rint(255 * unit).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colors, (*colors.shape[:2], 3)))


def _read_jpeg(source: Path | BinaryIO, min_side: int) -> np.ndarray:
    with Image.open(source, formats=["JPEG"]) as file:
        if 0 < min_side < min(file.size):
            scale = min_side / min(file.size)
            file.draft(None, (math.ceil(file.width * scale), math.ceil(file.height * scale)))
        return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))


def short_side_of(path: Path) -> float:
    """Pixels of an image's shorter side, by its header; infinity if that is unreadable."""
    try:
        size = open_header(path)[1]
    except UserError:  # decoding will report it
        return math.inf
    return math.inf if size is None else min(size)


def resize_image(image: np.ndarray, short_side: int) -> np.ndarray:
    """Scale (H, W, ...) uint8 to a shorter side of `short_side`: area averages down, bicubic up."""
    scale = short_side / min(image.shape[:2])
    if scale == 1:
        return image
    height, width = (max(short_side, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def resize_middle(image: np.ndarray, short_side: int) -> np.ndarray:
    """Scale an image like `resize_image`, after cropping it to `MAX_ASPECT` about its centre."""
    limit = MAX_ASPECT * min(image.shape[:2])
    top, left = (max(0, side - limit) // 2 for side in image.shape[:2])
    return resize_image(image[top : top + limit, left : left + limit], short_side)


def read_scaled(source: Path | BinaryIO, short_side: int) -> np.ndarray:
    """Decode an image like `read_image` and scale it like `resize_middle`: (H, W, 3) uint8, RGB.

    Raises:
        UserError: if the file is missing or is not a readable image.
    """
    return resize_middle(read_image(source, short_side), short_side)


def read_scaled_mask(path: Path, short_side: int, invert: bool) -> tuple[np.ndarray, Findings]:
    """Read a mask file and scale it like `resize_middle`; a pixel is missing if at least half of it is.

    Returns:
        (H, W) uint8 in {0, 1}, 1 = missing, and the findings of `binarise` and `extremes`.

    Raises:
        UserError: if the file is missing or is not a readable image.
    """
    open_header(path)
    mask, findings = read_mask(path, invert)
    scaled = resize_middle(mask.astype(np.uint8) * 255, short_side) >= 128
    findings |= extremes(scaled)
    if "empty" in findings and mask.any():
        findings["empty"] = f"is empty at {short_side} pixels: what it marks is too thin"
    return scaled.astype(np.uint8), findings
