"""Image files that Pillow reads and writes: BMP, GIF, WebP, AVIF, JPEG 2000, PPM, TGA and others."""

import io
import math
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from imaging.formats import QUALITY, reencoding_note
from imaging.metadata import PREFIX, Metadata, orientation_of, without_thumbnail, without_xmp_previews
from imaging.raster import Raster, several_images_error
from utils import UserError

PLAIN = {"BMP", "DIB", "PPM", "SGI", "TGA"}  # formats that may store rows uncompressed
LOSSY = {"AVIF"}  # formats whose known pixels change when they are written
SPACES = {
    "1": "grey", "L": "grey", "LA": "grey", "I;16": "grey", "I": "grey", "F": "grey", "P": "palette",
    "PA": "palette", "RGB": "rgb", "RGBA": "rgb", "RGBX": "rgb", "CMYK": "cmyk", "YCbCr": "ycbcr",
}  # fmt: skip
BITS = {"1": 1, "I;16": 16, "I": 32, "F": 32}
ALPHA = {"LA": 1, "PA": 1, "RGBA": 3}
GREEN_BITS = {"BGR;15": 5, "BGR;16": 6}  # raw modes of 16 bits per pixel
KEPT = ("icc_profile", "exif", "xmp", "dpi", "comment")
KEPT_BY_FORMAT = {
    "GIF": ("transparency", "background", "comment", "interlace"),
    "TGA": ("compression", "orientation", "id_section"),
}
PORTABLE_HEADER = re.compile(  # P1 and P4 (bitmaps) state width and height, the others a maximum as well
    rb"P(?:([14])|([2356]))_(\d+)_(\d+)(?(2)_(\d+))\s".replace(b"_", rb"(?:\s|#[^\n]*\n)+")
)


class PillowFile:
    """An open image file that Pillow decodes; a `Container`.

    If its rows are not compressed, only they are replaced; other files are re-encoded, without loss if their
    format can.
    """

    def __init__(self, data: bytes, form: str) -> None:
        self.data, self.format = data, form
        self.notes: list[str] = []
        refuse_depths(data, form)
        self.image = image = Image.open(io.BytesIO(data), formats=(form,))
        self.tiles = [tuple(tile) for tile in image.tile]
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise several_images_error(frames)
        if form == "GIF" and self.tiles[0][1] != (0, 0, *image.size):
            raise NotImplementedError("a GIF that does not fill its canvas cannot be written back")
        image.load()
        if image.mode not in SPACES:
            raise NotImplementedError(f"{form} images of mode {image.mode} cannot be written back")
        samples = np.atleast_3d(np.array(image))  # a writable copy
        exif, xmp = image.info.get("exif"), image.info.get("xmp")
        self.raster = Raster(
            samples.astype(np.uint8) if image.mode == "1" else samples,
            SPACES[image.mode],
            BITS.get(image.mode, 8),
            alpha=ALPHA.get(image.mode),
            orientation=orientation_of(exif, xmp if isinstance(xmp, bytes) else None),
        )
        hidden = image.info.get("transparency")
        if image.mode in ("P", "PA"):
            self.raster.palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            opacity = np.full(256, 255, np.uint8)
            if isinstance(hidden, int):
                opacity[hidden] = 0
            elif isinstance(hidden, bytes):
                opacity[: len(hidden)] = np.frombuffer(hidden, np.uint8)[:256]
            self.raster.palette_alpha = opacity if hidden is not None else None
        elif hidden is not None and image.mode in ("L", "RGB"):
            self.raster.transparent = (hidden,) if isinstance(hidden, int) else tuple(hidden)
        self.exact = form not in LOSSY
        self.encoding_note = "" if self.exact else reencoding_note(form)
        self.icc: bytes | None = image.info.get("icc_profile")
        if form == "AVIF" and data[data.find(b"av1C") + 6] & 0x40:
            self.notes.append("AVIF of more than 8 bits is written with 8")
        if form == "PPM" and data.startswith(b"P1"):
            self.notes.append("plain PBM is written as binary, without its comments")
        if form == "WEBP" and any(kind == b"VP8 " for kind, _ in webp_chunks(data)):
            self.notes.append("a lossy WebP is written without loss, which takes more bytes")

    def metadata(self) -> Metadata:
        """The metadata for a PNG of the same image; see `Metadata`."""
        info = self.image.info
        exif = info.get("exif")
        if exif:
            exif = without_thumbnail(exif, self.notes).removeprefix(PREFIX)
        return Metadata(exif, info.get("xmp"), self.icc, info.get("comment"), dpi=info.get("dpi"))

    def write(self, file: BinaryIO, changed: np.ndarray) -> None:
        rawmode = self.tiles[0][3] if self.tiles else None
        levels = channel_levels(rawmode[0] if isinstance(rawmode, tuple) else rawmode)
        if levels is not None:  # round colours to 5 or 6 bits, so that they read back the same
            values = np.rint(self.raster.samples[changed] * (levels / 255)).astype(int)
            self.raster.samples[changed] = values * 255 // levels
        image = to_pillow(self.raster.samples, self.image)
        if self.format in PLAIN:
            spliced = splice(self.data, self.tiles, self.image, image)
            if spliced is not None and self._decodes_to(spliced, image):
                file.write(spliced)
                return
        encoded = self._encode(image)
        if self.exact and not self._decodes_to(encoded, image):
            raise UserError(f"this {self.format} cannot be written back without changes")
        file.write(encoded)

    def _decodes_to(self, data: bytes, expected: Image.Image) -> bool:
        with Image.open(io.BytesIO(data), formats=(self.format,)) as image:
            same_kind = (image.mode, image.size) == (expected.mode, expected.size)
            return same_kind and image.tobytes() == expected.tobytes()

    def _encode(self, image: Image.Image) -> bytes:
        info = self.image.info
        if self.format == "GIF":
            kept = {name: info[name] for name in KEPT_BY_FORMAT["GIF"] if name in info}
            return save(image, "GIF", optimize=False, **kept)
        kept = {name: info[name] for name in KEPT_BY_FORMAT.get(self.format, KEPT) if info.get(name)}
        if "exif" in kept:
            kept["exif"] = without_thumbnail(kept["exif"], self.notes)
        if isinstance(kept.get("xmp"), bytes):
            kept["xmp"] = without_xmp_previews(kept["xmp"], self.notes)
        if self.format == "WEBP":
            encoded = save(image, "WEBP", lossless=True, quality=80, exact=True, **kept)
            return with_alpha(encoded) if image.mode == "RGBA" else encoded
        if self.format in LOSSY:
            return save(image, self.format, quality=QUALITY, subsampling="4:4:4", **kept)
        if self.format == "JPEG2000":
            kept = {"no_jp2": self.data.startswith(b"\xff\x4f")}
        return save(image, self.format, **kept)


