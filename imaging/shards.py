"""Training images from WebDataset shards: tar files read in order, for data too large for a cache."""

import functools
import io
import itertools
import json
import math
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from imaging.augment import UNCHANGED, Augmentation
from imaging.files import EXTENSIONS, name_digest
from imaging.read import read_scaled
from imaging.sample import MaskFolder, make_sample
from utils import DEFAULT_MASK_RATIO, UserError, split_roots

BUFFER = 1000  # encoded images that a loader worker holds in memory and shuffles together


def expand(root: str) -> list[str]:
    """Paths of the shards of a root: joined by the system's path separator, with ranges as `{000..099}.tar`.

    Raises:
        UserError: for the first shard that is missing, or if the webdataset library is.
    """
    try:
        import webdataset  # noqa: F401
        from braceexpand import braceexpand
    except ImportError:
        raise UserError("--train_root: shards need the webdataset library: pip install webdataset") from None
    try:
        paths = list(braceexpand(root, escape=False))
        if not all(map(os.path.isfile, paths)):  # else the separator is part of a name
            paths = [path for part in split_roots(root) for path in braceexpand(part, escape=False)]
    except ValueError as error:
        raise UserError(f"--train_root: not a range of shards: {root} ({error})") from None
    for path in paths:
        if not path.endswith(".tar") or os.path.isdir(path):
            raise UserError(f"--train_root: shards and folders do not mix: {path}")
        if not os.path.isfile(path):
            raise UserError(f"--train_root: no such shard: {path}")
    return paths


def count_images(paths: list[str]) -> list[int]:
    """The number of images in each shard.

    A `sizes.json` beside the shards, `{"000000.tar": 1000, ...}`, is trusted without checking. Without one,
    the tar headers are read, one read and one seek per file in the shard, once per process.

    Raises:
        UserError: for a damaged shard or `sizes.json`.
    """
    sizes: dict[Path, dict[str, int]] = {}
    for folder in {Path(path).parent for path in paths}:
        file = folder / "sizes.json"
        try:
            sizes[folder] = {name: int(size) for name, size in json.loads(file.read_text()).items()}
        except FileNotFoundError:
            sizes[folder] = {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"--train_root: not a list of shards and their sizes: {file} ({error})") from None
    counts = []
    for path in map(Path, paths):
        size = sizes[path.parent].get(path.name)
        if size is None:
            size = inspect_shard(path, path.stat().st_mtime_ns)[0]
        elif not _has_end(path):
            print(f"note: --train_root {path}: no end mark: was it cut?", file=sys.stderr)
        counts.append(size)
    return counts


@functools.cache
def inspect_shard(path: Path, modified_ns: int) -> tuple[int, str]:
    """Count the images in a shard by its headers, and give the reason if other files look like images.

    Notes on stderr report such files, and a shard that seems to have been cut.

    Args:
        modified_ns: the file's time of modification, so that a changed file is read again.

    Raises:
        UserError: if the shard is damaged.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            names = [member.name for member in tar if member.isreg()]
            end = tar.offset  # tarfile stops without a word at a header that is damaged or cut
        with path.open("rb") as file:
            file.seek(end)
            mark = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"--train_root: cannot read {path}: {error}") from None
    keys = [name.rpartition(".")[0] for name in names if _is_image(name)]
    count = sum(1 for _ in itertools.groupby(keys))
    if mark != bytes(tarfile.BLOCKSIZE) and mark:
        raise UserError(
            f"--train_root: cannot read {path}: damaged or cut at byte {end:,}, after {count:,} images"
        )
    if not mark:
        print(
            f"note: --train_root {path}: no end mark: was it cut after its {count:,} images?",
            file=sys.stderr,
        )
    counted = set(keys)
    unused = [name for name in names if _has_dotted_key(name) and _split(name)[0] not in counted]
    if not unused:
        return count, ""
    key = _split(unused[0])[0]
    reason = f"a key ends at the first dot of a name, so {unused[0]} is no image but belongs to {key}"
    print(f"note: --train_root {path}: {len(unused):,} files are not used: {reason}", file=sys.stderr)
    return count, reason


def _has_end(path: Path) -> bool:
    """Whether a tar file ends with a block of zeros, as a complete one does."""
    with path.open("rb") as file:
        file.seek(-min(tarfile.BLOCKSIZE, path.stat().st_size), os.SEEK_END)
        return file.read() == bytes(tarfile.BLOCKSIZE)


def _split(name: str) -> tuple[str, str]:
    """The key of a file in a shard, its path up to the first dot of its name, and the rest of its name."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffixes = file.partition(".")
    return folder + slash + stem, suffixes


