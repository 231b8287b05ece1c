"""The properties of image files, read by other libraries, and the table of the properties that filling keeps."""

import functools
import io
import re
import struct
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from kinds import BOX, IPTC, SRGB, Kind, all_kinds
from PIL import Image, ImageOps

from imaging.image_file import ImageFile
from utils import UserError

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it prints warnings about unknown tags

# --- the hole ----------------------------------------------------------------------------------------


def hole_of(kind: Kind, shape: tuple[int, int], reader: str) -> np.ndarray:
    """The hole (H, W) bool in the pixels that a library reads: as stored, but for TIFF mostly upright."""
    upright = (kind.name.startswith("tiff") and reader != "tifffile") or kind.name.startswith("heic")
    orientation = 1 if upright else kind.orientation
    left, top, width, height = BOX
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # members of Image.Transpose, upright to stored
    seen = np.zeros(shape[::-1] if orientation >= 5 else shape, np.uint8)
    seen[top : top + height, left : left + width] = 255
    if orientation == 1:
        return seen > 0
    return np.asarray(Image.fromarray(seen).transpose(Image.Transpose(turns[orientation]))) > 0


def around_blocks(hole: np.ndarray, data: bytes) -> np.ndarray:
    """The minimum coded units of a JPEG that a hole touches, and two pixels around them."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 1 if data[at + 1] == 0xFF else 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    factors = [data[at + 11 + 3 * i] for i in range(data[at + 9])]
    across, down = 8 * max(f >> 4 for f in factors), 8 * max(f & 15 for f in factors)
    if len(factors) == 1:
        across = down = 8
    y, x = np.nonzero(hole)
    touched = np.zeros_like(hole)
    top, left = y.min() // down * down, x.min() // across * across
    touched[
        max(0, top - 2) : (y.max() // down + 1) * down + 2,
        max(0, left - 2) : (x.max() // across + 1) * across + 2,
    ] = True
    return touched


# --- readers of other libraries ----------------------------------------------------------------------


def with_cv2(data: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        return None


def with_pillow(data: bytes, colors: bool = False) -> np.ndarray | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(image.convert("RGBA") if colors else image)
        except (OSError, ValueError, SyntaxError, KeyError, NotImplementedError):
            return None


def with_tifffile(data: bytes) -> np.ndarray | None:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        samples = file.pages[0].asarray(squeeze=False)
    return samples[0, 0] if len(samples) == 1 else np.moveaxis(samples[:, 0, :, :, 0], 0, 2)


def with_codec(name: str) -> Callable[[bytes], np.ndarray | None]:
    def read(data: bytes) -> np.ndarray | None:
        try:
            return getattr(imagecodecs, f"{name}_decode")(data)
        except Exception:  # each codec has its own error
            return None

    return read


def with_pillow_heif(data: bytes) -> np.ndarray:
    import pillow_heif

    return np.asarray(pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False))


def opencv_knows(data: bytes) -> bool:
    """Whether OpenCV reads a TIFF of this layout; for others it returns uninitialised memory."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        return page.compression in (1, 2, 3, 4, 5, 7, 8, 32773, 32946) and page.planarconfig == 1


CODECS = {"jp2": "jpeg2k", "j2k": "jpeg2k"} | {name: name for name in ("png", "webp", "gif", "bmp", "avif")}


@functools.cache
def readings(kind: Kind, data: bytes) -> list[tuple[str, np.ndarray | None]]:
    """The image as stored, read by each library that may read it."""
    suffix = kind.name.rsplit(".", 1)[1].lower()
    if suffix in ("heic", "heif"):
        return [("pillow-heif", with_pillow_heif(data))]  # the writer: no other library reads it
    is_tiff = kind.data[:2] in (b"II", b"MM")
    read = [("OpenCV", with_cv2(data))] if not is_tiff or opencv_knows(kind.data) else []
    read += [("Pillow", with_pillow(data)), ("Pillow in colours", with_pillow(data, colors=True))]
    if is_tiff:
        read.append(("tifffile", with_tifffile(data)))
    if suffix in CODECS:
        read.append((CODECS[suffix], with_codec(CODECS[suffix])(data)))
    return read


