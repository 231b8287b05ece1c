"""Data loaders of a training run, over folders or shards."""

from typing import Any

import torch
from torch.utils.data import DataLoader

from config import Config
from dataset import Loader, get_dataloaders, validation_loader
from imaging.augment import Augmentation
from imaging.shards import ShardDataset
from training.state import TrainingState
from utils import is_shards


def make_loaders(state: TrainingState) -> tuple[DataLoader, DataLoader]:
    """Loaders of this process's training images, at the current size, and of the validation images."""
    return loaders_at(state.config, state.size, state.batch_size, state.rank, state.num_processes)


def loaders_at(
    config: Config, size: int, batch_size: int, rank: int = 0, num_processes: int = 1
) -> tuple[DataLoader, DataLoader]:
    """Loaders of training images of `size` pixels, and of validation images of the configured size."""
    augmentation = Augmentation(config.min_crop, config.rotate, config.color_jitter)
    cache_dir = config.cache_dir if config.cache else None
    if not is_shards(config.train_root):
        return get_dataloaders(
            config.train_root, config.val_root, batch_size=batch_size, image_size=size,
            val_size=config.image_size, train_subset=config.train_subset or None,
            val_subset=config.val_subset or None, mask_ratio=config.mask_ratio, mask_root=config.mask_root,
            invert_mask=config.invert_mask, augmentation=augmentation, max_enlarge=config.max_enlarge,
            num_workers=config.num_workers, seed=config.seed, cache_dir=cache_dir, rank=rank,
            num_processes=num_processes,
        )  # fmt: skip
    train_loader = shard_loader(
        config.train_root, batch_size=batch_size, image_size=size, max_images=config.train_subset or None,
        mask_ratio=config.mask_ratio, mask_root=config.mask_root, invert_mask=config.invert_mask,
        augmentation=augmentation, num_workers=config.num_workers, seed=config.seed, cache_dir=cache_dir,
        rank=rank, num_processes=num_processes,
    )  # fmt: skip
    val_loader = validation_loader(
        config.val_root, batch_size=batch_size, image_size=config.image_size,
        max_images=config.val_subset or None, mask_ratio=config.mask_ratio, mask_root=config.mask_root,
        invert_mask=config.invert_mask, num_workers=config.num_workers, seed=config.seed,
        cache_dir=cache_dir,
    )  # fmt: skip
    return train_loader, val_loader


def shard_loader(
    root: str, batch_size: int = 8, image_size: int = 256, *, num_workers: int = 2, **settings: Any
) -> DataLoader:
    """A training loader over shards; `settings` are those of `ShardDataset`."""
    data = ShardDataset(root, image_size, batch_size=batch_size, **settings)
    return Loader(data, batch_size, num_workers=num_workers, pin_memory=torch.cuda.is_available())


def set_position(loader: DataLoader, epoch: int, start: int) -> None:
    """Let the next pass of a training loader start at item `start` of `epoch`.

    Args:
        start: items of the epoch already seen by all processes together.
    """
    position: Any = loader.dataset if isinstance(loader.dataset, ShardDataset) else loader.sampler
    position.epoch, position.start = epoch, start
