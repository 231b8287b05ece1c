"""JPEG files in which only the blocks that a hole touches are encoded anew.

A JPEG holds, for each 8×8 block of each component, the quantised coefficients of a cosine transform (ITU-T
T.81). Decoding and encoding a file again changes all of them; here those of the untouched blocks are
copied, and everything around them (EXIF, XMP, IPTC, colour profiles, comments) byte for byte.
"""

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from imaging.formats.jpeg_blocks import touched_blocks, untouched
from imaging.formats.jpeg_codec import JPEGLIB, code_coefficients, is_supported, read_coefficients
from imaging.formats.jpeg_codec import silent_stderr as silent_stderr
from imaging.formats.jpeg_segments import (
    APP,
    COM,
    DQT,
    EXTENDED_XMP,
    GAIN_MAP,
    PHOTOSHOP,
    PILLOW_ERRORS,
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
)  # fmt: skip
from imaging.formats.jpeg_splice import Scan, Unsuitable
from imaging.metadata import DAMAGED, PREFIX, Exif, Metadata, orientation_of, without_previews
from imaging.raster import Raster

QUALITY = 95
BLOCKS_AT_ONCE = 4096  # bounds the memory of `JpegFile._replace`
LARGE = 1_000_000  # pixels beyond which a result is checked at a smaller size
FREQUENCY, POSITION = np.mgrid[0:8, 0:8]
COSINES = np.cos((2 * POSITION + 1) * FREQUENCY * np.pi / 16) / 2
COSINES[0] /= np.sqrt(2)
TRANSFORM = np.kron(COSINES, COSINES).astype(np.float32)  # orthonormal: block = coefficients @ TRANSFORM
YCBCR = np.array(  # JFIF 1.02, full range
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
LOST = {  # what a PNG cannot carry
    EXTENDED_XMP: "extended XMP", b"FLIR\0": "FLIR data (APP1)", b"FPXR\0": "FlashPix data (APP2)",
    GAIN_MAP: "HDR gain map (APP2)", b"JP": "Content Credentials (APP11)",
}  # fmt: skip
OF_THE_PICTURE = {0x0404, 0x0409, 0x040C}  # Photoshop's resources: IPTC and thumbnails


def decode_coarsely(data: bytes, frame: Frame) -> np.ndarray | None:
    """The pixels (H, W, C) of a large baseline JPEG at an eighth of its size; None of others.

    That takes a third of the time. It shows whether a decoder stays in step; where the bits of all untouched
    blocks are the file's own, nothing else can change them.
    """
    if frame.process == 0xC2 or frame.height * frame.width < LARGE or min(frame.height, frame.width) < 64:
        return None
    return decode(data, 8)


def decode(data: bytes, scale: int = 1) -> np.ndarray:
    """The pixels (H, W, C) of a JPEG at a fraction of its size.

    Raises:
        OSError, SyntaxError, ValueError, struct.error: Pillow's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accepted at opening
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if scale > 1:
                image.draft(None, (image.width // scale, image.height // scale))
            decoded = np.asarray(image)
    return decoded.reshape(*decoded.shape[:2], -1)


class Original:
    """What `JpegFile.write` needs of the file beside its samples.

    Attributes:
        bare: the segments that code the picture.
        planes, steps: its coefficients, as of `read_coefficients`.
        scan: where the bits of each block are; None if this cannot be said, and all have to be coded.
        coarse: the result of `decode_coarsely`.
    """

    def __init__(self, data: bytes, segments: list[Segment], frame: Frame) -> None:
        # An error in the header crashes jpeglib: it gets only the segments that Pillow has decoded.
        self.bare = [s for s in segments if not s.describes]
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
    """A JPEG, or the first picture of a multi-picture one.

    Args:
        data: the file.
        for_writing: read what `write` needs in the background, rather than only then.

    Attributes:
        raster: the pixels as Pillow decodes them; of CMYK, 0 is no ink (`inverted` is False).
        notes: what a user should know of what cannot be kept.
        how: how `write` writes it, in words.
        exact: whether only the touched blocks will be encoded anew. False of CMYK, arithmetic-coded and other
            rare kinds, and after `write` had to encode all blocks anew.
        icc: the colour profile, its pieces joined.

    Raises:
        OSError, SyntaxError, ValueError, struct.error: Pillow's, if the picture cannot be decoded.
    """

    def __init__(self, data: bytes, for_writing: bool = False) -> None:
        self.data = data
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of damaged EXIF and indices of further pictures
            image = Image.open(io.BytesIO(data), formats=["JPEG"])
            image.load()
        self.info = image.info
        self.icc: bytes | None = self.info.get("icc_profile")
        self.segments, self.end = read_segments(data)
        self.frame = read_frame(self.segments)
        samples = np.array(image)
        self.raster = Raster(
            samples=samples if samples.ndim == 3 else samples[:, :, None],
            space={"L": "grey", "CMYK": "cmyk"}.get(image.mode, "rgb"),
            orientation=orientation_of(self.info.get("exif"), self.info.get("xmp")),
        )
        unable = self._unable()
        self.exact = unable is None
        self.how = (
            _anew(unable) if unable else "JPEG: only the 8×8 blocks that the hole touches are encoded anew"
        )
        self.notes: list[str] = []
        self._original: Future[Original] | None = None
        if for_writing and self.exact and self.frame:
            pool = ThreadPoolExecutor(1)
            self._original = pool.submit(Original, data, self.segments, self.frame)
            pool.shutdown(wait=False)

    def _unable(self) -> str | None:
        """Why the blocks cannot be kept: the kind of JPEG; None if they can."""
        frame = self.frame
        if frame is None:
            return "damaged JPEG"
        if len(frame.components) == 4:
            return "CMYK JPEG"
        if frame.process in (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF):
            return "arithmetic-coded JPEG"
        if frame.process in (0xC3, 0xC7):
            return "lossless JPEG"
        if frame.precision != 8:
            return f"{frame.precision}-bit JPEG"
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
        return None if usual else "JPEG of this rare kind"

    def kept(self, changed: np.ndarray) -> np.ndarray:
        """Which pixels (H, W) bool decode exactly as before, once `changed` is written."""
        if not changed.any():
            return np.ones(changed.shape, bool)
        if not self.exact or self.frame is None:
            return np.zeros(changed.shape, bool)
        return untouched(changed, [(h, v) for _, h, v, _ in self.frame.components])

    def write(self, file: BinaryIO, changed: np.ndarray) -> None:
        """Write the file again with `raster.samples`, of which only `changed` (H, W) bool differ.

        Where nothing differs, the bytes are those of the file. The result is checked: should it not decode to
        the same away from the hole, all blocks are encoded anew, and a note says so.
        """
        if not changed.any():
            file.write(self.data)
            return
        content = None
        if self.exact:
            with contextlib.suppress(OSError):  # of libjpeg, or no room for temporary files
                content = self._encode(changed)
            if content is None:
                self.exact = False
                self.how = _anew("JPEG of this rare kind")
        file.write(content if content is not None else self._encode_all())

    def _encode(self, changed: np.ndarray) -> bytes | None:
        """The file with the blocks under `changed` (H, W) bool encoded anew; None if it fails the check.

        Raises:
            OSError: if libjpeg refuses, or temporary files cannot be written.
        """
        assert self.frame is not None
        waiting, self._original = self._original, None
        read = waiting.result() if waiting else Original(self.data, self.segments, self.frame)
        ratios = self.frame.ratios
        blocks = {ratio: touched_blocks(changed, ratio) for ratio in set(ratios)}
        touched = [blocks[ratio] for ratio in ratios]
        units = np.zeros(0, int)
        if read.scan:
            units = read.scan.units(touched)
            if not read.scan.holds(read.planes, units):
                read.scan = None
        for ratio in blocks:
            self._replace(
                read, [i for i, other in enumerate(ratios) if other == ratio], changed, blocks[ratio]
            )
        described = self._described()
        coded = []
        if read.scan:
            with contextlib.suppress(Unsuitable):
                new = read.scan.replace(read.planes, units)
                coded = [Segment(SOS, s.content, new) if s.marker == SOS else s for s in described]
        spliced = bool(coded)
        if not spliced:
            shapes = self.frame.blocks(changed.shape)
            planes = [p[:rows, :columns] for p, (rows, columns) in zip(read.planes, shapes, strict=True)]
            header = [s for s in described if s.marker == DQT or s.marker in SOF or s.describes]
            coded = [*header, *code_coefficients(planes, read.bare, self.frame)]
        content = write_segments(coded)
        return content if self._agrees(content, changed, read.coarse if spliced else None) else None

    def _replace(self, read: Original, group: list[int], changed: np.ndarray, touched: np.ndarray) -> None:
        """Encode the `touched` blocks of some components of the same sampling factors anew.

        Samples that cover no changed pixel keep the value that the old coefficients give, unrounded. Those
        beyond the picture's edge repeat its last sample if that is new, and are kept if not; whole blocks
        there repeat the mean of the last.
        """
        assert self.frame is not None
        height, width = changed.shape
        down, across = self.frame.ratios[group[0]]
        count = len(read.planes)
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
                plane, steps = read.planes[index], read.steps[index]
                old = (plane[row, column] * steps) @ TRANSFORM  # (N, 64)
                wanted = wanted.reshape(-1, 64) - (0 if ycbcr and index else 128)
                made = np.where(new, wanted, old) @ TRANSFORM.T / steps
                plane[row, column] = np.clip(np.rint(made), -1023, 1023)
        rows, columns = touched.shape
        for plane in (read.planes[index] for index in group):
            beyond = np.pad(touched, [(0, plane.shape[0] - rows), (0, plane.shape[1] - columns)], "edge")
            beyond[:rows, :columns] = False
            row, column = np.nonzero(beyond)
            plane[row, column] = 0
            plane[row, column, 0] = plane[np.minimum(row, rows - 1), np.minimum(column, columns - 1), 0]

    def _agrees(self, content: bytes, changed: np.ndarray, coarse: np.ndarray | None) -> bool:
        """Whether Pillow decodes `content` to the same as before, away from the touched blocks.

        Args:
            coarse: what `decode_coarsely` gave of the file, if its bits were kept.
        """
        before = self.raster.samples if coarse is None else coarse
        try:
            after = decode(content, 1 if coarse is None else 8)
        except PILLOW_ERRORS:
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
        """The file with all blocks encoded anew by Pillow."""
        made, _ = read_segments(
            save_jpeg(
                self._image(),
                quality=QUALITY,
                subsampling=0,
                progressive=bool(self.info.get("progressive")),
            )
        )
        jfif = [s for s in made if s.marker == 0xE0]
        adobe = [s for s in made if s.marker == 0xEE]
        carried = [s for s in self._described() if s.describes and not s.starts(0xEE, b"Adobe")]
        if not jfif:  # CMYK: a JFIF holds grey or YCbCr
            carried = [s for s in carried if not s.starts(0xE0, b"JF")]
        elif any(s.starts(0xE0, b"JFIF\0") for s in carried):
            jfif = []
        return write_segments([*jfif, *adobe, *carried, *(s for s in made if not s.describes)])

    def _image(self) -> Image.Image:
        samples = self.raster.samples
        if self.raster.space == "cmyk":
            height, width = samples.shape[:2]
            return Image.frombytes("CMYK", (width, height), np.ascontiguousarray(samples).tobytes())
        return Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)

    # --- what surrounds the picture ---

    def _described(self) -> list[Segment]:
        """All segments, with the thumbnails in them made anew and what no longer holds left out."""
        dropped = self._drop_rest()
        result: list[Segment] = []
        split: set[tuple[int, bytes]] = set()  # marker and start of segments that hold parts of a preview

        @functools.cache
        def picture() -> Image.Image:
            image = self._image()
            return image.convert("RGB") if image.mode == "CMYK" else image

        for segment in self.segments:
            content = segment.content
            if segment.starts(0xE2, b"MPF\0") or (dropped and segment.starts(0xE2, GAIN_MAP)):
                continue
            if segment.starts(0xEB, b"JP"):  # JUMBF
                self._note("Content Credentials were not kept, as they vouch for the unedited picture")
                continue
            if segment.starts(0xE0, b"JFIF\0") and any(content[12:14]):
                self._note("the JFIF thumbnail was not kept, as it shows what was removed")
                content = content[:12] + b"\0\0"
            elif segment.starts(0xE1, PREFIX):
                content = self._exif(content, picture)
            elif segment.describes and not content.startswith((XMP, EXTENDED_XMP)):
                content = self._previews(content, picture)
                kind = (segment.marker, content[:4])
                if kind in split or is_cut_preview(content):
                    split.add(kind)
                    self._note("a preview in several segments was not kept, as it shows what was removed")
                    continue
                if content.startswith(b"FLIR\0"):
                    self._note("the thermal picture (FLIR) was kept, and may still show what was removed")
            if segment.starts(0xE0, b"JFXX\0") and content == segment.content:
                self._note("the JFIF thumbnail was not kept, as it shows what was removed")
                continue
            changed = content != segment.content
            result.append(Segment(segment.marker, content) if changed else segment)
        result, had_pictures = clean_xmp(result, dropped)
        if had_pictures:
            self._note("a picture within XMP was blanked: it showed what was removed")
        return result

    def _previews(self, content: bytes, picture: Callable[[], Image.Image]) -> bytes:
        renewed, without_room = renew_previews(content, picture)
        if without_room:
            self._note("a preview among the metadata was not kept: there was no room for the new one")
        return renewed

    def _exif(self, content: bytes, picture: Callable[[], Image.Image]) -> bytes:
        """The EXIF segment with its thumbnail and the previews in maker notes made anew."""
        with contextlib.suppress(*DAMAGED):  # a damaged block, which readers ignore
            exif = Exif(content)
            if not renew_thumbnail(exif, picture):
                self._note("the EXIF thumbnail was not kept: a new one of its kind or size cannot be made")
            content = PREFIX + bytes(exif.data)
        return self._previews(content, picture)  # the new thumbnail comes out the same once more

    def _drop_rest(self) -> bool:
        """Whether there are pictures or videos after the first, which are not kept; a note says so."""
        rest = self.data[self.end :]
        if not rest:
            return False
        pictures, at = 0, 0
        while (at := rest.find(b"\xff\xd8\xff", at)) >= 0:
            segments, end = read_segments(rest, at)
            whole = read_frame(segments) is not None
            pictures += whole
            at = end if whole else at + 3
        video = b"ftyp" in rest[:64] or re.search(rb"\0\0\0.ftyp", rest) is not None
        kinds = [
            *(["a picture"] if pictures == 1 else [f"{pictures} pictures"] if pictures else []),
            *(["a video"] if video else []),
        ]
        if kinds:
            gain_map = any(b"hdrgm:" in s.content or s.content.startswith(GAIN_MAP) for s in self.segments)
            what = (
                " and ".join(kinds) + " after the first" + (" (such as its HDR gain map)" if gain_map else "")
            )
            self._note(f"{what}: not kept, as they show what was removed")
        else:
            self._note(f"{len(rest)} bytes after the end of the JPEG were not kept")
        return bool(kinds)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def metadata(self) -> Metadata:
        """What the file says about its picture, for a PNG in its place."""
        notes = list(self.notes)
        segments = self._described()
        self.notes[:] = notes  # the others are about a JPEG
        found = Metadata(icc=self.icc)
        found.comment = b"\n".join(s.content for s in segments if s.marker == COM) or None
        if self.info.get("dpi"):
            across, down = self.info["dpi"]
            found.dpi = (float(across), float(down))
        blocks = [s.content[len(PREFIX) :] for s in segments if s.starts(0xE1, PREFIX)]
        if blocks:
            found.exif, note = without_previews(blocks[0])
            self.notes += [note] * bool(note)
        packets = [s.content[len(XMP) :] for s in segments if s.starts(0xE1, XMP)]
        found.xmp = packets[0] if packets else None
        lost = [name for s in self.segments if (name := _lost_name(s))]
        resources = photoshop_resources(segments)
        found.iptc = resources.get(0x0404)
        if found.iptc:
            lost.append("IPTC")
        if set(resources) - OF_THE_PICTURE:
            lost.append("Photoshop data (APP13)")
        if len(self.data) > self.end:
            lost.append("what follows the first picture")
        found.lost = list(dict.fromkeys(lost))
        return found


def _anew(kind: str) -> str:
    return f"{kind} is written anew, at quality {QUALITY}, and changes a little (--lossless: PNG)"


def _lost_name(segment: Segment) -> str | None:
    """The name of a segment that a PNG cannot carry; None if it can, or of those told otherwise."""
    content, number = segment.content, segment.marker - 0xE0
    carried = (PREFIX, XMP, b"ICC_PROFILE\0", b"JFIF\0", b"JFXX\0", b"Adobe", PHOTOSHOP, b"MPF\0")
    if segment.marker not in APP or content.startswith(carried):
        return None
    for start, name in LOST.items():
        if content.startswith(start):
            return name
    named = re.match(rb"[ -~]{3,24}", content)
    return f"APP{number} ({named[0].decode('ascii')})" if named else f"APP{number}"
