"""PNG files, of which every chunk is kept in its place and only the pixel data is rewritten."""

import contextlib
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import imagecodecs
import numpy as np

from imaging.metadata import DECODE_ERRORS, Metadata, orientation_of, without_thumbnail, without_xmp_previews
from imaging.raster import Raster, several_images_error

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
SPACES = {0: "grey", 2: "rgb", 3: "palette", 4: "grey", 6: "rgb"}
BYTES_AT_ONCE = 2**20  # bytes of rows that are filtered and compressed
XMP_KEYWORD = b"XML:com.adobe.xmp"
RAW_PROFILE = re.compile(rb"Raw profile type (exif|APP1)\0\0")
INDEPENDENT = {  # chunks named as unsafe to copy that do not depend on the samples
    b"PLTE", b"tRNS", b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"bKGD",
    b"hIST", b"tIME", b"sPLT", b"acTL", b"fcTL", b"oFFs", b"pCAL", b"sCAL", b"sTER",
}  # fmt: skip
Chunk = tuple[bytes, bytes]  # type and content


class PngFile:
    """An open PNG file of any depth and colour type; a `Container`."""

    exact = True
    encoding_note = ""

    def __init__(self, data: bytes) -> None:
        self.notes: list[str] = []
        chunks, end = read_chunks(data)
        kinds = [kind for kind, _ in chunks]
        if b"fdAT" in kinds:
            still = b"fcTL" not in kinds[: kinds.index(b"IDAT")]  # an image outside the animation
            raise several_images_error(max(2, kinds.count(b"fcTL") + still))
        header = chunks[0][1]
        refuse_bomb(header, sum(len(content) for kind, content in chunks if kind == b"IDAT"))
        width, height, depth, color_type, _, _, interlaced = struct.unpack(">IIBBBBB", header)
        if color_type not in CHANNELS:
            raise ValueError(f"PNG of colour type {color_type}")
        plain = data[:end] if end < len(data) else data
        if color_type == 3 or b"tRNS" in kinds:  # the decoder would turn these into colours and alpha
            plain = plain_png(header, [content for kind, content in chunks if kind == b"IDAT"])
        samples = decode(plain, depth)
        del plain
        if samples.shape != (height, width, CHANNELS[color_type]):
            raise ValueError("PNG of another size than its header states")
        content = {kind: content for kind, content in chunks if kind != b"IDAT"}
        self.raster = Raster(
            samples,
            SPACES[color_type],
            depth,
            alpha=samples.shape[2] - 1 if color_type in (4, 6) else None,
            orientation=orientation_of(content.get(b"eXIf") or find_raw_exif(chunks), find_xmp(chunks)),
        )
        if color_type == 3:
            self.raster.palette = np.frombuffer(content[b"PLTE"], np.uint8).reshape(-1, 3)
        hidden = content.get(b"tRNS")
        if hidden is not None and color_type == 3:
            count = len(content[b"PLTE"]) // 3
            self.raster.palette_alpha = np.frombuffer(hidden[:count].ljust(count, b"\xff"), np.uint8)
        elif hidden is not None and color_type in (0, 2):
            self.raster.transparent = struct.unpack(f">{samples.shape[2]}H", hidden[: 2 * samples.shape[2]])
        first = kinds.index(b"IDAT")
        self.before = chunks[1:first]
        self.after = [chunk for chunk in chunks[first:-1] if chunk[0] != b"IDAT"]
        self.header = header[:12] + b"\0"
        if interlaced:
            self.notes.append("the interlacing of the PNG was not kept")
        if end < len(data):
            self.notes.append(f"{len(data) - end:,} bytes after the end of the PNG were not kept")

    @property
    def icc(self) -> bytes | None:
        """The colour profile."""
        for kind, content in self.before:
            if kind == b"iCCP":
                return zlib.decompress(content.split(b"\0", 1)[1][1:])
        return None

    def write(self, file: BinaryIO, changed: np.ndarray) -> None:
        before, after = (
            [self._cleaned(*chunk) for chunk in chunks if self._may_stay(chunk[0])]
            for chunks in (self.before, self.after)
        )
        write_png(file, self.header, before, self.raster.samples, after)

    def _may_stay(self, kind: bytes) -> bool:
        """Whether a chunk does not depend on the pixel data; PNG specification, section 14.2."""
        if kind in INDEPENDENT or kind[3:].islower():
            return True
        self.notes.append(f"not kept: chunk {kind.decode('latin-1')}, which depends on the pixels")
        return False

    def _cleaned(self, kind: bytes, content: bytes) -> Chunk:
        """A chunk without previews that show removed content."""
        if kind == b"eXIf":
            content = without_thumbnail(content, self.notes)
        elif kind == b"zTXt" and RAW_PROFILE.match(content):
            exif = raw_profile(content)
            cleaned = without_thumbnail(exif, self.notes)
            if cleaned != exif:
                content = with_raw_profile(content, cleaned)
        elif kind == b"iTXt" and content.startswith(XMP_KEYWORD + b"\0"):
            xmp = find_xmp([(kind, content)]) or b""
            cleaned = without_xmp_previews(xmp, self.notes)
            if cleaned != xmp:
                language = content.index(b"\0", len(XMP_KEYWORD) + 3)
                start = content.index(b"\0", language + 1) + 1
                is_compressed = content[len(XMP_KEYWORD) + 1]
                content = content[:start] + (zlib.compress(cleaned) if is_compressed else cleaned)
        return kind, content


