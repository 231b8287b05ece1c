"""Images and masks as batches: crops, flips and holes of a requested mask ratio, every draw repeatable."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from imaging.augment import UNCHANGED, Augmentation
from imaging.cache import IMAGES, open_pixels
from imaging.files import (
    MAX_UNREADABLE,
    SAMPLE,
    all_too_small,
    choose,
    list_root,
    name_digest,
    too_small,
)
from imaging.random_masks import random_free_form_mask, random_rectangular_mask
from imaging.read import short_side_of
from imaging.sample import MaskFolder, make_sample
from utils import UserError

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
    """Images below a folder, each with a hole; every random draw derives from (seed, epoch, index).

    In training, the crop, the flip and the mask change with the epoch. In validation the crop is the
    centre and the mask depends on the seed and the file's name alone.

    Args:
        root: a folder, several joined by the system's path separator, or `sample`.
        image_size: side of the square crops, in pixels; the shorter side is scaled to it.
        training: see above.
        max_images: at most so many, chosen by the seed; None for all.
        mask_ratio: range of missing shares.
        mask_root: folder of mask files instead of drawn masks; one whose stem is the image's, or the
            image's with `_mask`, belongs to it and is cropped like it; other images get any of them.
        invert_mask: black, not white, is missing in mask files.
        augmentation: how training pictures are changed.
        max_enlarge: leave out training pictures that would be enlarged by more than this factor; 0 for none.
        cache_dir: where decoded images are kept; "" for the user's cache folder, None to decode at every use.
        flag: what errors call the root.

    Item `epoch * len(self) + index` is a dict of image (3, S, S) float32 in [0, 1], mask (1, S, S)
    float32, 1 = missing, and name.

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
        mask_ratio: tuple[float, float] = (0.1, 0.4),
        mask_root: str = "",
        invert_mask: bool = False,
        augmentation: Augmentation = UNCHANGED,
        max_enlarge: float = 0.0,
        seed: int = 42,
        cache_dir: str | Path | None = "",
        flag: str = "--train_root",
    ) -> None:
        self.image_size, self.training, self.mask_ratio, self.seed = image_size, training, mask_ratio, seed
        self.random_crops = training or root == SAMPLE
        paths, names = list_root(root, training, flag)
        chosen = choose(len(paths), max_images, seed)
        paths, names = [paths[i] for i in chosen], [names[i] for i in chosen]

        if training and max_enlarge:
            sizes = {path: short_side_of(path) for path in set(paths)}
            large = [i for i, path in enumerate(paths) if not too_small(sizes[path], image_size, max_enlarge)]
            if not large:
                raise all_too_small(root, image_size)
            paths, names = [paths[i] for i in large], [names[i] for i in large]

        self.augmentation = augmentation if training else UNCHANGED
        stored_size = math.ceil(image_size / self.augmentation.min_crop)
        short_side = stored_size * 3 // 2 if root == SAMPLE else stored_size
        files = sorted(set(paths))
        self.pixels = open_pixels(files, short_side, IMAGES, cache_dir, label=flag.lstrip("-"))
        position = {files[i]: k for k, i in enumerate(self.pixels.readable)}
        self.unreadable = self.pixels.unreadable
        if self.unreadable and (not position or len(self.unreadable) > MAX_UNREADABLE * len(files)):
            raise UserError(
                f"{flag}: {len(self.unreadable)} of {len(files)} images in {root} cannot be read, "
                f"more than {MAX_UNREADABLE:.0%} allowed; the first: {self.unreadable[0]}"
            )
        items = [(position[path], name) for path, name in zip(paths, names, strict=True) if path in position]
        self.positions = [position for position, _ in items]
        self.names = [name for _, name in items]
        self.masks = MaskFolder(Path(mask_root), stored_size, invert_mask, cache_dir) if mask_root else None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The items of epoch 0, in order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: int) -> dict[str, Any]:
        epoch, index = divmod(int(key), len(self))
        name = self.names[index]
        if self.training:
            generator = np.random.default_rng([self.seed, epoch, index])
        else:
            generator = np.random.default_rng([self.seed, name_digest(name)])

        return make_sample(
            self.pixels[self.positions[index]],
            name,
            generator,
            image_size=self.image_size,
            mask_ratio=self.mask_ratio,
            masks=self.masks,
            augmentation=self.augmentation,
            random_crop=self.random_crops,
            random_flip=self.training,
        )


