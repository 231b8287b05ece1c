"""Small image files of every kind in use, each with the expected outcome of filling it.

All files are generated, the same at every call. The pixels are noise over waves, so that a filled hole
always differs from the removed content.
"""

import functools
import io
import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms, TiffImagePlugin, features

try:
    import pillow_heif
except ImportError:  # optional
    pillow_heif = None

BOX = (3, 4, 9, 7)  # left, top, width, height of the hole in every image, upright
SIZE = (27, 37)  # usual height and width, upright
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SRGB = SRGB[:24] + bytes(12) + SRGB[36:]  # without the current date
XMP = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"%s>'
    b"<dc:source>a camera</dc:source></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
)
PLAIN_XMP = XMP % b""
IPTC = b"".join(
    struct.pack(">BBBH", 0x1C, 2, number, len(text)) + text
    for number, text in [(5, b"A title"), (25, b"a keyword"), (120, b"A caption")]
)
RESOURCES = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + b"\0" * (len(IPTC) % 2)


@dataclass(frozen=True)
class Kind:
    """One image file and the expected outcome of filling it.

    Attributes:
        name: the file name, which describes it.
        outcome: "filled", also with --verify; "inexact", with a note, and refused by --verify because every
            pixel changes a little; or "refused", in one line.
        orientation: EXIF 2.32, tag 274; the stored pixels are turned accordingly.
        reason: words in the line of a refusal.
    """

    name: str
    data: bytes
    outcome: str = "filled"
    orientation: int = 1
    reason: str = ""


def write_kinds(folder: Path, kinds: Iterable[Kind]) -> None:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        (folder / kind.name).write_bytes(kind.data)


@functools.cache
def all_kinds() -> dict[str, Kind]:
    """All kinds by name."""
    makers = (
        pngs, jpegs, odd_jpegs, tiffs, tiffs_with_tags, refused_tiffs, webps, gifs, bmps, portable_files,
        targas, pcx_and_sgi, jpeg2000s, avifs, heics, other_formats, cut_files,
    )  # fmt: skip
    return {kind.name: kind for make in makers for kind in make()}


# one file per line
# fmt: off

# --- pixels ------------------------------------------------------------------------------------------


def make_samples(
    channels: int = 3, dtype: str = "uint8", size: tuple[int, int] = SIZE, bits: int = 0, seed: int = 0
) -> np.ndarray:
    """Samples (H, W, channels) over the range of a type or of `bits` bits; floats in [0, 1]."""
    height, width = size
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(generator.uniform(3, 9) * x + generator.uniform(3, 9) * y) for _ in range(channels)]
    noise = 0.5 if bits == 1 else 0.2
    unit = (0.5 + (0.5 - noise) * np.stack(waves, axis=2) + generator.uniform(-noise, noise, (height, width, channels)))
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return unit.astype(kind)
    low, high = (0, 2**bits - 1) if bits else (np.iinfo(kind).min, np.iinfo(kind).max)
    return np.rint(low + unit * (float(high) - low)).astype(kind)


def indices(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Palette indices (H, W), all below `count` in use."""
    return np.random.default_rng(3).integers(0, count, size, np.uint8)


def palette(count: int) -> np.ndarray:
    """`count` different colours (count, 3) uint8."""
    steps = np.arange(count)
    return np.stack([steps * 255 // max(count - 1, 1), steps * 89 % 256, 255 - steps * 37 % 256], axis=1).astype(np.uint8)


def pil(channels: int = 3, size: tuple[int, int] = SIZE, mode: str = "") -> Image.Image:
    samples = make_samples(channels, size=size)
    mode = mode or {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    return Image.frombytes(mode, size[::-1], samples.tobytes())


def pil_palette(count: int, **info: Any) -> Image.Image:
    image = Image.fromarray(indices(count), "L").convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(palette(count).tobytes())
    image.info.update(info)
    return image


def saved(image: Image.Image, form: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


# --- EXIF --------------------------------------------------------------------------------------------

# type and value (bytes, numbers, or the entries of another directory) by tag
Entries = dict[int, tuple[int, Any]]
WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 12: 8}


def directory(entries: Entries, start: int, order: str, after: int = 0) -> bytes:
    """A TIFF directory at offset `start` and its values; `after` is the offset of the next directory."""
    place = start + 2 + 12 * len(entries) + 4
    rows, values = b"", b""
    for tag, (kind, value) in sorted(entries.items()):
        if isinstance(value, dict):
            at = place + len(values)
            values += directory(value, at, order)
            content, count = struct.pack(order + "I", at), 1
        elif isinstance(value, bytes):
            content, count = value, len(value)
        else:
            code = {1: "B", 3: "H", 4: "I", 5: "I", 12: "d"}[kind]
            content = struct.pack(order + code * len(value), *value)
            count = len(content) // WIDTHS[kind]
        if len(content) > 4:
            at = place + len(values)
            values += content + b"\0" * (len(content) % 2)
            content = struct.pack(order + "I", at)
        rows += struct.pack(order + "HHI", tag, kind, count) + content.ljust(4, b"\0")
    return struct.pack(order + "H", len(entries)) + rows + struct.pack(order + "I", after) + values


def camera_entries(orientation: int = 0) -> Entries:
    entries: Entries = {
        271: (2, b"Maker\0"),
        272: (2, b"Model 1\0"),
        282: (5, [300, 1]),
        283: (5, [300, 1]),
        296: (3, [2]),
        306: (2, b"2021:02:03 04:05:06\0"),
        34665: (4, {33434: (5, [1, 125]), 36864: (7, b"0232"), 36867: (2, b"2021:02:03 04:05:06\0"), 37510: (7, b"ASCII\0\0\0a comment of the user")}),
        34853: (4, {0: (1, b"\2\3\0\0"), 1: (2, b"N\0"), 2: (5, [48, 1, 12, 1, 30, 1]), 3: (2, b"E\0"), 4: (5, [11, 1, 34, 1, 0, 1])}),
    }  # fmt: skip
    if orientation:
        entries[274] = (3, [orientation])
    return entries


def exif(orientation: int = 0, thumbnail: bool = False, order: str = "<") -> bytes:
    """An EXIF block without prefix, with a camera's usual entries."""
    entries = camera_entries(orientation)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    if not thumbnail:
        return head + directory(entries, 8, order)
    size = len(directory(entries, 8, order))
    small = saved(pil(3, (20, 28)), "JPEG", quality=60)
    second: Entries = {259: (3, [6]), 513: (4, [0]), 514: (4, [len(small)])}
    at = 8 + size + len(directory(second, 0, order))
    second[513] = (4, [at])
    return head + directory(entries, 8, order, 8 + size) + directory(second, 8 + size, order) + small


# --- PNG ---------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def rows_of(samples: np.ndarray, depth: int) -> bytes:
    """Unfiltered scanlines of (H, W, C) samples."""
    height = len(samples)
    if depth == 16:
        packed = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        flat = samples.astype(np.uint8).reshape(height, -1)
        bits = np.unpackbits(flat[:, :, None], axis=2)[:, :, 8 - depth :].reshape(height, -1)
        packed = np.packbits(bits, axis=1)
    return np.hstack([np.zeros((height, 1), np.uint8), packed]).tobytes()


def png(
    samples: np.ndarray,
    depth: int,
    color_type: int,
    before: bytes = b"",
    after: bytes = b"",
    interlaced: bool = False,
    parts: int = 1,
) -> bytes:
    """A PNG of samples (H, W, C), with its pixel data in `parts` IDAT chunks."""
    passes = [(0, 0, 1, 1)]
    if interlaced:  # PNG specification, section 8.2
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    lines = [rows_of(samples[y::down, x::across], depth) for y, x, down, across in passes]
    data = zlib.compress(b"".join(lines))
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlaced))
    step = -(-len(data) // parts)
    idat = b"".join(chunk(b"IDAT", data[at : at + step]) for at in range(0, len(data), step))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + idat + after + chunk(b"IEND", b"")


def text_chunks() -> bytes:
    return (
        chunk(b"tEXt", b"Author\0Caf\xe9")
        + chunk(b"tEXt", b"Comment\0first")
        + chunk(b"tEXt", b"Comment\0second of the same keyword")
        + chunk(b"zTXt", b"Description\0\0" + zlib.compress(b"long " * 50))
        + chunk(b"iTXt", "Title\0\0\0de\0Überschrift\0Ein Bild".encode())
        + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + PLAIN_XMP)
    )


