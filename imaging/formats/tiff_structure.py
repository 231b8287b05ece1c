"""The directories of a TIFF file: their tags, where their values lie, and how they are changed."""

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from imaging.raster import RAW_ERROR
from utils import UserError

EXIF_TAGS = (34665, 34853, 40965)  # EXIF, GPS, interoperability: offsets of further directories
SHORT, LONG, LONG8 = 3, 4, 16
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
              16: 8, 17: 8, 18: 8}  # fmt: skip
INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
MOST_DIRECTORIES = MOST_FIELDS = 4096  # a file with more is damaged, or made to keep us busy


@dataclass
class Field:
    """One tag of a directory: where its value lies, and the new one where it is to change.

    Attributes:
        kind: its type, TIFF 6.0, page 15.
        entry: the entry as it is stored, 12 bytes, in BigTIFF 20.
        start, size: of the value, in bytes; within the directory, if it is short.
        value: the new one; None if the stored one stays.
    """

    tag: int
    kind: int
    count: int
    entry: bytes
    start: int
    size: int
    value: bytes | None = None


@dataclass
class Directory:
    """One IFD: the tags of one image.

    Attributes:
        offset, end: where it lies, the offset of the next directory included.
        fields: in the order stored; of a tag that comes twice, the first counts.
        next: the offset of the next directory; 0 if there is none.
    """

    offset: int
    end: int
    fields: list[Field]
    next: int

    def find(self, tag: int) -> Field | None:
        return next((field for field in self.fields if field.tag == tag), None)

    def drop(self, tags: set[int]) -> list[Field]:
        """The fields of `tags`, which are taken out."""
        dropped = [field for field in self.fields if field.tag in tags]
        self.fields = [field for field in self.fields if field.tag not in tags]
        return dropped


