"""One training sample: an image and its mask, cropped, flipped and recoloured alike."""

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from imaging.augment import UNCHANGED, Augmentation, Cut
from imaging.cache import INVERTED_MASKS, MASKS, open_pixels
from imaging.files import EXTENSIONS, find_images
from imaging.mask_file import masks_by_image, summarise
from imaging.random_masks import random_mask
from utils import UserError


class MaskFolder:
    """Mask files made by others: an image's own, by path or by stem, else any of them.

    What is odd about them is said on the standard error, every kind of oddity once.
    """

    def __init__(self, root: Path, image_size: int, invert: bool, cache_dir: str | Path | None) -> None:
        files = find_images(root, "--mask_root")
        kind = INVERTED_MASKS if invert else MASKS
        self.pixels = open_pixels(files, image_size, kind, cache_dir, label="masks")
        if self.pixels.unreadable:
            raise UserError(f"--mask_root: {self.pixels.unreadable[0]}")
        by_image, notes = masks_by_image(files, root)
        position = {path: i for i, path in enumerate(files)}
        self.index = {name: position[path] for name, path in by_image.items()}
        names = [str(path.relative_to(root)) for path in files]
        for note in [*summarise(zip(names, self.pixels.findings, strict=True)), *notes]:
            print(f"note: --mask_root {root}: {note}", file=sys.stderr)

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        cut: Cut,
        size: int,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """(size, size) uint8 in {0, 1}: the image's own mask cropped as the image is, or any, scaled."""
        stem, _, extension = name.rpartition(".")
        name = stem if f".{extension}".lower() in EXTENSIONS else name
        own = self.index.get(name, self.index.get(name.rpartition("/")[2]))
        mask = self.pixels[int(generator.integers(len(self.pixels))) if own is None else own]
        if own is not None:
            mask = cv2.resize(mask, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
            return cut.take(mask, size, nearest=True)
        return cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST)


def make_sample(
    image: np.ndarray,
    name: str,
    generator: np.random.Generator,
    *,
    image_size: int,
    mask_ratio: tuple[float, float],
    masks: MaskFolder | None = None,
    augmentation: Augmentation = UNCHANGED,
    random_crop: bool = True,
    random_flip: bool = True,
) -> dict[str, Any]:
    """One item of `InpaintingDataset` from a decoded picture; every draw comes from `generator`.

    Args:
        image: (H, W, 3) uint8, its shorter side `image_size / augmentation.min_crop` pixels or more.
        masks: to be used instead of drawn masks of the range `mask_ratio`.
        random_crop: else the centre is cut out.
    """
    cut = augmentation.draw_cut(image.shape, image_size, generator, centered=not random_crop)
    flip = random_flip and generator.random() < 0.5
    if masks is None:
        mask = random_mask(image_size, image_size, mask_ratio, generator)
    else:
        mask = masks.read(name, image.shape[:2], cut, image_size, generator)
    colors = cut.take(image, image_size).astype(np.float32) / 255
    if flip:
        colors, mask = colors[:, ::-1], mask[:, ::-1]
    colors = augmentation.recolor(colors, generator)
    return {
        "image": torch.from_numpy(np.ascontiguousarray(colors.transpose(2, 0, 1))),
        "mask": torch.from_numpy(mask[None].astype(np.float32)),
        "name": name,
    }