def as_bits(pixels: np.ndarray) -> np.ndarray:
    """One value per pixel (H, W), which differs if any of its bits does."""
    flat = np.ascontiguousarray(pixels).reshape(*pixels.shape[:2], -1)
    return np.ascontiguousarray(flat).view(f"V{flat.shape[2] * flat.itemsize}")[:, :, 0]


# --- properties --------------------------------------------------------------------------------------


STRUCTURE = {
    256,
    257,
    258,
    259,
    262,
    273,
    277,
    278,
    279,
    284,
}  # TIFF tags that describe the storage of pixels


def opened(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data))


def depth(kind: Kind, data: bytes) -> Any:
    """The type and bits of a sample."""
    if data[:2] in (b"II", b"MM"):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return str(file.pages[0].dtype), file.pages[0].bitspersample
    if data[:2] == b"BM":
        return struct.unpack_from("<H", data, 28)
    if data[:1] == b"P" and data[1:2] in b"123456":
        return re.findall(rb"^\d+$", data[:60], re.MULTILINE)[-1]
    if kind.name.startswith("tga"):
        return data[16]
    if data[:4] == b"\x89PNG":
        return data[24]
    pixel_information = re.search(rb"pixi.{5}(.)", data, re.DOTALL)  # ISO 23008-12, 6.5.6
    if pixel_information:
        return pixel_information[1][0]
    return max(8 * read.itemsize for name, read in readings(kind, data) if read is not None)


def opacity(kind: Kind, data: bytes) -> Any:
    """The alpha outside the hole, and whether colours are multiplied by it."""
    if data[:2] in (b"II", b"MM"):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            alpha, more = page.asarray()[:, :, -1], page.extrasamples
        return alpha[~hole_of(kind, alpha.shape, "tifffile")].tobytes(), more
    if kind.name.endswith((".heic", ".heif")):
        return True, round(with_pillow_heif(data)[:, :, 3].mean() / 8)
    with opened(data) as image:
        alpha = np.asarray(image.convert("RGBA"))[:, :, 3]
        hole = hole_of(kind, alpha.shape, "Pillow")
        return image.has_transparency_data, (
            alpha[~hole].tobytes() if kind.outcome == "filled" else round(alpha.mean() / 8)
        )


def inks(kind: Kind, data: bytes) -> Any:
    with opened(data) as image:
        return image.mode


def palette_of(kind: Kind, data: bytes) -> Any:
    with opened(data) as image:
        return image.mode, image.getpalette()


def profile(kind: Kind, data: bytes) -> Any:
    with opened_or_none(kind, data) as image:
        return (image.info.get("icc_profile") if image else None) or (SRGB in data or None)


def opened_or_none(kind: Kind, data: bytes) -> Any:
    if kind.name.endswith((".heic", ".heif")):
        import pillow_heif

        return pillow_heif.open_heif(io.BytesIO(data)).to_pillow()
    return opened(data)


def exif_tags(kind: Kind, data: bytes) -> Any:
    """The entries of EXIF and GPS."""
    with opened_or_none(kind, data) as image:
        read = image.getexif()
        tags = {tag: value for tag, value in read.items() if tag not in (34665, 34853, *STRUCTURE)}
        return repr([tags, read.get_ifd(34665), read.get_ifd(34853)]) if tags else None


def orientation(kind: Kind, data: bytes) -> Any:
    if data[:2] in (b"II", b"MM"):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return file.pages[0].tags[274].value
    if kind.name.startswith("heic"):  # read upright, and written so
        with opened_or_none(kind, data) as image:
            return ImageOps.exif_transpose(image).size
    with opened(data) as image:
        return image.getexif().get(274)


def xmp(kind: Kind, data: bytes) -> Any:
    found = re.search(rb"<dc:source>.*</dc:source>", data, re.DOTALL)
    return found and found[0]


def iptc(kind: Kind, data: bytes) -> Any:
    return IPTC in data or None