def refuse_depths(data: bytes, form: str) -> None:
    """Raise an error if Pillow would silently reduce samples to eight bits, or rescale them."""
    if form == "JPEG2000":
        start = data.find(b"\xff\x4f\xff\x51")
        (count,) = struct.unpack_from(">H", data, start + 40)
        parts = [struct.unpack_from("BBB", data, start + 42 + 3 * i) for i in range(count)]
        if any(part[1:] != (1, 1) for part in parts):
            raise NotImplementedError("JPEG 2000 of subsampled channels cannot be written back")
        if {part[0] for part in parts} not in ({7}, {15}) or (parts[0][0] == 15 and count > 1) or count > 4:
            raise NotImplementedError("JPEG 2000 of this depth cannot be written back")
    elif form == "SGI" and data[3:4] != b"\1":
        raise NotImplementedError("SGI of 16 bits cannot be written back")
    elif form == "PCX" and data[2:3] == b"\0":
        raise NotImplementedError("PCX without compression cannot be written back")


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a WebP file, kind and content."""
    place = 12
    while place + 8 <= len(data):
        kind, (length,) = data[place : place + 4], struct.unpack_from("<I", data, place + 4)
        yield kind, data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2


def with_alpha(data: bytes) -> bytes:
    """A lossless WebP whose header states alpha, which the encoder leaves out if all pixels are opaque."""
    changed = bytearray(data)
    place = 12
    for kind, content in webp_chunks(data):
        if kind == b"VP8X":
            changed[place + 8] |= 0x10
        elif kind == b"VP8L":  # a signature, width and height of 14 bits each, and the flag
            changed[place + 8 + 4] |= 0x10
        place += 8 + len(content) + len(content) % 2
    return bytes(changed)


def to_pillow(samples: np.ndarray, like: Image.Image) -> Image.Image:
    """An image of samples (H, W, C) with the mode, palette and information of another."""
    flat = samples[:, :, 0] if samples.shape[2] == 1 else samples
    if like.mode == "1":
        flat = np.packbits(flat.astype(bool), axis=1)
    image = Image.frombytes(like.mode, like.size, np.ascontiguousarray(flat).tobytes())
    if like.palette is not None and like.mode in ("P", "PA"):
        image.putpalette(like.palette.getdata()[1], like.palette.mode)
    image.info = dict(like.info)
    return image


def splice(data: bytes, tiles: list[Any], before: Image.Image, after: Image.Image) -> bytes | None:
    """A file whose uncompressed rows are replaced by those of another image; None if it has no such rows.

    Args:
        tiles: `before.tile` before it was decoded.
        before: the image decoded from `data`.
    """
    spliced = np.frombuffer(data, np.uint8).copy()
    for decoder, box, offset, args in tiles:
        if decoder != "raw" or box is None:
            return None
        rawmode, stride, direction = (*(args if isinstance(args, tuple) else (args,)), 0, 1)[:3]
        parts = [image if image.size == box[2:] else image.crop(box) for image in (before, after)]
        if len(tiles) > 1 and len(rawmode) == 1 and before.mode != rawmode:  # one channel of the image
            parts = [image.getchannel(rawmode) for image in parts]
            rawmode = "L"
        try:
            old, new = (np.frombuffer(pack(part, rawmode, stride, direction), np.uint8) for part in parts)
        except (SystemError, ValueError, OSError):  # no packer for these rows
            return None
        stop = min(offset + len(new), len(spliced))
        differing = np.flatnonzero(old[: stop - offset] != new[: stop - offset])
        spliced[offset + differing] = new[differing]
    return spliced.tobytes() if tiles else None


def channel_levels(rawmode: object) -> np.ndarray | None:
    """The maximum of red, green and blue in rows of 16 bits per pixel; None for other rows."""
    if rawmode not in GREEN_BITS:
        return None
    return np.array([31, 2 ** GREEN_BITS[str(rawmode)] - 1, 31])


def pack(image: Image.Image, rawmode: str, stride: int, direction: int) -> bytes:
    """The rows of an image as stored in a file, also in modes that Pillow reads but does not write.

    Args:
        stride: bytes per row; 0 for no padding.
        direction: -1 if the lowest row comes first.
    """
    levels = channel_levels(rawmode)
    if levels is not None:
        red, green, blue = np.moveaxis(np.rint(np.asarray(image) * (levels / 255)).astype(np.uint16), 2, 0)
        rows = (red << (5 + GREEN_BITS[rawmode]) | green << 5 | blue).astype("<u2").view(np.uint8)
    elif rawmode == "F;32BF":
        rows = np.asarray(image).astype(">f4").view(np.uint8)
    else:
        return image.tobytes("raw", rawmode, stride, direction)
    padded = np.zeros((len(rows), max(stride, rows.shape[1])), np.uint8)
    padded[:, : rows.shape[1]] = rows
    return padded[::direction].tobytes()


def save(image: Image.Image, form: str, **settings: Any) -> bytes:
    """The bytes of a file in one of Pillow's formats."""
    target = io.BytesIO()
    image.save(target, form, **{name: value for name, value in settings.items() if value is not None})
    return target.getvalue()


