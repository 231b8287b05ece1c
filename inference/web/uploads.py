"""Reads uploaded images, masks and painted strokes: checks, previews, and the jobs to fill them."""

import dataclasses
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from imaging.image_file import ImageFile
from imaging.trial_decode import try_decode
from inference.fill_files import FillSettings, Job, Source, Targets, open_job
from inference.tiling import to_unit
from inference.web.sessions import Session
from utils import UserError

PREVIEW = (512, 1280)  # least and most pixels of the longer side of the copy that is shown and painted on
TINT = (230, 40, 90)  # colour of the hole
MAX_GROW = 32  # pixels


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest uploaded image, by its header, in millions of pixels, and the longest time to read it."""

    max_megapixels: float = 50.0
    max_seconds: float = 30.0

    def open(self, file: Any, session: Session, is_mask: bool = False) -> Path | None:
        """The path of a gradio file of this session that can be decoded; None without a file.

        Raises:
            UserError: if it cannot be read, is too large, or takes too long.
        """
        path = session.open(file)
        if path is not None and (str(path), is_mask) not in session.checked:
            try_decode(path, is_mask, self.max_megapixels, self.max_seconds)
            session.checked.add((str(path), is_mask))
        return path


def preview(image_file: ImageFile, mask: np.ndarray | None = None) -> Image.Image:
    """An image as a browser can show it, over white where transparent; its hole (H, W) bool is tinted."""
    height, width = image_file.shape
    side = max(height, width)
    scale = min(max(side, PREVIEW[0]), PREVIEW[1]) / side
    size = max(1, round(width * scale)), max(1, round(height * scale))

    def resized(values: np.ndarray) -> np.ndarray:
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
        return np.atleast_3d(cv2.resize(values, size, interpolation=interpolation))

    shown: np.ndarray = np.broadcast_to(to_unit(resized(image_file.colors())), (size[1], size[0], 3))
    alpha = image_file.alpha
    if alpha is not None:
        shown = 1 + resized(alpha) * (shown - 1)
    if mask is not None:
        weight = 0.6 * resized(mask.astype(np.float32))
        shown = shown + weight * (np.array(TINT, np.float32) / 255 - shown)
    image = Image.fromarray((shown.clip(0, 1) * 255).round().astype(np.uint8))
    if image_file.raster.space == "rgb" and image_file.icc:
        image.info["icc_profile"] = image_file.icc
    return image


def read_strokes(canvas: Any, session: Session) -> np.ndarray | None:
    """The opacity (h, w) uint8 of all layers painted in the editor; None if nothing was painted.

    Raises:
        UserError: if they are not PNG files of this session, of one size that the editor can have.
    """
    layers = []
    for file in (canvas or {}).get("layers") or []:
        path = session.open(file)
        try:
            with Image.open(path or "", formats=["PNG"]) as image:
                if max(image.size) > 2 * PREVIEW[1]:
                    raise ValueError("too large")
                layers.append(np.asarray(image.convert("RGBA"))[:, :, 3])
        except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError):
            raise UserError("what was painted cannot be read: reload the page") from None
    if len({layer.shape for layer in layers}) > 1:
        raise UserError("what was painted cannot be read: reload the page")
    painted = np.maximum.reduce(layers) if layers else None
    return painted if painted is not None and painted.any() else None


def whole_number(value: Any, name: str) -> int:
    """The number of pixels that a slider was moved to.

    Raises:
        UserError: naming the slider, if it cannot be moved there.
    """
    return int(slider_value(value, name, MAX_GROW, "pixels"))


def share(value: Any, name: str) -> float:
    """The share in [0, 1] that a slider was moved to, in per cent.

    Raises:
        UserError: naming the slider, if it cannot be moved there.
    """
    return slider_value(value, name, 100, "%") / 100


def slider_value(value: Any, name: str, highest: int, unit: str) -> float:
    """The number that a slider was moved to, from 0 to `highest`.

    Raises:
        UserError: naming the slider, if it cannot be moved there.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
        raise UserError(f"{name} must be from 0 to {highest} {unit}")
    return value


def open_request(
    image_path: Path | None, mask_path: Path | None, strokes: np.ndarray | None, folder: Path, **settings: Any
) -> Job:
    """The job to fill an uploaded image: the strokes painted over it, its mask file, or both.

    Args:
        folder: the folder of the result.
        settings: other fields of `FillSettings`.

    Raises:
        UserError: if there is no image or no hole, or a file cannot be read.
    """
    if image_path is None:
        raise UserError("open a picture first")
    if mask_path is None and strokes is None:
        raise UserError("nothing is marked: paint over what should go, or load a mask")
    asked = FillSettings(str(image_path), str(folder), str(mask_path or ""), **settings)
    source = Source(image_path, mask_path, Path(f"{image_path.stem}_filled{image_path.suffix}"))
    job = open_job(asked, source, Targets(asked, [source]), strokes)
    assert job is not None  # only `skip_existing` gives none
    if not job.mask.any():
        raise UserError("nothing is marked: the mask is black, or the strokes are finer than a pixel")
    verify = job.image_file.exact(asked.lossless)
    return dataclasses.replace(job, settings=dataclasses.replace(asked, verify=verify))
