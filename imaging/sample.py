"""One training sample: an image and its mask, cropped, flipped and recoloured together."""

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from imaging.augment import UNCHANGED, Augmentation, Crop
from imaging.cache import INVERTED_MASKS, MASKS, open_pixels
from imaging.files import EXTENSIONS, find_images
from imaging.mask_file import masks_by_image, summarise
from imaging.random_masks import random_mask
from utils import UserError


class MaskFolder:
    """Mask files below a folder: an image's own, by path or by stem, else a random one.

    Masks are scaled to a shorter side of `image_size`. Notes on stderr report each kind of finding once.

    Raises:
        UserError: no folder, no mask, or one that cannot be read.
    """

    def __init__(self, root: Path, image_size: int, invert: bool, cache_dir: str | Path | None) -> None:
        files = find_images(root, "--mask_root")
        kind = INVERTED_MASKS if invert else MASKS
        self.pixels = open_pixels(files, image_size, kind, cache_dir, label="masks")
        if self.pixels.unreadable:
            raise UserError(f"--mask_root: {self.pixels.unreadable[0]}")
        by_image, notes = masks_by_image(files, root)
        position = {path: i for i, path in enumerate(files)}
        self.positions = {name: position[path] for name, path in by_image.items()}
        names = [str(path.relative_to(root)) for path in files]
        for note in [*summarise(zip(names, self.pixels.findings, strict=True)), *notes]:
            print(f"note: --mask_root {root}: {note}", file=sys.stderr)

    def read(
        self, name: str, shape: tuple[int, ...], crop: Crop, size: int, generator: np.random.Generator
    ) -> np.ndarray:
        """The mask of an image: its own, cropped like the image, or a random one, scaled as a whole.

        Args:
            name, shape: the image's name and its (H, W), to which `crop` refers.

        Returns:
            (size, size) uint8 in {0, 1}, 1 = missing.
        """
        stem, _, extension = name.rpartition(".")
        name = stem if f".{extension}".lower() in EXTENSIONS else name
        own = self.positions.get(name, self.positions.get(name.rpartition("/")[2]))
        if own is None:
            mask = self.pixels[int(generator.integers(len(self.pixels)))]
            return cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST)
        mask = cv2.resize(self.pixels[own], (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
        return crop.apply(mask, size, nearest=True)


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
    """One item of `InpaintingDataset` from a decoded image; every random draw comes from `generator`.

    Args:
        image: (H, W, 3) uint8, its shorter side at least `image_size / augmentation.min_crop` pixels.
        mask_ratio: range of the mask ratio of random masks.
        masks: mask files to use instead of random masks.
        random_crop: crop at random, not at the centre.
    """
    crop = augmentation.draw_crop(image.shape, image_size, generator, centered=not random_crop)
    flip = random_flip and generator.random() < 0.5
    if masks is None:
        mask = random_mask(image_size, image_size, mask_ratio, generator)
    else:
        mask = masks.read(name, image.shape[:2], crop, image_size, generator)
    colors = crop.apply(image, image_size).astype(np.float32) / 255
    if flip:
        colors, mask = colors[:, ::-1], mask[:, ::-1]
    colors = augmentation.recolor(colors, generator)
    return {
        "image": torch.from_numpy(np.ascontiguousarray(colors.transpose(2, 0, 1))),
        "mask": torch.from_numpy(mask[None].astype(np.float32)),
        "name": name,
    }
