"""Check that a written file differs from the original only in its hole, with a library that wrote neither."""

import contextlib
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

from imaging.formats.jpeg_codec import silent_stderr
from imaging.formats.png import plain_samples
from imaging.image_file import ImageFile
from imaging.metadata import DECODE_ERRORS, ORIENTATION
from imaging.raster import CHANNELS, Raster, stored
from utils import UserError

Reader = Callable[[Path], np.ndarray | None]
WRITTEN_BY_PILLOW = {"GIF", "WEBP", "BMP", "JPEG2000", "AVIF", "PCX", "SGI", "TGA", "PPM", "HEIF"}
OTHER_KIND = "reads another size, depth or number of channels"


def with_opencv(path: Path) -> np.ndarray | None:
    """The pixels as stored, read by OpenCV; None if it cannot read the file."""
    try:
        with silent_stderr():  # it prints warnings about unknown tags
            return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


def with_tifffile(path: Path) -> np.ndarray | None:
    """The samples of a TIFF read by tifffile; None if it cannot read the file."""
    try:
        with tifffile.TiffFile(path) as file:
            return np.asarray(file.pages[0].asarray())
    except DECODE_ERRORS:
        return None


def with_pillow(path: Path) -> np.ndarray | None:
    """The pixels read by Pillow, palettes as indices; None if it cannot read the file."""
    with warnings.catch_warnings(), silent_stderr():
        warnings.simplefilter("ignore")  # about damaged metadata
        try:
            with Image.open(path) as image:
                return np.asarray(image)
        except DECODE_ERRORS:
            return None


@dataclass(frozen=True)
class Facts:
    """The properties of an image file, kept without its pixels.

    Attributes:
        raster: its samples are zeros of the same shape and type that take no memory.
        properties: those that two files have to share.
        by_pillow: orientation and profile read by Pillow; empty if it cannot read the file.
    """

    format: str
    raster: Raster
    properties: dict[str, object]
    by_pillow: dict[str, object]


def read_facts(path: Path, form: str = "") -> Facts:
    """The facts of a file of format `form`, or of the format that its first bytes tell."""
    file = ImageFile(path, form=form)
    raster = file.raster
    raster.samples = np.broadcast_to(np.zeros((), raster.samples.dtype), raster.samples.shape)
    properties: dict[str, object] = {
        "size": raster.shape,
        "type": raster.samples.dtype.newbyteorder("="),
        "depth": raster.bits,
        "channels": (raster.space, raster.samples.shape[2]),
        "alpha": (raster.alpha, raster.premultiplied, raster.palette_alpha is None, raster.transparent),
        "orientation": raster.orientation,
        "profile": file.icc,
    }
    by_pillow: dict[str, object] = {}
    with warnings.catch_warnings(), contextlib.suppress(*DECODE_ERRORS):
        warnings.simplefilter("ignore")  # about damaged metadata
        with Image.open(path) as image:
            by_pillow["orientation"] = image.getexif().get(ORIENTATION, 1)
            by_pillow["profile"] = image.info.get("icc_profile")
    return Facts(file.format, raster, properties, by_pillow)


def readers(facts: Facts) -> list[tuple[str, Reader]]:
    """Libraries that may read a file of this kind and do not write it here."""
    if facts.format == "TIFF":  # OpenCV reads some kinds wrong
        upright = facts.raster.orientation == 1  # Pillow turns others
        return [("Pillow", with_pillow)] * upright + [("tifffile", with_tifffile)]
    found: list[tuple[str, Reader]] = [("OpenCV", with_opencv)]
    if facts.format not in WRITTEN_BY_PILLOW:
        found.append(("Pillow", with_pillow))
    return found


def sees_all(pixels: np.ndarray | None, raster: Raster) -> bool:
    """Whether a library's pixels have all channels and all bits of the stored ones."""
    samples = raster.samples
    if pixels is None or pixels.shape[:2] != samples.shape[:2]:
        return False
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    needed = CHANNELS[raster.space] + (samples.shape[2] > CHANNELS[raster.space])
    return channels >= needed and (raster.bits <= 8 or pixels.dtype.itemsize >= samples.itemsize)


def digest_rows(pixels: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """A checksum (H,) of each row without its changed pixels."""
    return np.array(
        [
            zlib.crc32(np.ascontiguousarray(row if not holes.any() else row[~holes]).tobytes())
            for row, holes in zip(pixels, changed, strict=True)
        ],
        np.uint32,
    )


def verify_converted(original: Path, written: Path, changed: np.ndarray, name: Path) -> str:
    """Compare a PNG, read by OpenCV, with the decoded file of another format; see `verify`."""
    decoded = plain_samples(ImageFile(original).raster)
    count = decoded.shape[2]
    pixels = with_opencv(written)
    if pixels is not None and pixels.ndim == 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
        pixels = pixels if count > 2 else pixels[:, :, [0, 3][:count]]
    pixels = np.atleast_3d(pixels) if pixels is not None else np.zeros((0, 0, 0))
    if pixels.shape != decoded.shape or pixels.dtype != decoded.dtype:
        raise UserError(f"--verify: OpenCV {OTHER_KIND}: {name}")
    different = (pixels != decoded).any(axis=2) & ~changed
    if different.any():
        raise UserError(f"--verify: {int(different.sum()):,} pixels outside the hole differ: {name}")
    return "every other pixel is identical (read by OpenCV)"


def verify(
    original: Path,
    written: Path,
    missing: np.ndarray,
    kept: np.ndarray | None = None,
    converted: bool = False,
    name: Path | None = None,
) -> str:
    """Compare two files with a library that wrote neither.

    Args:
        missing: (H, W) bool, upright: the pixels that may differ.
        kept: (H, W) bool, as stored: the pixels that must not differ, if fewer than all others; in a JPEG,
            those that share no block with the hole.
        converted: whether the written file is a PNG made from another format.
        name: the name of the written file in errors; its path by default.

    Returns:
        The end of a sentence that names what was verified by which library.

    Raises:
        UserError: if a pixel or a property differs.
    """
    name = name or written
    before = read_facts(original)
    after = read_facts(written, "PNG" if converted else before.format)
    changed = stored(missing, before.raster.orientation) if kept is None else ~kept
    if converted:
        if after.raster.orientation != before.raster.orientation:
            raise UserError(f"--verify: another orientation: {name}")
        return verify_converted(original, written, changed, name)
    differing = [item for item, value in before.properties.items() if after.properties[item] != value]
    differing += [
        item for item, value in before.by_pillow.items() if after.by_pillow.get(item, value) != value
    ]
    if differing:
        raise UserError(f"--verify: another {', '.join(differing)}: {name}")
    for library, read in readers(after):
        first = read(original)
        if first is None or not sees_all(first, before.raster):
            continue
        rows = digest_rows(first, changed)
        shape, kind = first.shape, first.dtype
        del first
        second = read(written)
        if second is None or second.shape != shape or second.dtype != kind:
            raise UserError(f"--verify: {library} {OTHER_KIND}: {name}")
        if not np.array_equal(rows, digest_rows(second, changed)):
            first = read(original)
            assert first is not None
            if not np.array_equal(rows, digest_rows(first, changed)):  # it reads uninitialised memory
                continue
            different = (first != second).reshape(*changed.shape, -1).any(axis=2) & ~changed
            raise UserError(f"--verify: {int(different.sum()):,} pixels outside the hole differ: {name}")
        what = (
            "every other pixel is identical" if kept is None else "all blocks outside the hole are identical"
        )
        return f"{what} (read by {library})"
    return "the others not verified, as no second library reads such a file in full"
