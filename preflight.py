"""What a run would learn from and what it would cost, found out beforehand (`--dry_run`); writes nothing."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import math
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from cli import UserError
from config import Config
from dataset import MAX_UNREADABLE, MaskFolder, list_root, random_mask
from files import is_shards
from image_cache import BLOCK, read_image
from losses import InpaintingLoss
from shards import Sample, ShardDataset, read_shard
from train import Run, keep_freed_memory, train_step
from utils import seed_everything, select_device

SIDE = 32  # pixels, of the picture whose cosine transform is hashed
THUMBNAIL = 16  # pixels, side of what candidates are compared by
# Copies (JPEG of quality 30, a third of the size) were at most 4 bits apart and correlated by 0.985 or more.
# Of 634,000 pairs of portraits, all frontal before a plain ground, 298 were up to 8 bits apart, and none of
# those, nor any other pair, correlated by more than 0.93.
MAX_DISTANCE = 8  # bits
MIN_CORRELATION = 0.96
MIN_CONTRAST = 2.0  # standard deviation in grey levels of 255, below which there is nothing to compare
EXAMPLES = 5  # problems of a kind that are named
ROUNDS = 3  # measured steps, after one that is not


@dataclass(frozen=True)
class Prints:
    """What readable pictures are recognised by: names and SHA-256 of N files, and how they look.

    Shapes:
        signs (N, 64) int8 in {-1, 1}, 0 for a picture without structure; thumbnails (N, 256) uint8.
    """

    names: list[str]
    digests: list[bytes]
    signs: np.ndarray
    thumbnails: np.ndarray

    def select(self, rows: list[int]) -> "Prints":
        names, digests = [self.names[i] for i in rows], [self.digests[i] for i in rows]
        return Prints(names, digests, self.signs[rows], self.thumbnails[rows])


@dataclass(frozen=True)
class Scan:
    """What a root holds. A picture that several others resemble is paired with the one most like it."""

    root: str
    flag: str
    count: int  # images an epoch: readable files, or crops of `sample`
    files: int  # looked at, each once
    unreadable: list[str]  # one line each
    too_small: list[str]  # shorter side below the training size: these are enlarged
    exact: list[list[str]]  # groups of files of the same bytes
    near: list[tuple[str, str]]  # a file and the earlier one that it resembles
    prints: Prints


def perceptual_hash(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sixty-four bits, as signs, of which scaling and recompression change a few, and a thumbnail.

    The eight lowest frequencies but zero of the cosine transform of the 32×32 grey picture, each
    above or below their median. Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions", 2010, section 3.2.1; areas are averaged where he filters before subsampling.

    Shapes:
        image (H, W, 3) uint8. Returns (64,) int8 in {-1, 1}, all 0 below `MIN_CONTRAST`; (256,) uint8.
    """
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    thumbnail = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).ravel()
    if thumbnail.std() < MIN_CONTRAST:
        return np.zeros(64, np.int8), thumbnail
    frequencies = cv2.dct(grey.astype(np.float32))[1:9, 1:9].ravel()
    return np.where(frequencies > np.median(frequencies), 1, -1).astype(np.int8), thumbnail


def find_near(queries: Prints, references: Prints, earlier: bool = False) -> list[tuple[str, str]]:
    """Each query that has a near duplicate among the references, with the one most like it.

    Args:
        earlier: compare query i with the references before the i-th alone.
    """

    def standardize(thumbnails: np.ndarray) -> np.ndarray:
        centered = thumbnails - thumbnails.mean(axis=1, keepdims=True, dtype=np.float32)
        return centered / np.linalg.norm(centered, axis=1, keepdims=True).clip(1)

    pairs = []
    signs = references.signs.astype(np.float32)
    for start in range(0, len(queries.names), BLOCK):
        block = slice(start, start + BLOCK)
        # the product of two vectors of ±1 is 64 less twice the bits that differ; of one of 0, it is 0
        near = queries.signs[block].astype(np.float32) @ signs.T >= 64 - 2 * MAX_DISTANCE  # (rows, N)
        if earlier:
            near &= np.arange(near.shape[1]) < start + np.arange(len(near))[:, None]
        columns = np.flatnonzero(near.any(axis=0))
        if len(columns):
            likeness = standardize(queries.thumbnails[block]) @ standardize(references.thumbnails[columns]).T
            likeness[~near[:, columns]] = -1
            pairs += [
                (queries.names[start + i], references.names[columns[k]])
                for i, k in enumerate(likeness.argmax(axis=1))
                if likeness[i, k] >= MIN_CORRELATION
            ]
    return pairs


