"""HEIC and HEIF files, which phones write, through the optional library pillow-heif."""

import io
from typing import Any, BinaryIO

import numpy as np

from imaging.formats import QUALITY, reencoding_note
from imaging.metadata import PREFIX, Metadata, orientation_of, with_orientation, without_thumbnail
from imaging.raster import Raster
from utils import UserError

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by number of channels


def open_heif(data: bytes) -> Any:
    """A HEIF file opened at its own bit depth.

    Raises:
        UserError: if the optional library is missing.
    """
    try:
        import pillow_heif
    except ImportError:
        raise UserError("HEIC and HEIF need pillow-heif (pip install pillow-heif)") from None
    return pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)


class HeifFile:
    """An open HEIC or HEIF file, its main image upright; a `Container`.

    Raises:
        UserError: if pillow-heif is not installed.
    """

    exact = False
    encoding_note = reencoding_note("HEIF")

    def __init__(self, data: bytes) -> None:
        file = open_heif(data)
        image = file[file.primary_index]
        self.notes: list[str] = []
        if len(file) > 1:
            self.notes.append(f"of {len(file)} images in one HEIF, only the main one was kept")
        self.info = dict(image.info)
        self.icc: bytes | None = self.info.get("icc_profile")
        samples = np.array(image)
        samples = samples[:, :, None] if samples.ndim == 2 else samples
        channels = samples.shape[2]
        self.raster = Raster(
            samples,
            "rgb" if channels >= 3 else "grey",
            8 * samples.itemsize,
            alpha=channels - 1 if channels in (2, 4) else None,
            premultiplied=image.mode.startswith(("RGBa", "La")),
        )
        if self.info.get("depth_images") or self.info.get("aux"):
            self.notes.append("depth map, gain map and other further images of the HEIF were not kept")
        self.exif: bytes | None = self.info.get("exif") or None
        if self.exif:
            self.exif = without_thumbnail(self.exif, self.notes)
            if orientation_of(self.exif) != 1:  # the image is upright
                self.exif = PREFIX + with_orientation(self.exif, 1)

    def metadata(self) -> Metadata:
        """The metadata for a PNG of the same image; see `Metadata`."""
        block = self.exif.removeprefix(PREFIX) if self.exif else None
        return Metadata(exif=block, xmp=self.info.get("xmp"), icc=self.icc)

    def write(self, file: BinaryIO, changed: np.ndarray) -> None:
        import pillow_heif

        samples = self.raster.samples
        mode = MODES[samples.shape[2]] + (";16" if samples.itemsize == 2 else "")
        if mode.startswith("LA"):
            samples = np.concatenate([samples[:, :, :1]] * 3 + [samples[:, :, 1:]], axis=2)
            mode = mode.replace("LA", "RGBA")
        size = samples.shape[1::-1]
        encoded: Any = pillow_heif.from_bytes(mode, size, np.ascontiguousarray(samples).tobytes())
        pillow_heif.options.SAVE_HDR_TO_12_BIT = int(self.info.get("bit_depth", 8)) > 10
        kept = {name: self.info.get(name) for name in ("xmp", "icc_profile", "nclx_profile")}
        given = {name: value for name, value in {"exif": self.exif, **kept}.items() if value}
        encoded.save(file, quality=QUALITY, chroma=self.info.get("chroma") or 444, **given)
