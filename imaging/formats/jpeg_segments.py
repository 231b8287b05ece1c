"""The segments of a JPEG file, read and written, and the previews in them, renewed (ITU-T T.81, annex B)."""

import hashlib
import io
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from imaging.metadata import DECODE_ERRORS, PREFIX, Exif, photoshop_blocks, without_xmp_previews

SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # start of frame
DHT, EOI, SOS, DQT, COM, JPEG_LS = 0xC4, 0xD9, 0xDA, 0xDB, 0xFE, 0xF7
APP = range(0xE0, 0xF0)
XMP = b"http://ns.adobe.com/xap/1.0/\0"
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"  # then 32 bytes of MD5, 4 of length, 4 of offset
GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\0"
PHOTOSHOP = b"Photoshop 3.0\0"
NAMES = {  # the APPn segments, by their first bytes
    b"JFIF\0": "resolution", b"JFXX\0": "JFIF thumbnail", PREFIX: "EXIF", XMP: "XMP",
    EXTENDED_XMP: "extended XMP", b"ICC_PROFILE\0": "colour profile", PHOTOSHOP: "IPTC and Photoshop data",
    b"MPF\0": "index of further images", GAIN_MAP: "HDR gain map", b"FPXR\0": "FlashPix data",
    b"FLIR\0": "FLIR data", b"Adobe": "Adobe colour transform", b"JP": "Content Credentials",
}  # fmt: skip
MAX_CONTENT = 65533  # bytes in a segment


@dataclass
class Segment:
    """One marker segment.

    Attributes:
        content: the bytes after the length.
        scan: the entropy-coded bytes that follow an SOS segment.
    """

    marker: int
    content: bytes
    scan: bytes = b""

    @property
    def is_metadata(self) -> bool:
        return self.marker in APP or self.marker == COM

    @property
    def name(self) -> str:
        """The name of an APPn segment's content, a key of `NAMES`; "" if it is unknown."""
        return next((name for start, name in NAMES.items() if self.content.startswith(start)), "")

    def starts(self, marker: int, content: bytes) -> bool:
        return self.marker == marker and self.content.startswith(content)

    def encode(self) -> bytes:
        return struct.pack(">BBH", 0xFF, self.marker, len(self.content) + 2) + self.content + self.scan