def _is_image(name: str) -> bool:
    """Whether a file in a shard is a sample's image: `key.jpg`, but not `key.mask.png` or `._key.jpg`."""
    key, suffixes = _split(name)
    return key[-1:] not in ("", "/") and f".{suffixes.lower()}" in EXTENSIONS and not name.startswith("__")


def _has_dotted_key(name: str) -> bool:
    """Whether a file in a shard would be an image if keys could hold dots: `key.001.jpg`."""
    key, suffixes = _split(name)
    return "." in suffixes and _is_image(f"{key.rpartition('/')[2]}.{suffixes.rpartition('.')[2]}")


class EncodedImage(io.BytesIO):
    """An encoded image in memory; its `str`, shown in errors, is its key and its shard."""

    def __init__(self, encoded: bytes, key: str, shard: str) -> None:
        super().__init__(encoded)
        self.key, self.shard = key, shard

    def __str__(self) -> str:
        return f"{self.key} in {self.shard}"


def read_shard(path: str) -> Iterator[EncodedImage]:
    """The images of a shard, in its order; the first of a key that has several.

    Raises:
        UserError: if the shard is damaged.
    """
    from webdataset.handlers import ignore_and_continue
    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        with open(path, "rb") as file:
            sources = [{"url": path, "stream": file}]
            members = tar_file_expander(sources, select_files=_is_image, eof_value=None)
            for sample in group_by_keys(members, handler=ignore_and_continue):  # ignores repeated names
                encoded = next(value for name, value in sample.items() if not name.startswith("__"))
                yield EncodedImage(encoded, sample["__key__"], path)
    except (tarfile.TarError, OSError) as error:
        reason = getattr(error, "strerror", None) or error.args[0]  # webdataset appends further arguments
        raise UserError(f"--train_root: cannot read {path}: {reason}") from None


def read_range(path: str, start: int, stop: int) -> Iterator[EncodedImage]:
    """The images of a shard from index `start` up to `stop`.

    Raises:
        UserError: if the shard is damaged, or has fewer images.
    """
    found = start
    for image in itertools.islice(read_shard(path), start, stop):
        yield image
        found += 1
    if found < stop:
        raise UserError(
            f"--train_root: only {found} images in {path}, where "
            f"sizes.json or an earlier count said at least {stop}"
        )


