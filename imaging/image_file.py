"""Image files of every format that can be written back: opened, filled, and written with their metadata."""

import contextlib
import io
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from imaging.formats import png
from imaging.formats.heif import HeifFile, open_heif
from imaging.formats.jpeg import JpegFile
from imaging.formats.pillow_file import PillowFile, PortableFile, open_portable
from imaging.formats.tiff import TiffImage
from imaging.inventory import find_losses, take_inventory
from imaging.metadata import orientation_of, with_orientation
from imaging.raster import RAW_ERROR, WHOLE, Container, Raster, Region, stored
from utils import UserError, atomic_path, first_line

Image.MAX_IMAGE_PIXELS = None  # `refuse_large` checks sizes, where there is a limit

SIGNATURES = (  # first bytes of the formats
    (b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"), (b"BM", "BMP"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"), (b"\xff\x4f\xff\x51", "JPEG2000"), (b"\x01\xda", "SGI"),
    (b"P1", "PPM"), (b"P2", "PPM"), (b"P3", "PPM"), (b"P4", "PPM"), (b"P5", "PPM"), (b"P6", "PPM"),
    (b"Pf", "PPM"), (b"\x0a\x05", "PCX"), (b"\x0a\x03", "PCX"), (b"\x0a\x02", "PCX"),
)  # fmt: skip
REFUSED_SIGNATURES = (  # recognised formats that cannot be written back
    (b"%!PS", "EPS"), (b"\xc5\xd0\xd3\xc6", "EPS"), (b"%PDF", "PDF"), (b"8BPS", "Photoshop"),
    (b"<svg", "SVG"), (b"<?xml", "SVG"), (b"\0\0\x01\0", "ICO"), (b"\0\0\x02\0", "CUR"), (b"DDS ", "DDS"),
    (b"icns", "ICNS"), (b"PF", "colour PFM"), (b"P7", "PAM"),
    (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"qoif", "QOI"), (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"), (b"\xd7\xcd\xc6\x9a", "WMF"), (b"MThd", "MIDI"), (b"gimp xcf", "XCF"),
)  # fmt: skip
RAW_SIGNATURES = (
    b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM", b"II\x1a\0\0\0HEAPCCDR",
)  # fmt: skip
BRANDS = {  # ISO base media file format
    b"avif": "AVIF", b"heic": "HEIF", b"heix": "HEIF", b"heim": "HEIF", b"heis": "HEIF", b"mif1": "HEIF",
    b"msf1": "HEIF", b"hevc": "HEIF",
}  # fmt: skip
WRITABLE = "PNG, JPEG, TIFF, WebP, GIF, BMP, JPEG 2000, HEIC, AVIF, PPM, TGA, SGI, PCX"
OPENED = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "AVIF", "PPM", "TGA", "SGI", "PCX")
TGA_SUFFIXES = {".tga", ".icb", ".vda", ".vst"}
SUFFIXES = {  # names of files in a folder that are filled, or reported as refused
    *TGA_SUFFIXES,
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".tif", ".tiff", ".btf", ".tf8",
    ".bmp", ".dib", ".gif", ".webp", ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".j2c", ".jpc",
    ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm", ".pcx", ".sgi", ".rgb", ".rgba", ".bw",
    ".eps", ".psd", ".ico", ".dds", ".jxl", ".exr", ".hdr", ".xcf", ".dng", ".cr2", ".cr3", ".nef", ".arw",
    ".raf", ".orf", ".rw2", ".pef", ".srw",
}  # fmt: skip
ConvertibleFile = JpegFile | HeifFile | PillowFile | PortableFile  # files that can become a PNG


