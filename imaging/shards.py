"""Training images from WebDataset shards: tar files read in order, for data too big for a cache."""

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
from utils import UserError, split_roots

BUFFER = 1000  # encoded pictures that a loader process holds, to mix them


def expand(root: str) -> list[str]:
    """The shards of a root: paths with brace ranges, such as `{000..099}.tar`, joined as folders are.

    Raises:
        UserError: naming the first file that is missing; or if the webdataset library is.
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


def count_samples(paths: list[str]) -> list[int]:
    """The number of pictures in each shard.

    Taken from a `sizes.json` beside the shards, `{"000000.tar": 1000, ...}`, which is believed; else from
    the tar headers, with one read and one seek a file in the shard, once in the life of the process.

    Raises:
        UserError: for a damaged shard or `sizes.json`.
    """
    known: dict[Path, dict[str, int]] = {}
    for folder in {Path(path).parent for path in paths}:
        file = folder / "sizes.json"
        try:
            known[folder] = {name: int(size) for name, size in json.loads(file.read_text()).items()}
        except FileNotFoundError:
            known[folder] = {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"--train_root: not a list of shards and their sizes: {file} ({error})") from None
    counts = []
    for path in map(Path, paths):
        size = known[path.parent].get(path.name)
        if size is None:
            size = look_at(path, path.stat().st_mtime_ns)[0]
        elif not _has_end(path):
            print(f"note: --train_root: {path} has no end mark: was it cut?", file=sys.stderr)
        counts.append(size)
    return counts


@functools.cache
def look_at(path: Path, modified_ns: int) -> tuple[int, str]:
    """The number of pictures in a shard, by its headers, and why others are not counted, if there are any.

    Notes on the standard error say this, and if the shard seems to have been cut.

    Raises:
        UserError: if it is damaged.
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
    keys = [name.rpartition(".")[0] for name in names if _is_picture(name)]
    count = sum(1 for _ in itertools.groupby(keys))
    if mark != bytes(tarfile.BLOCKSIZE) and mark:
        raise UserError(
            f"--train_root: cannot read {path}: damaged or cut at byte {end:,}, after {count:,} images"
        )
    if not mark:
        print(
            f"note: --train_root: {path} has no end mark: was it cut after its {count:,} images?",
            file=sys.stderr,
        )
    known = set(keys)
    others = [name for name in names if _has_dotted_key(name) and _key(name) not in known]
    if not others:
        return count, ""
    key = _key(others[0])
    reason = f"a key ends at the first dot of a name, so {others[0]} is no picture but belongs to {key}"
    print(f"note: --train_root: {len(others):,} files in {path} are not used: {reason}", file=sys.stderr)
    return count, reason


def _has_end(path: Path) -> bool:
    """Whether a tar file ends as they do, with a block of zeros."""
    with path.open("rb") as file:
        file.seek(-min(tarfile.BLOCKSIZE, path.stat().st_size), os.SEEK_END)
        return file.read() == bytes(tarfile.BLOCKSIZE)


def _is_picture(name: str) -> bool:
    """Whether a file in a shard is a sample's picture: `key.jpg`, but not `key.mask.png` or `._key.jpg`."""
    stem, _, suffixes = name.rpartition("/")[2].partition(".")
    return bool(stem) and f".{suffixes.lower()}" in EXTENSIONS and not name.startswith("__")


