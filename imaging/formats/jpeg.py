"""JPEG files, in which only the blocks that a hole touches are re-encoded.

A JPEG holds the quantised coefficients of a cosine transform for each 8×8 block of each component (ITU-T
T.81). Decoding and encoding a file again changes all of them; here those of the untouched blocks are
copied, and all metadata (EXIF, XMP, IPTC, colour profiles, comments) byte for byte.
"""

import contextlib
import functools
import io
import itertools
import re
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from imaging.formats import QUALITY, add_note, reencoding_note
from imaging.formats.jpeg_blocks import touched_blocks, untouched_pixels
from imaging.formats.jpeg_codec import JPEGLIB, code_coefficients, is_supported, read_coefficients
from imaging.formats.jpeg_segments import (
    APP,
    COM,
    DQT,
    EXTENDED_XMP,
    GAIN_MAP,
    JPEG_LS,
    SOF,
    SOS,
    XMP,
    Frame,
    Segment,
    clean_xmp,
    is_cut_preview,
    is_ycbcr,
    photoshop_resources,
    read_frame,
    read_segments,
    renew_previews,
    renew_thumbnail,
    save_jpeg,
    write_segments,
)
from imaging.formats.jpeg_splice import Scan, Unsuitable
from imaging.metadata import DECODE_ERRORS, PREFIX, Exif, Metadata, orientation_of, without_thumbnail
from imaging.raster import Raster