def scan(
    root: str, training: bool, image_size: int, flag: str, max_images: int | None = None, seed: int = 42
) -> Scan:
    """Decode every picture that a run would use, each file once, and look for what is wrong with them.

    Args:
        root, training, max_images, seed, flag: as of `InpaintingDataset`; or shards, for training.

    Raises:
        UserError: no folder, no image, a damaged shard.
    """
    if training and is_shards(root):
        data = ShardDataset(root, max_images=max_images, seed=seed)
        total, uses = int(data.counts.sum()), Counter[str]()
        shards = [(path, n) for path, n in zip(data.shards, data.counts, strict=True) if n]
        samples = (itertools.islice(read_shard(path), n) for path, n in shards)
        sources: Iterator[Path | Sample] = itertools.chain.from_iterable(samples)
    else:
        paths, _ = list_root(root, training, flag)
        if max_images is not None and max_images < len(paths):
            chosen = np.sort(np.random.default_rng(seed).permutation(len(paths))[:max_images])
            paths = [paths[i] for i in chosen]
        files = dict.fromkeys(paths)
        total, uses, sources = len(files), Counter(map(str, paths)), iter(files)

    def look(source: Path | Sample) -> tuple[str, bytes, bool, np.ndarray, np.ndarray] | UserError:
        try:
            image = read_image(source, least_side=max(image_size, SIDE))  # type: ignore[arg-type]
        except UserError as error:
            return error
        content = source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()
        small = min(image.shape[:2]) < image_size
        return str(source), hashlib.sha256(content).digest(), small, *perceptual_hash(image)

    seen: list[tuple[str, bytes, bool, np.ndarray, np.ndarray]] = []
    unreadable: list[str] = []
    bar = tqdm(total=total, desc=f"looking at {flag[2:]}", unit="image", leave=False, disable=None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        while block := list(itertools.islice(sources, BLOCK)):
            for found in pool.map(look, block):
                bar.update()
                if isinstance(found, UserError):
                    unreadable.append(str(found))
                else:
                    seen.append(found)

    names, digests = [each[0] for each in seen], [each[1] for each in seen]
    signs = np.array([each[3] for each in seen], np.int8).reshape(-1, 64)
    thumbnails = np.array([each[4] for each in seen], np.uint8).reshape(-1, THUMBNAIL**2)
    prints = Prints(names, digests, signs, thumbnails)
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests):
        groups.setdefault(digest, []).append(i)
    distinct = prints.select([group[0] for group in groups.values()])
    return Scan(
        root=root,
        flag=flag,
        count=sum(uses.get(name, 1) for name in names),
        files=len(seen) + len(unreadable),
        unreadable=unreadable,
        too_small=[name for name, _, small, *_ in seen if small],
        exact=[[names[i] for i in group] for group in groups.values() if len(group) > 1],
        near=find_near(distinct, distinct, earlier=True),
        prints=prints,
    )


