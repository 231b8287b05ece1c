"""Images and masks as batches: crops, flips and masks of a requested mask ratio, every draw repeatable."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import Unpack

from imaging.augment import UNCHANGED, Augmentation
from imaging.cache import IMAGES, open_pixels
from imaging.files import (
    SAMPLE,
    choose_subset,
    list_root,
    name_digest,
    require_large_images,
    require_readable,
    too_small,
)
from imaging.random_masks import random_free_form_mask, random_rectangular_mask
from imaging.read import short_side_of
from imaging.sample import MaskFolder, make_sample
from utils import DEFAULT_MASK_RATIO, UserError

__all__ = [
    "EpochSampler",
    "InpaintingDataset",
    "Loader",
    "get_dataloaders",
    "random_free_form_mask",
    "random_rectangular_mask",
    "report_unreadable",
    "validation_loader",
]


class InpaintingDataset(Dataset):
    """Images below a folder, each with a mask.

    An item is a dict of image (3, S, S) float32 in [0, 1], mask (1, S, S) float32, 1 = missing, and name.
    `dataset[i]` is the i-th item of epoch 0 and `dataset[epoch, i]` that of any epoch, as `EpochSampler`
    asks for it. In training, the random draws of crop, flip and mask derive from (seed, epoch, i). In
    validation the crop is the centre (for `sample`, random by the name), and the mask depends on the seed
    and the file's name alone.

    Args:
        root: a folder, several joined by the system's path separator, or `sample`.
        image_size: side S of the square crops, in pixels; the shorter side is scaled to it.
        training: draw anew in every epoch; see above.
        max_images: maximum number of images, chosen by the seed; None for all.
        mask_ratio: range of the mask ratio of random masks.
        mask_root: folder of mask files to use instead of random masks. A file with an image's path or stem,
            with or without `_mask`, belongs to that image and is cropped like it; other images get any file.
        invert_mask: in mask files black, not white, is missing.
        augmentation: random changes of training images.
        max_enlarge: leave out training images that would be enlarged by more than this factor; 0 for none.
        cache_dir: folder of decoded images; "" for the user's cache folder, None to decode at every use.
        flag: the flag that errors name as the source of `root`.

    Raises:
        UserError: no folder, no image, none readable, or more than 1 % unreadable.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 256,
        *,
        training: bool = True,
        max_images: int | None = None,
        mask_ratio: tuple[float, float] = DEFAULT_MASK_RATIO,
        mask_root: str = "",
        invert_mask: bool = False,
        augmentation: Augmentation = UNCHANGED,
        max_enlarge: float = 0.0,
        seed: int = 42,
        cache_dir: str | Path | None = "",
        flag: str = "--train_root",
    ) -> None:
        self.image_size, self.training, self.mask_ratio, self.seed = image_size, training, mask_ratio, seed
        self.augmentation = augmentation if training else UNCHANGED
        self.random_crop = training or root == SAMPLE
        paths, names = list_root(root, training, flag)
        chosen = choose_subset(len(paths), max_images, seed)
        if training and max_enlarge:
            sides = {path: short_side_of(path) for path in {paths[i] for i in chosen}}
            chosen = [i for i in chosen if not too_small(sides[paths[i]], image_size, max_enlarge)]
            require_large_images(len(chosen), root, image_size)

        stored_size = math.ceil(image_size / self.augmentation.min_crop)
        short_side = stored_size * 3 // 2 if root == SAMPLE else stored_size
        files = sorted({paths[i] for i in chosen})
        self.pixels = open_pixels(files, short_side, IMAGES, cache_dir, label=flag.lstrip("-"))
        self.unreadable = self.pixels.unreadable
        require_readable(self.unreadable, len(files), root, flag)
        position = {files[i]: k for k, i in enumerate(self.pixels.readable)}
        readable = [i for i in chosen if paths[i] in position]
        self.positions = [position[paths[i]] for i in readable]  # in `pixels`
        self.names = [names[i] for i in readable]
        self.masks = MaskFolder(Path(mask_root), stored_size, invert_mask, cache_dir) if mask_root else None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The items of epoch 0, in order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        name = self.names[index]
        draws = [epoch, index] if self.training else [name_digest(name)]
        return make_sample(
            self.pixels[self.positions[index]],
            name,
            np.random.default_rng([self.seed, *draws]),
            image_size=self.image_size,
            mask_ratio=self.mask_ratio,
            masks=self.masks,
            augmentation=self.augmentation,
            random_crop=self.random_crop,
            random_flip=self.training,
        )


