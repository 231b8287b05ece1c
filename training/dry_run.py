"""Dry run (`--dry_run`): check the data and predict the cost of a run, without writing anything."""

import contextlib
import dataclasses
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from config import Config
from imaging.files import MAX_UNREADABLE, require_readable
from imaging.random_masks import random_mask
from imaging.sample import MaskFolder
from imaging.scan import Scan, find_overlap, scan
from inference.device import select_device
from losses import InpaintingLoss
from training.process import set_up_process
from training.state import TrainingState
from training.step import make_criterion, train_step
from utils import UserError, is_shards

MAX_EXAMPLES = 5  # printed problems of one kind
NUM_STEPS = 3  # measured steps, after one that is not


def print_report(config: Config) -> None:
    """Print the settings, cost, data and predicted time of a run by one process.

    Raises:
        UserError: if training would refuse the data, the device or --init, after printing all findings.
    """
    default = Config()
    print("settings (* differs from the default)")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        print(f"  {'*' if value != getattr(default, field.name) else ' '} {field.name} = {value!r}")

    cost = measure(config)  # before the data, whose memory would be measured as well
    print("cost")
    print(f"  {cost.parameters:,} parameters")
    print(f"  {cost.macs / 1e9:.2f} GMAC per image of {config.image_size} pixels")
    print(f"  {cost.memory / 2**20:,.0f} MiB {cost.memory_kind}")
    for note in cost.notes:
        print(f"  note: {note}")

    print("data")
    train = scan_and_print(config)
    if config.mask_root:
        masks = MaskFolder(Path(config.mask_root), config.image_size, config.invert_mask, None)
        print(f"  --mask_root {config.mask_root}: {len(masks.pixels):,} masks")

    print("time, without loading, validating and writing")
    counts = {stage: train.count_at(stage[0], config.max_enlarge) for stage in cost.seconds}
    for (size, batch_size), seconds in cost.seconds.items():
        count = counts[size, batch_size]
        step, epoch = to_text(seconds * batch_size * config.accumulate), to_text(seconds * count)
        print(f"  {size} px, batches of {batch_size}: {step} per step, {epoch} per epoch of {count:,} images")
    total, epochs = predict(config, counts, cost.seconds)
    end = " when --max_minutes ends it" if epochs < config.epochs or total == 60 * config.max_minutes else ""
    print(f"  the run: {to_text(total)}, {epochs:,} of {config.epochs:,} epochs started{end}")


@dataclass(frozen=True)
class Cost:
    """Cost of the network and of its training on this machine."""

    parameters: int
    macs: int  # multiply-accumulates per image at the full size
    memory: int  # bytes, largest of all steps
    memory_kind: str
    seconds: dict[tuple[int, int], float]  # per image, by size in pixels and batch size of each stage
    notes: list[str]  # costs that are not included


def measure(config: Config) -> Cost:
    """Measure a few optimizer steps at every stage of the run, on noise with random masks.

    Raises:
        UserError: if the device is absent, weights are damaged, or a batch does not fit into memory.
    """
    device = select_device(config.device)
    set_up_process(config.seed)
    notes = ["not compiled, as a compiler writes files"] if config.compile else []
    cached = any(Path(torch.hub.get_dir(), "checkpoints").glob("vgg16-*.pth"))
    if config.lambda_perceptual > 0 and not config.vgg_weights and not cached:
        config = dataclasses.replace(config, lambda_perceptual=0.0)
        notes.append("without the perceptual loss, whose weights would have to be downloaded")
    reset_peak_memory()
    before = peak_memory() if device.type != "cuda" else 0
    criterion = make_criterion(config).to(device)
    state = TrainingState(config, device)
    if config.init:
        state.init_from_checkpoint(config.init)
    state.model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        state.model(*(tensor.to(device) for tensor in noise_batch(config, config.image_size, 1).values()))
    state.model.train()
    seconds = {
        (size, batch_size): seconds_per_image(state, criterion, size, batch_size)
        for _, size, batch_size in config.stages()
    }
    if device.type == "cuda":
        memory, kind = torch.cuda.max_memory_allocated(device), "of device memory allocated at once"
    else:
        memory = max(0, peak_memory() - before)  # the system counts pages roughly
        kind = "of resident memory beyond the program and its libraries"
        kind += "" if before else " (not known on this system)"
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, memory, kind, seconds, notes)


