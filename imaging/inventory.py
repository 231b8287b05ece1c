"""Inventory of the metadata in an image file, to report the items that a new file has lost."""

import contextlib
import hashlib
import io
import re
import struct
from collections.abc import Iterator

from PIL import Image

from imaging.formats.jpeg_segments import APP, COM, read_segments
from imaging.formats.pillow_file import webp_chunks
from imaging.metadata import DECODE_ERRORS, PREFIX, without_thumbnail, without_xmp_previews

Inventory = dict[str, str]  # a digest or text of each item, by its name

RESTART_INTERVAL = 0xDD
EXIF_BLOCKS = (0x8769, 0x8825)  # EXIF and GPS
JP2_STRUCTURE = {b"jP  ", b"ftyp", b"jp2h", b"ihdr", b"colr", b"jp2c", b"bpcc", b"cdef"}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def take_inventory(data: bytes, form: str) -> Inventory:
    """All metadata in a file, except what cannot be parsed.

    PNG and TIFF files need none: their modules change nothing but pixels, and report what they leave out.

    Args:
        form: Pillow's name of its format.
    """
    walk = {
        "JPEG": _jpeg, "WEBP": _webp, "GIF": _gif, "BMP": _bmp, "JPEG2000": _jpeg2000, "TGA": _tga,
    }.get(form, _pillow)  # fmt: skip
    found: Inventory = {}
    with contextlib.suppress(*DECODE_ERRORS):
        for name, content in walk(data):
            found[name] = content
    return found


def find_losses(before: Inventory, after: Inventory) -> list[str]:
    """The names of the items that the second inventory lacks or has otherwise."""
    return [name for name, content in before.items() if after.get(name) != content]


def _exif(block: bytes) -> Iterator[tuple[str, str]]:
    """The tags of an EXIF block without its thumbnail, which is renewed, or dropped with a note."""
    try:
        exif = Image.Exif()
        exif.load(PREFIX + block.removeprefix(PREFIX))
        tags = sorted((tag, value) for tag, value in exif.items() if tag not in EXIF_BLOCKS)
        blocks = [sorted(exif.get_ifd(tag).items()) for tag in EXIF_BLOCKS if tag in exif]
        yield "EXIF", digest(repr([tags, blocks]).encode(errors="surrogateescape"))
    except DECODE_ERRORS:
        yield "EXIF", digest(without_thumbnail(block, []).removeprefix(PREFIX))


def _jpeg(data: bytes) -> Iterator[tuple[str, str]]:
    counts: dict[str, int] = {}
    profile = b""
    for segment in read_segments(data, header_only=True)[0]:
        content, name = segment.content, segment.name
        if segment.marker == COM:
            name = "comment"
        elif segment.marker == RESTART_INTERVAL and len(content) == 2 and content != b"\0\0":
            name = "restart markers"
        elif segment.marker not in APP:
            continue
        if name == "EXIF":
            yield from _exif(content)
        elif name == "colour profile":
            profile += content[14:]
        elif name == "resolution":
            yield name, str(struct.unpack_from(">BHH", content, 7))
        else:
            name = name or f"segment APP{segment.marker - APP[0]}"
            counts[name] = counts.get(name, 0) + 1
            numbered = name if counts[name] == 1 else f"{name} ({counts[name]})"
            yield numbered, digest(without_xmp_previews(content, []))
    if profile:
        yield "colour profile", digest(profile)


def _webp(data: bytes) -> Iterator[tuple[str, str]]:
    names = {b"ICCP": "colour profile", b"XMP ": "XMP"}
    for kind, content in webp_chunks(data):
        if kind == b"EXIF":
            yield from _exif(content)
        elif kind not in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH"):
            yield names.get(kind, f"chunk {kind.decode('latin-1')}"), digest(content)


def _gif(data: bytes) -> Iterator[tuple[str, str]]:
    for number, found in enumerate(re.finditer(rb"\x21\xfe((?:[\x01-\xff][^\0]*?)+)\0", data)):
        yield f"comment{number or ''}", digest(found[1])
    for found in re.finditer(rb"\x21\xff\x0b(.{11})", data, re.DOTALL):
        name = f"extension {found[1].decode('latin-1').strip()}"
        if not found[1].startswith(b"NETSCAPE"):
            yield "XMP" if found[1].startswith(b"XMP Data") else name, "present"
    flags = data[10]
    if data[12]:
        yield "pixel aspect", str(data[12])
    first = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 128 else 0)
    while first < len(data) and data[first] == 0x21:
        first += 2
        while data[first]:
            first += data[first] + 1
        first += 1
    yield "interlacing", str(bool(data[first + 9] & 64))


def _bmp(data: bytes) -> Iterator[tuple[str, str]]:
    (size,) = struct.unpack_from("<I", data, 14)
    if size < 40:
        yield "OS/2 header", "present"
        return
    bits, compression, _, across, down = struct.unpack_from("<HIIii", data, 28)
    yield f"{bits} bits per pixel", str(bits)
    if across or down:
        yield "resolution", f"{across} {down}"
    if compression in (1, 2):
        yield "run-length compression", str(compression)
    if size >= 124 and struct.unpack_from("<I", data, 14 + 56)[0] in (0x4C494E4B, 0x4D424544):
        offset, length = struct.unpack_from("<II", data, 14 + 112)
        yield "colour profile", digest(data[14 + offset : 14 + offset + length])


def _jpeg2000(data: bytes) -> Iterator[tuple[str, str]]:
    is_container = data[4:8] == b"jP  "
    yield "container", "JP2" if is_container else "codestream"
    if is_container:
        yield from _boxes(data, 0, len(data))


def _boxes(data: bytes, place: int, stop: int) -> Iterator[tuple[str, str]]:
    while place + 8 <= stop:
        length, kind = struct.unpack_from(">I4s", data, place)
        start = place + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = place + length if length else stop
        if kind == b"jp2h":
            yield from _boxes(data, start, end)
        elif kind == b"colr" and data[start] == 2:
            yield "colour profile", digest(data[start + 3 : end])
        elif kind not in JP2_STRUCTURE:
            name = {b"res ": "resolution", b"xml ": "XML", b"uuid": "XMP or other UUID data"}.get(kind)
            yield name or f"box {kind.decode('latin-1').strip()}", digest(data[start:end])
        if end <= place:
            return
        place = end


def _tga(data: bytes) -> Iterator[tuple[str, str]]:
    yield f"{data[16]} bits per pixel", str(data[16])
    if data[0]:
        yield "image ID", digest(data[18 : 18 + data[0]])
    if data[-18:].startswith(b"TRUEVISION-XFILE"):
        yield "TGA footer", digest(data[-26:-18])


def _pillow(data: bytes) -> Iterator[tuple[str, str]]:
    names = {"icc_profile": "colour profile", "dpi": "resolution", "exif": "EXIF", "xmp": "XMP"}
    with Image.open(io.BytesIO(data)) as image:
        for name, value in image.info.items():
            if name == "exif" and isinstance(value, bytes):
                yield from _exif(value)
            else:
                text = str(name)
                yield names.get(text, text.replace("_", " ")), digest(repr(value).encode())
