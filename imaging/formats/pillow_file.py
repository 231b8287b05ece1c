"""Image files that Pillow reads and writes: BMP, GIF, WebP, AVIF, JPEG 2000, PPM, TGA and others."""

import io
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from imaging.metadata import (
    XMP_NOTE,
    Metadata,
    blank_xmp_previews,
    orientation_of,
    without_previews,
)
from imaging.raster import Raster
from utils import UserError

QUALITY = 95  # of lossy formats
PLAIN = {"BMP", "DIB", "PPM", "SGI", "TGA"}  # formats whose rows may lie uncompressed in the file
LOSSY = {"AVIF"}  # formats whose known pixels cannot come back as they were
SPACES = {
    "1": "grey", "L": "grey", "LA": "grey", "I;16": "grey", "I": "grey", "F": "grey", "P": "palette",
    "PA": "palette", "RGB": "rgb", "RGBA": "rgb", "RGBX": "rgb", "CMYK": "cmyk", "YCbCr": "ycbcr",
}  # fmt: skip
BITS = {"1": 1, "I;16": 16, "I": 32, "F": 32}
ALPHA = {"LA": 1, "PA": 1, "RGBA": 3}
GREEN_BITS = {"BGR;15": 5, "BGR;16": 6}  # of 16 bits a pixel
KEPT = ("icc_profile", "exif", "xmp", "dpi", "comment")


class PillowFile:
    """An open image file that Pillow decodes; a `Container`.

    Where its rows are not compressed, they alone are exchanged; other files are encoded anew, without loss
    if their format can.
    """

    def __init__(self, data: bytes, form: str) -> None:
        self.data, self.format = data, form
        self.notes: list[str] = []
        refuse_depths(data, form)
        self.image = Image.open(io.BytesIO(data), formats=(form,))
        self.tiles = [tuple(tile) for tile in self.image.tile]
        frames = getattr(self.image, "n_frames", 1)
        if frames > 1:
            raise NotImplementedError(f"holds {frames} pictures, and only single ones can be filled")
        if form == "GIF" and self.tiles[0][1] != (0, 0, *self.image.size):
            raise NotImplementedError("a GIF that does not fill its canvas cannot be written back")
        self.image.load()
        image = self.image
        if image.mode not in SPACES:
            raise NotImplementedError(f"{form} pictures of mode {image.mode} cannot be written back")
        samples = np.array(image)  # a copy, to be written to
        exif, xmp = image.info.get("exif"), image.info.get("xmp")
        self.raster = Raster(
            samples.astype(np.uint8) if image.mode == "1" else np.atleast_3d(samples),
            SPACES[image.mode],
            BITS.get(image.mode, 8),
            alpha=ALPHA.get(image.mode),
            orientation=orientation_of(exif, xmp if isinstance(xmp, bytes) else None),
        )
        self.raster.samples = np.atleast_3d(self.raster.samples)
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
        self.how = ""
        if form in LOSSY:
            self.how = f"{form} is written anew, at quality {QUALITY}, and changes a little (--lossless: PNG)"
        if form == "AVIF" and data[data.find(b"av1C") + 6] & 0x40:
            self.notes.append("AVIF of more than 8 bits is written with 8")
        if form == "PPM" and data.startswith(b"P1"):
            self.notes.append("plain PBM is written as binary, without its comments")
        if form == "WEBP" and any(kind == b"VP8 " for kind, _ in webp_chunks(data)):
            self.notes.append("a lossy WebP is written without loss, which takes more bytes")

    @property
    def exact(self) -> bool:
        """Whether known pixels come back as they were."""
        return self.format not in LOSSY

    @property
    def icc(self) -> bytes | None:
        """The colour profile."""
        return self.image.info.get("icc_profile")

    def metadata(self) -> Metadata:
        """What a PNG made of the picture should say."""
        info = self.image.info
        exif, dpi = info.get("exif"), info.get("dpi")
        if exif:
            exif, note = without_previews(exif)
            self.notes += [note] * bool(note)
            exif = exif.removeprefix(b"Exif\0\0")
        return Metadata(exif, info.get("xmp"), self.icc, info.get("comment"), dpi=dpi)

    def write(self, file: BinaryIO, changed: np.ndarray) -> None:
        """Write the file with its present samples; see `Container.write`."""
        rawmode = self.tiles[0][3] if self.tiles else None
        levels = channel_levels(rawmode[0] if isinstance(rawmode, tuple) else rawmode)
        if levels is not None:  # what 5 or 6 bits cannot hold is rounded here, as Pillow reads it
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
            raise UserError(f"this {self.format} cannot be written back as it is")
        file.write(encoded)

    def _decodes_to(self, data: bytes, expected: Image.Image) -> bool:
        with Image.open(io.BytesIO(data), formats=(self.format,)) as image:
            return (image.mode, image.size) == (expected.mode, expected.size) and (
                image.tobytes() == expected.tobytes()
            )

    def _encode(self, image: Image.Image) -> bytes:
        info = self.image.info
        keep = {name: info[name] for name in KEPT if info.get(name)}
        if "exif" in keep:
            keep["exif"], note = without_previews(keep["exif"])
            self.notes += [note] * bool(note)
        if isinstance(keep.get("xmp"), bytes) and blank_xmp_previews(keep["xmp"]) != keep["xmp"]:
            keep["xmp"] = blank_xmp_previews(keep["xmp"])
            self.notes.append(XMP_NOTE)
        if self.format == "WEBP":
            encoded = save(image, "WEBP", lossless=True, quality=80, exact=True, **keep)
            return with_alpha(encoded) if image.mode == "RGBA" else encoded
        if self.format in LOSSY:
            return save(image, self.format, quality=QUALITY, subsampling="4:4:4", **keep)
        if self.format == "GIF":
            keep = {
                name: info[name]
                for name in ("transparency", "background", "comment", "interlace")
                if name in info
            }
            return save(image, "GIF", optimize=False, **keep)
        if self.format == "JPEG2000":
            keep = {"no_jp2": self.data.startswith(b"\xff\x4f")}
        if self.format == "TGA":
            keep = {
                name: info[name] for name in ("compression", "orientation", "id_section") if info.get(name)
            }
        return save(image, self.format, **keep)