class ImageFile:
    """An image file that can be filled: its samples as stored, its colours upright.

    Args:
        path: a file with one image, or a JPEG or HEIC with several, of which the main one is filled.
        max_megapixels: refuse an image with more, by its header; 0 for no limit.
        form: the format, if it is known.
        for_writing: prepare in a background thread to save a JPEG.

    Attributes:
        format: Pillow's name of the file's format.
        raster: the pixels.
        notes: messages to the user about what is not kept.

    Raises:
        UserError: if the file is missing, unreadable, or of a kind that cannot be written back.
    """

    def __init__(
        self, path: Path, max_megapixels: float = 0, form: str = "", *, for_writing: bool = False
    ) -> None:
        self.path = path
        with reading(path):
            data = read_regular(path)
            self.format = form or sniff(data, path)
            if max_megapixels:
                refuse_large(data, self.format, max_megapixels)
            self.container: Container = open_container(data, self.format, for_writing)
            self.raster: Raster = self.container.raster
            if 0 in self.raster.shape:
                raise ValueError("no pixels")
            self.inventory = {}
            if isinstance(self.container, PillowFile | JpegFile):
                self.inventory = take_inventory(data, self.format)
        self.notes: list[str] = self.container.notes

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, upright."""
        return self.raster.shape

    @property
    def icc(self) -> bytes | None:
        """The colour profile."""
        return self.container.icc

    def colors(self, region: Region = WHOLE) -> np.ndarray:
        """The colours of a region, upright; see `Raster.colors`."""
        return self.raster.colors(region)

    @property
    def alpha(self) -> np.ndarray | None:
        """The opacity of all pixels, (H, W) float32 in [0, 1], upright; None without alpha."""
        return self.raster.opacity()

    def put(self, region: Region, colors: np.ndarray, hole: np.ndarray, opaque: bool = False) -> None:
        """Put colours under the hole of a region; see `Raster.put`."""
        self.raster.put(region, colors, hole, opaque)

    def becomes_png(self, lossless: bool) -> bool:
        """Whether the file is to be written as PNG."""
        return becomes_png(self.format, lossless)

    def exact(self, lossless: bool) -> bool:
        """Whether known pixels are kept bit for bit, in the file's own format or as PNG."""
        return self.container.exact or self.becomes_png(lossless)

    def encoding_notes(self, lossless: bool) -> list[str]:
        """The container's note about the way of writing, if it has one."""
        note = self.container.encoding_note
        return [note] if note and not self.becomes_png(lossless) else []

    def kept(self, missing: np.ndarray, lossless: bool = False) -> np.ndarray | None:
        """The stored pixels (H, W) bool that stay bit for bit, if these are fewer than those not missing.

        These are the pixels of a JPEG in blocks that share no pixel with the hole; None for other files.
        """
        if not isinstance(self.container, JpegFile) or self.becomes_png(lossless):
            return None
        return self.container.kept(stored(missing, self.raster.orientation))

    def save(
        self,
        path: Path,
        missing: np.ndarray,
        lossless: bool = False,
        check: Callable[[Path], None] | None = None,
    ) -> None:
        """Write the image in its own format, atomically.

        Args:
            missing: (H, W) bool, upright: the pixels that may have changed since the file was opened.
            lossless: write JPEG, HEIF and AVIF as PNG.
            check: called with the temporary file before it is renamed; the pixels are freed before the call.

        Raises:
            UserError: if the file cannot be written, and whatever `check` raises.
        """
        try:
            with atomic_path(path) as temporary:
                with open(temporary, "wb") as file:
                    self._write(file, missing, lossless)
                mode = temporary.stat().st_mode & (self.path.stat().st_mode | 0o600)
                temporary.chmod(mode)  # a private file stays private
                if self.inventory and not self.becomes_png(lossless):
                    self._note_losses(temporary)
                if check is not None:
                    self.raster.samples = self.raster.samples[:0].copy()
                    check(temporary)
        except UserError:
            raise
        except MemoryError:
            raise UserError(f"cannot write {path}: out of memory") from None
        except Exception as error:  # encoders raise errors of any type for unusual files
            raise UserError(f"cannot write {path}: {reason_of(error)}") from None

    def _write(self, file: BinaryIO, missing: np.ndarray, lossless: bool) -> None:
        if self.becomes_png(lossless):
            assert isinstance(self.container, ConvertibleFile)
            metadata = self.container.metadata()
            if orientation_of(metadata.exif) != self.raster.orientation:  # only XMP states it
                metadata.exif = with_orientation(metadata.exif, self.raster.orientation)
            if self.raster.space == "cmyk":
                lost = ", and its colour profile is not kept" if self.icc else ""
                self.notes.append(f"CMYK becomes RGB in a PNG{lost}")
            if metadata.lost:
                self.notes.append(f"a PNG does not hold {', '.join(metadata.lost)}")
            png.convert(self.raster, metadata, file)
        elif not missing.any():
            file.write(self.path.read_bytes())
        else:
            self.container.write(file, stored(missing, self.raster.orientation))

    def _note_losses(self, path: Path) -> None:
        losses = find_losses(self.inventory, take_inventory(path.read_bytes(), self.format))
        noted = " ".join(self.notes)
        losses = [name for name in losses if name not in noted]
        if losses:
            self.notes.append(f"not kept: {', '.join(losses)}")


def becomes_png(form: str, lossless: bool) -> bool:
    """Whether a file of a format is to be written as PNG; `lossless` asks so for JPEG, HEIF and AVIF."""
    return lossless and form in ("JPEG", "HEIF", "AVIF")


def sniff_file(path: Path) -> str:
    """The format of a file, from its first bytes; see `sniff`.

    Raises:
        UserError: if the file is missing, or has no format that can be written back.
    """
    with reading(path):
        return sniff(read_regular(path, 64), path)


