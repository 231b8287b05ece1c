"""Proof that a written file differs from the original in its hole alone, by another library than wrote it."""

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

from imaging.formats.jpeg import silent_stderr
from imaging.formats.png import plain_samples
from imaging.image_file import ImageFile
from imaging.metadata import ORIENTATION
from imaging.raster import CHANNELS, stored
from utils import UserError

Reader = Callable[[Path], np.ndarray | None]
PILLOW_WROTE = {"GIF", "WEBP", "BMP", "JPEG2000", "AVIF", "PCX", "SGI", "TGA", "PPM", "HEIF"}


def with_opencv(path: Path) -> np.ndarray | None:
    """The pixels as OpenCV reads them, as stored; None if it does not."""
    try:
        with silent_stderr():  # it would print what it thinks of unknown tags
            return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


def with_tifffile(path: Path) -> np.ndarray | None:
    """The samples of a TIFF as tifffile reads them; None if it does not."""
    try:
        with tifffile.TiffFile(path) as file:
            return np.asarray(file.pages[0].asarray())
    except (tifffile.TiffFileError, ValueError):
        return None


def with_pillow(path: Path) -> np.ndarray | None:
    """The pixels as Pillow reads them, palettes as indices; None if it does not."""
    with warnings.catch_warnings(), silent_stderr():
        warnings.simplefilter("ignore")  # about damaged metadata
        try:
            with Image.open(path) as image:
                return np.asarray(image)
        except (OSError, ValueError, SyntaxError):
            return None


@dataclass(frozen=True)
class Facts:
    """What a file says of its picture, read without keeping the pixels."""

    format: str
    space: str
    channels: int
    bits: int
    itemsize: int
    height_width: tuple[int, int]  # as stored
    orientation: int
    properties: dict[str, object]  # that two files have to share
    by_pillow: dict[str, object]  # the same, as Pillow sees them; none if it does not read the file


def read_facts(path: Path, form: str = "") -> Facts:
    """The facts of a file by our reader and by Pillow's; `form` as of `ImageFile`."""
    file = ImageFile(path, form=form)
    raster = file.raster
    samples = raster.samples
    properties: dict[str, object] = {
        "size": raster.shape,
        "type": samples.dtype.newbyteorder("="),
        "depth": raster.bits,
        "channels": (raster.space, samples.shape[2]),
        "alpha": (raster.alpha, raster.premultiplied, raster.palette_alpha is None, raster.transparent),
        "orientation": raster.orientation,
        "profile": file.icc,
    }
    by_pillow: dict[str, object] = {}
    with warnings.catch_warnings(), contextlib.suppress(OSError, ValueError, SyntaxError, KeyError):
        warnings.simplefilter("ignore")  # about damaged metadata
        with Image.open(path) as image:
            by_pillow["orientation"] = image.getexif().get(ORIENTATION, 1)
            by_pillow["profile"] = image.info.get("icc_profile")
    height_width = samples.shape[0], samples.shape[1]
    return Facts(
        file.format,
        raster.space,
        samples.shape[2],
        raster.bits,
        samples.itemsize,
        height_width,
        raster.orientation,
        properties,
        by_pillow,
    )


def readers(facts: Facts) -> list[tuple[str, Reader]]:
    """Libraries other than those that wrote a file of this kind, that may read it."""
    if facts.format == "TIFF":  # of which OpenCV reads some kinds wrong
        upright = facts.orientation == 1  # others Pillow turns
        return [("Pillow", with_pillow)] * upright + [("tifffile", with_tifffile)]
    found: list[tuple[str, Reader]] = [("OpenCV", with_opencv)]
    if facts.format not in PILLOW_WROTE:
        found.append(("Pillow", with_pillow))
    return found


def sees_all(pixels: np.ndarray | None, facts: Facts) -> bool:
    """Whether a library's pixels have all channels and all bits of the stored ones."""
    if pixels is None or pixels.shape[:2] != facts.height_width:
        return False
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    needed = CHANNELS[facts.space] + (facts.channels > CHANNELS[facts.space])
    return channels >= needed and (facts.bits <= 8 or pixels.dtype.itemsize >= facts.itemsize)


def digest_rows(pixels: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """A checksum of every row (H,), the changed pixels left out."""
    return np.array(
        [
            zlib.crc32(np.ascontiguousarray(row if not holes.any() else row[~holes]).tobytes())
            for row, holes in zip(pixels, changed, strict=True)
        ],
        np.uint32,
    )


def verify_converted(original: Path, written: Path, changed: np.ndarray, name: Path) -> str:
    """Compare a PNG, as OpenCV reads it, with what was decoded of another format; otherwise as `verify`."""
    decoded = plain_samples(ImageFile(original).raster)
    count = decoded.shape[2]
    pixels = with_opencv(written)
    if pixels is not None and pixels.ndim == 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
        pixels = pixels if count > 2 else pixels[:, :, [0, 3][:count]]
    pixels = np.atleast_3d(pixels) if pixels is not None else np.zeros((0, 0, 0))
    if pixels.shape != decoded.shape or pixels.dtype != decoded.dtype:
        raise UserError(f"--verify: OpenCV reads another size, depth or number of channels: {name}")
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
    """Compare two files by a library that wrote neither.

    Args:
        missing: (H, W) bool, upright: the pixels that may differ.
        kept: (H, W) bool, as stored: the pixels that must not, if not all the others; of a JPEG, those that
            share no block with the hole.
        converted: whether the written file is a PNG of a picture of another format.
        name: what errors call the written file, if not by its path.

    Returns:
        Who proved what, as the end of a sentence.

    Raises:
        UserError: if a pixel or a property differs.
    """
    name = name or written
    before = read_facts(original)
    after = read_facts(written, "PNG" if converted else before.format)
    if not converted:
        differing = [item for item, value in before.properties.items() if after.properties[item] != value]
        differing += [
            item for item, value in before.by_pillow.items() if after.by_pillow.get(item, value) != value
        ]
        if differing:
            raise UserError(f"--verify: another {', '.join(differing)}: {name}")
    changed = stored(missing, before.orientation) if kept is None else ~kept
    what = "every other pixel is identical" if kept is None else "all blocks outside the hole are identical"
    if converted:
        if after.orientation != before.orientation:
            raise UserError(f"--verify: another orientation: {name}")
        return verify_converted(original, written, changed, name)
    for library, read in readers(after):
        first = read(original)
        if not sees_all(first, before):
            continue
        assert first is not None
        rows = digest_rows(first, changed)
        shape, kind = first.shape, first.dtype
        del first
        second = read(written)
        if second is None or second.shape != shape or second.dtype != kind:
            raise UserError(f"--verify: {library} reads another size, depth or number of channels: {name}")
        if not np.array_equal(rows, digest_rows(second, changed)):
            first = read(original)
            assert first is not None
            if not np.array_equal(rows, digest_rows(first, changed)):  # it reads what it should not
                continue
            different = (first != second).reshape(*changed.shape, -1).any(axis=2) & ~changed
            raise UserError(f"--verify: {int(different.sum()):,} pixels outside the hole differ: {name}")
        return f"{what} (read by {library})"
    return "the others not verified, as no second library reads such a file in full"