def open_portable(data: bytes) -> "PortableFile | PillowFile":
    """An open PBM, PGM, PPM or PFM file.

    Raises:
        UserError: if it holds several images.
    """
    header = PORTABLE_HEADER.match(data)
    if header is None:
        return PillowFile(data, "PPM")
    kind, width, height = int(header[1] or header[2]), int(header[3]), int(header[4])
    maximum, channels, is_text = int(header[5] or 1), 3 if kind in (3, 6) else 1, kind <= 3
    row = (width + 7) // 8 if kind == 4 else width * channels * (2 if maximum > 255 else 1)  # bytes
    end = len(data) if is_text else header.end() + row * height
    if re.match(rb"\s*P[1-6]\s", data[end:]):
        raise several_images_error("several")
    if kind in (1, 4) or (kind > 3 and maximum == 255):
        return PillowFile(data, "PPM")
    return PortableFile(data, (header.end(), end), (height, width, channels), maximum, is_text)


class PortableFile:
    """An open PGM or PPM file, plain text or not of 8 bits, which Pillow would reduce; a `Container`.

    Args:
        pixels: the range (start, end) of the pixels in the file.
        shape: height, width, channels.
        maximum: the sample of white.
    """

    exact = True
    encoding_note = ""
    icc: bytes | None = None

    def __init__(
        self, data: bytes, pixels: tuple[int, int], shape: tuple[int, int, int], maximum: int, is_text: bool
    ) -> None:
        self.data, self.pixels, self.is_text, self.notes = data, pixels, is_text, list[str]()
        bits = maximum.bit_length()
        if maximum != 2**bits - 1 or bits > 16:
            raise NotImplementedError(f"PPM of {maximum + 1} levels cannot be written back")
        self.type = np.dtype(">u2" if bits > 8 else np.uint8)
        count = math.prod(shape)
        content = data[slice(*pixels)]
        if is_text:
            values = np.array(content.split()[:count], dtype=int)
        else:
            values = np.frombuffer(content, self.type)
        if len(values) < count or values.max(initial=0) > maximum:
            raise ValueError("PPM without an end, or with samples above its maximum")
        samples = values.reshape(shape).astype(self.type.newbyteorder("="))
        self.raster = Raster(samples, "rgb" if shape[2] == 3 else "grey", bits)

    def metadata(self) -> Metadata:
        return Metadata()

    def write(self, file: BinaryIO, changed: np.ndarray) -> None:
        samples = self.raster.samples
        content = samples.astype(self.type).tobytes()
        if self.is_text:
            rows = (" ".join(map(str, row.tolist())) for row in samples.reshape(-1, samples.shape[2]))
            content = ("\n".join(rows) + "\n").encode()
        file.writelines([self.data[: self.pixels[0]], content, self.data[self.pixels[1] :]])