def pngs() -> Iterator[Kind]:
    for name, color_type, channels, depths in [
        ("grey", 0, 1, (1, 2, 4, 8, 16)),
        ("grey-alpha", 4, 2, (8, 16)),
        ("rgb", 2, 3, (8, 16)),
        ("rgba", 6, 4, (8, 16)),
    ]:
        for depth, interlaced in itertools.product(depths, (False, True)):
            samples = make_samples(channels, "uint16", bits=depth)
            end = "-interlaced" if interlaced else ""
            yield Kind(f"png-{name}{depth}{end}.png", png(samples, depth, color_type, interlaced=interlaced))
    for depth in (1, 2, 4, 8):
        colors = chunk(b"PLTE", palette(2**depth).tobytes())
        some = indices(2**depth)[:, :, None]
        yield Kind(f"png-palette{depth}.png", png(some, depth, 3, colors))
        clear = chunk(b"tRNS", bytes([0, 128][:2]))
        yield Kind(f"png-palette{depth}-trns.png", png(some, depth, 3, colors + clear))
    yield Kind(
        "png-palette8-interlaced.png",
        png(indices(256)[:, :, None], 8, 3, chunk(b"PLTE", palette(256).tobytes()), interlaced=True),
    )
    yield Kind(
        "png-palette8-short.png",
        png(
            indices(200)[:, :, None],
            8,
            3,
            chunk(b"PLTE", palette(200).tobytes()) + chunk(b"hIST", b"\0\1" * 200),
        ),
    )
    for depth in (2, 8, 16):
        grey = make_samples(1, "uint16", bits=depth)
        yield Kind(f"png-grey{depth}-trns.png", png(grey, depth, 0, chunk(b"tRNS", struct.pack(">H", grey[0, 0, 0]))))
    for depth in (8, 16):
        rgb = make_samples(3, "uint16", bits=depth)
        yield Kind(f"png-rgb{depth}-trns.png", png(rgb, depth, 2, chunk(b"tRNS", struct.pack(">3H", *rgb[0, 0].tolist()))))
    profile = chunk(b"iCCP", b"a profile\0\0" + zlib.compress(SRGB))
    for orientation in range(1, 9):
        size = SIZE[::-1] if orientation >= 5 else SIZE
        samples = make_samples(3, "uint16", size, bits=16)
        described = chunk(b"gAMA", struct.pack(">I", 45455)) + profile + chunk(b"eXIf", exif(orientation))
        yield Kind(f"png-rgb16-gama-iccp-exif{orientation}.png", png(samples, 16, 2, described), orientation=orientation)
    rgb = make_samples()
    yield Kind("png-text-xmp.png", png(rgb, 8, 2, text_chunks()))
    yield Kind("png-text-after-idat.png", png(rgb, 8, 2, after=text_chunks() + chunk(b"eXIf", exif(order=">"))))
    turned = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP % b' tiff:Orientation="6"')
    yield Kind("png-orientation6-in-xmp-only.png", png(make_samples(size=SIZE[::-1]), 8, 2, turned), orientation=6)
    yield Kind("png-exif-thumbnail.png", png(rgb, 8, 2, chunk(b"eXIf", exif(1, thumbnail=True))))
    yield Kind("png-phys.png", png(rgb, 8, 2, chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1))))
    yield Kind("png-phys-huge.png", png(rgb, 8, 2, chunk(b"pHYs", struct.pack(">IIB", 2**31 - 1, 2**31 - 1, 1))))
    small = (
        chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
        + chunk(b"sRGB", b"\0")
        + chunk(b"sBIT", b"\5\6\5")
        + chunk(b"bKGD", struct.pack(">3H", 1, 2, 3))
        + chunk(b"tIME", struct.pack(">HBBBBB", 2021, 2, 3, 4, 5, 6))
        + chunk(b"oFFs", struct.pack(">iiB", 5, -5, 0))
        + chunk(b"cICP", b"\1\x0d\0\1")
    )
    yield Kind("png-small-chunks.png", png(rgb, 8, 2, small))
    private = chunk(b"prVt", b"private") + chunk(b"vpAg", struct.pack(">IIB", SIZE[1], SIZE[0], 0))
    yield Kind("png-private-chunks.png", png(rgb, 8, 2, private, chunk(b"prVt", b"after")))
    yield Kind("png-many-idat.png", png(rgb, 8, 2, parts=40))
    yield Kind("png-after-iend.png", png(rgb, 8, 2) + b"what follows the end, of any length")
    yield Kind("png-zip-after-iend.png", png(rgb, 8, 2) + b"PK\3\4" + bytes(100))
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, SIZE[1], SIZE[0], 0, 0, 1, 10, 0, 0))
    yield Kind("png-apng-one-frame.png", png(rgb, 8, 2, chunk(b"acTL", struct.pack(">II", 1, 0)) + control))
    frames = [pil(), pil().transpose(Image.Transpose.ROTATE_180)]
    yield Kind(
        "png-apng-two-frames.png",
        saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "refused",
        reason="2 images",
    )
    yield Kind("png-tiny.png", png(make_samples(size=(1, 1)), 8, 2), "refused", reason="--box")
    yield Kind("png-upper-case.PNG", png(rgb, 8, 2))
    yield Kind("png-named-as-jpeg.jpg", png(rgb, 8, 2))