@contextlib.contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn any error of decoding a file into a `UserError` of one line that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}: {path}") from None
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except NotImplementedError as error:
        raise UserError(f"{reason_of(error)}: {path}") from None
    except MemoryError:
        raise UserError(f"does not fit into memory: {path}") from None
    except Exception as error:  # decoders raise errors of any type for damaged files
        raise UserError(f"not a readable image: {path} ({reason_of(error)})") from None


def reason_of(error: BaseException) -> str:
    """A reason in one line: "damaged from its beginning on" if no format is identified, else `first_line`."""
    unidentified = isinstance(error, UnidentifiedImageError)
    return "damaged from its beginning on" if unidentified else first_line(error)


def read_regular(path: Path, count: int = -1) -> bytes:
    """The bytes of a regular file, or its first `count` bytes.

    Raises:
        UserError: if it is a folder, pipe or device.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UserError("a folder, and not a file")
    if not stat.S_ISREG(mode):
        raise UserError("not a regular file, but a pipe or a device")
    with open(path, "rb") as file:
        return file.read(count)


def sniff(data: bytes, path: Path | None = None) -> str:
    """Pillow's name of a file's format, from its first bytes; TGA has no signature, and needs its suffix.

    Raises:
        UserError: for a known format that cannot be written back.
        ValueError: for an unknown one.
    """
    if data.startswith(RAW_SIGNATURES) or data[4:11] == b"ftypcrx":
        raise UserError(RAW_ERROR)
    if data[4:8] == b"ftyp":
        brands = [data[8:12], *(data[i : i + 4] for i in range(16, min(len(data), 64), 4))]
        known = [BRANDS[brand] for brand in brands if brand in BRANDS]
        if known:
            return "AVIF" if "AVIF" in known else known[0]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for start, form in SIGNATURES:
        if data.startswith(start):
            return form
    if path is not None and path.suffix.lower() in TGA_SUFFIXES:
        return "TGA"
    text = data.lstrip(b"\xef\xbb\xbf \r\n\t")
    for start, form in REFUSED_SIGNATURES:
        if text.startswith(start):
            raise UserError(f"{form} files cannot be written back ({WRITABLE} can)")
    raise ValueError("of no known format")


def header_size(data: bytes, form: str) -> tuple[int, int]:
    """Width and height by a file's header; Pillow has no mode for some samples of TIFF, and no HEIF."""
    if form == "HEIF":
        return open_heif(data).size
    if form == "TIFF":
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            page: Any = tiff.pages[0]
            return page.imagewidth, page.imagelength
    with Image.open(io.BytesIO(data), formats=(form,)) as image:
        return image.size


def refuse_large(data: bytes, form: str, max_megapixels: float) -> None:
    """Raise a `UserError` if a file's header states more pixels than allowed."""
    width, height = header_size(data, form)
    if width * height > max_megapixels * 1e6:
        count = width * height / 1e6
        limit = f"the limit of {max_megapixels:g} (--max_megapixels)"
        raise UserError(f"has {count:,.0f} megapixels, more than {limit}")


def open_container(data: bytes, form: str, for_writing: bool = False) -> Container:
    """The opened file of a format named by `sniff`; see `ImageFile` for `for_writing`."""
    if form == "PNG":
        return png.PngFile(data)
    if form == "JPEG":
        return JpegFile(data, for_writing)
    if form == "TIFF":
        return TiffImage(data)
    if form == "HEIF":
        return HeifFile(data)
    if form == "PPM":
        return open_portable(data)
    return PillowFile(data, form)


def read_colors(source: Path | BinaryIO, max_megapixels: float = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """The colours (H, W, 1 or 3) and opacity (H, W) of an image that is not written back.

    Args:
        source: a path, or an open file whose `str` names it. The first of several images is read.

    Returns:
        See `ImageFile.colors` and `ImageFile.alpha`.

    Raises:
        UserError: if it cannot be read, or is a raw file.
    """
    with reading(source):
        data = source.read() if not isinstance(source, Path) else read_regular(source)
        form = sniff(data, source if isinstance(source, Path) else None)
        if max_megapixels:
            refuse_large(data, form, max_megapixels)
        try:
            raster = (TiffImage(data, first=True) if form == "TIFF" else open_container(data, form)).raster
        except (UserError, NotImplementedError) as error:
            if str(error) == RAW_ERROR or form in ("HEIF", "TIFF"):
                raise
            raster = _first_image(data)
        if 0 in raster.shape:
            raise ValueError("no pixels")
        return raster.colors(), raster.opacity()


def _first_image(data: bytes) -> Raster:
    """The first image of a file that cannot be written back, in eight bits, upright."""
    with Image.open(io.BytesIO(data), formats=OPENED) as image:
        turned = ImageOps.exif_transpose(image)
        shown = np.array(turned.convert("RGBA" if turned.has_transparency_data else "RGB"))
    return Raster(shown, "rgb", alpha=3 if shown.shape[2] == 4 else None)