def resolution(kind: Kind, data: bytes) -> Any:
    if data[:3] == b"GIF":
        return data[12] or None
    if b"resc" in data:
        return data[data.index(b"resc") :][:14]
    if data[:2] in (b"II", b"MM"):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return [str(file.pages[0].tags[tag].value) for tag in (282, 283, 296)]
    if data[:2] == b"BM":
        return struct.unpack_from("<ii", data, 38)
    if data[:1] == b"\n":
        return struct.unpack_from("<HH", data, 12)
    with opened(data) as image:
        dpi = image.info.get("dpi")
        return dpi and [round(float(number)) for number in dpi]


def text(kind: Kind, data: bytes) -> Any:
    words = (
        b"Author\0Caf\xe9",
        b"Ein Bild",
        b"# a comment",
        b"a comment",
        b"what it shows",
        b"An author",
        b"A long one",
    )
    return [word for word in words if word in data] or None


def preview(kind: Kind, data: bytes) -> Any:
    """The bytes of the smaller image within."""
    if data[:2] in (b"II", b"MM"):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return file.pages[1].asarray().tobytes() if len(file.pages) > 1 else None
    start = data.find(b"\xff\xd8\xff", 2)
    return None if start < 0 else data[start : data.index(b"\xff\xd9", start)].rstrip(b"\0") or None


def count_images(kind: Kind, data: bytes) -> Any:
    if kind.name.endswith(".heif"):
        import pillow_heif

        return len(pillow_heif.open_heif(io.BytesIO(data)))
    with opened(data) as image:
        return getattr(image, "n_frames", 1)


def private(kind: Kind, data: bytes) -> Any:
    if data[:2] in (b"II", b"MM"):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return [repr(tag.value) for tag in file.pages[0].tags if tag.code > 33000]
    words = (b"prVt", b"private", b"vpAg", b"maker data", b"hidden", b"an identification", b"<a>text</a>")
    return [word for word in words if word in data] or None


# --- the table ---------------------------------------------------------------------------------------