BLOCKS_AT_ONCE = 4096  # bounds the memory of `JpegFile._replace`
LARGE = 1_000_000  # pixels above which a result is checked at a smaller size
FREQUENCY, POSITION = np.mgrid[0:8, 0:8]
COSINES = np.cos((2 * POSITION + 1) * FREQUENCY * np.pi / 16) / 2
COSINES[0] /= np.sqrt(2)
TRANSFORM = np.kron(COSINES, COSINES).astype(np.float32)  # orthonormal: block = coefficients @ TRANSFORM
YCBCR = np.array(  # JFIF 1.02, full range
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
CARRIED = {  # segments, by name, that a PNG can hold or does not need, or that other notes report
    "resolution", "JFIF thumbnail", "EXIF", "XMP", "colour profile", "IPTC and Photoshop data",
    "index of further images", "Adobe colour transform",
}  # fmt: skip
REPORTED_RESOURCES = {0x0404, 0x0409, 0x040C}  # Photoshop resources: IPTC and thumbnails
RARE = "JPEG of this rare kind"


def decode_coarsely(data: bytes, frame: Frame) -> np.ndarray | None:
    """The pixels (H, W, C) of a large baseline JPEG at an eighth of its size; None for other files.

    This takes a third of the time. It shows whether a decoder stays in step; if the bits of all untouched
    blocks are the file's own, nothing else can change them.
    """
    if frame.process == 0xC2 or frame.height * frame.width < LARGE or min(frame.height, frame.width) < 64:
        return None
    return decode(data, 8)


def decode(data: bytes, scale: int = 1) -> np.ndarray:
    """The pixels (H, W, C) of a JPEG at 1/`scale` of its size.

    Raises:
        DECODE_ERRORS: if Pillow cannot decode it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accepted at opening
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if scale > 1:
                image.draft(None, (image.width // scale, image.height // scale))
            decoded = np.asarray(image)
    return decoded.reshape(*decoded.shape[:2], -1)


class CodedData:
    """The coefficients and the scan of a JPEG file, from which `JpegFile.write` starts.

    Attributes:
        bare: the segments without metadata.
        planes, steps: see `read_coefficients`.
        scan: the bits of each block; None if they cannot be located, so that all blocks have to be coded.
        coarse: the result of `decode_coarsely`.
    """

    def __init__(self, data: bytes, segments: list[Segment], frame: Frame) -> None:
        # An error in the metadata crashes jpeglib: it gets only the segments that Pillow has decoded.
        self.bare = [s for s in segments if not s.is_metadata]
        self.scan: Scan | None = None
        with contextlib.suppress(Unsuitable):
            self.scan = Scan(self.bare, frame)
        size = self.scan.size if self.scan else (frame.height, frame.width)
        self.planes, self.steps = read_coefficients(self.bare, frame, size)
        try:
            if self.scan:
                self.scan.index(self.planes)
        except Unsuitable:
            self.scan = None
        self.coarse = decode_coarsely(data, frame)


class JpegFile:
    """A JPEG, or the first image of a file with several; a `Container`.

    Args:
        data: the file.
        for_writing: read what `write` needs in a background thread now.

    Attributes:
        raster: the pixels as Pillow decodes them; in CMYK, 0 is no ink (`inverted` is False).
        exact: whether only the touched blocks will be re-encoded. False for CMYK, arithmetic-coded and other
            rare kinds, and after `write` had to re-encode all blocks.
        icc: the colour profile, its pieces joined.

    Raises:
        NotImplementedError: for kinds that no library here decodes.
        DECODE_ERRORS: if Pillow cannot decode the image.
    """

    def __init__(self, data: bytes, for_writing: bool = False) -> None:
        self.data = data
        self.segments, self.end = read_segments(data)
        self._refuse_undecodable()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about damaged EXIF and indices of further images
            image = Image.open(io.BytesIO(data), formats=["JPEG"])
            image.load()
        self.info = image.info
        self.icc: bytes | None = self.info.get("icc_profile")
        self.frame = read_frame(self.segments)
        self.raster = Raster(
            samples=np.array(image).reshape(image.height, image.width, -1),
            space={"L": "grey", "CMYK": "cmyk"}.get(image.mode, "rgb"),
            orientation=orientation_of(self.info.get("exif"), self.info.get("xmp")),
        )
        rare_kind = self._rare_kind()
        self.exact = not rare_kind
        self.encoding_note = "JPEG: only the 8×8 blocks that the hole touches are re-encoded"
        if rare_kind:
            self.encoding_note = reencoding_note(rare_kind)
        self.notes: list[str] = []
        self._coded_data: Future[CodedData] | None = None
        if for_writing and self.exact and self.frame:
            pool = ThreadPoolExecutor(1)
            self._coded_data = pool.submit(CodedData, data, self.segments, self.frame)
            pool.shutdown(wait=False)

    def _refuse_undecodable(self) -> None:
        for segment in itertools.takewhile(lambda s: s.marker != SOS, self.segments):
            if segment.marker == JPEG_LS:
                raise NotImplementedError("JPEG-LS cannot be read")
            if segment.marker in SOF and segment.content[:1] != b"\x08":
                raise NotImplementedError(f"JPEG of {segment.content[0]} bits cannot be read")

    def _rare_kind(self) -> str:
        """The kind of a JPEG whose blocks cannot be kept; "" if they can."""
        frame = self.frame
        if frame is None:
            return "damaged JPEG"
        if len(frame.components) == 4:
            return "CMYK JPEG"
        if frame.process in (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF):
            return "arithmetic-coded JPEG"
        if frame.process in (0xC3, 0xC7):
            return "lossless JPEG"
        if not is_supported():
            return f"JPEG, without jpeglib {JPEGLIB},"
        markers = [s.marker for s in self.segments]
        tables_change = SOS not in markers or DQT in markers[markers.index(SOS) :]
        usual = (
            frame.process in (0xC0, 0xC1, 0xC2)
            and len(frame.components) == (1 if self.raster.space == "grey" else 3)
            and (frame.height, frame.width) == self.raster.samples.shape[:2]
            and (0, 0) not in frame.ratios
            and not tables_change
        )
        return "" if usual else RARE

    def kept(self, changed: np.ndarray) -> np.ndarray:
        """(H, W) bool: the pixels that decode exactly as before after `changed` is written."""
        if not changed.any():
            return np.ones(changed.shape, bool)
        if not self.exact or self.frame is None:
            return np.zeros(changed.shape, bool)
        return untouched_pixels(changed, self.frame.ratios)

    def write(self, file: BinaryIO, changed: np.ndarray) -> None:
        """Write the file; see `Container.write`.

        The result is checked: if it does not decode to the same pixels away from the hole, all blocks are
        re-encoded, and `encoding_note` says so.
        """
        if not changed.any():
            file.write(self.data)
            return
        content = None
        if self.exact:
            with contextlib.suppress(OSError):  # libjpeg refuses, or no room for temporary files
                content = self._encode(changed)
            if content is None:
                self.exact = False
                self.encoding_note = reencoding_note(RARE)
        file.write(content if content is not None else self._encode_all())

    def _encode(self, changed: np.ndarray) -> bytes | None:
        """The file with the blocks under `changed` (H, W) bool re-encoded; None if it fails the check.

        Raises:
            OSError: if libjpeg refuses, or temporary files cannot be written.
        """
        assert self.frame is not None
        waiting, self._coded_data = self._coded_data, None
        coded = waiting.result() if waiting else CodedData(self.data, self.segments, self.frame)
        ratios = self.frame.ratios
        blocks = {ratio: touched_blocks(changed, ratio) for ratio in set(ratios)}
        units = np.zeros(0, int)
        if coded.scan:
            units = coded.scan.units([blocks[ratio] for ratio in ratios])
            if not coded.scan.holds(coded.planes, units):
                coded.scan = None
        for ratio, touched in blocks.items():
            self._replace(coded, [i for i in range(len(ratios)) if ratios[i] == ratio], changed, touched)
        updated = self._updated_segments()
        segments = []
        if coded.scan:
            with contextlib.suppress(Unsuitable):
                new = coded.scan.replace(coded.planes, units)
                segments = [Segment(SOS, s.content, new) if s.marker == SOS else s for s in updated]
        spliced = bool(segments)
        if not spliced:
            shapes = self.frame.blocks(changed.shape)
            planes = [p[:rows, :columns] for p, (rows, columns) in zip(coded.planes, shapes, strict=True)]
            header = [s for s in updated if s.marker == DQT or s.marker in SOF or s.is_metadata]
            segments = [*header, *code_coefficients(planes, coded.bare, self.frame)]
        content = write_segments(segments)
        return content if self._agrees(content, changed, coded.coarse if spliced else None) else None

    def _replace(self, coded: CodedData, group: list[int], changed: np.ndarray, touched: np.ndarray) -> None:
        """Re-encode the `touched` blocks of the components `group`, which have the same sampling factors.

        Samples that cover no changed pixel keep the value of the old coefficients, unrounded. Samples beyond
        the image's edge repeat its last sample if that is new, and are kept otherwise; whole blocks beyond
        it repeat the mean of the last block.
        """
        assert self.frame is not None
        height, width = changed.shape
        down, across = self.frame.ratios[group[0]]
        count = len(coded.planes)
        ycbcr = count == 3 and is_ycbcr(self.segments, self.frame)
        weights = (YCBCR if ycbcr else np.eye(count, dtype=np.float32))[group].T / np.float32(down * across)
        samples = self.raster.samples.reshape(height * width, count)
        places = np.argwhere(touched)
        for start in range(0, len(places), BLOCKS_AT_ONCE):
            row, column = places[start : start + BLOCKS_AT_ONCE].T
            y = np.minimum(row[:, None] * 8 * down + np.arange(8 * down), height - 1)
            x = np.minimum(column[:, None] * 8 * across + np.arange(8 * across), width - 1)
            window = (y[:, :, None] * width + x[:, None, :]).reshape(len(row), 8, down, 8, across)
            parts = [window[:, :, i, :, j].reshape(-1) for i, j in np.ndindex(down, across)]
            new = np.logical_or.reduce([changed.take(part) for part in parts]).reshape(-1, 64)
            total = sum(samples.take(part, axis=0).astype(np.float32) for part in parts)  # (N · 64, channels)
            for index, wanted in zip(group, (total @ weights).T, strict=True):
                plane, steps = coded.planes[index], coded.steps[index]
                old = (plane[row, column] * steps) @ TRANSFORM  # (N, 64)
                wanted = wanted.reshape(-1, 64) - (0 if ycbcr and index else 128)
                coefficients = np.where(new, wanted, old) @ TRANSFORM.T / steps
                plane[row, column] = np.clip(np.rint(coefficients), -1023, 1023)
        rows, columns = touched.shape
        for plane in (coded.planes[index] for index in group):
            beyond = np.pad(touched, [(0, plane.shape[0] - rows), (0, plane.shape[1] - columns)], "edge")
            beyond[:rows, :columns] = False
            row, column = np.nonzero(beyond)
            plane[row, column] = 0
            plane[row, column, 0] = plane[np.minimum(row, rows - 1), np.minimum(column, columns - 1), 0]

    def _agrees(self, content: bytes, changed: np.ndarray, coarse: np.ndarray | None) -> bool:
        """Whether Pillow decodes `content` to the same pixels as before, away from the touched blocks.

        Args:
            coarse: the result of `decode_coarsely` for the file, if its bits were kept.
        """
        before = self.raster.samples if coarse is None else coarse
        try:
            after = decode(content, 1 if coarse is None else 8)
        except DECODE_ERRORS:
            return False
        if after.shape != before.shape:
            return False
        if coarse is None:
            kept = self.kept(changed)
        else:  # a pixel is a block; up to 3 around it are of its unit, up to 4 more have interpolated colour
            blocks = touched_blocks(changed, (1, 1)).astype(np.uint8)
            kept = cv2.dilate(blocks, np.ones((15, 15), np.uint8)) == 0
        rows = np.flatnonzero(~kept.all(axis=1))
        top, bottom = rows[0], rows[-1] + 1
        differs = (after[top:bottom] != before[top:bottom]).any(axis=2) & kept[top:bottom]
        rest = ((after[part], before[part]) for part in (slice(top), slice(bottom, None)))
        return not differs.any() and all(np.array_equal(*pair) for pair in rest)

    def _encode_all(self) -> bytes:
        """The file with all blocks re-encoded by Pillow."""
        progressive = bool(self.info.get("progressive"))
        encoded = save_jpeg(self._image(), quality=QUALITY, subsampling=0, progressive=progressive)
        segments, _ = read_segments(encoded)
        jfif = [s for s in segments if s.marker == 0xE0]
        adobe = [s for s in segments if s.marker == 0xEE]
        carried = [s for s in self._updated_segments() if s.is_metadata and not s.starts(0xEE, b"Adobe")]
        if not jfif:  # CMYK: a JFIF holds grey or YCbCr
            carried = [s for s in carried if not s.starts(0xE0, b"JF")]
        elif any(s.starts(0xE0, b"JFIF\0") for s in carried):
            jfif = []
        return write_segments([*jfif, *adobe, *carried, *(s for s in segments if not s.is_metadata)])

    def _image(self) -> Image.Image:
        samples = self.raster.samples
        if self.raster.space == "cmyk":
            return Image.frombytes("CMYK", samples.shape[1::-1], np.ascontiguousarray(samples).tobytes())
        return Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)

    # --- metadata ---

    def _updated_segments(self) -> list[Segment]:
        """All segments, with their previews renewed, and without those that no longer hold."""
        images_dropped = self._note_rest()
        result: list[Segment] = []
        split: set[tuple[int, bytes]] = set()  # marker and start of segments that hold parts of a preview

        @functools.cache
        def image() -> Image.Image:
            image = self._image()
            return image.convert("RGB") if image.mode == "CMYK" else image

        for segment in self.segments:
            content = segment.content
            if segment.starts(0xE2, b"MPF\0") or (images_dropped and segment.starts(0xE2, GAIN_MAP)):
                continue
            if segment.starts(0xEB, b"JP"):  # JUMBF
                self._note("Content Credentials were not kept, because they vouch for the unedited image")
                continue
            if segment.starts(0xE0, b"JFIF\0") and any(content[12:14]):
                self._note("the JFIF thumbnail was not kept, because it shows removed content")
                content = content[:12] + b"\0\0"
            elif segment.starts(0xE1, PREFIX):
                content = self._renewed_exif(content, image)
            elif segment.is_metadata and not content.startswith((XMP, EXTENDED_XMP)):
                content = self._renewed_previews(content, image)
                kind = (segment.marker, content[:4])
                if kind in split or is_cut_preview(content):
                    split.add(kind)
                    self._note("a preview in several segments was not kept, because it shows removed content")
                    continue
                if content.startswith(b"FLIR\0"):
                    self._note("the thermal image (FLIR) was kept, and may still show removed content")
            if segment.starts(0xE0, b"JFXX\0") and content == segment.content:
                self._note("the JFIF thumbnail was not kept, because it shows removed content")
                continue
            result.append(Segment(segment.marker, content, segment.scan))
        return clean_xmp(result, images_dropped, self.notes)

    def _renewed_previews(self, content: bytes, image: Callable[[], Image.Image]) -> bytes:
        renewed, without_room = renew_previews(content, image)
        if without_room:
            self._note("a preview in the metadata was not kept: there was no room for the new one")
        return renewed

    def _renewed_exif(self, content: bytes, image: Callable[[], Image.Image]) -> bytes:
        """The EXIF segment with its thumbnail and the previews in maker notes renewed."""
        with contextlib.suppress(*DECODE_ERRORS):  # a damaged block, which readers ignore
            exif = Exif(content)
            if not renew_thumbnail(exif, image):
                self._note("the EXIF thumbnail was not kept: a new one of its kind or size cannot be made")
            content = PREFIX + bytes(exif.data)
        return self._renewed_previews(content, image)  # the new thumbnail comes out the same once more

    def _note_rest(self) -> bool:
        """Add a note about data after the first image; returns whether it holds images or videos."""
        rest = self.data[self.end :]
        if not rest:
            return False
        count, at = 0, 0
        while (at := rest.find(b"\xff\xd8\xff", at)) >= 0:
            segments, end = read_segments(rest, at)
            whole = read_frame(segments) is not None
            count += whole
            at = end if whole else at + 3
        kinds = ["an image" if count == 1 else f"{count} images"] if count else []
        if b"ftyp" in rest[:64] or re.search(rb"\0\0\0.ftyp", rest):
            kinds.append("a video")
        if kinds:
            gain_map = any(b"hdrgm:" in s.content or s.content.startswith(GAIN_MAP) for s in self.segments)
            example = " (such as its HDR gain map)" if gain_map else ""
            self._note(
                f"not kept, to show no removed content: {' and '.join(kinds)} after the first{example}"
            )
        else:
            self._note(f"{len(rest)} bytes after the end of the JPEG were not kept")
        return bool(kinds)

    def _note(self, text: str) -> None:
        add_note(self.notes, text)

    def metadata(self) -> Metadata:
        """The metadata for a PNG of the same image; see `Metadata`."""
        notes = list(self.notes)
        segments = self._updated_segments()
        self.notes[:] = notes  # drops the notes about a JPEG
        found = Metadata(icc=self.icc)
        found.comment = b"\n".join(s.content for s in segments if s.marker == COM) or None
        if self.info.get("dpi"):
            across, down = self.info["dpi"]
            found.dpi = (float(across), float(down))
        blocks = [s.content[len(PREFIX) :] for s in segments if s.starts(0xE1, PREFIX)]
        if blocks:
            found.exif = without_thumbnail(blocks[0], self.notes)
        packets = [s.content[len(XMP) :] for s in segments if s.starts(0xE1, XMP)]
        found.xmp = packets[0] if packets else None
        lost = [name for s in self.segments if (name := _lost_name(s))]
        resources = photoshop_resources(segments)
        found.iptc = resources.get(0x0404)
        if found.iptc:
            lost.append("IPTC")
        if set(resources) - REPORTED_RESOURCES:
            lost.append("Photoshop data (APP13)")
        if len(self.data) > self.end:
            lost.append("the data after the first image")
        found.lost = list(dict.fromkeys(lost))
        return found


def _lost_name(segment: Segment) -> str | None:
    """The name of a segment that a PNG cannot hold; None for others."""
    if segment.marker not in APP or segment.name in CARRIED:
        return None
    number = f"APP{segment.marker - 0xE0}"
    text = re.match(rb"[ -~]{3,24}", segment.content)
    name = f"{segment.name} ({number})" if segment.name else number
    return f"{number} ({text[0].decode('ascii')})" if text and not segment.name else name
