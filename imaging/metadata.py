"""What a file says beside its pixels: EXIF and XMP, their orientation, and previews of what was removed."""

import re
import struct
from dataclasses import dataclass, field

from PIL import Image

ORIENTATION = 274
PREVIEW, STRIPS = (513, 514), (273, 279)  # where the bytes of a thumbnail are, and how many
SHORT, LONG = 3, 4
DIRECTORIES = (34665, 34853)  # EXIF and GPS
SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of a value, by type; of others one
PREFIX = b"Exif\0\0"
DAMAGED = (ValueError, struct.error)
XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>\s*)([1-8])\b")
XMP_NOTE = "previews in the XMP, which show what was removed, were not kept"
XMP_PREVIEWS = re.compile(
    rb"((?<!/)(?:xmpGImg:image|GImage:Data)(?:\s*=\s*[\"']|(?:\s[^<>]*)?>))([^<\"']+)",
)


@dataclass
class Metadata:
    """What a picture says about itself, for a file of another format.

    Attributes:
        exif: a TIFF structure, without the prefix `Exif` and without its thumbnail.
        xmp, icc, comment, iptc: as their standards have them.
        dpi: pixels an inch, across and down.
        lost: what a PNG cannot carry, in words.
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
        main, thumbnail: where the 12-byte entry of each tag of the first two directories is.
        link: where the offset of the second directory is; `second`: that offset, 0 if there is none.

    Raises:
        ValueError, struct.error: if it is damaged; so do the methods.
    """

    def __init__(self, block: bytes) -> None:
        self.data = bytearray(block.removeprefix(PREFIX))
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(self.data[:4]))
        if order is None:
            raise ValueError("no EXIF block")
        self.order = order
        first = self.number(4, LONG)
        self.main = self.directory(first)
        self.link = first + 2 + 12 * len(self.main)
        self.second = self.number(self.link, LONG) if self.link + 4 <= len(self.data) else 0
        self.thumbnail = self.directory(self.second) if 0 < self.second < len(self.data) else {}

    def number(self, place: int, kind: int = SHORT) -> int:
        value: int = struct.unpack_from(self.order + ("H" if kind == SHORT else "I"), self.data, place)[0]
        return value

    def directory(self, start: int) -> dict[int, int]:
        places = range(start + 2, start + 2 + 12 * self.number(start), 12)
        if places and places[-1] + 12 > len(self.data):
            raise ValueError("a directory beyond the end of the block")
        return {self.number(place): place for place in places}

    def value(self, entry: int, index: int = 0) -> int:
        """The number of an entry (of SHORTs or LONGs) at `index`."""
        kind = self.number(entry + 2)
        width = 2 if kind == SHORT else 4
        inside = self.number(entry + 4, LONG) * width <= 4
        start = entry + 8 if inside else self.number(entry + 8, LONG)
        return self.number(start + index * width, kind)

    def set_value(self, entry: int, value: int) -> None:
        struct.pack_into(self.order + "HII", self.data, entry + 2, LONG, 1, value)

    def pieces(self) -> list[tuple[int, int]]:
        """Offset and length of each piece of the thumbnail's bytes."""
        found = []
        for places, sizes in (PREVIEW, STRIPS):
            if places in self.thumbnail and sizes in self.thumbnail:
                entries = self.thumbnail[places], self.thumbnail[sizes]
                for i in range(min(self.number(entries[0] + 4, LONG), 4096)):
                    start, size = (self.value(entry, i) for entry in entries)
                    found.append((start, max(0, min(size, len(self.data) - start))))
        return found

    def drop_thumbnail(self) -> None:
        """Overwrite the second directory and its picture with zeros, but nothing of the first; unlink it."""
        kept = bytearray(len(self.data))  # 1 where the first directory and its values are
        kept[: self.link + 4] = b"\1" * min(len(kept), self.link + 4)
        directories = [self.main]
        for tag in DIRECTORIES:
            if tag in self.main and 0 < self.value(self.main[tag]) < len(self.data):
                start = self.value(self.main[tag])
                directories.append(self.directory(start))
                stop = start + 6 + 12 * len(directories[-1])
                kept[start:stop] = b"\1" * len(kept[start:stop])
        for entry in (place for directory in directories for place in directory.values()):
            size = self.number(entry + 4, LONG) * SIZES.get(self.number(entry + 2), 1)
            if size > 4:
                start = self.number(entry + 8, LONG)
                kept[start : start + size] = b"\1" * len(kept[start : start + size])
        directory = [(self.second, 2 + 12 * len(self.thumbnail))] if self.thumbnail else []
        for start, size in [*self.pieces(), *directory]:
            for i in range(start, min(start + size, len(self.data))):
                if not kept[i]:
                    self.data[i] = 0
        if self.second:
            struct.pack_into(self.order + "I", self.data, self.link, 0)
            self.second, self.thumbnail = 0, {}


def orientation_of(exif: bytes | None, xmp: bytes | None = None) -> int:
    """The orientation, 1 to 8, of an EXIF block, else of XMP; 1 where neither says one."""
    try:
        read = Exif(exif) if exif else None
        value = read.value(read.main[ORIENTATION]) if read and ORIENTATION in read.main else None
    except DAMAGED:
        value = None
    if value is not None:
        return value if 1 <= value <= 8 else 1
    found = XMP_ORIENTATION.search(xmp) if xmp else None
    return int(found[1]) if found else 1


def without_previews(exif: bytes) -> tuple[bytes, str]:
    """An EXIF block without its thumbnail, which shows what was removed, and a note; nothing else moves.

    Returns:
        The block as it is and an empty note, if it has none, or is damaged.
    """
    try:
        read = Exif(exif)
        if not read.second:
            return exif, ""
        read.drop_thumbnail()
    except DAMAGED:
        return exif, ""
    start = PREFIX if exif.startswith(PREFIX) else b""
    return start + bytes(read.data), "the EXIF thumbnail, which shows what was removed, was not kept"


def blank_xmp_previews(xmp: bytes) -> bytes:
    """XMP of the same length, whose embedded thumbnails (base64) are blank."""
    return XMP_PREVIEWS.sub(lambda found: found[1] + b" " * len(found[2]), xmp)


def with_orientation(exif: bytes | None, orientation: int) -> bytes:
    """An EXIF block, without the prefix, that says an orientation; if it said one, no other byte changes."""
    try:
        read = Exif(exif or b"")
        if ORIENTATION in read.main:
            struct.pack_into(read.order + "HI", read.data, read.main[ORIENTATION] + 2, SHORT, 1)
            struct.pack_into(read.order + "H", read.data, read.main[ORIENTATION] + 8, orientation)
            return bytes(read.data)
        block = Image.Exif()
        block.load(PREFIX + bytes(read.data))
        block[ORIENTATION] = orientation
        return block.tobytes().removeprefix(PREFIX)
    except DAMAGED:
        entry = struct.pack("<HHIHH", ORIENTATION, SHORT, 1, orientation, 0)
        return b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