READ: dict[str, Callable[[Kind, bytes], Any]] = {
    "bit depth": depth, "alpha": opacity, "palette": palette_of, "CMYK": inks, "colour profile": profile, "EXIF": exif_tags,
    "orientation": orientation, "XMP": xmp, "IPTC": iptc, "resolution": resolution, "comment, text": text,
    "preview": preview, "further images": count_images, "private data": private,
}  # fmt: skip
PIXELS = "known pixels"
# For each format, the file of kinds.py that has a property.
FILES: dict[str, dict[str, str]] = {
    "PNG": {
        PIXELS: "png-rgb8.png", "bit depth": "png-rgb16.png", "alpha": "png-rgba16.png", "palette": "png-palette8-trns.png",
        "colour profile": "png-rgb16-gama-iccp-exif1.png", "EXIF": "png-rgb16-gama-iccp-exif1.png",
        "orientation": "png-rgb16-gama-iccp-exif6.png", "XMP": "png-text-xmp.png", "resolution": "png-phys.png",
        "comment, text": "png-text-xmp.png", "preview": "png-exif-thumbnail.png",
        "further images": "png-apng-two-frames.png", "private data": "png-private-chunks.png",
    },
    "JPEG": {
        PIXELS: "jpeg-baseline-420-37x27.jpg", "bit depth": "jpeg-12bit.jpg", "CMYK": "jpeg-cmyk.jpg", "colour profile": "jpeg-icc-in-pieces.jpg",
        "EXIF": "jpeg-orientation1.jpg", "orientation": "jpeg-orientation6.jpg", "XMP": "jpeg-xmp.jpg",
        "IPTC": "jpeg-iptc.jpg", "resolution": "jpeg-huge-dpi.jpg", "comment, text": "jpeg-comments.jpg",
        "preview": "jpeg-exif-thumbnail.jpg", "further images": "jpeg-mpo.jpg", "private data": "jpeg-unknown-segments.jpg",
    },
    "TIFF": {
        PIXELS: "tiff-rgb-uint8.tif", "bit depth": "tiff-rgb-float32.tif", "alpha": "tiff-rgba-uint16-assocalpha.tif",
        "palette": "tiff-palette.tif", "CMYK": "tiff-cmyk-uint8.tif", "colour profile": "tiff-rgb16-icc.tif", "EXIF": "tiff-rgb-exif-gps-bigendian.tif",
        "orientation": "tiff-rgb-uint16-orientation6.tif", "XMP": "tiff-rgb16-xmp-iptc-photoshop.tif",
        "IPTC": "tiff-rgb16-xmp-iptc-photoshop.tif", "resolution": "tiff-rgb16-resolution-software.tif",
        "comment, text": "tiff-rgb16-resolution-software.tif", "preview": "tiff-rgb-thumbnail-page.tif",
        "further images": "tiff-rgb-two-pages.tif", "private data": "tiff-rgb16-geotiff.tif",
    },
    "WebP": {
        PIXELS: "webp-lossy.webp", "alpha": "webp-lossless-alpha.webp", "colour profile": "webp-lossless-described.webp",
        "EXIF": "webp-lossless-described.webp", "orientation": "webp-orientation6.webp",
        "XMP": "webp-lossless-described.webp", "preview": "webp-exif-thumbnail.webp",
        "further images": "webp-animated.webp", "private data": "webp-bare-exif-private-chunk.webp",
    },
    "HEIC": {
        PIXELS: "heic-rgb.heic", "bit depth": "heic-10bit.heic", "alpha": "heic-rgba.heic", "colour profile": "heic-icc.heic",
        "EXIF": "heic-described.heic", "orientation": "heic-orientation6.heic", "XMP": "heic-described.heic",
        "preview": "heic-exif-thumbnail.heic", "further images": "heic-two-pictures.heif",
    },
    "AVIF": {
        PIXELS: "avif.avif", "bit depth": "avif-10bit.avif", "alpha": "avif-alpha.avif", "colour profile": "avif-described.avif",
        "EXIF": "avif-described.avif", "orientation": "avif-orientation6.avif", "XMP": "avif-described.avif",
        "preview": "avif-exif-thumbnail.avif", "further images": "avif-animated.avif",
    },
    "JPEG 2000": {
        PIXELS: "jpeg2000-lossy.jp2", "bit depth": "jpeg2000-rgb16.jp2", "alpha": "jpeg2000-rgba.jp2",
        "colour profile": "jpeg2000-icc-resolution.jp2", "XMP": "jpeg2000-xml-xmp.jp2",
        "resolution": "jpeg2000-icc-resolution.jp2", "private data": "jpeg2000-xml-xmp.jp2",
    },
    "GIF": {
        PIXELS: "gif-grey.gif", "alpha": "gif-transparent.gif", "palette": "gif-256-colors.gif", "XMP": "gif-xmp.gif",
        "resolution": "gif-aspect.gif", "comment, text": "gif-comment.gif", "further images": "gif-animated.gif",
    },
    "BMP": {
        PIXELS: "bmp-24bit.bmp", "bit depth": "bmp-16bit-565.bmp", "alpha": "bmp-32bit-v4-alpha.bmp", "palette": "bmp-8bit.bmp",
        "colour profile": "bmp-24bit-v5-icc.bmp", "resolution": "bmp-24bit-300dpi.bmp",
    },
    "PPM": {PIXELS: "ppm-p6-max255.ppm", "bit depth": "ppm-p6-max1023.ppm", "comment, text": "ppm-p5-max255.pgm"},
    "TGA": {
        PIXELS: "tga-rgb.tga", "bit depth": "tga-16bit.tga", "alpha": "tga-rgba.tga", "palette": "tga-palette.tga",
        "comment, text": "tga-extension-area.tga", "private data": "tga-id-footer.tga",
    },
    "PCX": {PIXELS: "pcx-rgb.pcx", "palette": "pcx-palette.pcx", "resolution": "pcx-rgb-300dpi.pcx"},
    "SGI": {
        PIXELS: "sgi-3-channels.rgb", "bit depth": "sgi-16bit.sgi", "alpha": "sgi-4-channels.rgba", "comment, text": "sgi-named.sgi",
    },
}  # fmt: skip
WORDS = {  # in the note if a property is not kept
    PIXELS: "changes a little", "bit depth": "bit", "alpha": "alpha", "palette": "palette", "CMYK": "CMYK", "colour profile": "profile",
    "EXIF": "EXIF", "orientation": "orientation", "XMP": "XMP", "IPTC": "IPTC", "resolution": "resolution|aspect",
    "comment, text": "comment|text|name|extension", "preview": "thumbnail|preview", "further images": "image",
    "private data": "APP|chunk|tag|box|XML|data|ID|segment",
}  # fmt: skip


