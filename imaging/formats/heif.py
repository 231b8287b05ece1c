"""HEIC and HEIF files, which phones write, by way of the optional library pillow-heif."""

import io
from typing import Any, BinaryIO

import numpy as np

from imaging.metadata import PREFIX, Metadata, orientation_of, with_orientation, without_previews
from imaging.raster import Raster
from utils import UserError

QUALITY = 95
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by channels


class HeifFile:
    """An open HEIC or HEIF file, its main picture upright; a `Container`.

    Raises:
        UserError: if pillow-heif is not installed.
    """

    exact = False
    how = f"HEIF is written anew, at quality {QUALITY}, and changes a little (--lossless: PNG)"

    def __init__(self, data: bytes) -> None:
        try:
            import pillow_heif
        except ImportError:
            raise UserError("HEIC and HEIF need pillow-heif (pip install pillow-heif)") from None
        file: Any = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
        image = file[file.primary_index]
        if len(file) > 1:
            self.notes = [f"of {len(file)} pictures in one HEIF, the main one was kept"]
        else:
            self.notes = []
        self.info = dict(image.info)
        self.depth = int(self.info.get("bit_depth", 8))
        samples = np.array(image)
        samples = samples[:, :, None] if samples.ndim == 2 else samples
        channels = samples.shape[2]
        premultiplied = image.mode.startswith(("RGBa", "La"))
        self.raster = Raster(
            samples,
            "rgb" if channels >= 3 else "grey",
            8 * samples.itemsize,
            alpha=channels - 1 if channels in (2, 4) else None,
            premultiplied=premultiplied,
        )
        extra = [name for name in ("depth_images", "aux") if self.info.get(name)]
        if extra:
            self.notes.append("depth map, gain map and other further pictures of the HEIF were not kept")
        exif = self.info.get("exif")
        self.exif: bytes | None = None  # it says upright, as the picture is, and has no thumbnail
        if exif:
            cleaned, note = without_previews(exif)
            said = orientation_of(cleaned)
            self.exif = cleaned if said == 1 else PREFIX + with_orientation(cleaned, 1)
            self.notes += [note] * bool(note)

    @property
    def icc(self) -> bytes | None:
        """The colour profile."""
        return self.info.get("icc_profile")

    def metadata(self) -> Metadata:
        """What a PNG made of the picture should say."""
        block = self.exif.removeprefix(PREFIX) if self.exif else None
        return Metadata(exif=block, xmp=self.info.get("xmp"), icc=self.icc)

    def write(self, file: BinaryIO, changed: np.ndarray) -> None:
        """Write the file with its present samples; see `Container.write`."""
        import pillow_heif

        samples = self.raster.samples
        mode = MODES[samples.shape[2]] + (";16" if samples.itemsize == 2 else "")
        if mode.startswith("LA"):
            samples = np.concatenate([samples[:, :, :1]] * 3 + [samples[:, :, 1:]], axis=2)
            mode = mode.replace("LA", "RGBA")
        size = samples.shape[1::-1]
        made: Any = pillow_heif.from_bytes(mode, size, np.ascontiguousarray(samples).tobytes())
        pillow_heif.options.SAVE_HDR_TO_12_BIT = self.depth > 10
        keep = {"exif": self.exif, "xmp": self.info.get("xmp"), "icc_profile": self.icc}
        keep["nclx_profile"] = self.info.get("nclx_profile")
        given = {name: value for name, value in keep.items() if value}
        made.save(file, quality=QUALITY, chroma=self.info.get("chroma") or 444, **given)
