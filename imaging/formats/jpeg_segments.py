"""The segments of a JPEG file: read and written, and the previews in them made anew (ITU-T T.81, annex B)."""

import hashlib
import io
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from imaging.metadata import PREFIX, Exif, blank_xmp_previews

SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # start of frame
DHT, EOI, SOS, DQT, COM = 0xC4, 0xD9, 0xDA, 0xDB, 0xFE
APP = range(0xE0, 0xF0)
XMP = b"http://ns.adobe.com/xap/1.0/\0"
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"  # then 32 of MD5, 4 of the length, 4 of the offset
GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\0"
PHOTOSHOP = b"Photoshop 3.0\0"
MOST = 65533  # bytes in a segment
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass
class Segment:
    """One marker segment.

    Attributes:
        content: the bytes after the length.
        scan: of an SOS, the entropy-coded bytes that follow.
    """

    marker: int
    content: bytes
    scan: bytes = b""

    @property
    def describes(self) -> bool:
        """Whether it tells of the picture, rather than coding it."""
        return self.marker in APP or self.marker == COM

    def starts(self, marker: int, content: bytes) -> bool:
        return self.marker == marker and self.content.startswith(content)

    def encode(self) -> bytes:
        return struct.pack(">BBH", 0xFF, self.marker, len(self.content) + 2) + self.content + self.scan