def noise_batch(config: Config, size: int, batch_size: int) -> dict[str, torch.Tensor]:
    """A batch of uniform noise with random masks."""
    masks = [random_mask(size, size, config.mask_ratio, np.random.default_rng(i)) for i in range(batch_size)]
    mask = torch.from_numpy(np.stack(masks)[:, None].astype(np.float32))
    return {"image": torch.rand(batch_size, 3, size, size), "mask": mask}


def seconds_per_image(state: TrainingState, criterion: InpaintingLoss, size: int, batch_size: int) -> float:
    """The median seconds per image of `NUM_STEPS` optimizer steps, after one that is not measured."""
    times = []
    for _ in range(1 + NUM_STEPS):
        batches = [noise_batch(state.config, size, batch_size) for _ in range(state.config.accumulate)]
        start = time.perf_counter()
        try:
            train_step(state, state.model, criterion, batches, 1.0)
        except torch.OutOfMemoryError:
            raise UserError(
                f"--batch_size: {batch_size} images of {size} pixels do not fit into {state.device}'s memory"
            ) from None
        if state.device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) / (batch_size * state.config.accumulate)


def peak_memory() -> int:
    """The largest resident memory of this process since `reset_peak_memory` or its start, in bytes."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory() -> None:
    """Reset the peak that `peak_memory` reads, where the system can (Linux)."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def scan_and_print(config: Config) -> Scan:
    """Scan training and validation images, print what is wrong with them, and return the training scan.

    Raises:
        UserError: if more images are unreadable than training accepts.
    """
    size, seed = config.image_size, config.seed
    train = scan(config.train_root, True, size, "--train_root", config.train_subset or None, seed)
    print_scan(train, size)
    val = scan(config.val_root, False, size, "--val_root", config.val_subset or None, seed)
    print_scan(val, size)
    exact, near = find_overlap(train.fingerprints, val.fingerprints)
    print(f"  validation images in training: {len(exact):,} exact and {len(near):,} near duplicates")
    print_problems("exact overlap", [" = ".join(pair) for pair in exact])
    print_problems("near overlap", [" ~ ".join(pair) for pair in near])
    check_readable(train)
    check_readable(val)
    return train


def print_scan(found: Scan, image_size: int) -> None:
    crops = f" ({found.count:,} crops of them per epoch)" if found.count > found.files else ""
    copies = sum(len(group) - 1 for group in found.exact)
    print(
        f"  {found.flag} {found.root}: {found.files:,} files{crops}, {len(found.unreadable):,} unreadable, "
        f"{len(found.short_sides):,} smaller than {image_size} pixels, {copies:,} exact "
        f"and {len(found.near):,} near duplicates"
    )
    print_problems("unreadable", found.unreadable)
    print_problems("too small", list(found.short_sides))
    print_problems("exact duplicates", [" = ".join(group) for group in found.exact])
    print_problems("near duplicates", [" ~ ".join(pair) for pair in found.near])


def print_problems(kind: str, lines: list[str]) -> None:
    for line in lines[:MAX_EXAMPLES]:
        print(f"    {kind}: {line}")
    if len(lines) > MAX_EXAMPLES:
        print(f"    {kind}: and {len(lines) - MAX_EXAMPLES:,} more")


def check_readable(found: Scan) -> None:
    """Raise the `UserError` of training if too many images are unreadable."""
    allowed = 1.0 if is_shards(found.root) else MAX_UNREADABLE
    require_readable(found.unreadable, found.files, found.root, found.flag, allowed)


def predict(
    config: Config, counts: dict[tuple[int, int], int], seconds: dict[tuple[int, int], float]
) -> tuple[float, int]:
    """Predict the seconds that a run by one process spends in steps, and the epochs that it starts.

    Args:
        counts: images per epoch of every stage.
        seconds: seconds per image of every stage.
    """
    limit = 60 * config.max_minutes or math.inf
    elapsed = 0.0
    for epoch in range(config.epochs):
        progress = max(epoch / config.epochs, elapsed / limit)
        if progress >= 1:
            return limit, epoch
        stage = config.stage_at(progress)
        elapsed += counts[stage] * seconds[stage]
    return min(elapsed, limit), config.epochs


def to_text(seconds: float) -> str:
    """A duration in hours, minutes or seconds: `2.5 h`."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2f} s"
