"""The directories of a TIFF file or EXIF block: their tags, and the ranges of bytes that they refer to."""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from utils import UserError

EXIF_TAGS = (34665, 34853, 40965)  # EXIF, GPS, interoperability: offsets of further directories
SHORT, LONG, LONG8 = 3, 4, 16
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
              16: 8, 17: 8, 18: 8}  # fmt: skip
INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
MAX_DIRECTORIES = MAX_FIELDS = 4096  # a file with more is damaged or malicious


@dataclass
class Field:
    """One tag of a directory: the location of its value, and the new value if it is to change.

    Attributes:
        kind: the type, TIFF 6.0, page 15.
        place: offset of the entry, which has 12 bytes, in BigTIFF 20.
        start, size: of the value, in bytes; a short value lies within the entry.
        value: the new value; None if the stored one stays.
    """

    tag: int
    kind: int
    count: int
    place: int
    start: int
    size: int
    value: bytes | None = None


@dataclass
class Directory:
    """One IFD: the tags of one image.

    Attributes:
        offset, end: the range of its bytes, including the offset of the next directory.
        fields: in the order stored; the first counts if a tag occurs twice.
        next: the offset of the next directory; 0 if there is none.
    """

    offset: int
    end: int
    fields: list[Field]
    next: int

    def find(self, tag: int) -> Field | None:
        return next((field for field in self.fields if field.tag == tag), None)

    def drop(self, tags: set[int]) -> list[Field]:
        """Remove the fields of `tags`, and return them."""
        dropped = [field for field in self.fields if field.tag in tags]
        self.fields = [field for field in self.fields if field.tag not in tags]
        return dropped


class Structure:
    """The directories of a classic TIFF or BigTIFF file.

    Raises:
        ValueError: if the file is no TIFF.
        struct.error: if it ends too early.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.order: Literal["<", ">", ""] = "<" if data[:2] == b"II" else ">" if data[:2] == b"MM" else ""
        version = struct.unpack(self.order + "H", data[2:4])[0] if self.order else 0
        if version not in (42, 43):
            raise ValueError("no TIFF")
        self.big = version == 43
        self.pointer = self.order + ("Q" if self.big else "I")  # format of an offset or a count
        self.tally = self.order + ("Q" if self.big else "H")  # format of the number of fields in a directory
        self.room = 8 if self.big else 4  # bytes of a value that lies within the entry
        self.header = 16 if self.big else 8
        self.first = struct.unpack_from(self.pointer, data, self.header - self.room)[0]

    def directory(self, offset: int) -> Directory:
        number = struct.unpack_from(self.tally, self.data, offset)[0]
        first, step = offset + struct.calcsize(self.tally), 4 + 2 * self.room
        end = first + number * step
        if number > MAX_FIELDS or end > len(self.data):
            raise ValueError(f"a directory of {number} tags at {offset}")
        fields = []
        for place in range(first, end, step):
            tag, kind = struct.unpack_from(self.order + "HH", self.data, place)
            count, start = struct.unpack_from(self.order + 2 * self.pointer[1], self.data, place + 4)
            size = count * TYPE_SIZES.get(kind, 0)
            start = place + 4 + self.room if size <= self.room else start
            fields.append(Field(tag, kind, count, place, start, size))
        following = self.data[end : end + self.room]  # may be missing, at the end of the file
        upcoming = struct.unpack(self.pointer, following)[0] if len(following) == self.room else 0
        return Directory(offset, end + self.room, fields, upcoming)

    def chain(self, offsets: Iterable[int]) -> Iterator[Directory]:
        """Each directory that follows from one of `offsets`, up to a damaged one; each only once."""
        seen: set[int] = set()
        for offset in offsets:
            while offset and offset not in seen:
                seen.add(offset)
                if len(seen) > MAX_DIRECTORIES:
                    raise UserError(f"holds more than {MAX_DIRECTORIES} images or thumbnails")
                try:
                    found = self.directory(offset)
                except (ValueError, struct.error):
                    break
                yield found
                offset = found.next

    def inner(self, directories: list[Directory]) -> list[Directory]:
        """The directories named by the tag SubIFDs of others."""
        return list(self.chain(offset for outer in directories for offset in self.numbers(outer, 330)))

    def entry(self, field: Field) -> bytes:
        return bytes(self.data[field.place : field.place + 4 + 2 * self.room])

    def content(self, field: Field) -> bytes:
        return bytes(self.data[field.start : field.start + field.size])

    def numbers(self, directory: Directory, tag: int) -> list[int]:
        """The values of a tag of unsigned integers; none if it is missing or of another type."""
        field = directory.find(tag)
        if field is None or field.kind not in INTEGERS or field.start + field.size > len(self.data):
            return []
        return np.frombuffer(self.content(field), self.order + INTEGERS[field.kind]).tolist()

    def number(self, directory: Directory, tag: int, default: int) -> int:
        return (self.numbers(directory, tag) or [default])[0]

    def packed(self, numbers: list[int], kind: int) -> tuple[int, bytes]:
        """The type and bytes of a tag's value: `kind`, or a wider type if that cannot hold `numbers`."""
        largest = max(numbers, default=0)
        kinds = [kind] if kind in (SHORT, LONG, LONG8) else []
        for kind in (*kinds, LONG, LONG8):
            if largest < 256 ** TYPE_SIZES[kind] and (self.big or kind != LONG8):
                return kind, np.array(numbers, self.order + INTEGERS[kind]).tobytes()
        raise ValueError(f"offsets up to {largest} in a classic TIFF")

    def pixel_ranges(self, directory: Directory) -> list[tuple[int, int]]:
        """The ranges (start, end) of the file that hold the pixels of a directory."""
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
        """The ranges (start, end) of the file with a directory, its values, and those of its EXIF."""
        ranges = [(directory.offset, directory.end)]
        for field in directory.fields:
            if field.value is None:
                ranges.append((field.start, field.start + field.size))
            if field.tag in EXIF_TAGS and depth:
                for found in islice(self.chain(self.numbers(directory, field.tag)), 1):
                    ranges += self.value_ranges(found, depth - 1)
        return ranges


def overlapping(ranges: list[tuple[int, int]]) -> np.ndarray:
    """(N,) bool: whether each range (start, end) shares a byte with another."""
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


def erase(
    content: bytearray | memoryview, ranges: list[tuple[int, int]], kept: list[tuple[int, int]]
) -> None:
    """Write zeros over the `ranges` (start, end) of `content`, but not over those that are `kept`."""
    kept = sorted(kept)
    first = 0  # index of the first kept range that may reach beyond `start`
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