def refuse_depths(data: bytes, form: str) -> None:
    """Raise where Pillow would cut samples to eight bits, or scale them, without a word."""
    if form == "JPEG2000":
        start = data.find(b"\xff\x4f\xff\x51")
        (count,) = struct.unpack_from(">H", data, start + 40)
        parts = [struct.unpack_from("BBB", data, start + 42 + 3 * i) for i in range(count)]
        if any(part[1:] != (1, 1) for part in parts):
            raise NotImplementedError("JPEG 2000 of subsampled channels cannot be written back")
        if {part[0] for part in parts} not in ({7}, {15}) or (parts[0][0] == 15 and count > 1) or count > 4:
            raise NotImplementedError("JPEG 2000 of this depth cannot be written back")
    elif form == "PPM":
        refuse_more_pixmaps(data)
    elif form == "SGI" and data[3:4] != b"\1":
        raise NotImplementedError("SGI of 16 bits cannot be written back")
    elif form == "PCX" and data[2:3] == b"\0":
        raise NotImplementedError("PCX without compression cannot be written back")


def refuse_more_pixmaps(data: bytes) -> None:
    """Raise if a binary PBM, PGM or PPM is followed by another; each would have to be filled."""
    space = rb"(?:\s|#[^\n]*\n)+"
    levels = b"" if data.startswith(b"P4") else space + rb"(\d+)"
    header = re.match(rb"(P[4-6])" + space + rb"(\d+)" + space + rb"(\d+)" + levels + rb"\s", data)
    if header is None:
        return
    width, height, *highest = (int(number) for number in header.groups()[1:])
    row = {b"P4": (width + 7) // 8, b"P5": width, b"P6": 3 * width}[header[1]] * (1 + (highest > [255]))
    if re.match(rb"\s*P[1-6]\s", data[header.end() + row * height :]):
        raise NotImplementedError("holds several pictures, and only single ones can be filled")


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a WebP file, kind and content."""
    place = 12
    while place + 8 <= len(data):
        kind, (length,) = data[place : place + 4], struct.unpack_from("<I", data, place + 4)
        yield kind, data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2


def with_alpha(data: bytes) -> bytes:
    """A lossless WebP whose header says that it has alpha, which the encoder denies where all is opaque."""
    changed = bytearray(data)
    place = 12
    for kind, content in webp_chunks(data):
        if kind == b"VP8X":
            changed[place + 8] |= 0x10
        elif kind == b"VP8L":  # a signature, twice 14 bits of size, and the bit
            changed[place + 8 + 4] |= 0x10
        place += 8 + len(content) + len(content) % 2
    return bytes(changed)


def to_pillow(samples: np.ndarray, like: Image.Image) -> Image.Image:
    """An image of samples (H, W, C) with the mode, palette and information of another."""
    flat = samples[:, :, 0] if samples.shape[2] == 1 else samples
    if like.mode == "1":
        packed = np.packbits(flat.astype(bool), axis=1).tobytes()
        image = Image.frombytes("1", like.size, packed)
    else:
        image = Image.frombytes(like.mode, like.size, np.ascontiguousarray(flat).tobytes())
    if like.palette is not None and like.mode in ("P", "PA"):
        image.putpalette(like.palette.getdata()[1], like.palette.mode)
    image.info = dict(like.info)
    return image


def splice(data: bytes, tiles: list[Any], before: Image.Image, after: Image.Image) -> bytes | None:
    """A file whose uncompressed rows are those of another image; None if its rows are otherwise stored.

    Args:
        tiles: how Pillow decoded it, before it did.
        before: what it decoded.
    """
    spliced = np.frombuffer(data, np.uint8).copy()
    for decoder, box, offset, args in tiles:
        if decoder != "raw" or box is None:
            return None
        rawmode, stride, direction = (*(args if isinstance(args, tuple) else (args,)), 0, 1)[:3]
        parts = [image if image.size == box[2:] else image.crop(box) for image in (before, after)]
        if len(tiles) > 1 and len(rawmode) == 1 and before.mode != rawmode:  # a plane of the picture
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
    """The highest value of red, green and blue in rows of 16 bits a pixel; None for other rows."""
    if rawmode not in GREEN_BITS:
        return None
    return np.array([31, 2 ** GREEN_BITS[str(rawmode)] - 1, 31])


def pack(image: Image.Image, rawmode: str, stride: int, direction: int) -> bytes:
    """The rows of an image as a file stores them; also of modes that Pillow reads and does not write.

    Args:
        stride: bytes a row; 0 for no padding.
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
    """The bytes of a file of one of Pillow's formats."""
    target = io.BytesIO()
    image.save(target, form, **{name: value for name, value in settings.items() if value is not None})
    return target.getvalue()


class PortableFile:
    """An open PGM or PPM of plain text, or of other than 8 bits, which Pillow would cut; a `Container`."""

    HEADER = re.compile(rb"(P[2356])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")
    exact = True
    how = ""
    icc = None

    def __init__(self, data: bytes) -> None:
        self.data, self.notes = data, list[str]()
        refuse_more_pixmaps(data)
        header = self.HEADER.match(data)
        assert header is not None  # or it would not have been chosen
        width, height, highest = (int(number) for number in header.groups()[1:])
        bits = highest.bit_length()
        if highest != 2**bits - 1 or bits > 16:
            raise NotImplementedError(f"PPM of {highest + 1} levels cannot be written back")
        channels, self.start = (3 if header[1] in (b"P3", b"P6") else 1), header.end()
        self.stored = None if header[1] in (b"P2", b"P3") else np.dtype(">u2" if bits > 8 else np.uint8)
        count = width * height * channels
        if self.stored is None:
            values = np.array(data[self.start :].split()[:count], dtype=int)
            self.stop = len(data)
        else:
            self.stop = self.start + count * self.stored.itemsize
            values = np.frombuffer(data[self.start : self.stop], self.stored)
        if len(values) < count or values.max(initial=0) > highest:
            raise ValueError("PPM without an end, or with samples above its highest")
        samples = values.reshape(height, width, channels).astype(np.uint16 if bits > 8 else np.uint8)
        self.raster = Raster(samples, "rgb" if channels == 3 else "grey", bits)

    @classmethod
    def takes(cls, data: bytes) -> bool:
        """Whether this is a file for this class: of numbers as text, or of other than 8 bits."""
        header = cls.HEADER.match(data)
        return header is not None and (int(header[4]) != 255 or header[1] in (b"P2", b"P3"))

    def metadata(self) -> Metadata:
        """What a PNG made of the picture should say: nothing."""
        return Metadata()

    def write(self, file: BinaryIO, changed: np.ndarray) -> None:
        """Write the file with its present samples; see `Container.write`."""
        samples = self.raster.samples
        if self.stored is None:
            rows = (" ".join(map(str, row.tolist())) for row in samples.reshape(-1, samples.shape[2]))
            content = ("\n".join(rows) + "\n").encode()
        else:
            content = samples.astype(self.stored).tobytes()
        file.writelines([self.data[: self.start], content, self.data[self.stop :]])
