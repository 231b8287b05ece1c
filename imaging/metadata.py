"""EXIF, XMP and Photoshop metadata: the orientation, and the previews that still show removed content."""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from imaging.formats import add_note
from imaging.formats.tiff_structure import LONG, SHORT, Directory, Structure, erase

ORIENTATION = 274
PREFIX = b"Exif\0\0"
DECODE_ERRORS = (  # raised by Pillow, the other decoders and our parsers for damaged files
    OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, EOFError, SystemError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>\s*)([1-8])\b")
XMP_PREVIEWS = re.compile(rb"((?<!/)(?:xmpGImg:image|GImage:Data)(?:\s*=\s*[\"']|(?:\s[^<>]*)?>))([^<\"']+)")


@dataclass
class Metadata:
    """The metadata of an image, for a file of another format.

    Attributes:
        exif: a TIFF structure, without the prefix `Exif` and without its thumbnail.
        xmp, icc, comment, iptc: encoded as their standards define.
        dpi: pixels per inch, horizontally and vertically.
        lost: names of the items that a PNG cannot hold.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    icc: bytes | None = None
    comment: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    lost: list[str] = field(default_factory=list)


class Exif:
    """An EXIF block, changed in place (EXIF 2.32; its structure is that of TIFF 6.0).

    Attributes:
        data: the block without the prefix.
        main, thumbnail: the first two directories; `thumbnail` is None if there is no second one.

    Raises:
        ValueError, struct.error: if the block is damaged.
    """

    def __init__(self, block: bytes) -> None:
        self.data = bytearray(block.removeprefix(PREFIX))
        if self.data[:4] not in (b"II*\0", b"MM\0*"):
            raise ValueError("no EXIF block")
        self.structure = Structure(self.data)
        self.main = self.structure.directory(self.structure.first)
        self.thumbnail: Directory | None = None
        if 0 < self.main.next < len(self.data):
            self.thumbnail = self.structure.directory(self.main.next)

    def set_long(self, directory: Directory, tag: int, value: int) -> None:
        """Set a tag of one number to `value`."""
        entry = directory.find(tag)
        assert entry is not None
        struct.pack_into(self.structure.order + "HII", self.data, entry.place + 2, LONG, 1, value)

    def drop_thumbnail(self) -> None:
        """Zero the second directory and its image, but no byte of the first directory, and unlink it."""
        if self.thumbnail is not None:
            directory = (self.thumbnail.offset, self.thumbnail.end)
            kept = [(0, self.structure.header), *self.structure.value_ranges(self.main)]
            erase(self.data, [directory, *self.structure.pixel_ranges(self.thumbnail)], kept)
        if self.main.next:
            struct.pack_into(self.structure.order + "I", self.data, self.main.end - 4, 0)
            self.main.next, self.thumbnail = 0, None


def orientation_of(exif: bytes | None, xmp: bytes | None = None) -> int:
    """The orientation, 1 to 8, stated by an EXIF block, else by XMP; 1 if neither states one."""
    stated = []
    try:
        if exif:
            read = Exif(exif)
            stated = read.structure.numbers(read.main, ORIENTATION)
    except DECODE_ERRORS:
        pass
    if stated:
        return stated[0] if 1 <= stated[0] <= 8 else 1
    found = XMP_ORIENTATION.search(xmp) if xmp else None
    return int(found[1]) if found else 1


def with_orientation(exif: bytes | None, orientation: int) -> bytes:
    """An EXIF block, without the prefix, that states an orientation; if one was stated, only that changes."""
    try:
        read = Exif(exif or b"")
        entry = read.main.find(ORIENTATION)
        if entry is not None:
            struct.pack_into(read.structure.order + "HIH", read.data, entry.place + 2, SHORT, 1, orientation)
            return bytes(read.data)
        block = Image.Exif()
        block.load(PREFIX + bytes(read.data))
        block[ORIENTATION] = orientation
        return block.tobytes().removeprefix(PREFIX)
    except DECODE_ERRORS:
        tag = struct.pack("<HHIHH", ORIENTATION, SHORT, 1, orientation, 0)
        return b"II*\0" + struct.pack("<IH", 8, 1) + tag + bytes(4)


def without_thumbnail(exif: bytes, notes: list[str]) -> bytes:
    """An EXIF block of the same length without its thumbnail, and a note about it; as it is if damaged."""
    try:
        read = Exif(exif)
        if not read.main.next:
            return exif
        read.drop_thumbnail()
    except DECODE_ERRORS:
        return exif
    add_note(notes, "the EXIF thumbnail, which shows removed content, was not kept")
    return (PREFIX if exif.startswith(PREFIX) else b"") + bytes(read.data)


def without_xmp_previews(xmp: bytes, notes: list[str]) -> bytes:
    """XMP of the same length whose embedded thumbnails (base64) are blank, and a note about them."""
    blank = XMP_PREVIEWS.sub(lambda found: found[1] + b" " * len(found[2]), xmp)
    if blank != xmp:
        add_note(notes, "previews in the XMP, which show removed content, were not kept")
    return blank


def photoshop_blocks(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """The number, content and whole block of each of Photoshop's image resources, one after the other.

    Photoshop File Formats, "Image resource blocks".
    """
    start = 0
    while start + 12 <= len(data):
        (number,) = struct.unpack_from(">H", data, start + 4)
        size_at = start + 6 + (data[start + 6] + 2) // 2 * 2  # after the name, padded with its length byte
        if size_at + 4 > len(data):
            return
        (size,) = struct.unpack_from(">I", data, size_at)
        end = size_at + 4 + size + size % 2
        yield number, data[size_at + 4 : size_at + 4 + size], data[start:end]
        start = end
