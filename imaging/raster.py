"""The samples stored in an image file, and the upright colours that they show."""

import functools
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image, ImageCms

from utils import UserError

Region = tuple[slice, slice]
WHOLE: Region = (slice(None), slice(None))
BLOCK = 4096  # colours compared with a palette at once, to bound memory
RAW_ERROR = "a raw file, which cannot be written back: develop it to TIFF or PNG first"
CHANNELS = {"grey": 1, "rgb": 3, "palette": 1, "cmyk": 4, "ycbcr": 3, "lab": 3}  # without alpha
PILLOW_MODES = {"ycbcr": "YCbCr", "lab": "LAB"}


@dataclass
class Raster:
    """Samples exactly as a file stores them, with its type, channels and orientation.

    Attributes:
        samples: (H, W, C), any integer or float type; C counts alpha and other extra channels.
        space: the meaning of the leading 1, 3 or 4 channels: a key of `CHANNELS`.
        bits: significant bits of an unsigned sample, 1 to 64; white is 2^bits - 1. For signed and float
            samples, the bits of the type.
        alpha: index of the alpha channel; None if there is none.
        premultiplied: whether colours are stored multiplied by alpha.
        inverted: whether 0 is white (grey: TIFF's MinIsWhite; cmyk: as Adobe writes JPEG).
        palette: (N, 3) uint8, for the space "palette".
        palette_alpha: (N,) uint8, opacity of each palette entry; None if all are opaque.
        transparent: the one stored colour (C,) that marks transparent pixels; None if there is none.
        orientation: EXIF 2.32, tag 274, 1 to 8; see `upright`.
    """

    samples: np.ndarray
    space: str
    bits: int = 8
    alpha: int | None = None
    premultiplied: bool = False
    inverted: bool = False
    palette: np.ndarray | None = None
    palette_alpha: np.ndarray | None = None
    transparent: tuple[int, ...] | None = None
    orientation: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, upright."""
        height, width = self.samples.shape[:2]
        return (width, height) if self.orientation >= 5 else (height, width)

    @property
    def is_direct(self) -> bool:
        """Whether `colors` shows the stored samples themselves, of 8 or 16 bits."""
        unsigned = self.samples.dtype in (np.uint8, np.uint16) and self.bits == 8 * self.samples.itemsize
        return unsigned and self.space in ("grey", "rgb") and not self.inverted and not self.premultiplied

    def colors(self, region: Region = WHOLE) -> np.ndarray:
        """The colours of a region, (h, w, 1 or 3), upright, without alpha.

        Returns:
            uint8 for up to 8 bits, uint16 for up to 16; for more bits, signed and float samples, float32 with
            the lowest finite sample of the image at 0 and the highest at 1 (floats in [0, 1] unchanged). A
            view of `samples` if these are the colours.
        """
        count = CHANNELS[self.space]
        stored = upright(self.samples, self.orientation)[region]
        samples = stored[:, :, :count]
        if self.space == "palette":
            assert self.palette is not None
            return self.palette[np.minimum(samples[:, :, 0].astype(np.intp), len(self.palette) - 1)]
        if self.is_direct:
            return samples
        unit = self._to_range(samples)
        if self.premultiplied and self.alpha is not None:
            alpha = self._opacity(stored[:, :, self.alpha])[:, :, None]
            unit = _as_type(_to_unit(unit) / np.where(alpha > 0, alpha, 1), unit.dtype)
        if self.inverted:
            unit = _white(unit.dtype) - unit
        if self.space == "cmyk":
            light = 1 - _to_unit(unit)
            return _as_type(light[:, :, :3] * light[:, :, 3:], unit.dtype)
        if self.space in PILLOW_MODES:
            return _convert_mode(unit, PILLOW_MODES[self.space], "RGB")
        return unit

    def opacity(self) -> np.ndarray | None:
        """The opacity of all pixels, (H, W) float32 in [0, 1], upright; None without alpha."""
        samples = upright(self.samples, self.orientation)
        if self.alpha is not None:
            return self._opacity(samples[:, :, self.alpha])
        if self.palette_alpha is not None:
            indices = np.minimum(samples[:, :, 0].astype(np.intp), len(self.palette_alpha) - 1)
            return self.palette_alpha[indices].astype(np.float32) / np.float32(255)
        if self.transparent is not None:
            colors = samples[:, :, : CHANNELS[self.space]]
            return np.any(colors != self.transparent, axis=2).astype(np.float32)
        return None

    def put(self, region: Region, colors: np.ndarray, hole: np.ndarray, opaque: bool = False) -> None:
        """Store colours (h, w, 1 or 3), of the type of `colors()`, under `hole` (h, w) bool in a region.

        Args:
            opaque: make these pixels opaque as well, if there is an alpha channel.
        """
        target = upright(self.samples, self.orientation)[region]
        if opaque and self.alpha is not None:
            target[hole, self.alpha] = self._full
        opacity = None
        if self.premultiplied and self.alpha is not None:
            opacity = self._opacity(target[hole, self.alpha])
        target[hole, : CHANNELS[self.space]] = self._stored(colors[hole], opacity)

    def _stored(self, values: np.ndarray, opacity: np.ndarray | None) -> np.ndarray:
        """Colours (N, 1 or 3) as samples (N, C without alpha)."""
        if self.space == "palette":
            return nearest(values, self._opaque_palette())[:, None]
        if self.space == "cmyk":
            values = np.concatenate([_white(values.dtype) - values, np.zeros_like(values[:, :1])], axis=1)
        elif self.space in PILLOW_MODES:
            values = _convert_mode(values[None], "RGB", PILLOW_MODES[self.space])[0]
        if self.inverted:
            values = _white(values.dtype) - values
        if opacity is not None:
            values = _as_type(_to_unit(values) * opacity[:, None], values.dtype)
        stored = self._from_range(values)
        if self.transparent is not None:  # a filled pixel must not turn out transparent
            same = np.all(stored == self.transparent, axis=1)
            stored[same, -1] = self.transparent[-1] - 1 if self.transparent[-1] else 1
        return stored

    @functools.cached_property
    def _limits(self) -> tuple[float, float]:
        """The samples of black and white: the lowest and highest finite one; 0 and 1 for floats in [0, 1]."""
        colors = self.samples[:, :, : CHANNELS[self.space]]
        if colors.dtype.kind == "f":
            colors = colors[np.isfinite(colors)]
        low, high = (float(colors.min()), float(colors.max())) if colors.size else (0.0, 1.0)
        return (0.0, 1.0) if colors.dtype.kind == "f" and low >= 0 and high <= 1 else (low, high)

    @property
    def _full(self) -> float:
        """The sample value of white, and of an opaque pixel."""
        if self.samples.dtype.kind == "f":
            return 1.0
        if self.samples.dtype.kind == "i":
            return float(np.iinfo(self.samples.dtype).max)
        return 2**self.bits - 1

    def _opacity(self, samples: np.ndarray) -> np.ndarray:
        return np.clip(samples.astype(np.float32) / np.float32(self._full), 0, 1)

    @property
    def _is_scaled(self) -> bool:
        """Whether samples have no defined white, and are scaled from the lowest to the highest."""
        return self.samples.dtype.kind in "if" or self.bits > 16

    def _to_range(self, samples: np.ndarray) -> np.ndarray:
        """Samples as uint8, uint16 or float32 over the full range of that type."""
        if self._is_scaled:
            low, high = self._limits
            unit = (samples.astype(np.float64) - low) / max(high - low, 1e-300)
            return np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1).astype(np.float32)
        kind = np.dtype(np.uint8 if self.bits <= 8 else np.uint16)
        if self.bits in (8, 16):
            return samples.astype(kind, copy=False)
        return np.rint(samples.astype(np.float32) * (_white(kind) / self._full)).astype(kind)

    def _from_range(self, values: np.ndarray) -> np.ndarray:
        """The inverse of `_to_range`, in the type of the samples."""
        kind = self.samples.dtype
        if self._is_scaled:
            low, high = self._limits
            wide = low + values.astype(np.float64) * (high - low)
            if kind.kind in "iu":
                wide = np.clip(np.rint(wide), np.iinfo(kind).min, np.iinfo(kind).max)
            return wide.astype(kind)
        if self.bits in (8, 16):
            return values.astype(kind)
        return np.rint(values.astype(np.float32) * (self._full / _white(values.dtype))).astype(kind)

    def _opaque_palette(self) -> np.ndarray:
        """The opaque colours of the palette, or all if none is opaque: (N, 4) red, green, blue and index."""
        assert self.palette is not None
        indexed = np.column_stack([self.palette.astype(int), np.arange(len(self.palette))])
        if self.palette_alpha is None:
            return indexed
        opaque = np.ones(len(indexed), bool)
        opaque[: len(self.palette_alpha)] = self.palette_alpha[: len(indexed)] == 255
        return indexed[opaque] if opaque.any() else indexed


def several_images_error(count: int | str) -> UserError:
    """The error for a file with several images, each of which would have to be filled."""
    return UserError(f"holds {count} images, and only files with a single one can be filled")


class Container(Protocol):
    """An open image file of one format, which can be written back with some pixels changed.

    Attributes:
        raster: the pixels. The caller changes `raster.samples` in place before `write`.
        notes: messages to the user about what is not kept; `write` may append to them.
        encoding_note: a message about the way of writing, or ""; `write` may change it.
        exact: whether unchanged pixels are kept bit for bit; in a JPEG, those of untouched blocks.
    """

    raster: Raster
    notes: list[str]
    encoding_note: str
    exact: bool

    @property
    def icc(self) -> bytes | None:
        """The colour profile, if there is one."""

    def write(self, file: BinaryIO, changed: np.ndarray) -> None:
        """Write the file with `raster.samples`, which differ only in the pixels `changed` (H, W) bool."""


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """An upright view of stored pixels (H, W, ...); EXIF 2.32, tag 274."""
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
    """The index of the closest colour in `palette` (P, 4: colour and index) for each of `colors` (N, 3)."""
    unique, inverse = np.unique(colors.astype(int), axis=0, return_inverse=True)
    chosen = [
        ((unique[start : start + BLOCK, None] - palette[None, :, :3]) ** 2).sum(axis=2).argmin(axis=1)
        for start in range(0, len(unique), BLOCK)
    ]
    return palette[np.concatenate(chosen or [np.zeros(0, int)]), 3][inverse.reshape(-1)]


def _white(kind: np.dtype) -> float:
    return int(np.iinfo(kind).max) if kind.kind == "u" else 1.0


def _to_unit(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) / np.float32(_white(values.dtype))


def _as_type(unit: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Values in [0, 1], scaled to the full range of a type."""
    unit = unit.clip(0, 1)
    return np.rint(unit * _white(kind)).astype(kind) if kind.kind == "u" else unit.astype(kind)


def _convert_mode(samples: np.ndarray, source: str, target: str) -> np.ndarray:
    """Samples (H, W, 3) uint8, converted from one of Pillow's modes to another."""
    image = Image.frombytes(source, samples.shape[1::-1], np.ascontiguousarray(samples, np.uint8).tobytes())
    if "LAB" in (source, target):
        profiles = {"LAB": ImageCms.createProfile("LAB"), "RGB": ImageCms.createProfile("sRGB")}
        converted = ImageCms.profileToProfile(image, profiles[source], profiles[target], outputMode=target)
        assert converted is not None
        return np.asarray(converted)
    return np.asarray(image.convert(target))