def report_unreadable(dataset: InpaintingDataset) -> None:
    """Name the images that were skipped, on the standard error."""
    for line in dataset.unreadable:
        print(f"skipped: {line}", file=sys.stderr)


class EpochSampler(Sampler[int]):
    """Every index once an epoch in an order of (seed, epoch), as keys `epoch * length + index`.

    The epoch advances by itself at the end of each pass; set `epoch` and `start` to resume in one.
    Of several processes, each gets its own share of the order, all of one length.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, num_processes: int = 1) -> None:
        self.length, self.seed, self.rank, self.num_processes = length, seed, rank, num_processes
        self.epoch = 0
        self.start = 0  # items of this epoch already seen, by all processes

    def __iter__(self) -> Iterator[int]:
        epoch, start = self.epoch, self.start
        self.epoch, self.start = epoch + 1, 0
        order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        order = order[start : len(self) * self.num_processes]
        return iter((epoch * self.length + order[self.rank :: self.num_processes]).tolist())

    def __len__(self) -> int:
        return self.length // self.num_processes


class Loader(DataLoader):
    """A `DataLoader` that says in one line if there is no room for its worker processes."""

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


def get_dataloaders(
    train_root: str,
    val_root: str,
    batch_size: int = 8,
    image_size: int = 256,
    *,
    val_size: int | None = None,
    train_subset: int | None = None,
    val_subset: int | None = None,
    mask_ratio: tuple[float, float] = (0.1, 0.4),
    mask_root: str = "",
    invert_mask: bool = False,
    augmentation: Augmentation = UNCHANGED,
    max_enlarge: float = 0.0,
    num_workers: int = 2,
    seed: int = 42,
    cache_dir: str | Path | None = "",
    rank: int = 0,
    num_processes: int = 1,
) -> tuple[DataLoader, DataLoader]:
    """Training and validation loaders; arguments as of `InpaintingDataset`.

    Args:
        image_size: of both, in pixels, unless `val_size` says otherwise of the validation images.
        batch_size: images a batch, of each process.
        train_subset, val_subset: at most so many images; None for all.
        rank, num_processes: which share of the training images this process gets.

    Batches are dicts of image (B, 3, S, S) in [0, 1], mask (B, 1, S, S), 1 = missing, and name.
    """
    shared: dict[str, Any] = {"mask_ratio": mask_ratio, "mask_root": mask_root, "invert_mask": invert_mask}
    shared |= {"seed": seed, "cache_dir": cache_dir}
    train_set = InpaintingDataset(
        train_root,
        image_size,
        max_images=train_subset,
        augmentation=augmentation,
        max_enlarge=max_enlarge,
        flag="--train_root",
        **shared,
    )
    sampler = EpochSampler(len(train_set), seed, rank, num_processes)
    pin_memory = torch.cuda.is_available()
    train_loader = Loader(
        train_set,
        batch_size,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,  # the epoch of an item is in its index
    )
    return train_loader, validation_loader(
        val_root, batch_size, val_size or image_size, max_images=val_subset, num_workers=num_workers, **shared
    )


def validation_loader(
    root: str, batch_size: int = 8, image_size: int = 256, *, num_workers: int = 2, **settings: Any
) -> DataLoader:
    """A validation loader as of `get_dataloaders`; `settings` are those of `InpaintingDataset`."""
    data = InpaintingDataset(root, image_size, training=False, flag="--val_root", **settings)
    return Loader(data, batch_size, num_workers=num_workers, pin_memory=torch.cuda.is_available())
