"""TIFF files, in which only the strips or tiles that the hole touches are rewritten."""

import io
import logging
import math
import re
import struct
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import tifffile

from imaging.formats import add_note
from imaging.formats.tiff_segments import boxes, encode, uncompressed_size
from imaging.formats.tiff_structure import LONG, TYPE_SIZES, Directory, Field, Structure, erase, overlapping
from imaging.metadata import orientation_of, photoshop_blocks, without_xmp_previews
from imaging.raster import RAW_ERROR, Raster, several_images_error
from utils import UserError

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what it finds odd; we raise or go on

ENCODED = {1, 5, 8, 32773, 32946, 34925, 34926, 50000}  # compressions kept; the others become deflate
UNPREDICTED = {1, 32773}  # compressions for which libtiff ignores the tag Predictor, and so do we
JPEG = {6, 7, 33007, 34892}  # compressions whose YCbCr is decoded to RGB
NAMES = {
    2: "CCITT", 3: "CCITT", 4: "CCITT", 32771: "CCITT", 6: "JPEG", 7: "JPEG", 33007: "JPEG", 34892: "JPEG",
    33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC",
    22610: "JPEG XR", 34934: "JPEG XR", 34933: "PNG", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
RAW_STARTS = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0")  # Olympus, Panasonic
RAW_COMPRESSIONS = {  # Sony, Epson, Samsung, Nikon, Kodak, Pentax
    32767, 32769, 32770, 32772, 34713, 65000, 65535,
}  # fmt: skip
RAW_PHOTOMETRICS = {32803, 34892}  # colour filter array, linear raw
COLORS = {0: ("grey", 1), 1: ("grey", 1), 2: ("rgb", 3), 3: ("palette", 1), 5: ("cmyk", 4), 6: ("ycbcr", 3),
          8: ("lab", 3)}  # fmt: skip
CODEC_TAGS = {266, 292, 293, 317, 347, *range(512, 522), 50674}  # tags of compressions other than deflate
YCBCR_TAGS = {529, 530, 531, 532}


class TiffImage:
    """A classic TIFF or BigTIFF file of one image; a `Container`.

    The samples are the stored ones, except that JPEG's YCbCr becomes RGB. CIELab is uint8: L* from 0 to 255,
    a* and b* as two's complement, like `np.asarray` of a Pillow image of mode LAB.

    `write` replaces the strips or tiles that the hole touches, in the compression of the file; all other
    bytes stay, except for copies that still show removed content: thumbnails, overviews, layers.

    Args:
        data: the file.
        first: read the first of several images; such a file cannot be written.

    Raises:
        UserError: if it is a raw file, holds several images, or is of a kind that cannot be written back.
        ValueError, struct.error, tifffile.TiffFileError, ...: if it is damaged.
    """

    exact = True
    encoding_note = ""

    def __init__(self, data: bytes, first: bool = False) -> None:
        self.notes: list[str] = []
        if data.startswith(RAW_STARTS) or data[8:16] in (b"IIIITwaR", b"MMMMRawT"):  # the latter: Phase One
            raise UserError(RAW_ERROR)
        self.structure = Structure(data)
        if data[8:11] == b"CR\2" and self.structure.first == 16:  # Canon
            raise UserError(RAW_ERROR)
        self.main = self.structure.directory(self.structure.first)
        pages = self.structure.chain([self.main.next])
        self.pages = [page for page in pages if page.offset != self.main.offset]  # if they form a circle
        self.inner = self.structure.inner([self.main, *self.pages])
        self.inner += self.structure.inner(self.inner)
        self._refuse_raw()
        if not first:
            self._refuse_several()
        self.page = self._open(io.BytesIO(data))
        reason = self._unwritable()
        if reason:
            raise UserError(f"TIFF: {reason} cannot be written back")
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
        has_maker = self.main.find(271) is not None
        for directory in (self.main, *self.pages, *self.inner):
            if (
                directory.find(50706) is not None
                or self.structure.number(directory, 262, 0) in RAW_PHOTOMETRICS
                or (has_maker and self.structure.number(directory, 259, 1) in RAW_COMPRESSIONS)
            ):
                raise UserError(RAW_ERROR)
        if self._is_reduced(self.main) and self.main.find(330) is not None:
            raise UserError(RAW_ERROR)

    def _refuse_several(self) -> None:
        """Raise for more than one image, not counting thumbnails, overviews, masks and empty pages."""
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
            raise several_images_error(number)

    def _unwritable(self) -> str:
        """The kind of the file, if it cannot be written back; else ""."""
        page = self.page
        photometric, compression = int(page.photometric), int(page.compression)
        space, colors = COLORS.get(photometric, ("", 0))
        bits, kind = page.bitspersample, page.sampleformat
        if isinstance(bits, tuple) or isinstance(kind, tuple):
            return "channels of different types"
        if kind in (5, 6):
            return "complex samples"
        if page.dtype is None or (bits > 16 and bits not in (32, 64)):
            return f"samples of {bits} bits and format {int(kind)}"
        if page.imagedepth > 1 or page.tiledepth > 1:
            return "volumes"
        if compression == 32773 and self.structure.number(self.main, 317, 1) != 1:
            return "PackBits with a predictor, which libraries read differently,"
        if not space:
            return f"images of photometric interpretation {photometric}"
        if page.samplesperpixel < colors:
            return f"{space} images of {page.samplesperpixel} channels"
        if space == "cmyk" and self.structure.number(self.main, 332, 1) != 1:
            return "inks other than cyan, magenta, yellow and black"
        if space == "lab" and bits != 8:
            return f"CIELab images of {bits} bits"
        if space == "palette" and page.dtype.kind not in "bu":
            return "signed palette images"
        if space == "ycbcr" and compression in JPEG and (page.samplesperpixel != 3 or bits not in (8, 12)):
            return "JPEG of YCbCr other than three channels of 8 or 12 bits"
        if space == "ycbcr" and compression not in JPEG:
            if compression not in ENCODED:
                return f"YCbCr in {self._codec()}"
            if self.structure.numbers(self.main, 530) != [1, 1]:
                return "subsampled YCbCr images"
        elif compression == 33003:
            return "YCbCr in JPEG 2000"
        elif compression in ENCODED and page.predictor != 1 and bits not in (8, 16, 32, 64):
            return f"a predictor of {bits} bits"
        return ""

    def _is_reduced(self, directory: Directory) -> bool:
        """Whether a directory is a mask or a copy of lower resolution of another; TIFF 6.0, page 36."""
        reduced = self.structure.number(directory, 254, 0) & 0b101 != 0
        return reduced or self.structure.number(directory, 255, 0) == 2

    def _size(self, directory: Directory) -> tuple[int, int]:
        return self.structure.number(directory, 256, 0), self.structure.number(directory, 257, 0)

    def _codec(self) -> str:
        compression = int(self.page.compression)
        if compression in ENCODED:
            return f"predictor {int(self.page.predictor)}"
        return NAMES.get(compression, f"compression {compression}")

    # --- reading ------------------------------------------------------------------------------------------

    def _open(self, file: BinaryIO) -> tifffile.TiffPage:
        """The first page, corrected where tifffile reads it differently from libtiff."""
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
        photometric = 2 if self._is_converted() else int(page.photometric)
        space, colors = COLORS[photometric]
        extra = [int(kind) for kind in page.extrasamples][: channels - colors]
        alpha_index = next((i for i, kind in enumerate(extra) if kind in (1, 2)), None)
        orientation = self.structure.number(self.main, 274, 0)
        xmp = self.page.tags.get(700)
        if not orientation and xmp is not None and isinstance(xmp.value, bytes):
            orientation = orientation_of(None, xmp.value)
        return Raster(
            samples=samples,
            space=space,
            bits=page.bitspersample if samples.dtype.kind == "u" else 8 * samples.dtype.itemsize,
            alpha=None if alpha_index is None else colors + alpha_index,
            premultiplied=alpha_index is not None and extra[alpha_index] == 1,
            inverted=photometric == 0,
            palette=self._palette() if space == "palette" else None,
            orientation=orientation if orientation in range(1, 9) else 1,
        )

    def _palette(self) -> np.ndarray:
        numbers = np.array(self.structure.numbers(self.main, 320), np.uint16)
        if numbers.size != 3 << self.page.bitspersample:
            raise ValueError(f"a palette of {numbers.size} numbers")
        if numbers.max() > 255:  # otherwise an old file, with 8 bits
            numbers >>= 8
        return np.ascontiguousarray(numbers.reshape(3, -1).T).astype(np.uint8)

    def _is_converted(self) -> bool:
        """Whether the file has YCbCr and the samples are RGB."""
        page = self.page
        return page.photometric == 6 and page.compression in JPEG and page.planarconfig == 1

    # --- writing ------------------------------------------------------------------------------------------

    def write(self, file: BinaryIO, changed: np.ndarray) -> None:
        """Write the file; see `Container.write`.

        Raises:
            UserError: if the file would grow too large, or would not read back exactly.
        """
        if changed.shape != self.raster.samples.shape[:2]:
            raise ValueError(f"changed is {changed.shape}, the image {self.raster.samples.shape[:2]}")
        if not changed.any():
            file.write(self.structure.data)
            return
        written = io.BytesIO(self.structure.data)
        main = replace(self.main, fields=[replace(field) for field in self.main.fields])
        erased = self._drop_copies(main)
        self._write_segments(written, changed, main, erased)
        self._write_directory(written, main)
        self._mark_as_edited(written)
        if not _equal(self._decode(written), self.raster.samples):
            raise UserError("cannot be written back exactly: the new file reads differently")
        file.write(written.getbuffer())

    def _note(self, note: str) -> None:
        add_note(self.notes, note)

    def _drop_copies(self, main: Directory) -> list[tuple[int, int]]:
        """Drop the copies that still show removed content; returns their ranges (start, end), to erase."""
        structure, erased = self.structure, []
        if self.pages:
            main.next = 0
            self._note("thumbnails, overviews or masks on further pages were not kept")
        if main.drop({330}):
            self._note("reduced copies of the image in SubIFDs were not kept")
        for page in (*self.pages, *self.inner):
            erased += structure.pixel_ranges(page)
        if self.page.compression not in JPEG and main.find(513) is not None:
            start = structure.number(main, 513, 0)
            erased.append((start, start + structure.number(main, 514, 0)))
            main.drop({513, 514})
            self._note("the thumbnail was not kept")
        for layers in main.drop({37724}):
            erased.append((layers.start, layers.start + layers.size))
            self._note("Photoshop's layers, which show removed content, were not kept")
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
            new = without_xmp_previews(old, self.notes)
            packet.value = new if new != old else None
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
        before = list(offsets), list(counts)
        touched = [
            i for i, (_, rows, columns) in enumerate(parts) if self.recoded or changed[rows, columns].any()
        ]
        old = [(start, start + count) for start, count in zip(offsets, counts, strict=True)]
        if page.compression == 1:  # byte counts may be wrong
            for i, box in enumerate(parts):
                size = uncompressed_size(page, box)
                old[i] = (offsets[i], offsets[i] + size if offsets[i] else 0)
        if self.recoded:
            self._recode(main, erased)
        kept = [*structure.value_ranges(main), (0, structure.header)]
        alone = ~overlapping(old + kept)[: len(old)]
        stay = set(range(len(old))) - set(touched)
        with file.getbuffer() as content:
            erase(content, erased + [old[i] for i in touched], kept + [old[i] for i in stay])
        for i in touched:
            encoded = encode(page, self.raster.samples, parts[i], deflate=self.recoded)
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
            field = Field(tag, LONG, count=0, place=0, start=0, size=0)
            main.fields.append(field)
            main.fields.sort(key=lambda field: field.tag)
        field.kind, field.value = self.structure.packed(numbers, field.kind)
        field.count = len(numbers)

    def _recode(self, main: Directory, erased: list[tuple[int, int]]) -> None:
        """Replace the tags of a compression that cannot be written by those of deflate."""
        self._note(f"{self._codec()} inside TIFF is written as deflate, "
                   "which keeps every other pixel as it is decoded")  # fmt: skip
        channels = self.raster.samples.shape[2]
        erased += self.structure.pixel_ranges(self.main)
        main.drop(CODEC_TAGS | (YCBCR_TAGS if self.page.compression in JPEG else set()))
        self._set(main, 259, [8])
        self._set(main, 262, [2 if self._is_converted() else int(self.page.photometric)])
        for tag, numbers in {258: [self.page.bitspersample] * channels, 277: [channels]}.items():
            if main.find(tag) is None and numbers != [1]:  # they may be missing in a file of old JPEG
                self._set(main, tag, numbers)

    def _append(self, file: io.BytesIO, content: bytes) -> int:
        """Write `content` at the next even offset after the end, and return that offset."""
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
                entries.append(structure.entry(field))
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


def without_thumbnails(resources: bytes) -> bytes:
    """Photoshop's image resources without 1033 and 1036, its thumbnails."""
    blocks = list(photoshop_blocks(resources))
    rest = resources[sum(len(block) for _, _, block in blocks) :]
    return b"".join(block for number, _, block in blocks if number not in (1033, 1036)) + rest


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether type, shape and bits are the same; compared line by line, to save memory."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}")
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