def read_chunks(data: bytes) -> tuple[list[Chunk], int]:
    """The chunks of a PNG file, IHDR to IEND, and the offset of their end.

    Raises:
        ValueError: if the file is cut, does not begin with IHDR, or holds no IDAT.
    """
    chunks: list[Chunk] = []
    start = len(SIGNATURE)
    view = memoryview(data)  # pixel data is not copied
    while not chunks or chunks[-1][0] != b"IEND":
        if start + 12 > len(data):
            raise ValueError("PNG without an end")
        (length,) = struct.unpack(">I", data[start : start + 4])
        kind, content = data[start + 4 : start + 8], view[start + 8 : start + 8 + length]
        chunks.append((kind, content if kind == b"IDAT" else bytes(content)))  # type: ignore[arg-type]
        start += 12 + length
        if start > len(data):
            raise ValueError("PNG without an end")
        if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
            raise ValueError("PNG without a header")
    if all(kind != b"IDAT" for kind, _ in chunks):
        raise ValueError("PNG without pixels")
    return chunks, start


def refuse_bomb(header: bytes, compressed: int) -> None:
    """Raise a `ValueError` if the number of compressed bytes is too small for the pixels of a header."""
    width, height = struct.unpack_from(">II", header)
    if width * height * CHANNELS.get(header[9], 1) * header[8] // 8 > 1032 * compressed + 1032:
        raise ValueError("PNG with less data than its size needs")


def plain_png(header: bytes, data: list[bytes]) -> bytes:
    """A PNG file with the same samples as grey or colours, and without other chunks."""
    color_type = 0 if header[9] == 3 else header[9]
    header = header[:9] + bytes([color_type]) + header[10:]
    return write_chunks([(b"IHDR", header), *((b"IDAT", part) for part in data), (b"IEND", b"")])


def decode(data: bytes, depth: int) -> np.ndarray:
    """The samples (H, W, C), uint8 or uint16, of a PNG file without palette or transparent colour."""
    samples: np.ndarray = imagecodecs.png_decode(data)
    if samples.ndim == 2:
        samples = samples[:, :, None]
    return samples // (255 // (2**depth - 1)) if depth < 8 else samples


def write_chunks(chunks: list[Chunk]) -> bytes:
    """A PNG file of these chunks."""
    return SIGNATURE + b"".join(part for chunk in chunks for part in _framed(*chunk))


def _framed(kind: bytes, content: bytes) -> Iterator[bytes]:
    yield struct.pack(">I", len(content)) + kind
    yield content
    yield struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def write_png(
    file: BinaryIO, header: bytes, before: list[Chunk], samples: np.ndarray, after: list[Chunk]
) -> None:
    """Write a PNG file of samples (H, W, C), with chunks before and after the pixel data."""
    file.write(SIGNATURE)
    for chunk in [(b"IHDR", header), *before]:
        file.writelines(_framed(*chunk))
    compressor = zlib.compressobj(6)
    for rows in filtered_rows(samples, header[8], header[9] == 3):
        compressed = compressor.compress(rows)
        if compressed:
            file.writelines(_framed(b"IDAT", compressed))
    file.writelines(_framed(b"IDAT", compressor.flush()))
    for chunk in [*after, (b"IEND", b"")]:
        file.writelines(_framed(*chunk))