# --- JPEG --------------------------------------------------------------------------------------------


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with further segments, after the JFIF segment if it has one."""
    at = 4 + struct.unpack(">H", data[4:6])[0] if data[2:4] == b"\xff\xe0" else 2
    return data[:at] + b"".join(segments) + data[at:]


def jpeg(channels: int = 3, size: tuple[int, int] = SIZE, **settings: Any) -> bytes:
    return saved(pil(channels, size), "JPEG", **{"quality": 90, "subsampling": 0, **settings})


def jpegs() -> Iterator[Kind]:
    samplings = {"444": 0x111111, "422": 0x211111, "420": 0x221111, "440": 0x121111, "411": 0x411111}
    for (name, factors), progressive in itertools.product(samplings.items(), (0, 1)):
        for size in (SIZE, (33, 18)):
            settings = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factors, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
            data = cv2.imencode(".jpg", make_samples(size=size), [*settings, cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
            kind = "progressive" if progressive else "baseline"
            yield Kind(f"jpeg-{kind}-{name}-{size[1]}x{size[0]}.jpg", data)
    for orientation in range(1, 9):
        size = SIZE[::-1] if orientation >= 5 else SIZE
        block = segment(0xE1, b"Exif\0\0" + exif(orientation, order="<>"[orientation % 2]))
        data = with_segments(jpeg(size=size, subsampling=2), block)
        yield Kind(f"jpeg-orientation{orientation}.jpg", data, orientation=orientation)
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP % b' tiff:Orientation="8"')
    yield Kind("jpeg-orientation8-in-xmp-only.jpg", with_segments(jpeg(size=SIZE[::-1]), xmp), orientation=8)
    for progressive in (False, True):
        yield Kind(f"jpeg-grey{'-progressive' * progressive}.jpg", jpeg(1, progressive=progressive))
    yield Kind("jpeg-rgb-adobe0.jpg", saved(pil(), "JPEG", keep_rgb=True, quality=90))
    yield Kind("jpeg-restart-blocks.jpg", jpeg(restart_marker_blocks=3))
    yield Kind("jpeg-restart-rows.jpg", jpeg(restart_marker_rows=1, subsampling=2))
    yield Kind("jpeg-optimised.jpg", jpeg(optimize=True))
    yield Kind("jpeg-exif-thumbnail.jpg", with_segments(jpeg(), segment(0xE1, b"Exif\0\0" + exif(1, thumbnail=True))))
    yield Kind("jpeg-xmp.jpg", with_segments(jpeg(), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + PLAIN_XMP)))
    name = b"0123456789ABCDEF0123456789ABCDEF"
    extended = PLAIN_XMP.replace(b"a camera", b"extended " * 100)
    main = segment(
        0xE1,
        b"http://ns.adobe.com/xap/1.0/\0"
        + XMP % (b' xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="' + name + b'"'),
    )
    halves = [
        segment(
            0xE1,
            b"http://ns.adobe.com/xmp/extension/\0"
            + name
            + struct.pack(">II", len(extended), at)
            + extended[at : at + 500],
        )
        for at in range(0, len(extended), 500)
    ]
    yield Kind("jpeg-extended-xmp.jpg", with_segments(jpeg(), main, *halves))
    yield Kind("jpeg-iptc.jpg", with_segments(jpeg(), segment(0xED, b"Photoshop 3.0\0" + RESOURCES)))
    pieces = [SRGB[at : at + 200] for at in range(0, len(SRGB), 200)]
    profile = [segment(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, len(pieces)]) + piece) for i, piece in enumerate(pieces)]
    yield Kind("jpeg-icc-in-pieces.jpg", with_segments(jpeg(), *profile))
    yield Kind(
        "jpeg-comments.jpg",
        with_segments(jpeg(), segment(0xFE, b"a comment"), segment(0xFE, "naïve ü".encode("latin-1"))),
    )
    yield Kind(
        "jpeg-unknown-segments.jpg",
        with_segments(jpeg(), segment(0xE5, b"maker data"), segment(0xEC, b"Ducky\0\1\0\4\0\0\0\x50\0\0")),
    )
    yield Kind("jpeg-huge-dpi.jpg", jpeg(dpi=(65535, 65535)))
    yield Kind("jpeg-jfif-thumbnail.jpg", _jfif_thumbnail())
    yield Kind("jpeg-no-jfif.jpg", jpeg()[:2] + jpeg()[20:])
    yield Kind("jpeg-zeros-after-end.jpg", jpeg() + bytes(64))
    yield Kind("jpeg-fill-bytes.jpg", with_segments(jpeg(), b"\xff\xff\xff" + segment(0xFE, b"after fill bytes")))


def _jfif_thumbnail() -> bytes:
    data = jpeg()
    small = make_samples(size=(4, 5)).tobytes()
    return data[:2] + segment(0xE0, b"JFIF\0\1\2\0\0\1\0\1\5\4" + small) + data[20:]


def odd_jpegs() -> Iterator[Kind]:
    """JPEGs with several images, in CMYK, and of rare coding."""
    second = pil().transpose(Image.Transpose.ROTATE_180)
    yield Kind("jpeg-mpo.jpg", saved(pil(), "MPO", save_all=True, append_images=[second], quality=90))
    yield Kind("jpeg-mpo.mpo", saved(pil(), "MPO", save_all=True, append_images=[second], quality=90))
    promise = XMP % b' xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"'
    gain = with_segments(jpeg(), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + promise))
    yield Kind("jpeg-gain-map.jpg", gain + jpeg(1, (18, 25)))
    yield Kind("jpeg-motion-photo.jpg", jpeg() + struct.pack(">I4s4sI", 16, b"ftyp", b"mp42", 0) + bytes(200))
    cmyk = Image.frombytes("CMYK", SIZE[::-1], make_samples(4).tobytes())
    yield Kind("jpeg-cmyk.jpg", saved(cmyk, "JPEG", quality=90), "inexact")
    yield Kind("jpeg-cmyk-progressive-icc.jpg", saved(cmyk, "JPEG", progressive=True, icc_profile=SRGB, quality=90), "inexact")
    ycck = imagecodecs.jpeg8_encode(make_samples(4), level=90, colorspace="CMYK", outcolorspace="YCCK", subsampling="444")
    yield Kind("jpeg-ycck.jpg", ycck, "inexact")
    yield Kind(
        "jpeg-12bit.jpg",
        imagecodecs.jpeg8_encode(make_samples(1, "uint16", bits=12)[:, :, 0], level=90, bitspersample=12),
        "refused",
    )
    yield Kind("jpeg-ls.jpg", imagecodecs.jpegls_encode(make_samples(1)[:, :, 0]), "refused")


# --- TIFF --------------------------------------------------------------------------------------------


def tiff(samples: np.ndarray, **settings: Any) -> bytes:
    """A TIFF of samples (H, W, C), written by tifffile."""
    file = io.BytesIO()
    if settings.get("planarconfig") == "separate":
        samples = np.moveaxis(samples, 2, 0)
    elif samples.shape[2] == 1:
        samples = samples[:, :, 0]
    with tifffile.TiffWriter(file, bigtiff=settings.pop("bigtiff", False), byteorder=settings.pop("byteorder", "<")) as writer:
        writer.write(samples, **{"metadata": None, "software": False, **settings})
    return file.getvalue()


def pil_tiff(image: Image.Image, tags: dict[int, tuple[int, Any]] | None = None, **settings: Any) -> bytes:
    """A TIFF written by Pillow, with the type and value of further tags."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, (kind, value) in (tags or {}).items():
        info.tagtype[tag] = kind
        info[tag] = value
    return saved(image, "TIFF", tiffinfo=info, **settings)