def _key(name: str) -> str:
    """The key of a file in a shard: its path up to the first dot of its name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _has_dotted_key(name: str) -> bool:
    """Whether a file in a shard would be a picture if keys might hold dots: `key.001.jpg`."""
    stem, _, suffixes = name.rpartition("/")[2].partition(".")
    return "." in suffixes and _is_picture(f"{stem}.{suffixes.rpartition('.')[2]}")


class Sample(io.BytesIO):
    """An encoded picture; error messages show its key and its shard."""

    def __init__(self, encoded: bytes, key: str, shard: str) -> None:
        super().__init__(encoded)
        self.key, self.shard = key, shard

    def __str__(self) -> str:
        return f"{self.key} in {self.shard}"


def read_shard(path: str) -> Iterator[Sample]:
    """The pictures of a shard, in its order; of a key with several, the first.

    Raises:
        UserError: if it is damaged.
    """
    from webdataset.handlers import ignore_and_continue
    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        with open(path, "rb") as file:
            sources = [{"url": path, "stream": file}]
            members = tar_file_expander(sources, select_files=_is_picture, eof_value=None)
            for sample in group_by_keys(members, handler=ignore_and_continue):  # of a name that comes twice
                encoded = next(value for name, value in sample.items() if not name.startswith("__"))
                yield Sample(encoded, sample["__key__"], path)
    except (tarfile.TarError, OSError) as error:
        reason = getattr(error, "strerror", None) or error.args[0]  # webdataset has appended others
        raise UserError(f"--train_root: cannot read {path}: {reason}") from None


def read_counted(path: str, start: int, stop: int) -> Iterator[Sample]:
    """The pictures of a shard from `start` up to `stop`.

    Raises:
        UserError: if it is damaged, or has not so many.
    """
    found = start
    for sample in itertools.islice(read_shard(path), start, stop):
        yield sample
        found += 1
    if found < stop:
        raise UserError(
            f"--train_root: only {found} images in {path}, where "
            f"sizes.json or an earlier count said at least {stop}"
        )


class ShardDataset(IterableDataset):
    """The pictures of an epoch, each with a hole, in an order of (seed, epoch).

    The shards come in a random order. Laid end to end, their pictures are cut into an equal part for every
    process, less a remainder, and this again for its loader's workers, such that the batches which the
    `DataLoader` takes from them in turn are full but for the last. A shard across a cut is read on both
    sides. A worker mixes up to `buffer` pictures at a time, still encoded. Crop, flip and mask derive from
    (seed, epoch, shard, key). The next picture stands in for an unreadable one, with a warning, so that all
    processes have equally many.

    Args:
        root: as of `expand`.
        batch_size: of the `DataLoader`.
        max_images: at most so many, from as few shards as possible, chosen by the seed; None for all.
        rank, num_processes: which part this process gets.
        buffer: at most so many pictures are mixed, and held in memory by each worker.
        others: as of `InpaintingDataset`; only mask files are cached.

    Attributes:
        epoch, start: where the next pass begins; `start` counts what all processes have seen of the epoch.
            What follows is what would have followed, if the numbers of processes and workers and the batch
            size are those of before; else some pictures of that epoch come twice and others not at all.

    Items are those of `InpaintingDataset` in training; the name is the key. `len` counts this process's.

    Raises:
        UserError: as `expand` and `count_samples`; fewer pictures than processes; in a pass, if a shard
            holds less than was counted, or nothing in it can be decoded.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 256,
        *,
        batch_size: int = 8,
        max_images: int | None = None,
        mask_ratio: tuple[float, float] = (0.1, 0.4),
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
        self.unreadable: list[str] = []  # found while iterating, and printed then
        self.shards = expand(root)
        self.counts = np.array(count_samples(self.shards))
        if max_images is not None:
            order = np.random.default_rng(seed).permutation(len(self.shards))
            before = np.cumsum(self.counts[order]) - self.counts[order]
            self.counts[order] = np.clip(max_images - before, 0, self.counts[order])
        self.length = int(self.counts.sum()) // num_processes
        if self.length == 0:
            reasons = [look_at(path, path.stat().st_mtime_ns)[1] for path in map(Path, self.shards)]
            reason = next((f" ({each})" for each in reasons if each), "")
            raise UserError(
                f"--train_root: {self.counts.sum()} images in {root}, {num_processes} process(es){reason}"
            )
        self.stored_size = math.ceil(image_size / augmentation.min_crop)
        self.masks = (
            MaskFolder(Path(mask_root), self.stored_size, invert_mask, cache_dir) if mask_root else None
        )

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info is not None else (1, 0)
        seen = self.start // self.num_processes
        worker = (worker + seen // self.batch_size) % workers  # the loader begins anew with the first one
        shares = [self._dealt(self.length, k, workers) for k in range(workers)]
        first = self.rank * self.length + sum(shares[:worker])
        last, done = first + shares[worker], first + self._dealt(seen, worker, workers)
        cuts = np.linspace(first, last, math.ceil(shares[worker] / self.buffer) + 1).astype(int)
        begun = int(np.searchsorted(cuts, done, side="right")) - 1
        stream = self._samples(cuts[begun], last)
        for block in range(begun, len(cuts) - 1):
            samples = list(itertools.islice(stream, cuts[block + 1] - cuts[block]))
            generator = np.random.default_rng([self.seed, self.epoch, self.rank, worker, block])
            generator.shuffle(samples)
            for i in range(max(0, done - cuts[block]), len(samples)):
                yield self._first_readable(samples[i:] + samples[:i])

    def _dealt(self, items: int, worker: int, workers: int) -> int:
        """How many of a process's first items fall to a worker, if batches are dealt in turn."""
        batches, rest = divmod(items, self.batch_size)
        full = len(range(worker, batches, workers)) * self.batch_size
        return full + (rest if batches % workers == worker else 0)

    def _samples(self, first: int, last: int) -> Iterator[Sample]:
        """The pictures from `first` up to `last` of the epoch's shards laid end to end."""
        begin = 0
        for i in np.random.default_rng([self.seed, self.epoch]).permutation(len(self.shards)):
            skipped, stop = (min(max(0, k - begin), self.counts[i]) for k in (first, last))
            if skipped < stop:
                yield from read_counted(self.shards[i], skipped, stop)
            begin += self.counts[i]

    def _first_readable(self, samples: list[Sample]) -> dict[str, Any]:
        for sample in samples:
            try:
                image = read_scaled(sample, self.stored_size)
            except UserError as error:
                print(f"warning: {error}; the next image stands in for it", file=sys.stderr)
                continue
            identity = name_digest(f"{Path(sample.shard).name}/{sample.key}")
            return make_sample(
                image,
                sample.key,
                np.random.default_rng([self.seed, self.epoch, identity]),
                image_size=self.image_size,
                mask_ratio=self.mask_ratio,
                masks=self.masks,
                augmentation=self.augmentation,
            )
        raise UserError(f"--train_root: no image can be read any more in {samples[0].shard}")
