"""Picture files, read and written back with all that they carry: mode, depth, alpha, colour profile, EXIF."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from cli import UserError
from files import atomic_path

LOSSY = {"JPEG", "MPO", "AVIF"}  # formats whose known pixels cannot come back as they were
JPEG_QUALITY = 95
DIRECT = {"L", "LA", "RGB", "RGBA", "RGBX"}  # modes whose samples are the colours
DEEP = {"I;16", "I;16L", "I;16B"}
COLOR_CHUNKS = {b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"cICP", b"mDCV", b"cLLI"}  # before the palette
DEPTH_CHUNKS = {b"sBIT", b"bKGD"}  # in units of the samples
TIFF_TAGS = (270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 700, 33432, 33723)
EXIF_BLOCKS = (34665, 34853)  # EXIF and GPS
UPRIGHTED = {  # from upright back to what each EXIF orientation stores
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class Picture:
    """One picture of a file, as it is stored, and its colours upright.

    Args:
        path: of a single picture of any format that Pillow reads; of a multi-picture JPEG, the first.

    Attributes:
        format: Pillow's name of the file's format.
        colors: (H, W, 1 or 3) uint8, uint16 or, of float and 32-bit files, float32 in [0, 1]; upright by the
            file's EXIF orientation. Written anew by `fill`.
        alpha: (H, W) in [0, 1], upright; None where there is none.
        notes: what a user should know of what cannot be kept.

    Raises:
        UserError: if the file is missing, no readable picture, or holds several.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                self.data = path.read_bytes()
                self.source = Image.open(io.BytesIO(self.data))
                self.format = self.source.format or ""
                rawmode = str(self.source.tile[0].args) if self.source.tile else ""
                several = getattr(self.source, "n_frames", 1)
                self.exif = self.source.getexif()
                self.orientation = self.exif.get(274, 1)
                self.exif_blocks = {
                    tag: dict(self.exif.get_ifd(tag)) for tag in EXIF_BLOCKS if tag in self.exif
                }
                self.tags = dict(self.exif)
                self.source.load()
        except FileNotFoundError:
            raise UserError(f"no such file: {path}") from None
        except (*READ_ERRORS, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:120]
            if isinstance(error, UnidentifiedImageError):
                reason = "of no known format"
            raise UserError(f"not a readable image: {path} ({reason})") from None
        if several > 1 and self.format != "MPO":
            raise UserError(f"holds {several} pictures, and only single ones can be filled: {path}")
        if self.format == "MPO":
            self.notes.append("of several pictures in one JPEG, the first was kept")
        self.image: Image.Image = self.source
        if self.format == "TIFF" and self.orientation in UPRIGHTED:  # which Pillow has turned upright
            self.image = self.source.transpose(UPRIGHTED[self.orientation])
            self.image.info = self.source.info
        self.deep: np.ndarray | None = None  # (H, W, 3 or 4) uint16 of a file that Pillow cuts to eight bits
        if ";16" in rawmode and self.image.mode in DIRECT:
            self.deep = self._read_deep()
        self.colors = np.ascontiguousarray(upright(self._colors(), self.orientation))
        self.alpha = self._alpha()

    def _read_deep(self) -> np.ndarray:
        deep = cv2.imdecode(np.frombuffer(self.data, np.uint8), cv2.IMREAD_UNCHANGED)
        channels = len(self.image.getbands())
        if deep is None or deep.dtype != np.uint16 or deep.shape[2:] != (channels,) or channels < 3:
            raise UserError(f"16-bit pictures of this kind cannot be written back: {self.path}")
        return deep[:, :, [2, 1, 0, 3][:channels]]

    def _colors(self) -> np.ndarray:
        """(H, W, 1 or 3), as stored."""
        image = self.image
        if self.deep is not None:
            return self.deep[:, :, :3]
        if image.mode in DIRECT:
            samples = np.atleast_3d(np.asarray(image))
            return samples[:, :, : 1 if image.mode in ("L", "LA") else 3]
        if image.mode in DEEP:
            return np.asarray(image).astype(np.uint16)[:, :, None]
        if image.mode in ("I", "F"):
            samples = np.asarray(image, dtype=np.float64)
            finite = samples[np.isfinite(samples)]
            self.low, self.high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
            unit = (samples - self.low) / max(self.high - self.low, 1e-12)
            return np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0).astype(np.float32)[:, :, None]
        if image.mode == "1":
            return np.asarray(image.convert("L"))[:, :, None]
        if image.mode == "LAB":
            return np.asarray(_from_lab(image))
        if image.mode in ("P", "PA", "CMYK", "YCbCr", "HSV"):
            return np.asarray(image.convert("RGB"))
        raise UserError(f"pictures of mode {image.mode} cannot be written back: {self.path}")

    def _alpha(self) -> np.ndarray | None:
        if self.deep is not None:
            alpha = self.deep[:, :, 3] / 65535 if self.deep.shape[2] == 4 else None
        elif self.image.has_transparency_data:
            alpha = np.asarray(self.image.convert("RGBA").getchannel("A")) / 255
        else:
            alpha = None
        return None if alpha is None else np.ascontiguousarray(upright(alpha, self.orientation), np.float32)

    def fill(self, filled: np.ndarray, hole: np.ndarray, opaque: bool = False) -> None:
        """Put `filled`, of the shape and type of `colors`, under `hole` (H, W) bool, both upright.

        Args:
            opaque: make the hole opaque, where the file has an alpha channel.
        """
        self.colors = np.where(hole[:, :, None], filled, self.colors)
        hole = np.ascontiguousarray(stored(hole, self.orientation))
        values = stored(filled, self.orientation)[hole]  # (N, 1 or 3)
        if self.deep is not None:
            self.deep = self.deep.copy()
            self.deep[hole, :3] = values
            if opaque and self.deep.shape[2] == 4:
                self.deep[hole, 3] = 65535
            return
        image, info = self.image, self.image.info
        samples = np.array(image)
        if image.mode in DIRECT:
            colored = np.atleast_3d(samples)
            colored[hole, : values.shape[1]] = values
            if opaque and image.mode in ("LA", "RGBA"):
                colored[hole, -1] = 255
        elif image.mode in DEEP:
            samples[hole] = values[:, 0]
        elif image.mode in ("I", "F"):
            scaled = self.low + values[:, 0].astype(np.float64) * (self.high - self.low)
            samples[hole] = np.rint(scaled) if image.mode == "I" else scaled
        elif image.mode == "1":
            samples[hole] = values[:, 0] >= 128
        elif image.mode in ("P", "PA"):
            indices = nearest(values, self._palette())
            if image.mode == "P":
                samples[hole] = indices
            else:
                samples[hole, 0] = indices
                if opaque:
                    samples[hole, 1] = 255
        else:
            row = Image.fromarray(values[None])  # of one line: the conversions are pixel by pixel
            row = _to_lab(row) if image.mode == "LAB" else row.convert(image.mode)
            samples[hole] = np.asarray(row)[0]
        self.image = Image.frombytes(image.mode, image.size, _pack(samples, image.mode))
        if image.mode in ("P", "PA") and image.palette is not None:
            self.image.putpalette(image.palette.getdata()[1], image.palette.mode)
        self.image.info = info

    def _palette(self) -> np.ndarray:
        """The opaque colours (N, 4) of the palette: red, green, blue, and the index."""
        colors = np.array(self.image.getpalette("RGB"), dtype=int).reshape(-1, 3)
        indexed = np.column_stack([colors, np.arange(len(colors))])
        hidden = self.image.info.get("transparency")
        if isinstance(hidden, int):
            return indexed[indexed[:, 3] != hidden]
        if isinstance(hidden, bytes):
            opaque = np.frombuffer(hidden.ljust(len(colors), b"\xff"), np.uint8)[: len(colors)] == 255
            return indexed[opaque] if opaque.any() else indexed
        return indexed

    def save(self, path: Path, lossless: bool = False) -> None:
        """Write the picture in its own format, whole or not at all; as PNG, if `lossless` and that is lossy.

        Raises:
            UserError: if the format cannot be written, or the disk is full or read only.
        """
        try:
            content = self._encode("PNG" if lossless and self.format in LOSSY else self.format)
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"cannot write {path}: {str(error).splitlines()[0][:120]}") from None

    def _encode(self, form: str) -> bytes:
        info = self.image.info
        keep = {
            name: info[name] for name in ("icc_profile", "exif", "dpi", "comment", "xmp") if info.get(name)
        }
        if form == "PNG":
            if self.deep is not None:
                kind = {3: 2, 4: 6}[self.deep.shape[2]]
                made = encode_png(self.deep, kind)
            else:
                image = self.image.convert("RGB") if self.image.mode in ("CMYK", "YCbCr") else self.image
                if image.mode != self.image.mode:
                    keep.pop("icc_profile", None)  # of other primaries
                made = _save(image, "PNG", **keep, transparency=info.get("transparency"))
            return carry_chunks(made, self.data) if self.format == "PNG" else made
        if form == "TIFF":
            return self._encode_tiff(keep)
        if form in ("JPEG", "MPO"):
            return _save(self.image, "JPEG", quality=JPEG_QUALITY, subsampling=0,
                         progressive=bool(info.get("progressive")), **keep)  # fmt: skip
        if form == "WEBP":
            return _save(self.image, "WEBP", lossless=True, quality=80, exact=True, **keep)
        if form == "AVIF":
            return _save(self.image, "AVIF", quality=JPEG_QUALITY, subsampling="4:4:4", **keep)
        if form == "GIF":
            keep = {name: info[name] for name in ("transparency", "background", "comment") if name in info}
            return _save(self.image, "GIF", optimize=False, **keep)
        return _save(self.image, form, **keep)

    def _encode_tiff(self, keep: dict[str, Any]) -> bytes:
        tags: Any = self.source.tag_v2  # type: ignore[attr-defined]
        if self.deep is not None:
            import tifffile  # comes with scikit-image

            written = [tag for tag in (270, 271, 272, 274, 305, 306, 315, 33432) if tag in tags]
            extra = [
                (tag, 3 if tag == 274 else 2, 0 if tag != 274 else 1, tags[tag], True) for tag in written
            ]
            if keep.get("icc_profile"):
                extra.append((34675, 7, len(keep["icc_profile"]), keep["icc_profile"], True))
            if self.exif_blocks:
                self.notes.append("of a 16-bit TIFF the EXIF block was not kept")
            target = io.BytesIO()
            tifffile.imwrite(
                target,
                self.deep,
                photometric="rgb",
                compression="zlib",
                extrasamples=["unassalpha"] if self.deep.shape[2] == 4 else None,
                extratags=extra,
                metadata=None,
                software=False,
            )
            return target.getvalue()
        directory = Image.Exif()
        for tag in TIFF_TAGS:
            if tag in self.tags:
                directory[tag] = self.tags[tag]
        compression = self.image.info.get("compression", "raw")
        if compression not in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"):
            compression = "tiff_adobe_deflate"  # of the lossy ones, and of those for documents
        for tag, block in self.exif_blocks.items():
            directory.get_ifd(tag).update(block)
            directory[tag] = 0  # the offset, set in writing
            compression = "raw"  # libtiff, which compresses, does not write these blocks for Pillow
        keep = {"icc_profile": keep["icc_profile"]} if "icc_profile" in keep else {}
        return _save(self.image, "TIFF", compression=compression, exif=directory, **keep)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (H, W, ...) as they are to be seen; EXIF 2.32, tag 274."""
    turned = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x),
    }
    return turned.get(orientation, lambda x: x)(pixels)


def stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The inverse of `upright`."""
    return upright(pixels, {6: 8, 8: 6}.get(orientation, orientation))