def find_overlap(train: Prints, val: Prints) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The validation pictures that training sees: (validation, training) of the same bytes, and alike."""
    known = dict(zip(train.digests, train.names, strict=True))
    exact = [
        (name, known[digest]) for name, digest in zip(val.names, val.digests, strict=True) if digest in known
    ]
    rest = [i for i, digest in enumerate(val.digests) if digest not in known]
    return exact, find_near(val.select(rest), train)


@dataclass(frozen=True)
class Cost:
    """What the network and its training cost on this machine."""

    parameters: int
    macs: int  # multiply-accumulates of one image at the full size
    memory: int  # bytes, largest of all steps
    memory_kind: str  # what was measured
    seconds: dict[tuple[int, int], float]  # per image, by size in pixels and batch, in the plan's order
    notes: list[str]  # what the figures leave out


def peak_resident() -> int:
    """The largest resident memory of this process so far, or since `forget_peak`, in bytes."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let `peak_resident` begin anew, where the system can (Linux)."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def plan_of(config: Config) -> list[tuple[int, int]]:
    """Size in pixels and batch at every thousandth of the run."""
    return [config.stage_at(k / 1000) for k in range(1000)]


def measure(config: Config) -> Cost:
    """Do a few optimisation steps of every size of the plan, on noise with drawn masks.

    Raises:
        UserError: the device is absent, weights of a loss are damaged, or a batch does not fit into memory.
    """
    device = select_device(config.device)
    seed_everything(config.seed)
    torch.set_flush_denormal(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    keep_freed_memory()

    notes = ["not compiled, as a compiler writes files"] if config.compile else []
    weights = {name: getattr(config, name) for name in vars(config) if name.startswith("lambda_")}
    cached = any(Path(torch.hub.get_dir(), "checkpoints").glob("vgg16-*.pth"))
    if config.lambda_perceptual > 0 and not config.vgg_weights and not cached:
        weights["lambda_perceptual"] = 0.0
        notes.append("without the perceptual loss, whose weights would have to be downloaded")
    forget_peak()
    before = peak_resident() if device.type != "cuda" else 0
    criterion = InpaintingLoss(
        **weights,
        boundary_width=config.boundary_width,
        vgg_weights=config.vgg_weights or None,
        reconstruction=config.reconstruction,
    ).to(device)
    run = Run(config, device)
    generator = np.random.default_rng(config.seed)

    def noise(size: int, count: int) -> dict[str, torch.Tensor]:
        masks = [random_mask(size, size, config.mask_coverage, generator) for _ in range(count)]
        return {
            "image": torch.rand(count, 3, size, size),
            "mask": torch.from_numpy(np.stack(masks)[:, None].astype(np.float32)),
        }

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run.model(*(tensor.to(device) for tensor in noise(config.image_size, 1).values()))
    run.model.train()
    seconds = {}
    for size, batch_size in dict.fromkeys(plan_of(config)):
        times = []
        for _ in range(1 + ROUNDS):
            batches = [noise(size, batch_size) for _ in range(config.accumulate)]
            start = time.perf_counter()
            try:
                train_step(run, run.model, criterion, batches, 1.0)
            except torch.OutOfMemoryError:
                raise UserError(
                    f"--batch_size: {batch_size} images of {size} pixels do not fit into {device}'s memory"
                ) from None
            if device.type != "cpu":
                torch.accelerator.synchronize()
            times.append(time.perf_counter() - start)
        seconds[size, batch_size] = statistics.median(times[1:]) / (batch_size * config.accumulate)
    if device.type == "cuda":
        memory, kind = torch.cuda.max_memory_allocated(device), "of the device, allocated at once"
    else:
        memory, kind = peak_resident() - before, "resident, beyond the program and its libraries"
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, memory, kind, seconds, notes)


def predict(config: Config, count: int, seconds: dict[tuple[int, int], float]) -> tuple[float, int]:
    """The seconds of steps in a run over `count` images by one process, and the epochs that it begins.

    Args:
        seconds: per image, of every stage.
    """
    plan, limit = plan_of(config), 60 * config.max_minutes or math.inf
    elapsed = 0.0
    for epoch in range(config.epochs):
        progress = max(epoch / config.epochs, elapsed / limit)
        if progress >= 1:
            return limit, epoch
        elapsed += count * seconds[plan[int(1000 * progress + 1e-6)]]
    return min(elapsed, limit), config.epochs