def report_unreadable(dataset: InpaintingDataset) -> None:
    """Name the skipped images on stderr."""
    for line in dataset.unreadable:
        print(f"skipped: {line}", file=sys.stderr)


class EpochSampler(Sampler[tuple[int, int]]):
    """Keys (epoch, index) of all items, once per epoch, in an order that derives from (seed, epoch).

    The epoch advances by itself with every pass; to resume, set `epoch` and `start`, the number of items of
    that epoch that all processes together have seen. Each of several processes gets an equal part of the
    order, without the remainder.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, num_processes: int = 1) -> None:
        self.length, self.seed, self.rank, self.num_processes = length, seed, rank, num_processes
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start = self.epoch, self.start
        self.epoch, self.start = epoch + 1, 0
        order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        order = order[start : len(self) * self.num_processes]
        return iter([(epoch, index) for index in order[self.rank :: self.num_processes].tolist()])

    def __len__(self) -> int:
        return self.length // self.num_processes


class Loader(DataLoader):
    """A `DataLoader` that reports in one line if there is no room for its worker processes."""

    def __iter__(self) -> Any:
        if self.num_workers:
            try:  # torch leaves tracebacks behind where it fails half way
                semaphores = [torch.multiprocessing.Semaphore() for _ in range(8 + 3 * self.num_workers)]
            except OSError as error:
                raise UserError(
                    f"--num_workers: {self.num_workers} loader processes do not start ({error.strerror}: "
                    "is /dev/shm full?): use --num_workers 0"
                ) from None
            del semaphores
        return super().__iter__()


class DatasetSettings(TypedDict, total=False):
    """Arguments of `InpaintingDataset` that training and validation share."""

    mask_ratio: tuple[float, float]
    mask_root: str
    invert_mask: bool
    augmentation: Augmentation
    max_enlarge: float
    seed: int
    cache_dir: str | Path | None


def get_dataloaders(
    train_root: str,
    val_root: str,
    batch_size: int = 8,
    image_size: int = 256,
    *,
    val_size: int | None = None,
    train_subset: int | None = None,
    val_subset: int | None = None,
    num_workers: int = 2,
    rank: int = 0,
    num_processes: int = 1,
    **settings: Unpack[DatasetSettings],
) -> tuple[DataLoader, DataLoader]:
    """Training and validation loaders over folders of images.

    Args:
        batch_size: images per batch and process.
        image_size: side of the crops in pixels; of validation images, `val_size` if given.
        train_subset, val_subset: maximum number of images; None for all.
        rank, num_processes: this process and their number; each gets an equal part of the training images.
        settings: see `InpaintingDataset`.

    Batches are dicts of image (B, 3, S, S) in [0, 1], mask (B, 1, S, S), 1 = missing, and name.
    """
    train_set = InpaintingDataset(train_root, image_size, max_images=train_subset, **settings)
    if len(train_set) < num_processes:
        raise UserError(f"--train_root: {len(train_set)} images in {train_root}, {num_processes} processes")
    train_loader = Loader(
        train_set,
        batch_size,
        sampler=EpochSampler(len(train_set), train_set.seed, rank, num_processes),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,  # workers need no restart: each key holds its epoch
    )
    val_size = val_size or image_size
    return train_loader, validation_loader(
        val_root, batch_size, val_size, max_images=val_subset, num_workers=num_workers, **settings
    )


def validation_loader(
    root: str,
    batch_size: int = 8,
    image_size: int = 256,
    *,
    max_images: int | None = None,
    num_workers: int = 2,
    **settings: Unpack[DatasetSettings],
) -> DataLoader:
    """A validation loader like that of `get_dataloaders`."""
    data = InpaintingDataset(
        root, image_size, training=False, max_images=max_images, flag="--val_root", **settings
    )
    return Loader(data, batch_size, num_workers=num_workers, pin_memory=torch.cuda.is_available())
