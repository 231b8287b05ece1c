"""Data loaders of a run, over folders or shards."""

from typing import Any

import torch
from torch.utils.data import DataLoader

from config import Config
from dataset import Loader, get_dataloaders, validation_loader
from imaging.augment import Augmentation
from imaging.shards import ShardDataset
from training.state import TrainingState
from utils import is_shards


def shard_loader(
    root: str, batch_size: int = 8, image_size: int = 256, *, num_workers: int = 2, **settings: Any
) -> DataLoader:
    """A training loader like that of `get_dataloaders`; `settings` are those of `ShardDataset`."""
    data = ShardDataset(root, image_size, batch_size=batch_size, **settings)
    return Loader(data, batch_size, num_workers=num_workers, pin_memory=torch.cuda.is_available())


def set_position(loader: DataLoader, epoch: int, start: int) -> None:
    """Let the next pass of a training loader, over a folder or shards, begin at item `start` of `epoch`.

    `start` counts the items that all processes have seen in the epoch.
    """
    position: Any = loader.dataset if isinstance(loader.dataset, ShardDataset) else loader.sampler
    position.epoch, position.start = epoch, start


def make_loaders(run: TrainingState) -> tuple[DataLoader, DataLoader]:
    """This process's training images at the run's present size, validation images at the configuration's."""
    return loaders_of(run.config, run.size, run.batch_size, run.rank, run.num_processes)


def loaders_of(
    config: Config, size: int, batch_size: int, rank: int = 0, num_processes: int = 1
) -> tuple[DataLoader, DataLoader]:
    """Training images of `size` pixels, validation images of the configuration's size."""
    shared: dict[str, Any] = {
        "mask_ratio": config.mask_ratio,
        "mask_root": config.mask_root,
        "invert_mask": config.invert_mask,
        "num_workers": config.num_workers,
        "seed": config.seed,
        "cache_dir": config.cache_dir if config.cache else None,
    }
    augmentation = Augmentation(config.min_crop, config.rotate, config.color_jitter)
    mine: dict[str, Any] = {"augmentation": augmentation, "rank": rank, "num_processes": num_processes}
    if not is_shards(config.train_root):
        return get_dataloaders(
            config.train_root,
            config.val_root,
            batch_size,
            size,
            val_size=config.image_size,
            train_subset=config.train_subset or None,
            val_subset=config.val_subset or None,
            max_enlarge=config.max_enlarge,
            **mine,
            **shared,
        )
    train_loader = shard_loader(
        config.train_root, batch_size, size, max_images=config.train_subset or None, **mine, **shared
    )
    return train_loader, validation_loader(
        config.val_root, batch_size, config.image_size, max_images=config.val_subset or None, **shared
    )