def nearest(colors: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """For each of `colors` (N, 3) the index of the closest in `palette` (P, 4: colour and index)."""
    unique, inverse = np.unique(colors.astype(int), axis=0, return_inverse=True)
    chosen = [int(((palette[:, :3] - color) ** 2).sum(axis=1).argmin()) for color in unique]
    return palette[chosen, 3][inverse.reshape(-1)]


def _pack(samples: np.ndarray, mode: str) -> bytes:
    """The bytes of an image of `mode`, as `Image.frombytes` wants them."""
    if mode == "1":
        return np.packbits(samples.astype(bool), axis=1).tobytes()
    types = {"I": "<i4", "F": "<f4", "I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2"}
    return samples.astype(types.get(mode, np.uint8)).tobytes()


def _lab(image: Image.Image, source: str, target: str) -> Image.Image:
    profiles = {"LAB": ImageCms.createProfile("LAB"), "RGB": ImageCms.createProfile("sRGB")}
    converted = ImageCms.profileToProfile(image, profiles[source], profiles[target], outputMode=target)
    assert converted is not None
    return converted


def _from_lab(image: Image.Image) -> Image.Image:
    return _lab(image, "LAB", "RGB")


def _to_lab(image: Image.Image) -> Image.Image:
    return _lab(image, "RGB", "LAB")


def _save(image: Image.Image, form: str, **settings: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, form, **{name: value for name, value in settings.items() if value is not None})
    return target.getvalue()


# --- PNG ---------------------------------------------------------------------------------------------


def read_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG file, (type, content), up to a damaged one."""
    chunks, start = [], 8
    while start + 12 <= len(data):
        (length,) = struct.unpack(">I", data[start : start + 4])
        chunks.append((data[start + 4 : start + 8], data[start + 8 : start + 8 + length]))
        start += 12 + length
    return chunks


def write_chunks(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG file of these chunks."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        checksum = zlib.crc32(kind + content)
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum))
    return b"".join(parts)


def encode_png(samples: np.ndarray, kind: int) -> bytes:
    """A PNG file of (H, W, C) uint16 samples, of colour type `kind`; the filter of every row is `Up`."""
    height, width = samples.shape[:2]
    rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), rows - above])
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return write_chunks([(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b"")])


def carry_chunks(made: bytes, original: bytes) -> bytes:
    """The pixels of one PNG file with what another says about them: profile, gamma, EXIF, text, time."""
    pixels = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
    new, old = read_chunks(made), read_chunks(original)
    same_depth = new[0][1][8:10] == old[0][1][8:10]
    own = [chunk for chunk in new if chunk[0] in pixels]
    carried = [c for c in old if c[0] not in pixels and (same_depth or c[0] not in DEPTH_CHUNKS)]
    first_data = next(i for i, chunk in enumerate(old) if chunk[0] == b"IDAT")
    late = {id(content) for _, content in old[first_data:]}
    colors = [c for c in carried if c[0] in COLOR_CHUNKS]
    before = [c for c in carried if c[0] not in COLOR_CHUNKS and id(c[1]) not in late]
    after = [c for c in carried if c[0] not in COLOR_CHUNKS and id(c[1]) in late]
    data = next(i for i, chunk in enumerate(own) if chunk[0] == b"IDAT")
    return write_chunks([own[0], *colors, *own[1:data], *before, *own[data:-1], *after, own[-1]])