@dataclass
class Frame:
    """The frame header.

    Attributes:
        process: its marker.
        components: (id, horizontal sampling factor, vertical sampling factor, quantisation table) each.
    """

    process: int
    precision: int
    height: int
    width: int
    components: list[tuple[int, int, int, int]]

    @property
    def ratios(self) -> list[tuple[int, int]]:
        """For each component, how many pixels high and wide a sample is; 0 if not a whole number."""
        across, down = (max(c[i] for c in self.components) for i in (1, 2))
        return [
            (0, 0) if not h or not v or down % v or across % h else (down // v, across // h)
            for _, h, v, _ in self.components
        ]

    def blocks(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows and columns of each component's 8×8 blocks in a picture of a height and width."""
        return [(-(-size[0] // (8 * down)), -(-size[1] // (8 * across))) for down, across in self.ratios]


def read_segments(data: bytes, start: int = 0) -> tuple[list[Segment], int]:
    """The segments of the JPEG that begins at `start`, and where it ends: after its EOI, or with `data`."""
    segments: list[Segment] = []
    next_marker = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # no fill, stuffed zero, restart, TEM or SOI
    at = start + 2
    while found := next_marker.search(data, at):
        at = found.end()
        marker = data[at - 1]
        if marker == EOI:
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
    """The frame header; None if there is not exactly one whole one."""
    headers = [s for s in segments if s.marker in SOF]
    if len(headers) != 1 or len(headers[0].content) < 6:
        return None
    content = headers[0].content
    precision, height, width, count = struct.unpack(">BHHB", content[:6])
    if len(content) < 6 + 3 * count:
        return None
    rows = [content[6 + 3 * i : 9 + 3 * i] for i in range(count)]
    return Frame(
        headers[0].marker, precision, height, width, [(r[0], r[1] >> 4, r[1] & 15, r[2]) for r in rows]
    )


def is_ycbcr(segments: list[Segment], frame: Frame) -> bool:
    """Whether three components are YCbCr rather than RGB, as libjpeg decides."""
    jfif = any(s.marker == 0xE0 and s.content[:5] == b"JFIF\0" and len(s.content) >= 14 for s in segments)
    adobe = [s.content for s in segments if s.marker == 0xEE and s.content[:5] == b"Adobe"]
    if jfif:
        return True
    if adobe and len(adobe[-1]) >= 12:
        return adobe[-1][11] != 0
    return [c[0] for c in frame.components] != [82, 71, 66]


def fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`picture` at `size`, with black bars where the proportions differ, as cameras make thumbnails."""
    scale = min(size[0] / picture.width, size[1] / picture.height)
    inner = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if abs(inner[0] - size[0]) <= 1 and abs(inner[1] - size[1]) <= 1:
        inner = size
    small = picture.resize(inner, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if inner == size:
        return small
    framed = Image.new(picture.mode, size)
    framed.paste(small, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return framed


def encode_within(picture: Image.Image, room: int) -> bytes | None:
    """A JPEG of at most `room` bytes, of the best quality that fits; None if none does."""
    for quality in (90, 80, 70, 55, 40, 25, 15, 8, 3):
        made = save_jpeg(picture, quality=quality, optimize=True)
        if len(made) <= room:
            return made
    return None


def renew_previews(content: bytes, picture: Callable[[], Image.Image]) -> tuple[bytes, int]:
    """`content` with every JPEG in it made anew from `picture`, in its place, and how many had no room.

    Those without room are overwritten with zeros. Photoshop's old thumbnails (resource 0x0409) hold blue
    first.
    """
    result, dropped, at = bytearray(content), 0, 0
    while (at := content.find(b"\xff\xd8\xff", at)) >= 0:
        segments, end = read_segments(content, at)
        old = decode_preview(content[at:end]) if read_frame(segments) else None
        if old is None:
            at += 3
            continue
        new = fit(picture(), old.size).convert("L" if old.mode == "L" else "RGB")
        if content[max(0, at - 40) : at - 34] == b"8BIM\x04\x09":
            new = Image.merge("RGB", new.convert("RGB").split()[::-1])
        made = encode_within(new, end - at)
        dropped += made is None
        result[at:end] = (made or b"").ljust(end - at, b"\0")
        at = end
    return bytes(result), dropped


def is_cut_preview(content: bytes) -> bool:
    """Whether a segment holds the beginning of a JPEG that goes on in another segment."""
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
    except (*PILLOW_ERRORS, Image.DecompressionBombWarning):
        return None


def save_jpeg(image: Image.Image, **settings: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", **settings)
    return target.getvalue()


def renew_thumbnail(exif: Exif, picture: Callable[[], Image.Image]) -> bool:
    """Make the thumbnail of an EXIF block anew from `picture`: in its place, else at the end, else drop it.

    Returns:
        False if it was dropped: other than a JPEG, or without room.
    """
    pieces = exif.pieces()
    if not pieces:
        return True
    start, room = pieces[0]
    old = decode_preview(bytes(exif.data[start : start + room])) if len(pieces) == 1 else None
    if old is None:
        exif.drop_thumbnail()
        return False
    new = fit(picture(), old.size).convert("L" if old.mode == "L" else "RGB")
    made = encode_within(new, room)
    if made is None:
        made = encode_within(new, MOST - len(PREFIX) - len(exif.data))
        if made is None:
            exif.drop_thumbnail()
            return False
        exif.data[start : start + room] = bytes(room)
        start, room = len(exif.data), len(made)
        exif.set_value(exif.thumbnail[513], start)
    exif.data[start : start + room] = made.ljust(room, b"\0")
    exif.set_value(exif.thumbnail[514], len(made))
    return True


def join_extended(segments: list[Segment]) -> bytes:
    """The extended XMP of these segments, in one piece."""
    return b"".join(segments[i].content[len(EXTENDED_XMP) + 40 :] for i in _extended_order(segments))


def _extended_order(segments: list[Segment]) -> list[int]:
    """Which segments are of the extended XMP, by their offset within it."""
    found = [i for i, s in enumerate(segments) if s.starts(0xE1, EXTENDED_XMP)]
    return sorted(found, key=lambda i: segments[i].content[len(EXTENDED_XMP) + 36 : len(EXTENDED_XMP) + 40])


def clean_xmp(segments: list[Segment], pictures_dropped: bool) -> tuple[list[Segment], bool]:
    """The segments with XMP of the same length that holds no pictures, and whether it held some.

    Args:
        pictures_dropped: take back the promise of a gain map or video after the first picture.
    """

    def cleaned(packet: bytes) -> bytes:
        if pictures_dropped:
            packet = packet.replace(b"hdrgm:Version", b"hdrgm:Removed")
            packet = re.sub(rb"((?:MotionPhoto|MicroVideo)\s*(?:=\s*[\"']|>))1", rb"\g<1>0", packet)
        return blank_xmp_previews(packet)

    result, at, head = list(segments), 0, len(EXTENDED_XMP)
    old = join_extended(segments)
    new = cleaned(old)
    names = [hashlib.md5(x, usedforsecurity=False).hexdigest().upper().encode() for x in (old, new)]
    for i in _extended_order(segments) if new != old else []:
        content = segments[i].content
        piece = new[at : at + len(content) - head - 40]
        result[i] = Segment(0xE1, content[:head] + names[1] + content[head + 32 : head + 40] + piece)
        at += len(piece)
    for i, segment in enumerate(segments):
        if segment.starts(0xE1, XMP):
            content = cleaned(segment.content)
            result[i] = Segment(0xE1, content.replace(names[0], names[1]) if new != old else content)
    packets = [s.content for s in segments if s.starts(0xE1, XMP)]
    return result, any(blank_xmp_previews(packet) != packet for packet in (old, *packets))


def photoshop_resources(segments: list[Segment]) -> dict[int, bytes]:
    """The image resources in Photoshop's segments, by number."""
    data = b"".join(s.content[len(PHOTOSHOP) :] for s in segments if s.starts(0xED, PHOTOSHOP))
    found, at = {}, 0
    while data[at : at + 4] == b"8BIM" and at + 12 <= len(data):
        number = int.from_bytes(data[at + 4 : at + 6], "big")
        at += 6 + (data[at + 6] // 2 + 1) * 2  # the name, padded
        size = int.from_bytes(data[at : at + 4], "big")
        found[number] = data[at + 4 : at + 4 + size]
        at += 4 + size + size % 2
    return found