def filtered_rows(samples: np.ndarray, depth: int, indexed: bool) -> Iterator[bytes]:
    """The filtered scanlines of (H, W, C) samples, some rows at a time; PNG specification, section 9.

    Each row takes the filter (None, Sub, Up or Paeth) whose bytes have the smallest sum of absolute values;
    palette indices and samples of less than 8 bits are not filtered.
    """
    height, width, channels = samples.shape
    pixel = channels * max(1, depth // 8)  # bytes
    step = max(1, BYTES_AT_ONCE // max(1, width * pixel))
    above = None
    for top in range(0, height, step):
        rows = _packed(samples[top : top + step], depth)
        if indexed or depth < 8:
            yield np.hstack([np.zeros((len(rows), 1), np.uint8), rows]).tobytes()
            continue
        up = np.vstack([np.zeros_like(rows[:1]) if above is None else above, rows[:-1]])
        above = rows[-1:]
        left, corner = (np.pad(line, [(0, 0), (pixel, 0)])[:, :-pixel] for line in (rows, up))
        choices = [rows, rows - left, rows - up, rows - paeth(left, up, corner)]
        costs = [np.abs(x.view(np.int8).astype(np.int16)).sum(axis=1, dtype=np.int64) for x in choices]
        best = np.argmin(costs, axis=0)
        filters = np.array([0, 1, 2, 4], np.uint8)[best]
        yield np.hstack([filters[:, None], np.choose(best[:, None], choices)]).tobytes()


def paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """The one of three neighbours that is nearest to left + up - corner; PNG specification, section 9.4."""
    a, b, c = (x.astype(np.int16) for x in (left, up, corner))
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    left_is_nearest = (to_left <= to_up) & (to_left <= to_corner)
    return np.where(left_is_nearest, left, np.where(to_up <= to_corner, up, corner))


def _packed(samples: np.ndarray, depth: int) -> np.ndarray:
    """Rows (h, w, C) as the bytes (h, n) of scanlines."""
    height = len(samples)
    if depth == 16:
        return np.ascontiguousarray(samples, ">u2").reshape(height, -1).view(np.uint8)
    flat = np.ascontiguousarray(samples, np.uint8).reshape(height, -1)
    if depth == 8:
        return flat
    bits = np.unpackbits(flat[:, :, None], axis=2)[:, :, -depth:]
    return np.packbits(bits.reshape(height, -1), axis=1)


def find_xmp(chunks: list[Chunk]) -> bytes | None:
    """The XMP packet, from its iTXt chunk."""
    for kind, content in chunks:
        if kind == b"iTXt" and content.startswith(XMP_KEYWORD + b"\0"):
            compressed, rest = content[len(XMP_KEYWORD) + 1], content[len(XMP_KEYWORD) + 3 :]
            text = rest.split(b"\0", 2)[2]  # after language and translated keyword
            return zlib.decompress(text) if compressed else text
    return None


def to_utf8(text: bytes) -> bytes:
    """Text in UTF-8 or Latin-1 as UTF-8."""
    try:
        text.decode("utf-8")
        return text
    except UnicodeDecodeError:
        return text.decode("latin-1").encode("utf-8")


def plain_samples(raster: Raster) -> np.ndarray:
    """The samples (H, W, 1 to 4), uint8 or uint16, as stored, of a PNG made from an image of any format.

    Raises:
        NotImplementedError: if a PNG cannot hold them.
    """
    if raster.is_direct:
        return raster.samples
    if raster.space != "cmyk":
        raise NotImplementedError(f"{raster.bits}-bit {raster.space} samples cannot become a PNG")
    return Raster(raster.samples, raster.space, raster.bits, inverted=raster.inverted).colors()


def raw_profile(content: bytes) -> bytes:
    """The bytes of ImageMagick's `Raw profile type exif`: hexadecimal text after a line with its length."""
    text = zlib.decompress(content.split(b"\0", 1)[1][1:])
    return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))


def with_raw_profile(content: bytes, profile: bytes) -> bytes:
    """The chunk with another profile."""
    lines = [profile.hex()[start : start + 72] for start in range(0, 2 * len(profile), 72)]
    text = f"\nexif\n{len(profile):8d}\n" + "\n".join(lines) + "\n"
    return content.split(b"\0", 1)[0] + b"\0\0" + zlib.compress(text.encode())


def find_raw_exif(chunks: list[Chunk]) -> bytes | None:
    """The EXIF block of ImageMagick's text chunk."""
    for kind, content in chunks:
        if kind == b"zTXt" and RAW_PROFILE.match(content):
            with contextlib.suppress(*DECODE_ERRORS):
                return raw_profile(content)
    return None


def convert(raster: Raster, metadata: Metadata, file: BinaryIO) -> None:
    """Write the image of another format as PNG, with its metadata."""
    samples = plain_samples(raster)
    depth = 8 * samples.itemsize
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[samples.shape[2]]
    height, width = samples.shape[:2]
    before: list[Chunk] = []
    if metadata.icc and raster.space != "cmyk":
        before.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if metadata.dpi:
        x, y = (round(dpi / 0.0254) for dpi in metadata.dpi)
        if 0 < x < 2**31 and 0 < y < 2**31:
            before.append((b"pHYs", struct.pack(">IIB", x, y, 1)))
    if metadata.exif:
        before.append((b"eXIf", metadata.exif))
    if metadata.xmp:
        before.append((b"iTXt", XMP_KEYWORD + b"\0\0\0\0\0" + metadata.xmp))
    if metadata.comment:
        before.append((b"iTXt", b"Comment\0\0\0\0\0" + to_utf8(metadata.comment).replace(b"\0", b" ")))
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    write_png(file, header, before, samples, [])