def tiffs() -> Iterator[Kind]:
    """TIFFs of every type, colour space, compression and layout."""
    types = ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64"]
    for dtype, (name, channels) in itertools.product(types, [("grey", 1), ("rgb", 3)]):
        photometric = "rgb" if channels == 3 else "minisblack"
        yield Kind(f"tiff-{name}-{dtype}.tif", tiff(make_samples(channels, dtype), photometric=photometric))
    rgb, rgb16 = make_samples(), make_samples(3, "uint16")
    codecs = [
        "lzw",
        "adobe_deflate",
        "deflate",
        "packbits",
        "zstd",
        "lzma",
        "webp",
        "jpeg2000",
        "png",
        "lerc",
        "jpegxl",
        "jpegxr",
    ]
    for codec in codecs:
        settings = {"compressionargs": {"reversible": True}} if codec == "jpeg2000" else {}
        settings = {"compressionargs": {"lossless": True}} if codec in ("webp", "jpegxl") else settings
        yield Kind(f"tiff-rgb-{codec}.tif", tiff(rgb, photometric="rgb", compression=codec, **settings))
    for codec, dtype in itertools.product(("lzw", "adobe_deflate"), ("uint8", "uint16", "float32")):
        yield Kind(
            f"tiff-rgb-{dtype}-{codec}-predictor.tif",
            tiff(make_samples(3, dtype), photometric="rgb", compression=codec, predictor=True),
        )
    for order, big in itertools.product("<>", (False, True)):
        kind = ("big-" if big else "") + ("little" if order == "<" else "big") + "endian"
        yield Kind(f"tiff-rgb16-{kind}.tif", tiff(rgb16, photometric="rgb", byteorder=order, bigtiff=big, rowsperstrip=5))
    yield Kind(
        "tiff-rgb16-planar-lzw.tif",
        tiff(rgb16, photometric="rgb", planarconfig="separate", compression="lzw", rowsperstrip=7),
    )
    yield Kind("tiff-rgb-tiled.tif", tiff(rgb, photometric="rgb", tile=(16, 32)))
    yield Kind(
        "tiff-rgb16-planar-tiled-deflate.tiff",
        tiff(
            rgb16,
            photometric="rgb",
            planarconfig="separate",
            tile=(16, 16),
            compression="adobe_deflate",
            predictor=True,
        ),
    )
    yield Kind(
        "tiff-grey-float32-tiled-bigendian.tif",
        tiff(make_samples(1, "float32"), photometric="minisblack", tile=(16, 16), byteorder=">"),
    )
    for orientation, depth in itertools.product(range(2, 9), ("uint8", "uint16")):
        size = SIZE[::-1] if orientation >= 5 else SIZE
        tag = [(274, 3, 1, orientation, True)]
        yield Kind(
            f"tiff-rgb-{depth}-orientation{orientation}.tif",
            tiff(make_samples(3, depth, size), photometric="rgb", extratags=tag),
            orientation=orientation,
        )
    for dtype in ("uint8", "uint16"):
        grey = make_samples(1, dtype)
        yield Kind(f"tiff-grey-{dtype}-miniswhite.tif", tiff(grey, photometric="miniswhite"))
        yield Kind(f"tiff-cmyk-{dtype}.tif", tiff(make_samples(4, dtype), photometric="separated"))
        for alpha in ("assocalpha", "unassalpha", "unspecified"):
            yield Kind(f"tiff-rgba-{dtype}-{alpha}.tif", tiff(premultiplied(dtype), photometric="rgb", extrasamples=[alpha]))
        yield Kind(
            f"tiff-grey-alpha-{dtype}.tif",
            tiff(
                make_samples(2, dtype),
                photometric="minisblack",
                extrasamples=["unassalpha"],
                planarconfig="contig",
            ),
        )
        yield Kind(
            f"tiff-rgb-{dtype}-three-extra.tif",
            tiff(
                make_samples(6, dtype),
                photometric="rgb",
                extrasamples=["unassalpha", "unspecified", "unspecified"],
            ),
        )
    yield Kind("tiff-multispectral5.tif", tiff(make_samples(5, "uint16"), photometric="minisblack", planarconfig="contig"))
    yield Kind("tiff-cmyk-planar.tif", tiff(make_samples(4), photometric="separated", planarconfig="separate"))
    yield Kind("tiff-cmyka.tif", tiff(make_samples(5), photometric="separated", extrasamples=["unassalpha"]))
    colors = np.stack([palette(256).T.astype(np.uint16) * 257])[0]
    yield Kind("tiff-palette.tif", tiff(indices(256)[:, :, None], photometric="palette", colormap=colors))
    yield Kind("tiff-palette4.tif", pil_tiff(pil_palette(16), {258: (3, 8)}, compression="tiff_lzw"))
    bits = make_samples(1, bits=1)[:, :, 0] > 0
    bilevel = Image.frombytes("1", SIZE[::-1], np.packbits(bits, axis=1).tobytes())
    for codec in ("raw", "packbits", "group3", "group4", "tiff_lzw", "tiff_adobe_deflate"):
        yield Kind(f"tiff-bilevel-{codec}.tif", pil_tiff(bilevel, compression=codec))
    yield Kind("tiff-bilevel-miniswhite.tif", pil_tiff(bilevel, {262: (3, 0)}))
    yield Kind("tiff-lab.tif", pil_tiff(Image.frombytes("LAB", SIZE[::-1], rgb.tobytes()), compression="tiff_lzw"))
    yield Kind("tiff-ycbcr-444.tif", hand_tiff(rgb, "<", {530: (3, [1, 1])}, 6))
    yield Kind(
        "tiff-jpeg-ycbcr-444.tif",
        tiff(rgb, photometric="ycbcr", compression="jpeg", compressionargs={"level": 90}, subsampling=(1, 1)),
    )
    yield Kind(
        "tiff-jpeg-ycbcr-420.tif",
        tiff(
            make_samples(size=(48, 64)),
            photometric="ycbcr",
            compression="jpeg",
            compressionargs={"level": 90},
            subsampling=(2, 2),
        ),
    )
    yield Kind(
        "tiff-jpeg-rgb.tif",
        tiff(
            rgb, photometric="rgb", compression="jpeg", compressionargs={"level": 90, "outcolorspace": "rgb"}
        ),
    )
    yield Kind(
        "tiff-jpeg-grey-tiled.tif",
        tiff(
            make_samples(1),
            photometric="minisblack",
            compression="jpeg",
            compressionargs={"level": 90},
            tile=(16, 16),
        ),
    )
    yield Kind("tiff-grey12.tif", tiff(make_samples(1, "uint16", bits=12), photometric="minisblack", bitspersample=12))
    yield Kind("tiff-rgb12.tif", tiff(make_samples(3, "uint16", bits=12), photometric="rgb", bitspersample=12))
    for depth in (2, 4):
        yield Kind(f"tiff-grey{depth}.tif", tiff(make_samples(1, bits=depth), photometric="minisblack", bitspersample=depth))
    yield Kind("tiff-grey-float32-nan.tif", tiff(with_gaps(), photometric="minisblack", compression="lzw", predictor=3))


def premultiplied(dtype: str) -> np.ndarray:
    """RGBA samples whose colours are multiplied by alpha."""
    samples = make_samples(4, dtype)
    alpha = samples[:, :, 3:] / np.iinfo(dtype).max
    samples[:, :, :3] = samples[:, :, :3] * alpha
    return samples


def with_gaps() -> np.ndarray:
    samples = make_samples(1, "float32") * 100 - 20
    samples[::9, ::7] = np.nan
    samples[20, 30] = np.inf
    return samples