class Structure:
    """The directories of a classic TIFF or BigTIFF file.

    Raises:
        ValueError: if the file is no TIFF.
        struct.error: if it ends too early.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        if data[:4] in (b"IIRO", b"IIRS", b"MMOR", b"IIU\0") or data[8:16] in (b"IIIITwaR", b"MMMMRawT"):
            raise UserError(RAW_ERROR)  # Olympus, Panasonic, Phase One
        self.order: Literal["<", ">", ""] = "<" if data[:2] == b"II" else ">" if data[:2] == b"MM" else ""
        version = struct.unpack(self.order + "H", data[2:4])[0] if self.order else 0
        if version not in (42, 43):
            raise ValueError("no TIFF")
        self.big = version == 43
        self.pointer = self.order + ("Q" if self.big else "I")  # an offset or a count
        self.tally = self.order + ("Q" if self.big else "H")  # the number of a directory's fields
        self.room = 8 if self.big else 4  # bytes of a value that lies within the entry
        self.header = 16 if self.big else 8
        self.first = struct.unpack_from(self.pointer, data, self.header - self.room)[0]
        if data[8:11] == b"CR\2" and self.first == 16:
            raise UserError(RAW_ERROR)  # Canon

    def directory(self, offset: int) -> Directory:
        number = struct.unpack_from(self.tally, self.data, offset)[0]
        place, step = offset + struct.calcsize(self.tally), 4 + 2 * self.room
        if number > MOST_FIELDS or place + number * step > len(self.data):
            raise ValueError(f"a directory of {number} tags at {offset}")
        fields = []
        for at in range(place, place + number * step, step):
            tag, kind = struct.unpack_from(self.order + "HH", self.data, at)
            count, start = struct.unpack_from(self.order + 2 * self.pointer[1], self.data, at + 4)
            size = count * TYPE_SIZES.get(kind, 0)
            start = at + 4 + self.room if size <= self.room else start
            fields.append(Field(tag, kind, count, self.data[at : at + step], start, size))
        end = place + number * step
        following = self.data[end : end + self.room]  # may be missing, at the end of the file
        upcoming = struct.unpack(self.pointer, following)[0] if len(following) == self.room else 0
        return Directory(offset, end + self.room, fields, upcoming)

    def chain(self, offsets: Iterable[int]) -> Iterator[Directory]:
        """The directories from each of `offsets` on, up to a damaged one, each once."""
        seen: set[int] = set()
        for offset in offsets:
            while offset and offset not in seen:
                seen.add(offset)
                if len(seen) > MOST_DIRECTORIES:
                    raise UserError(f"holds more than {MOST_DIRECTORIES} pictures or thumbnails")
                try:
                    found = self.directory(offset)
                except (ValueError, struct.error):
                    break
                yield found
                offset = found.next

    def inner(self, directories: list[Directory]) -> list[Directory]:
        """The directories that the tag SubIFDs of others names."""
        return list(self.chain(offset for each in directories for offset in self.numbers(each, 330)))

    def content(self, field: Field) -> bytes:
        return self.data[field.start : field.start + field.size]

    def numbers(self, directory: Directory, tag: int) -> list[int]:
        """The values of a tag of unsigned integers; none, if it is missing or of another type."""
        field = directory.find(tag)
        if field is None or field.kind not in INTEGERS or field.start + field.size > len(self.data):
            return []
        return np.frombuffer(self.content(field), self.order + INTEGERS[field.kind]).tolist()

    def number(self, directory: Directory, tag: int, default: int) -> int:
        return (self.numbers(directory, tag) or [default])[0]

    def packed(self, numbers: list[int], kind: int) -> tuple[int, bytes]:
        """`numbers` as the value of a tag, of type `kind` or of a wider one where that cannot hold them."""
        largest = max(numbers, default=0)
        kinds = [kind] if kind in (SHORT, LONG, LONG8) else []
        for kind in (*kinds, LONG, LONG8):
            if largest < 256 ** TYPE_SIZES[kind] and (self.big or kind != LONG8):
                return kind, np.array(numbers, self.order + INTEGERS[kind]).tobytes()
        raise ValueError(f"offsets up to {largest} in a classic TIFF")

    def pixel_ranges(self, directory: Directory) -> list[tuple[int, int]]:
        """The parts (start, end) of the file with the pixels of a directory."""
        ranges = []
        for offset_tag, count_tag in ((324, 325), (273, 279), (513, 514)):
            offsets, counts = self.numbers(directory, offset_tag), self.numbers(directory, count_tag)
            if offsets and not counts:  # a baseline file may leave them out
                area = self.number(directory, 256, 0) * self.number(directory, 257, 0)
                bits = self.number(directory, 258, 1) * self.number(directory, 277, 1)
                counts = [area * bits // 8 + 1]
            ranges += [(start, start + count) for start, count in zip(offsets, counts, strict=False)]
        return ranges

    def value_ranges(self, directory: Directory, depth: int = 3) -> list[tuple[int, int]]:
        """The parts (start, end) of the file with a directory, its values, and those of its EXIF."""
        ranges = [(directory.offset, directory.end)]
        for field in directory.fields:
            if field.value is None:
                ranges.append((field.start, field.start + field.size))
            if field.tag in EXIF_TAGS and depth:
                for found in islice(self.chain(self.numbers(directory, field.tag)), 1):
                    ranges += self.value_ranges(found, depth - 1)
        return ranges


def overlapping(ranges: list[tuple[int, int]]) -> np.ndarray:
    """(N,) bool: of each range (start, end), whether it shares a byte with another."""
    spans = np.array(ranges, np.uint64).reshape(-1, 2)
    filled = np.flatnonzero(spans[:, 1] > spans[:, 0])
    order = filled[np.lexsort((spans[filled, 1], spans[filled, 0]))]
    starts, ends = spans[order].T
    shared = np.zeros(len(spans), bool)
    if len(order) > 1:
        before = np.maximum.accumulate(ends)[:-1] > starts[1:]
        after = starts[1:] < ends[:-1]
        shared[order[1:]] |= before
        shared[order[:-1]] |= after
    return shared


def erase(file: io.BytesIO, ranges: list[tuple[int, int]], kept: list[tuple[int, int]]) -> None:
    """Write zeros over the `ranges` (start, end) of `file`, but not over those that are `kept`."""
    kept = sorted(kept)
    first = 0  # of those kept, the first that may reach beyond the range
    with file.getbuffer() as content:
        for start, end in sorted(ranges):
            end = min(end, len(content))
            while first < len(kept) and kept[first][1] <= start:
                first += 1
            for keep_start, keep_end in islice(kept, first, None):
                if keep_start >= end:
                    break
                if keep_start > start:
                    content[start:keep_start] = bytes(keep_start - start)
                start = max(start, keep_end)
            if start < end:
                content[start:end] = bytes(end - start)