def to_text(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2f} s"


def print_problems(kind: str, lines: list[str]) -> None:
    for line in lines[:EXAMPLES]:
        print(f"    {kind}: {line}")
    if len(lines) > EXAMPLES:
        print(f"    {kind}: and {len(lines) - EXAMPLES:,} more")


def print_scan(found: Scan, image_size: int) -> None:
    crops = f" ({found.count:,} crops of them an epoch)" if found.count > found.files else ""
    copies = sum(len(group) - 1 for group in found.exact)
    print(
        f"  {found.flag} {found.root}: {found.files:,} files{crops}, {len(found.unreadable):,} unreadable, "
        f"{len(found.too_small):,} smaller than {image_size} pixels, {copies:,} exact "
        f"and {len(found.near):,} near duplicates"
    )
    print_problems("unreadable", found.unreadable)
    print_problems("enlarged", found.too_small)
    print_problems("exact duplicates", [" = ".join(group) for group in found.exact])
    print_problems("near duplicates", [" ~ ".join(pair) for pair in found.near])


def refuse(found: Scan) -> None:
    """Raise what training would: a `UserError` if too much is unreadable."""
    bad, allowed = len(found.unreadable), 1.0 if is_shards(found.root) else MAX_UNREADABLE
    if bad and (not found.count or bad > allowed * found.files):
        raise UserError(
            f"{found.flag}: {bad} of {found.files} images in {found.root} cannot be read, more than "
            f"{MAX_UNREADABLE:.0%} allowed; the first: {found.unreadable[0]}"
        )


def report(config: Config) -> None:
    """Print what a run of `config` would learn from and what it would cost, one process being all.

    Raises:
        UserError: where training would, after all that was found in the data is printed.
    """
    default = Config()
    print("settings (* other than the default)")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        print(f"  {'*' if value != getattr(default, field.name) else ' '} {field.name} = {value!r}")

    cost = measure(config)  # first: what the data leaves in memory would spoil it
    print("cost")
    print(f"  {cost.parameters:,} parameters")
    print(f"  {cost.macs / 1e9:.2f} GMAC an image of {config.image_size} pixels")
    print(f"  {cost.memory / 2**20:,.0f} MiB {cost.memory_kind}")
    for note in cost.notes:
        print(f"  note: {note}")

    print("data")
    size, seed = config.image_size, config.seed
    train = scan(config.train_root, True, size, "--train_root", config.train_subset or None, seed)
    print_scan(train, size)
    val = scan(config.val_root, False, size, "--val_root", config.val_subset or None, seed)
    print_scan(val, size)
    exact, near = find_overlap(train.prints, val.prints)
    print(f"  of validation in training: {len(exact):,} exact and {len(near):,} near duplicates")
    print_problems("exact overlap", [" = ".join(pair) for pair in exact])
    print_problems("near overlap", [" ~ ".join(pair) for pair in near])
    refuse(train)
    refuse(val)
    if config.mask_root:
        masks = MaskFolder(Path(config.mask_root), size, config.invert_mask, None)
        print(f"  --mask_root {config.mask_root}: {len(masks.pixels):,} masks")

    print("time, without loading, validating and writing")
    for (side, batch_size), each in cost.seconds.items():
        step = to_text(each * batch_size * config.accumulate)
        epoch = to_text(each * train.count)
        print(f"  {side} pixels, {batch_size} a batch: {step} a step, {epoch} an epoch")
    total, epochs = predict(config, train.count, cost.seconds)
    end = " when --max_minutes ends it" if epochs < config.epochs or total == 60 * config.max_minutes else ""
    print(f"  the run: {to_text(total)}, {epochs:,} of {config.epochs:,} epochs begun{end}")