def tiffs_with_tags() -> Iterator[Kind]:
    """TIFFs with every kind of metadata."""
    rgb16, rgb = make_samples(3, "uint16"), make_samples()
    plain: dict[str, Any] = {"photometric": "rgb", "compression": "lzw"}
    yield Kind(
        "tiff-rgb16-resolution-software.tif",
        tiff(
            rgb16,
            **plain,
            resolution=(300, 300),
            resolutionunit="INCH",
            description="what it shows",
            software="a program",
            datetime="2021:02:03 04:05:06",
        ),
    )
    yield Kind("tiff-rgb16-icc.tif", tiff(rgb16, **plain, iccprofile=SRGB))
    packets = [
        (700, 1, len(PLAIN_XMP), PLAIN_XMP, True),
        (33723, 7, len(IPTC), IPTC, True),
        (34377, 7, len(RESOURCES), RESOURCES, True),
    ]
    yield Kind("tiff-rgb16-xmp-iptc-photoshop.tif", tiff(rgb16, **plain, extratags=packets))
    geo = [
        (33550, 12, 3, (0.5, 0.5, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0), True),
        (34735, 3, 8, (1, 1, 0, 1, 1024, 0, 1, 1), True), (34737, 2, 7, "WGS 84|", True), (42113, 2, 2, "7", True),
        (42112, 2, 0, "<GDALMetadata></GDALMetadata>", True),
    ]  # fmt: skip
    yield Kind("tiff-int16-geotiff.tif", tiff(make_samples(1, "int16"), photometric="minisblack", extratags=geo, tile=(16, 16)))
    yield Kind("tiff-rgb16-geotiff.tif", tiff(rgb16, **plain, extratags=geo))
    yield Kind(
        "tiff-rgb16-private-tags.tif",
        tiff(
            rgb16,
            **plain,
            extratags=[
                (65000, 2, 0, "private", True),
                (50838, 4, 2, (7, 9), True),
                (65001, 2, 0, "more", True),
            ],
        ),
    )
    for order in "<>":
        kind = "little" if order == "<" else "big"
        yield Kind(f"tiff-rgb-exif-gps-{kind}endian.tif", hand_tiff(rgb, order, camera_entries(1)))
    for reduced in (1, 0):
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            writer.write(rgb, metadata=None, software=False, photometric="rgb")
            writer.write(make_samples(size=(12, 17)), metadata=None, software=False, photometric="rgb", subfiletype=reduced)
        if reduced:
            yield Kind("tiff-rgb-thumbnail-page.tif", file.getvalue())
        else:
            yield Kind("tiff-rgb-two-pages.tif", file.getvalue(), "refused", reason="2 images")
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(rgb16, metadata=None, software=False, photometric="rgb", subifds=1, tile=(16, 16))
        writer.write(
            make_samples(3, "uint16", (18, 25)),
            metadata=None,
            software=False,
            photometric="rgb",
            subfiletype=1,
            tile=(16, 16),
        )
    yield Kind("tiff-rgb16-subifd-pyramid.tif", file.getvalue())
    file = io.BytesIO()
    tifffile.imwrite(file, np.stack([make_samples(1)[:, :, 0]] * 3), imagej=True)
    yield Kind("tiff-imagej-stack.tif", file.getvalue(), "refused", reason="3 images")
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        make_samples(1, "uint16")[:, :, 0],
        imagej=True,
        metadata={"axes": "YX", "unit": "um"},
        resolution=(2.0, 2.0),
    )
    yield Kind("tiff-imagej-one.tif", file.getvalue())
    ome = '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"></OME>'
    yield Kind("tiff-ome.tif", tiff(make_samples(1, "uint16"), photometric="minisblack", description=ome))


def hand_tiff(samples: np.ndarray, order: str, more: Entries, photometric: int = 2) -> bytes:
    """An uncompressed 8-bit TIFF in one strip, with more entries."""
    height, width, channels = samples.shape
    data = samples.tobytes() + b"\0" * (samples.size % 2)
    entries: Entries = {
        256: (3, [width]), 257: (3, [height]), 258: (3, [8] * channels), 259: (3, [1]), 262: (3, [photometric]),
        273: (4, [8]), 277: (3, [channels]), 278: (3, [height]), 279: (4, [samples.size]), **more,
    }  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + directory(entries, 8 + len(data), order)


def refused_tiffs() -> Iterator[Kind]:
    dng = [(50706, 1, 4, (1, 4, 0, 0), True), (271, 2, 0, "Maker", True)]
    yield Kind(
        "tiff-named-dng.dng",
        tiff(make_samples(), photometric="rgb", subfiletype=1, extratags=dng),
        "refused",
        reason="raw file",
    )
    yield Kind("tiff-dng-named-tif.tif", tiff(make_samples(), photometric="rgb", extratags=dng), "refused", reason="raw file")
    yield Kind(
        "tiff-complex.tif",
        tiff((make_samples(1, "float32") + 1j).astype(np.complex64), photometric="minisblack"),
        "refused",
    )
    yield Kind(
        "tiff-bayer.tif",
        tiff(
            make_samples(1, "uint16"),
            photometric="cfa",
            extratags=[(33421, 3, 2, (2, 2), True), (33422, 1, 4, (0, 1, 1, 2), True)],
        ),
        "refused",
        reason="raw file",
    )
    yield Kind(
        "tiff-volume.tif",
        tiff(
            np.stack([make_samples(1)[:, :, 0]] * 16)[..., None],
            photometric="minisblack",
            volumetric=True,
            tile=(16, 16, 16),
        ),
        "refused",
    )


# --- what Pillow writes ------------------------------------------------------------------------------


def webps() -> Iterator[Kind]:
    described = {"exif": b"Exif\0\0" + exif(), "xmp": PLAIN_XMP, "icc_profile": SRGB}
    yield Kind("webp-lossy.webp", saved(pil(), "WEBP", quality=80))
    yield Kind("webp-lossless.webp", saved(pil(), "WEBP", lossless=True))
    yield Kind("webp-lossy-alpha.webp", saved(pil(4), "WEBP", quality=80))
    yield Kind("webp-lossless-alpha.webp", saved(pil(4), "WEBP", lossless=True, exact=True))
    yield Kind("webp-lossless-described.webp", saved(pil(), "WEBP", lossless=True, **described))
    yield Kind("webp-lossy-alpha-described.webp", saved(pil(4), "WEBP", quality=80, **described))
    for orientation in (3, 6):
        size = SIZE[::-1] if orientation >= 5 else SIZE
        yield Kind(
            f"webp-orientation{orientation}.webp",
            saved(pil(size=size), "WEBP", lossless=True, exif=b"Exif\0\0" + exif(orientation)),
            orientation=orientation,
        )
    yield Kind("webp-exif-thumbnail.webp", saved(pil(), "WEBP", lossless=True, exif=b"Exif\0\0" + exif(1, thumbnail=True)))
    block = exif()
    plain = saved(pil(), "WEBP", lossless=True, exif=b"Exif\0\0" + block)
    at = plain.index(b"EXIF")
    bare = plain[:at] + b"EXIF" + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2)
    bare += b"priv" + struct.pack("<I", 6) + b"hidden"
    yield Kind("webp-bare-exif-private-chunk.webp", bare[:4] + struct.pack("<I", len(bare) - 8) + bare[8:])
    frames = [pil(), pil().transpose(Image.Transpose.ROTATE_180)]
    yield Kind(
        "webp-animated.webp",
        saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        "refused",
        reason="2 images",
    )


