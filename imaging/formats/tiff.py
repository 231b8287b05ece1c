"""TIFF files, of which only the strips or tiles that the hole touches are written anew."""

import io
import logging
import math
import re
import struct
from dataclasses import replace
from itertools import product
from typing import BinaryIO

import imagecodecs
import numpy as np
import tifffile

from imaging.formats.tiff_structure import LONG, TYPE_SIZES, Directory, Field, Structure, erase, overlapping
from imaging.metadata import orientation_of
from imaging.raster import RAW_ERROR, Raster
from utils import UserError

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it prints what it finds odd; we raise or go on

ENCODED = {1, 5, 8, 32773, 32946, 34925, 34926, 50000}  # compressions kept; the others become deflate
UNPREDICTED = {1, 32773}  # compressions in which libtiff ignores the tag Predictor, and so do we
JPEG = {6, 7, 33007, 34892}  # of which YCbCr is decoded to RGB
NAMES = {
    2: "CCITT", 3: "CCITT", 4: "CCITT", 32771: "CCITT", 6: "JPEG", 7: "JPEG", 33007: "JPEG", 34892: "JPEG",
    33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC",
    22610: "JPEG XR", 34934: "JPEG XR", 34933: "PNG", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
RAW_COMPRESSIONS = {  # Sony, Epson, Samsung, Nikon, Kodak, Pentax
    32767, 32769, 32770, 32772, 34713, 65000, 65535,
}  # fmt: skip
RAW_PHOTOMETRICS = {32803, 34892}  # colour filter array, linear raw
COLORS = {0: ("grey", 1), 1: ("grey", 1), 2: ("rgb", 3), 3: ("palette", 1), 5: ("cmyk", 4), 6: ("ycbcr", 3),
          8: ("lab", 3)}  # fmt: skip
CODEC_TAGS = {266, 292, 293, 317, 347, *range(512, 522), 50674}  # of the compression that deflate replaces
YCBCR_TAGS = {529, 530, 531, 532}
XMP_THUMBNAIL = re.compile(rb'(GImg:image\s*(?:>|=\s*"))([^<"]*)')


class TiffImage:
    """A classic TIFF or BigTIFF file of one picture, as a `Container`.

    The samples are the stored ones, but JPEG's YCbCr is RGB. CIELab is uint8: L* of 0 to 255, a* and b* as
    two's complement, as `np.asarray` of a Pillow image of mode LAB has them.

    `write` replaces the strips or tiles that the hole touches, in the compression of the file; all other
    bytes stay, but for the copies that still show what was removed: thumbnails, overviews, layers.

    Args:
        data: the file.
        first: of several pictures, take the first; for looking at it alone.

    Raises:
        UserError: if it is a raw file, holds several pictures, or is of a kind that cannot be written back.
        ValueError, struct.error, tifffile.TiffFileError, ...: if it is damaged.
    """

    exact = True
    how = ""

    def __init__(self, data: bytes, first: bool = False) -> None:
        self.notes: list[str] = []
        self.structure = Structure(data)
        self.main = self.structure.directory(self.structure.first)
        self.pages = list(self.structure.chain([self.main.next]))
        self.pages = [page for page in self.pages if page.offset != self.main.offset]  # if they go round
        self.inner = self.structure.inner([self.main, *self.pages])
        self.inner += self.structure.inner(self.inner)
        self._refuse_raw()
        if not first:
            self._refuse_several()
        self.page = self._open(io.BytesIO(data))
        self._refuse_unwritable()
        self.recoded = self.page.compression not in ENCODED or self.page.predictor not in (1, 2, 3)
        samples = self._decode(io.BytesIO(data))
        if samples.shape[:2] != (self.page.imagelength, self.page.imagewidth):
            raise ValueError(f"samples of shape {samples.shape}")
        self.raster = self._describe(samples)

    @property
    def icc(self) -> bytes | None:
        """The colour profile."""
        profile = self.page.tags.get(34675)
        return bytes(profile.value) if profile is not None else None

    # --- what is refused ----------------------------------------------------------------------------------

    def _refuse_raw(self) -> None:
        reduced = self._is_reduced(self.main)
        made = self.main.find(271) is not None
        for directory in (self.main, *self.pages, *self.inner):
            compression = self.structure.number(directory, 259, 1)
            if (
                directory.find(50706) is not None
                or self.structure.number(directory, 262, 0) in RAW_PHOTOMETRICS
                or (made and compression in RAW_COMPRESSIONS)
            ):
                raise UserError(RAW_ERROR)
        if reduced and self.main.find(330) is not None:
            raise UserError(RAW_ERROR)

    def _refuse_several(self) -> None:
        """A file of more than one picture; thumbnails, overviews, masks and pages without size are none."""
        width, height = self._size(self.main)
        number = 1
        for page in self.pages:
            w, h = self._size(page)
            thumbnail = page.find(513) is not None and w * h < width * height
            number += not (self._is_reduced(page) or w * h == 0 or thumbnail)
        for page in self.inner:
            w, h = self._size(page)
            number += not self._is_reduced(page) and w * h >= width * height
        description = self.main.find(270)
        if description is not None and number == 1:
            text = self.structure.content(description)
            images = re.search(rb"^images=(\d{1,9})\s", text, re.MULTILINE)  # one directory for all of them
            if text.startswith(b"ImageJ=") and images:
                number = max(1, int(images[1]))
        if number > 1:
            raise UserError(f"holds {number} pictures, and only single ones can be filled")

    def _refuse_unwritable(self) -> None:
        page = self.page
        photometric, compression = int(page.photometric), int(page.compression)
        space, colors = COLORS.get(photometric, ("", 0))
        bits, kind = page.bitspersample, page.sampleformat
        reason = ""
        if isinstance(bits, tuple) or isinstance(kind, tuple):
            reason = "channels of different types"
        elif kind in (5, 6):
            reason = "complex samples"
        elif page.dtype is None or (bits > 16 and bits not in (32, 64)):
            reason = f"samples of {bits} bits and format {int(kind)}"
        elif page.imagedepth > 1 or page.tiledepth > 1:
            reason = "volumes"
        elif compression == 32773 and self.structure.number(self.main, 317, 1) != 1:
            reason = "PackBits with a predictor, which libraries read differently,"
        elif not space:
            reason = f"pictures of photometric interpretation {photometric}"
        elif page.samplesperpixel < colors:
            reason = f"{space} pictures of {page.samplesperpixel} channels"
        elif space == "cmyk" and self.structure.number(self.main, 332, 1) != 1:
            reason = "inks other than cyan, magenta, yellow and black"
        elif space == "lab" and bits != 8:
            reason = f"CIELab pictures of {bits} bits"
        elif space == "palette" and page.dtype.kind not in "bu":
            reason = "signed palette pictures"
        elif space == "ycbcr" and compression not in JPEG:
            if compression not in ENCODED:
                reason = f"YCbCr in {self._codec()}"
            elif self.structure.numbers(self.main, 530) != [1, 1]:
                reason = "subsampled YCbCr pictures"
        elif compression == 33003:
            reason = "YCbCr in JPEG 2000"
        elif compression in ENCODED and page.predictor != 1 and bits not in (8, 16, 32, 64):
            reason = f"a predictor of {bits} bits"
        if space == "ycbcr" and compression in JPEG and (page.samplesperpixel != 3 or bits not in (8, 12)):
            reason = "JPEG of YCbCr other than three channels of 8 or 12 bits"
        if reason:
            raise UserError(f"TIFF: {reason} cannot be written back")

    def _is_reduced(self, directory: Directory) -> bool:
        """Whether it is a copy of less resolution or a mask of another; TIFF 6.0, page 36."""
        return (
            self.structure.number(directory, 254, 0) & 0b101 != 0
            or self.structure.number(directory, 255, 0) == 2
        )

    def _size(self, directory: Directory) -> tuple[int, int]:
        return self.structure.number(directory, 256, 0), self.structure.number(directory, 257, 0)

    def _codec(self) -> str:
        compression = int(self.page.compression)
        if compression in ENCODED:
            return f"predictor {int(self.page.predictor)}"
        return NAMES.get(compression, f"compression {compression}")

    # --- reading ------------------------------------------------------------------------------------------

    def _open(self, file: BinaryIO) -> tifffile.TiffPage:
        """The first page, with what tifffile takes otherwise than libtiff mended."""
        file.seek(0)
        page = tifffile.TiffFile(file).pages.first
        if page.compression in UNPREDICTED:
            page.predictor = tifffile.PREDICTOR.NONE
        complete = len(page.dataoffsets) >= math.prod(page.chunked)
        if page.compression == 1 and complete and not {279, 325} & {tag.code for tag in page.tags}:
            page.databytecounts = tuple(uncompressed_size(page, box) for box in boxes(page))
        return page

    def _decode(self, file: BinaryIO) -> np.ndarray:
        """The samples (H, W, C), contiguous and writable, in the byte order of this machine."""
        page = self._open(file)
        size, number = page.nbytes, math.prod(page.chunked)
        if len(page.dataoffsets) < number:
            raise ValueError(f"{len(page.dataoffsets)} strips or tiles, where the size needs {number}")
        if size > max(2**26, 2**16 * len(self.structure.data)):
            raise ValueError(f"{size} bytes of samples in a file of {len(self.structure.data)}")
        samples = page.asarray(squeeze=False)  # (planes, 1, H, W, channels of each)
        samples = samples[0, 0] if len(samples) == 1 else np.moveaxis(samples[:, 0, :, :, 0], 0, 2)
        samples = np.require(samples, requirements=["C", "W"])
        if not samples.dtype.isnative:
            samples = samples.byteswap(inplace=True).view(samples.dtype.newbyteorder())
        return samples.view(np.uint8) if samples.dtype == bool or page.photometric == 8 else samples

    def _describe(self, samples: np.ndarray) -> Raster:
        page, channels = self.page, samples.shape[2]
        photometric = int(page.photometric)
        if self._is_converted():
            photometric = 2
        space, colors = COLORS[photometric]
        unspecified = (0,) * (channels - colors)
        extra = (*(int(kind) for kind in page.extrasamples), *unspecified)[: channels - colors]
        known = [i for i, kind in enumerate(extra) if kind in (1, 2)]
        alpha = colors + known[0] if known else None
        orientation = self.structure.number(self.main, 274, 0)
        xmp = self.page.tags.get(700)
        if not orientation and xmp is not None and isinstance(xmp.value, bytes):
            orientation = orientation_of(None, xmp.value)
        return Raster(
            samples=samples,
            space=space,
            bits=page.bitspersample if samples.dtype.kind == "u" else 8 * samples.dtype.itemsize,
            alpha=alpha,
            premultiplied=bool(known) and extra[known[0]] == 1,
            inverted=photometric == 0,
            palette=self._palette() if space == "palette" else None,
            orientation=orientation if orientation in range(1, 9) else 1,
        )

    def _palette(self) -> np.ndarray:
        numbers = np.array(self.structure.numbers(self.main, 320), np.uint16)
        if numbers.size != 3 << self.page.bitspersample:
            raise ValueError(f"a palette of {numbers.size} numbers")
        if numbers.max() > 255:  # else an old file, with 8 bits
            numbers >>= 8
        return np.ascontiguousarray(numbers.reshape(3, -1).T).astype(np.uint8)

    def _is_converted(self) -> bool:
        """Whether the file has YCbCr and the samples RGB."""
        page = self.page
        return page.photometric == 6 and page.compression in JPEG and page.planarconfig == 1

    # --- writing ------------------------------------------------------------------------------------------

    def write(self, file: BinaryIO, changed: np.ndarray) -> None:
        if changed.shape != self.raster.samples.shape[:2]:
            raise ValueError(f"changed is {changed.shape}, the picture {self.raster.samples.shape[:2]}")
        if not changed.any():
            file.write(self.structure.data)
            return
        written = io.BytesIO(self.structure.data)
        main = Directory(
            self.main.offset, self.main.end, [replace(field) for field in self.main.fields], self.main.next
        )
        erased = self._drop_copies(main)
        self._write_segments(written, changed, main, erased)
        self._write_directory(written, main)
        self._mark_as_edited(written)
        if not _equal(self._decode(written), self.raster.samples):
            raise UserError("cannot be written back exactly: what was written reads otherwise")
        file.write(written.getbuffer())

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _drop_copies(self, main: Directory) -> list[tuple[int, int]]:
        """The parts (start, end) of the file to erase, of the copies that still show what was removed."""
        structure, erased = self.structure, []
        if self.pages:
            main.next = 0
            self._note("thumbnails, overviews or masks on further pages were not kept")
        if main.drop({330}):
            self._note("reduced copies of the picture in SubIFDs were not kept")
        for page in (*self.pages, *self.inner):
            erased += structure.pixel_ranges(page)
        if self.page.compression not in JPEG and main.find(513) is not None:
            start = structure.number(main, 513, 0)
            erased.append((start, start + structure.number(main, 514, 0)))
            main.drop({513, 514})
            self._note("the thumbnail was not kept")
        for layers in main.drop({37724}):
            erased.append((layers.start, layers.start + layers.size))
            self._note("Photoshop's layers, which show the picture as it was, were not kept")
        resources = main.find(34377)
        if resources is not None:
            old = structure.content(resources)
            new = without_thumbnails(old)
            if new != old:
                erased.append((resources.start, resources.start + resources.size))
                resources.value, resources.count = new, len(new) // TYPE_SIZES.get(resources.kind, 1)
                self._note("Photoshop's thumbnail was not kept")
        packet = main.find(700)
        if packet is not None:
            old = structure.content(packet)
            new = XMP_THUMBNAIL.sub(lambda found: found[1] + b" " * len(found[2]), old)
            if new != old:
                packet.value = new
                self._note("the thumbnail in XMP was not kept")
        return erased

    def _write_segments(
        self, file: io.BytesIO, changed: np.ndarray, main: Directory, erased: list[tuple[int, int]]
    ) -> None:
        """Write the strips or tiles that `changed` touches, and their offsets and byte counts to `main`."""
        page, structure = self.page, self.structure
        parts = boxes(page)
        offset_tag = 324 if main.find(324) is not None else 273
        count_tag = 325 if main.find(325) is not None else 279
        offsets = list(page.dataoffsets)
        counts = [*page.databytecounts, *[0] * len(offsets)][: len(offsets)]
        touched = [
            i for i, (_, rows, columns) in enumerate(parts) if self.recoded or changed[rows, columns].any()
        ]
        old = [(start, start + count) for start, count in zip(offsets, counts, strict=True)]
        if page.compression == 1:  # of which a byte count may be wrong
            for i, box in enumerate(parts):
                size = uncompressed_size(page, box)
                old[i] = (offsets[i], offsets[i] + size if offsets[i] else 0)
        if self.recoded:
            self._recode(main, erased)
        kept = [*structure.value_ranges(main), (0, structure.header)]
        alone = ~overlapping(old + kept)[: len(old)]
        stay = set(range(len(old))) - set(touched)
        erase(file, erased + [old[i] for i in touched], kept + [old[i] for i in stay])
        before = list(offsets), list(counts)
        for i in touched:
            encoded = self._encode(parts[i])
            start, end = old[i]
            fits = len(encoded) <= end - start or end == file.seek(0, io.SEEK_END)
            if start and alone[i] and fits:
                file.seek(start)
                file.write(encoded)
            else:
                start = self._append(file, encoded)
            offsets[i], counts[i] = start, len(encoded)
        if self.recoded or before != (offsets, counts):
            self._set(main, offset_tag, offsets)
            self._set(main, count_tag, counts)

    def _set(self, main: Directory, tag: int, numbers: list[int]) -> None:
        field = main.find(tag)
        if field is None:
            field = Field(tag, LONG, 0, b"", 0, 0)
            main.fields.append(field)
            main.fields.sort(key=lambda each: each.tag)
        field.kind, field.value = self.structure.packed(numbers, field.kind)
        field.count = len(numbers)

    def _recode(self, main: Directory, erased: list[tuple[int, int]]) -> None:
        """Turn the tags of a compression that cannot be written into those of deflate."""
        self._note(f"{self._codec()} inside TIFF is written as deflate, "
                   "which keeps every other pixel as it is decoded")  # fmt: skip
        channels = self.raster.samples.shape[2]
        erased += self.structure.pixel_ranges(self.main)
        was_jpeg = self._is_converted() or self.page.compression in JPEG
        main.drop(CODEC_TAGS | (YCBCR_TAGS if was_jpeg else set()))
        self._set(main, 259, [8])
        photometric = 2 if self._is_converted() else int(self.page.photometric)
        self._set(main, 262, [photometric])
        for tag, numbers in {258: [self.page.bitspersample] * channels, 277: [channels]}.items():
            if main.find(tag) is None and numbers != [1]:  # they may be missing in a file of old JPEG
                self._set(main, tag, numbers)

    def _encode(self, box: tuple[slice, slice, slice]) -> bytes:
        """The content of a strip or tile, of the samples as they now are."""
        page = self.page
        channels, rows, columns = box
        block = self.raster.samples[rows, columns, channels]
        lacking = rows.stop - rows.start - block.shape[0], columns.stop - columns.start - block.shape[1]
        if any(lacking):
            block = np.pad(block, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="edge")
        order = self.structure.order
        predictor = 1 if self.recoded else page.predictor
        if page.bitspersample not in (8, 16, 32, 64):
            content = pack_rows(block.reshape(len(block), -1), page.bitspersample)
        elif predictor == 3:
            content = imagecodecs.floatpred_encode(np.ascontiguousarray(block), axis=-2).tobytes()
        else:
            block = block.view(f"u{block.itemsize}")
            if predictor == 2:
                block = np.concatenate([block[:, :1], block[:, 1:] - block[:, :-1]], axis=1)
            content = block.astype(block.dtype.newbyteorder(order or "="), copy=False).tobytes()
        encoded = compress(content, 8 if self.recoded else page.compression, len(content) // len(block))
        if page.fillorder == 2 and not self.recoded:
            encoded = bytes(imagecodecs.bitorder_encode(encoded))
        return encoded

    def _append(self, file: io.BytesIO, content: bytes) -> int:
        """Write `content` at the end, where offsets are even; returns its offset."""
        length = file.seek(0, io.SEEK_END)
        start = length + length % 2
        if not self.structure.big and start + len(content) >= 2**32:
            raise UserError("cannot be written back: it would grow beyond 4 GiB, which only BigTIFF holds")
        file.write(b"\0" * (length % 2) + content)
        return start

    def _write_directory(self, file: io.BytesIO, main: Directory) -> None:
        """Write the first directory: in its place, or at the end of the file if it has grown."""
        structure, room = self.structure, self.structure.room
        alone = ~overlapping([(field.start, field.start + field.size) for field in main.fields])
        entries = []
        for field, own in zip(main.fields, alone, strict=True):
            value = field.value
            if value is None:
                entries.append(field.entry)
                continue
            if len(value) > room:
                if own and max(len(value), room + 1) <= field.size:
                    file.seek(field.start)
                    file.write(value)
                    start = field.start
                else:
                    start = self._append(file, value)
                value = struct.pack(structure.pointer, start)
            head = struct.pack(structure.order + "HH", field.tag, field.kind)
            entries.append(head + struct.pack(structure.pointer, field.count) + value.ljust(room, b"\0"))
        content = struct.pack(structure.tally, len(entries)) + b"".join(entries)
        content += struct.pack(structure.pointer, main.next)
        if len(content) <= main.end - main.offset:
            file.seek(main.offset)
            file.write(content.ljust(main.end - main.offset, b"\0"))
        else:
            start = self._append(file, content)
            file.seek(structure.header - room)
            file.write(struct.pack(structure.pointer, start))

    def _mark_as_edited(self, file: io.BytesIO) -> None:
        """Tell readers of a cloud optimized GeoTIFF that its order is no longer the promised one.

        https://gdal.org/drivers/raster/cog.html, "Header ghost area".
        """
        start = self.structure.data.find(b"KNOWN_INCOMPATIBLE_EDITION=NO\n ", 0, 1024)
        if start >= 0:
            file.seek(start)
            file.write(b"KNOWN_INCOMPATIBLE_EDITION=YES\n")


def boxes(page: tifffile.TiffPage) -> list[tuple[slice, slice, slice]]:
    """The channels, rows and columns of each strip or tile, in turn; tiles reach over the border."""
    height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
    planes = [slice(0, channels)]
    if page.planarconfig == 2:
        planes = [slice(i, i + 1) for i in range(channels)]
    step_y, step_x = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    bottom = height + step_y if page.is_tiled else height
    return [
        (plane, slice(y, min(y + step_y, bottom)), slice(x, x + step_x))
        for plane, y, x in product(planes, range(0, height, step_y), range(0, width, step_x))
    ]


def uncompressed_size(page: tifffile.TiffPage, box: tuple[slice, slice, slice]) -> int:
    """The bytes of the samples of a strip or tile."""
    channels, rows, columns = (part.stop - part.start for part in box)
    return rows * ((columns * channels * page.bitspersample + 7) // 8)


def compress(content: bytes, compression: int, row: int) -> bytes:
    """`content`, of `row` bytes in each line of pixels, in one of the compressions of `ENCODED`."""
    if compression == 5:
        return bytes(imagecodecs.lzw_encode(content))
    if compression in (8, 32946):
        return bytes(imagecodecs.deflate_encode(content, level=8))
    if compression == 32773:  # line by line: TIFF 6.0, page 42
        lines = range(0, len(content), row)
        return b"".join(imagecodecs.packbits_encode(content[start : start + row]) for start in lines)
    if compression == 34925:
        return bytes(imagecodecs.lzma_encode(content))
    if compression in (34926, 50000):
        return bytes(imagecodecs.zstd_encode(content, level=9))
    return content


def pack_rows(samples: np.ndarray, bits: int) -> bytes:
    """Rows (N, M) of unsigned samples in `bits` bits each, the highest first; each row starts a byte."""
    lines = []
    for row in samples:
        whole = row.astype(f">u{row.itemsize}").view(np.uint8).reshape(len(row), -1)
        lines.append(np.packbits(np.unpackbits(whole, axis=1)[:, -bits:]).tobytes())
    return b"".join(lines)


def without_thumbnails(resources: bytes) -> bytes:
    """Photoshop's image resources without 1033 and 1036; Photoshop File Formats, "Image resource blocks"."""
    kept, start = [], 0
    while start + 12 <= len(resources):
        (number,) = struct.unpack_from(">H", resources, start + 4)
        size_at = start + 6 + (resources[start + 6] + 2) // 2 * 2  # after a name of even length, with its own
        if size_at + 4 > len(resources):
            break
        (size,) = struct.unpack_from(">I", resources, size_at)
        end = size_at + 4 + size + size % 2
        if number not in (1033, 1036):
            kept.append(resources[start:end])
        start = end
    return b"".join(kept) + resources[start:]


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether type, shape and bits are the same; line by line, for the sake of memory."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}")
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