@dataclass
class Frame:
    """The frame header.

    Attributes:
        process: its marker.
        components: id, horizontal and vertical sampling factor, and quantisation table of each component.
    """

    process: int
    precision: int
    height: int
    width: int
    components: list[tuple[int, int, int, int]]

    @property
    def ratios(self) -> list[tuple[int, int]]:
        """The height and width of a sample in pixels, per component; 0 if not a whole number."""
        across, down = (max(c[i] for c in self.components) for i in (1, 2))
        return [
            (0, 0) if not h or not v or down % v or across % h else (down // v, across // h)
            for _, h, v, _ in self.components
        ]

    def blocks(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows and columns of each component's 8×8 blocks in an image of a height and width."""
        return [(-(-size[0] // (8 * down)), -(-size[1] // (8 * across))) for down, across in self.ratios]


def read_segments(data: bytes, start: int = 0, header_only: bool = False) -> tuple[list[Segment], int]:
    """The segments of the JPEG that begins at `start`, and its end: after its EOI, or the end of `data`.

    Args:
        header_only: stop at the first scan.
    """
    segments: list[Segment] = []
    next_marker = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # no fill, stuffed zero, restart, TEM or SOI
    at = start + 2
    while found := next_marker.search(data, at):
        at = found.end()
        marker = data[at - 1]
        if marker == EOI or (marker == SOS and header_only):
            return segments, at
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data):
            break
        segment = Segment(marker, data[at + 2 : at + length])
        at += length
        if marker == SOS:
            end = next_marker.search(data, at)
            stop = end.start() if end else len(data)
            segment.scan = data[at:stop]
            at = stop
        segments.append(segment)
    return segments, len(data)


def write_segments(segments: list[Segment]) -> bytes:
    """A JPEG file of these segments."""
    return b"".join([b"\xff\xd8", *(segment.encode() for segment in segments), b"\xff\xd9"])


def read_frame(segments: list[Segment]) -> Frame | None:
    """The frame header; None unless there is exactly one, and whole."""
    headers = [s for s in segments if s.marker in SOF]
    if len(headers) != 1 or len(headers[0].content) < 6:
        return None
    content = headers[0].content
    precision, height, width, count = struct.unpack(">BHHB", content[:6])
    if len(content) < 6 + 3 * count:
        return None
    rows = [content[6 + 3 * i : 9 + 3 * i] for i in range(count)]
    components = [(r[0], r[1] >> 4, r[1] & 15, r[2]) for r in rows]
    return Frame(headers[0].marker, precision, height, width, components)


def is_ycbcr(segments: list[Segment], frame: Frame) -> bool:
    """Whether three components are YCbCr rather than RGB, by the rules of libjpeg."""
    if any(s.starts(0xE0, b"JFIF\0") and len(s.content) >= 14 for s in segments):
        return True
    adobe = [s.content for s in segments if s.starts(0xEE, b"Adobe")]
    if adobe and len(adobe[-1]) >= 12:
        return adobe[-1][11] != 0
    return [c[0] for c in frame.components] != [82, 71, 66]


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image` at `size`, with black bars where the proportions differ, as cameras make thumbnails."""
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if abs(inner[0] - size[0]) <= 1 and abs(inner[1] - size[1]) <= 1:
        inner = size
    small = image.resize(inner, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if inner == size:
        return small
    framed = Image.new(image.mode, size)
    framed.paste(small, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return framed


def encode_within(image: Image.Image, room: int) -> bytes | None:
    """A JPEG of at most `room` bytes, of the best quality that fits; None if none does."""
    for quality in (90, 80, 70, 55, 40, 25, 15, 8, 3):
        encoded = save_jpeg(image, quality=quality, optimize=True)
        if len(encoded) <= room:
            return encoded
    return None


def renew_previews(content: bytes, image: Callable[[], Image.Image]) -> tuple[bytes, int]:
    """`content` with every JPEG in it made again from `image`, in its place, and the number without room.

    Those without room are overwritten with zeros. Photoshop's old thumbnails (resource 0x0409) are stored
    as BGR.
    """
    result, dropped, at = bytearray(content), 0, 0
    while (at := content.find(b"\xff\xd8\xff", at)) >= 0:
        segments, end = read_segments(content, at)
        old = decode_preview(content[at:end]) if read_frame(segments) else None
        if old is None:
            at += 3
            continue
        new = fit(image(), old.size).convert("L" if old.mode == "L" else "RGB")
        if content[max(0, at - 40) : at - 34] == b"8BIM\x04\x09":
            new = Image.merge("RGB", new.convert("RGB").split()[::-1])
        encoded = encode_within(new, end - at)
        dropped += encoded is None
        result[at:end] = (encoded or b"").ljust(end - at, b"\0")
        at = end
    return bytes(result), dropped


def is_cut_preview(content: bytes) -> bool:
    """Whether a segment holds the beginning of a JPEG that continues in another segment."""
    start = content.find(b"\xff\xd8\xff")
    return start >= 0 and len(content) > 32_000 and b"\xff\xd9" not in content[start:]


def decode_preview(data: bytes) -> Image.Image | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=["JPEG"])
            image.load()
            return image
    except (*DECODE_ERRORS, Image.DecompressionBombWarning):
        return None


def save_jpeg(image: Image.Image, **settings: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", **settings)
    return target.getvalue()


def renew_thumbnail(exif: Exif, image: Callable[[], Image.Image]) -> bool:
    """Make the thumbnail of an EXIF block again from `image`: in its place, else at the end, else drop it.

    Returns:
        False if it was dropped: not a JPEG, or without room.
    """
    ranges = exif.structure.pixel_ranges(exif.thumbnail) if exif.thumbnail else []
    if exif.thumbnail is None or not ranges:
        return True
    start, end = ranges[0][0], min(ranges[0][1], len(exif.data))
    old = decode_preview(bytes(exif.data[start:end])) if len(ranges) == 1 else None
    encoded = None
    if old is not None:
        new = fit(image(), old.size).convert("L" if old.mode == "L" else "RGB")
        encoded = encode_within(new, end - start)
        if encoded is None:
            encoded = encode_within(new, MAX_CONTENT - len(PREFIX) - len(exif.data))
            if encoded is not None:
                exif.data[start:end] = bytes(end - start)
                start = end = len(exif.data)
                exif.set_long(exif.thumbnail, 513, start)
    if encoded is None:
        exif.drop_thumbnail()
        return False
    exif.data[start:end] = encoded.ljust(end - start, b"\0")
    exif.set_long(exif.thumbnail, 514, len(encoded))
    return True


def _extended_order(segments: list[Segment]) -> list[int]:
    """The indices of the segments of the extended XMP, by their offset within it."""
    found = [i for i, s in enumerate(segments) if s.starts(0xE1, EXTENDED_XMP)]
    return sorted(found, key=lambda i: segments[i].content[len(EXTENDED_XMP) + 36 : len(EXTENDED_XMP) + 40])


def clean_xmp(segments: list[Segment], images_dropped: bool, notes: list[str]) -> list[Segment]:
    """The segments with XMP of the same length that holds no previews, and a note about them.

    Args:
        images_dropped: remove the mention of a gain map or video after the first image.
    """

    def cleaned(packet: bytes) -> bytes:
        if images_dropped:
            packet = packet.replace(b"hdrgm:Version", b"hdrgm:Removed")
            packet = re.sub(rb"((?:MotionPhoto|MicroVideo)\s*(?:=\s*[\"']|>))1", rb"\g<1>0", packet)
        return without_xmp_previews(packet, notes)

    result, at, head = list(segments), 0, len(EXTENDED_XMP)
    order = _extended_order(segments)
    old = b"".join(segments[i].content[head + 40 :] for i in order)
    new = cleaned(old)
    names = [hashlib.md5(x, usedforsecurity=False).hexdigest().upper().encode() for x in (old, new)]
    for i in order if new != old else []:
        content = segments[i].content
        piece = new[at : at + len(content) - head - 40]
        result[i] = Segment(0xE1, content[:head] + names[1] + content[head + 32 : head + 40] + piece)
        at += len(piece)
    for i, segment in enumerate(segments):
        if segment.starts(0xE1, XMP):
            content = cleaned(segment.content)
            result[i] = Segment(0xE1, content.replace(names[0], names[1]) if new != old else content)
    return result


def photoshop_resources(segments: list[Segment]) -> dict[int, bytes]:
    """The image resources in Photoshop's segments, by number."""
    data = b"".join(s.content[len(PHOTOSHOP) :] for s in segments if s.starts(0xED, PHOTOSHOP))
    return {number: content for number, content, block in photoshop_blocks(data) if block[:4] == b"8BIM"}