def gifs() -> Iterator[Kind]:
    for count in (2, 16, 256):
        yield Kind(f"gif-{count}-colors.gif", saved(pil_palette(count), "GIF", interlace=0))
    yield Kind("gif-grey.gif", saved(pil(1), "GIF", interlace=0))
    yield Kind("gif-transparent.gif", saved(pil_palette(64), "GIF", transparency=0, interlace=0))
    yield Kind("gif-transparent-last.gif", saved(pil_palette(64), "GIF", transparency=63, interlace=1))
    yield Kind("gif-comment.gif", saved(pil_palette(64), "GIF", comment=b"a comment", interlace=0))
    yield Kind("gif-interlaced.gif", saved(pil_palette(64), "GIF", interlace=1))
    plain = saved(pil_palette(64), "GIF", interlace=0)
    first = plain.index(b",", 13 + 3 * 64)
    xmp = b"\x21\xff\x0bXMP DataXMP" + PLAIN_XMP + b"\1" + bytes(range(255, -1, -1)) + b"\0"
    yield Kind("gif-xmp.gif", b"GIF89a" + plain[6:first] + xmp + plain[first:])
    yield Kind("gif-aspect.gif", plain[:12] + b"\x31" + plain[13:])
    yield Kind("gif-background.gif", saved(pil_palette(64), "GIF", background=5, interlace=0))
    local = bytearray(plain)
    flags, table = local[10], plain[13 : 13 + 3 * 64]
    local[10] = flags & 0x70
    body = plain[:10] + bytes([local[10]]) + plain[11:13] + plain[13 + len(table) : first]
    descriptor = plain[first : first + 9] + bytes([plain[first + 9] | 0x80 | (flags & 7)])
    yield Kind("gif-local-palette.gif", body + descriptor + table + plain[first + 10 :])
    corner = bytearray(plain)
    corner[6:10] = struct.pack("<HH", SIZE[1] + 6, SIZE[0] + 4)
    corner[first + 1 : first + 5] = struct.pack("<HH", 4, 2)
    yield Kind("gif-offset-frame.gif", bytes(corner), "refused", reason="canvas")
    frames = [pil_palette(64), pil_palette(64).transpose(Image.Transpose.ROTATE_180)]
    yield Kind("gif-animated.gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "refused", reason="2 images")


def bmp(bits: int, rows: np.ndarray, *, header: int = 40, compression: int = 0, colors: bytes = b"", top_down: bool = False,
        masks: bytes = b"", profile: bytes = b"", pixels: bytes | None = None, dpi: int = 2835, size: tuple[int, int] = SIZE) -> bytes:  # fmt: skip
    """A BMP of rows (H, bytes), the top one first."""
    height, width = size
    padded = np.pad(rows, [(0, 0), (0, -rows.shape[1] % 4)])
    data = pixels if pixels is not None else (padded if top_down else padded[::-1]).tobytes()
    if header == 12:
        start = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        start = struct.pack(
            "<IiiHHIIiiII",
            header,
            width,
            -height if top_down else height,
            1,
            bits,
            compression,
            len(data),
            dpi,
            dpi,
            len(colors) // 4,
            0,
        )
    if header > 40:
        kind = b"DEBM" if profile else b"BGRs"
        start += (masks.ljust(16, b"\0") + kind).ljust(68, b"\0")
    if header > 108:
        start += struct.pack("<IIII", 4, header + len(colors) + len(data) if profile else 0, len(profile), 0)
    elif header == 40:
        start += masks
    offset = 14 + len(start) + len(colors)
    whole = start + colors + data + profile
    return b"BM" + struct.pack("<IHHI", 14 + len(whole), 0, 0, offset) + whole


def bmps() -> Iterator[Kind]:
    height, width = SIZE
    for bits in (1, 4, 8):
        some = indices(2**bits)
        rows = np.frombuffer(rows_of(some[:, :, None], bits), np.uint8).reshape(height, -1)[:, 1:]
        colors = np.pad(palette(2**bits)[:, ::-1], [(0, 0), (0, 1)]).tobytes()
        yield Kind(f"bmp-{bits}bit.bmp", bmp(bits, rows, colors=colors))
    plain = make_samples()
    yield Kind("bmp-24bit.bmp", bmp(24, plain.reshape(height, -1)))
    yield Kind("bmp-24bit-top-down.bmp", bmp(24, plain.reshape(height, -1), top_down=True))
    yield Kind("bmp-24bit-os2.bmp", bmp(24, plain.reshape(height, -1), header=12))
    yield Kind("bmp-24bit-300dpi.bmp", bmp(24, plain.reshape(height, -1), dpi=11811))
    small = np.frombuffer(rows_of(indices(16)[:, :, None], 4), np.uint8).reshape(height, -1)[:, 1:]
    yield Kind("bmp-4bit-os2.bmp", bmp(4, small, header=12, colors=palette(16)[:, ::-1].tobytes()))
    five = np.random.default_rng(1).integers(0, 2**15, (height, width), np.uint16)
    yield Kind("bmp-16bit-555.bmp", bmp(16, five.view(np.uint8)))
    yield Kind(
        "bmp-16bit-565.bmp",
        bmp(16, (five * 2 + 1).view(np.uint8), compression=3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F)),
    )
    wide = make_samples(4).reshape(height, -1)
    unused = make_samples(4)
    unused[:, :, 3] = 0
    yield Kind("bmp-32bit.bmp", bmp(32, unused.reshape(height, -1)))
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    yield Kind("bmp-32bit-v4-alpha.bmp", bmp(32, wide, header=108, compression=3, masks=masks))
    yield Kind("bmp-32bit-v5-alpha-icc.bmp", bmp(32, wide, header=124, compression=3, masks=masks, profile=SRGB))
    yield Kind("bmp-24bit-v5-icc.bmp", bmp(24, plain.reshape(height, -1), header=124, profile=SRGB))
    runs = (b"".join(b"".join(b"\1" + bytes([value]) for value in row) + b"\0\0" for row in indices(256)[::-1]) + b"\0\1")
    colors = np.pad(palette(256)[:, ::-1], [(0, 0), (0, 1)]).tobytes()
    yield Kind("bmp-8bit-rle.bmp", bmp(8, indices(256), compression=1, colors=colors, pixels=runs))