def observe() -> list[tuple[str, dict[str, str]]]:
    """The effect of filling on each property of each format, in one word; – if a format lacks it.

    kept; renewed: made again from the filled image; noted: gone or changed, and a note says so; refused.
    Two are faults: lost: gone or changed without a note; left: a preview that shows removed content.
    """
    kinds = all_kinds()
    rows = [(form, row_of(kinds, form, files, False)) for form, files in FILES.items()]
    for form in ("JPEG", "HEIC", "AVIF"):
        rows.append((f"{form}, `--lossless`", row_of(kinds, form, FILES[form], True)))
    return rows


def row_of(kinds: dict[str, Kind], form: str, files: dict[str, str], lossless: bool) -> dict[str, str]:
    return {
        name: cell(kinds[files[name]], name, lossless) if name in files else "–" for name in (PIXELS, *READ)
    }


@functools.cache
def filled(kind: Kind, lossless: bool) -> tuple[Kind, str]:
    """A file with the mean colour in its hole, written by the project's code, and the notes.

    Raises:
        UserError: if it is refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, kind.name), Path(folder, "out", kind.name + ".png" * lossless)
        source.write_bytes(kind.data)
        file = ImageFile(source)
        missing = np.zeros(file.shape, bool)
        missing[BOX[1] : BOX[1] + BOX[3], BOX[0] : BOX[0] + BOX[2]] = True
        colors = file.colors()
        mean = colors.mean(axis=(0, 1)).astype(colors.dtype)
        file.put(np.s_[:, :], np.broadcast_to(mean, colors.shape), missing)
        file.save(target, missing, lossless)
        notes = "; ".join([*file.encoding_notes(lossless), *file.notes])
        return Kind(target.name, target.read_bytes(), kind.outcome, kind.orientation), notes


def cell(kind: Kind, name: str, lossless: bool) -> str:
    """The effect of filling a file on one property of it."""
    try:
        result, notes = filled(kind, lossless)
    except UserError:
        return "refused"
    noted = "noted" if re.search(WORDS[name], notes) else "lost"
    data = result.data
    if name == PIXELS:
        same = same_as_decoded(kind, result) if lossless else same_outside(kind, data)
        return "kept" if same else noted
    before, after = READ[name](kind, kind.data), READ[name](result, data)
    assert before is not None, f"{kind.name} has no {name}"
    if before == after or (lossless and name == "bit depth" and after >= before):
        return "kept"
    if name == "preview" and before[-80:-16] in data:
        return "left"  # it shows removed content
    return "renewed" if name == "preview" and after else noted


def same_outside(kind: Kind, data: bytes) -> bool:
    """Whether all other libraries read the same known pixels; in a JPEG, those of blocks without a hole."""
    compared = 0
    for (name, before), (_, after) in zip(readings(kind, kind.data), readings(kind, data), strict=True):
        if before is None:
            continue
        if after is None or after.shape != before.shape:
            return False
        hole = hole_of(kind, before.shape[:2], name)
        may_change = around_blocks(hole, kind.data) if kind.data[:2] == b"\xff\xd8" else hole
        compared += 1
        if ((as_bits(before) != as_bits(after)) & ~may_change).any():
            return False
    return compared > 0


def same_as_decoded(kind: Kind, result: Kind) -> bool:
    """Whether a PNG has the known pixels of the file that it was made from."""
    with opened_or_none(kind, kind.data) as first, opened(result.data) as second:
        before, after = np.asarray(first.convert("RGB")), np.asarray(second.convert("RGB"))
    return bool(((before == after).all(axis=2) | hole_of(kind, before.shape[:2], "")).all())


def render(rows: list[tuple[str, dict[str, str]]]) -> str:
    """The rows as a Markdown table."""
    names = [PIXELS, *READ]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {form} | " + " | ".join(row[name] for name in names) + " |" for form, row in rows]
    return "\n".join(lines) + "\n"