class ShardDataset(IterableDataset):
    """The images of shards, each with a mask, in an order that derives from (seed, epoch).

    An epoch is the concatenation of all shards in random order: positions 0 to N - 1 of N images.

    - Each of P processes takes L = N // P consecutive positions; the last N - P·L are left out.
    - Within its process, each of W workers takes a consecutive part. The `DataLoader` asks the workers for
      batches in turn, worker 0 first, so worker w's part is as long as batches w, w + W, w + 2W, ... of a
      process's L images together. All batches but the last are then full.
    - Each worker divides its part into equal blocks of at most `buffer` images, reads a block, still
      encoded, and shuffles it with a generator of (seed, epoch, rank, worker, block).

    A shard that lies across two parts is read for both. Crop, flip and mask derive from (seed, epoch, shard,
    key). An unreadable image is replaced by the next one of its block, with a warning, so that all processes
    have equally many.

    A resumed pass begins where every process has seen `start // P` images, b full batches. The `DataLoader`
    again asks its worker 0 first, but the next batch is that of worker b mod W; so each worker takes the
    part of worker (its id + b) mod W. That worker has yielded its share of the first b batches. It reads on
    from the block in which that ends, shuffles the block as before, and skips what it has yielded. The
    batches are those of the uninterrupted pass if P, W, the batch size and `buffer` are unchanged; otherwise
    some images of the epoch come twice and others not at all.

    Args:
        root: see `expand`.
        batch_size: batch size of the `DataLoader`.
        max_images: maximum number of images, from as few shards as possible, chosen by seed; None for all.
        rank, num_processes: this process and P.
        buffer: maximum number of images that a worker holds in memory and shuffles together.
        others: see `InpaintingDataset`; only mask files are cached.

    Attributes:
        epoch, start: where the next pass begins; `start` counts the images that all processes together have
            seen of the epoch.

    Items are those of `InpaintingDataset` in training; the name is the key. `len` is L.

    Raises:
        UserError: see `expand` and `count_images`; fewer images than processes; during a pass, if a shard
            holds fewer images than were counted, or no image of a block can be decoded.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 256,
        *,
        batch_size: int = 8,
        max_images: int | None = None,
        mask_ratio: tuple[float, float] = DEFAULT_MASK_RATIO,
        mask_root: str = "",
        invert_mask: bool = False,
        augmentation: Augmentation = UNCHANGED,
        seed: int = 42,
        cache_dir: str | Path | None = "",
        rank: int = 0,
        num_processes: int = 1,
        buffer: int = BUFFER,
    ) -> None:
        self.image_size, self.batch_size, self.mask_ratio = image_size, batch_size, mask_ratio
        self.augmentation, self.seed, self.buffer = augmentation, seed, buffer
        self.rank, self.num_processes = rank, num_processes
        self.epoch = self.start = 0
        self.unreadable: list[str] = []  # always empty: unreadable images are found and reported in a pass
        self.shards = expand(root)
        self.counts = np.array(count_images(self.shards))
        if max_images is not None:
            order = np.random.default_rng(seed).permutation(len(self.shards))
            before = np.cumsum(self.counts[order]) - self.counts[order]
            self.counts[order] = np.clip(max_images - before, 0, self.counts[order])
        self.length = int(self.counts.sum()) // num_processes
        if self.length == 0:
            reasons = [inspect_shard(path, path.stat().st_mtime_ns)[1] for path in map(Path, self.shards)]
            hint = next((f" ({reason})" for reason in reasons if reason), "")
            raise UserError(
                f"--train_root: {self.counts.sum()} images in {root}, {num_processes} process(es){hint}"
            )
        self.stored_size = size = math.ceil(image_size / augmentation.min_crop)
        self.masks = MaskFolder(Path(mask_root), size, invert_mask, cache_dir) if mask_root else None

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        num_workers, worker = (info.num_workers, info.id) if info is not None else (1, 0)
        seen = self.start // self.num_processes
        worker = (worker + seen // self.batch_size) % num_workers
        lengths = [self._share(self.length, k, num_workers) for k in range(num_workers)]
        first = self.rank * self.length + sum(lengths[:worker])
        last, resume = first + lengths[worker], first + self._share(seen, worker, num_workers)
        # block k holds the positions bounds[k] up to bounds[k + 1]
        bounds = np.linspace(first, last, math.ceil(lengths[worker] / self.buffer) + 1).astype(int)
        first_block = int(np.searchsorted(bounds, resume, side="right")) - 1
        stream = self._read_positions(bounds[first_block], last)
        for block in range(first_block, len(bounds) - 1):
            images = list(itertools.islice(stream, bounds[block + 1] - bounds[block]))
            generator = np.random.default_rng([self.seed, self.epoch, self.rank, worker, block])
            generator.shuffle(images)
            for i in range(max(0, resume - bounds[block]), len(images)):
                yield self._first_readable(images[i:] + images[:i])

    def _share(self, count: int, worker: int, num_workers: int) -> int:
        """Number of a process's first `count` images that are in batches of this worker."""
        batches, rest = divmod(count, self.batch_size)
        full = len(range(worker, batches, num_workers)) * self.batch_size
        return full + (rest if batches % num_workers == worker else 0)

    def _read_positions(self, first: int, last: int) -> Iterator[EncodedImage]:
        """The images at positions `first` up to `last` of the epoch."""
        begin = 0  # position of a shard's first image
        for i in np.random.default_rng([self.seed, self.epoch]).permutation(len(self.shards)):
            start, stop = (min(max(0, position - begin), self.counts[i]) for position in (first, last))
            if start < stop:
                yield from read_range(self.shards[i], start, stop)
            begin += self.counts[i]

    def _first_readable(self, images: list[EncodedImage]) -> dict[str, Any]:
        """The sample of the first image that can be decoded."""
        for encoded in images:
            try:
                image = read_scaled(encoded, self.stored_size)
            except UserError as error:
                print(f"warning: {error}; the next image is used instead", file=sys.stderr)
                continue
            identity = name_digest(f"{Path(encoded.shard).name}/{encoded.key}")
            return make_sample(
                image,
                encoded.key,
                np.random.default_rng([self.seed, self.epoch, identity]),
                image_size=self.image_size,
                mask_ratio=self.mask_ratio,
                masks=self.masks,
                augmentation=self.augmentation,
            )
        raise UserError(f"--train_root: no image can be read any more in {images[0].shard}")