def portable_files() -> Iterator[Kind]:
    height, width = SIZE
    size = f"{width} {height}\n".encode()
    bits = (make_samples(1, bits=1)[:, :, 0] > 0).astype(np.uint8)
    yield Kind("ppm-p1.pbm", b"P1\n" + size + "\n".join(" ".join(map(str, row)) for row in bits.tolist()).encode() + b"\n")
    yield Kind("ppm-p4.pbm", b"P4\n" + size + np.packbits(bits, axis=1).tobytes())
    for mark, binary, channels, suffix in [(2, 0, 1, "pgm"), (3, 0, 3, "ppm"), (5, 1, 1, "pgm"), (6, 1, 3, "ppm")]:
        for highest in (255, 1023, 65535):
            samples = make_samples(channels, "uint16", bits=highest.bit_length())
            head = b"P%d\n# a comment\n" % mark + size + b"%d\n" % highest
            if binary:
                body = samples.astype(">u2" if highest > 255 else np.uint8).tobytes()
            else:
                body = ("\n".join(" ".join(map(str, row)) for row in samples.reshape(height, -1).tolist()).encode() + b"\n")
            name = f"ppm-p{mark}-max{highest}.{suffix}"
            yield Kind(name, head + body)
    yield Kind("ppm-p5-max100.pgm", b"P5 " + size + b"100\n" + (make_samples(1) // 3).clip(0, 100).tobytes(), "refused")
    floats = make_samples(1, "float32")[::-1, :, 0]
    yield Kind("pfm-grey-little.pfm", b"Pf\n" + size + b"-1.0\n" + floats.astype("<f4").tobytes())
    yield Kind("pfm-grey-big.pfm", b"Pf\n" + size + b"1.0\n" + floats.astype(">f4").tobytes())
    yield Kind("pfm-rgb.pfm", b"PF\n" + size + b"-1.0\n" + make_samples(3, "float32")[::-1].astype("<f4").tobytes(), "refused")
    yield Kind(
        "ppm-pam.pam",
        b"P7\nWIDTH 37\nHEIGHT 27\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + make_samples().tobytes(),
        "refused",
    )


def targa(
    kind: int,
    bits: int,
    body: bytes,
    *,
    name: bytes = b"",
    top: bool = False,
    colors: np.ndarray | None = None,
    footer: bytes = b"",
    alpha: int = 0,
) -> bytes:
    height, width = SIZE
    table = b"" if colors is None else colors[:, ::-1].tobytes()
    start = struct.pack(
        "<BBBHHBHHHHBB",
        len(name),
        int(colors is not None),
        kind,
        0,
        0 if colors is None else len(colors),
        24 if table else 0,
        0,
        0,
        width,
        height,
        bits,
        alpha | (0x20 if top else 0),
    )
    return start + name + table + body + footer


def targas() -> Iterator[Kind]:
    rgb, rgba = make_samples(), make_samples(4)
    footer = bytes(8) + b"TRUEVISION-XFILE.\0"
    yield Kind("tga-rgb.tga", targa(2, 24, rgb[::-1].tobytes()))
    yield Kind("tga-rgb-top-down.tga", targa(2, 24, rgb.tobytes(), top=True))
    yield Kind("tga-rgba.tga", targa(2, 32, rgba[::-1].tobytes(), alpha=8))
    yield Kind("tga-grey.tga", targa(3, 8, make_samples(1)[::-1].tobytes()))
    yield Kind("tga-palette.tga", targa(1, 8, indices(256)[::-1].tobytes(), colors=palette(256)))
    yield Kind("tga-id-footer.tga", targa(2, 24, rgb[::-1].tobytes(), name=b"an identification", footer=footer))
    five = np.random.default_rng(1).integers(0, 2**15, SIZE, np.uint16)
    yield Kind("tga-16bit.tga", targa(2, 16, five[::-1].tobytes()))
    yield Kind("tga-rle.tga", saved(pil(), "TGA", compression="tga_rle"))
    yield Kind("tga-rgba-rle-id.tga", saved(pil(4), "TGA", compression="tga_rle", id_section=b"an identification"))
    extension = struct.pack("<H", 495) + b"An author".ljust(41, b"\0") + b"A comment".ljust(452, b"\0")
    body = targa(2, 24, rgb[::-1].tobytes())
    yield Kind("tga-extension-area.tga", body + extension + struct.pack("<II", len(body), 0) + b"TRUEVISION-XFILE.\0")


def pcx_and_sgi() -> Iterator[Kind]:
    yield Kind("pcx-rgb.pcx", saved(pil(), "PCX"))
    yield Kind("pcx-grey.pcx", saved(pil(1), "PCX"))
    yield Kind("pcx-palette.pcx", saved(pil_palette(256), "PCX"))
    bits = Image.frombytes("1", SIZE[::-1], np.packbits(make_samples(1, bits=1)[:, :, 0] > 0, axis=1).tobytes())
    yield Kind("pcx-bilevel.pcx", saved(bits, "PCX"))
    yield Kind("pcx-rgb-300dpi.pcx", saved(pil(), "PCX", dpi=(300, 300)))
    for channels, suffix in [(1, "bw"), (3, "rgb"), (4, "rgba")]:
        yield Kind(f"sgi-{channels}-channels.{suffix}", saved(pil(channels), "SGI"))
    named = bytearray(saved(pil(), "SGI"))
    named[24:34] = b"A long one"
    yield Kind("sgi-named.sgi", bytes(named))
    yield Kind("sgi-rle.sgi", _sgi_rle(make_samples()))
    deep = make_samples(3, "uint16")[::-1].transpose(2, 0, 1)
    head = struct.pack(">HBBHHHHII", 474, 0, 2, 3, SIZE[1], SIZE[0], 3, 0, 65535).ljust(512, b"\0")
    yield Kind("sgi-16bit.sgi", head + deep.astype(">u2").tobytes(), "refused")


def _sgi_rle(samples: np.ndarray) -> bytes:
    height, width, channels = samples.shape
    head = struct.pack(">HBBHHHHII", 474, 1, 1, 3, width, height, channels, 0, 255).ljust(512, b"\0")
    starts, sizes, body = [], [], b""
    for channel, row in itertools.product(range(channels), range(height - 1, -1, -1)):
        packed = bytes([0x80 | width]) + samples[row, :, channel].tobytes() + b"\0"
        starts.append(512 + 8 * height * channels + len(body))
        sizes.append(len(packed))
        body += packed
    return head + struct.pack(f">{len(starts)}I", *starts) + struct.pack(f">{len(sizes)}I", *sizes) + body


def jpeg2000s() -> Iterator[Kind]:
    for channels, name in [(1, "grey"), (2, "grey-alpha"), (3, "rgb"), (4, "rgba")]:
        yield Kind(f"jpeg2000-{name}.jp2", saved(pil(channels), "JPEG2000"))
    yield Kind("jpeg2000-lossy.jp2", saved(pil(), "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[6]))
    yield Kind("jpeg2000-codestream.j2k", saved(pil(), "JPEG2000", no_jp2=True))
    grey16 = Image.fromarray(make_samples(1, "uint16")[:, :, 0])
    yield Kind("jpeg2000-grey16.jp2", saved(grey16, "JPEG2000"))
    yield Kind(
        "jpeg2000-rgb16.jp2",
        imagecodecs.jpeg2k_encode(make_samples(3, "uint16"), level=0, codecformat="jp2", reversible=True),
        "refused",
    )
    yield Kind(
        "jpeg2000-grey12.jp2",
        imagecodecs.jpeg2k_encode(
            make_samples(1, "uint16", bits=12)[:, :, 0],
            level=0,
            codecformat="jp2",
            reversible=True,
            bitspersample=12,
        ),
        "refused",
    )
    plain = saved(pil(), "JPEG2000")
    at = plain.index(b"jp2h") - 4
    xml = b"<a>text</a>"
    box = struct.pack(">I4s", 8 + len(xml), b"xml ") + xml
    packet = bytes.fromhex("be7acfcb97a942e89c71999491e3afac") + PLAIN_XMP
    uuid = struct.pack(">I4s", 8 + len(packet), b"uuid") + packet
    end = at + struct.unpack(">I", plain[at : at + 4])[0]
    yield Kind("jpeg2000-xml-xmp.jp2", plain[:end] + box + uuid + plain[end:])
    header = plain[at + 8 : end]
    colour = header.index(b"colr") - 4
    profile = struct.pack(">I4sBBB", 11 + len(SRGB), b"colr", 2, 0, 0) + SRGB
    resolution = struct.pack(">I4sI4sHHHHBB", 26, b"res ", 18, b"resc", 300, 254, 300, 254, 4, 4)
    rest = header[colour + struct.unpack(">I", header[colour : colour + 4])[0] :]
    new = header[:colour] + profile + rest + resolution
    yield Kind("jpeg2000-icc-resolution.jp2", plain[:at] + struct.pack(">I4s", 8 + len(new), b"jp2h") + new + plain[end:])


def avifs() -> Iterator[Kind]:
    if not features.check("avif"):
        return
    described = {"exif": b"Exif\0\0" + exif(), "xmp": PLAIN_XMP, "icc_profile": SRGB}
    yield Kind("avif.avif", saved(pil(), "AVIF", quality=80, speed=9), "inexact")
    yield Kind("avif-alpha.avif", saved(pil(4), "AVIF", quality=80, speed=9), "inexact")
    yield Kind("avif-described.avif", saved(pil(), "AVIF", quality=80, speed=9, **described), "inexact")
    turned = saved(pil(size=SIZE[::-1]), "AVIF", quality=80, speed=9, exif=b"Exif\0\0" + exif(6))
    yield Kind("avif-orientation6.avif", turned, "inexact", orientation=6)
    small = saved(pil(), "AVIF", quality=80, speed=9, exif=b"Exif\0\0" + exif(0, thumbnail=True))
    yield Kind("avif-exif-thumbnail.avif", small, "inexact")
    frames = [pil(), pil().transpose(Image.Transpose.ROTATE_180)]
    yield Kind(
        "avif-animated.avif",
        saved(frames[0], "AVIF", save_all=True, append_images=frames[1:], speed=9),
        "refused",
        reason="2 images",
    )
    deep = imagecodecs.avif_encode(make_samples(3, "uint16", bits=10), level=90, speed=9, bitspersample=10)
    yield Kind("avif-10bit.avif", deep, "inexact")


def heics() -> Iterator[Kind]:
    if pillow_heif is None:
        return
    for channels, name in [(1, "grey"), (3, "rgb"), (4, "rgba")]:
        yield Kind(f"heic-{name}.heic", heic(pillow_heif.from_pillow(pil(channels))), "inexact")
    described = pillow_heif.from_pillow(pil())
    yield Kind("heic-described.heic", heic(described, exif=b"Exif\0\0" + exif(), xmp=PLAIN_XMP), "inexact")
    yield Kind(
        "heic-exif-thumbnail.heic",
        heic(pillow_heif.from_pillow(pil()), exif=b"Exif\0\0" + exif(1, thumbnail=True)),
        "inexact",
    )
    turned = pillow_heif.from_pillow(pil(size=SIZE[::-1]))
    yield Kind(
        "heic-orientation6.heic", heic(turned, exif=b"Exif\0\0" + exif(6)), "inexact"
    )  # stored as irot, and read upright
    profile = pil()
    profile.info["icc_profile"] = SRGB
    yield Kind("heic-icc.heic", heic(pillow_heif.from_pillow(profile)), "inexact")
    deep = pillow_heif.from_bytes("RGB;16", SIZE[::-1], make_samples(3, "uint16").tobytes())
    yield Kind("heic-10bit.heic", heic(deep), "inexact")
    two = pillow_heif.from_pillow(pil())
    two.add_from_pillow(pil().transpose(Image.Transpose.ROTATE_180))
    yield Kind("heic-two-pictures.heif", heic(two), "inexact")


def heic(file: Any, **settings: Any) -> bytes:
    target = io.BytesIO()
    file.save(target, quality=85, **settings)
    return target.getvalue()


# --- what is refused ---------------------------------------------------------------------------------


def other_formats() -> Iterator[Kind]:
    """Files of other formats that have the suffix of an image format."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 51 37\n{} loop\n"
    yield Kind("other-eps.jpg", eps, "refused", reason="EPS")
    yield Kind("other-pdf.png", b"%PDF-1.4\n1 0 obj <<>> endobj\n", "refused", reason="PDF")
    yield Kind(
        "other-psd.tif",
        b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 37, 51, 8, 3) + bytes(12),
        "refused",
        reason="Photoshop",
    )
    yield Kind("other-ico.png", saved(pil(4, (32, 32)), "ICO"), "refused", reason="ICO")
    yield Kind("other-svg.png", b'\n<svg xmlns="http://www.w3.org/2000/svg" width="51" height="37"/>', "refused", reason="SVG")
    yield Kind("other-html.jpg", b"<!DOCTYPE html><html>404</html>", "refused", reason="not a readable image")
    yield Kind("other-text.png", b"not an image, but a text\n", "refused", reason="not a readable image")
    yield Kind("other-zeros.jpg", bytes(4096), "refused", reason="not a readable image")
    for suffix in ("png", "jpg", "tif", "webp", "bmp", "gif"):
        yield Kind(f"other-empty.{suffix}", b"", "refused", reason="not a readable image")
    yield Kind("other-jpegxl.jpg", imagecodecs.jpegxl_encode(make_samples()), "refused", reason="JPEG XL")
    yield Kind("other-qoi.png", imagecodecs.qoi_encode(make_samples()), "refused", reason="QOI")
    yield Kind("other-dds.png", b"DDS " + struct.pack("<I", 124) + bytes(120), "refused", reason="DDS")
    yield Kind("other-icns.png", b"icns" + struct.pack(">I", 8), "refused", reason="ICNS")
    yield Kind("other-canon-raw.jpg", b"II*\0\x10\0\0\0CR\2\0" + bytes(64), "refused", reason="raw file")
    yield Kind("other-tar-of-zeros.tif", b"II*\0" + struct.pack("<I", 4096) + bytes(64), "refused", reason="not a readable image")


def cut_files() -> Iterator[Kind]:
    """A file of each format without its last third."""
    whole = {
        "png": png(make_samples(), 8, 2), "jpg": jpeg(), "tif": tiff(make_samples(), photometric="rgb", compression="lzw", rowsperstrip=4)[:-40],
        "webp": saved(pil(), "WEBP", lossless=True), "gif": saved(pil_palette(256), "GIF"), "bmp": saved(pil(), "BMP"),
        "ppm": saved(pil(), "PPM"), "tga": targa(2, 24, make_samples().tobytes()), "pcx": saved(pil(), "PCX"), "sgi": saved(pil(), "SGI"),
        "jp2": saved(pil(), "JPEG2000"),
    }  # fmt: skip
    if features.check("avif"):
        whole["avif"] = saved(pil(), "AVIF", speed=9)
    if pillow_heif is not None:
        whole["heic"] = heic(pillow_heif.from_pillow(pil()))
    for suffix, data in whole.items():
        yield Kind(f"cut.{suffix}", data[: len(data) * 2 // 3], "refused")
    deep = tiff(make_samples(1, "uint16"), photometric="minisblack")
    yield Kind("cut-uncompressed.tif", deep[: len(deep) * 2 // 3], "refused")
    yield Kind("cut-in-header.png", png(make_samples(), 8, 2)[:20], "refused")
    damaged = bytearray(png(make_samples(), 8, 2))
    damaged[200] ^= 0xFF
    yield Kind("cut-damaged-data.png", bytes(damaged), "refused")
