"""What a run would learn from and what it would cost, found out beforehand (`--dry_run`); writes nothing."""

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
from training.process import set_up_process
from training.state import TrainingState
from training.step import make_criterion, train_step
from utils import UserError, is_shards

EXAMPLES = 5  # problems of a kind that are named
ROUNDS = 3  # measured steps, after one that is not


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
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return 0
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
    set_up_process(config.seed)

    notes = ["not compiled, as a compiler writes files"] if config.compile else []
    cached = any(Path(torch.hub.get_dir(), "checkpoints").glob("vgg16-*.pth"))
    if config.lambda_perceptual > 0 and not config.vgg_weights and not cached:
        config = dataclasses.replace(config, lambda_perceptual=0.0)
        notes.append("without the perceptual loss, whose weights would have to be downloaded")
    forget_peak()
    before = peak_resident() if device.type != "cuda" else 0
    criterion = make_criterion(config).to(device)
    run = TrainingState(config, device)
    if config.init:
        run.init_from_checkpoint(config.init)
    generator = np.random.default_rng(config.seed)

    def noise(size: int, count: int) -> dict[str, torch.Tensor]:
        masks = [random_mask(size, size, config.mask_ratio, generator) for _ in range(count)]
        return {
            "image": torch.rand(count, 3, size, size),
            "mask": torch.from_numpy(np.stack(masks)[:, None].astype(np.float32)),
        }

    run.model.eval()
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
        memory = max(0, peak_resident() - before)  # the system counts pages roughly
        kind = "resident, beyond the program and its libraries"
        kind += "" if before else " (not known on this system)"
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, memory, kind, seconds, notes)


def predict(
    config: Config, counts: dict[tuple[int, int], int], seconds: dict[tuple[int, int], float]
) -> tuple[float, int]:
    """The seconds of steps in a run by one process, and the epochs that it begins.

    Args:
        counts: images an epoch, of every stage.
        seconds: per image, of every stage.
    """
    plan, limit = plan_of(config), 60 * config.max_minutes or math.inf
    elapsed = 0.0
    for epoch in range(config.epochs):
        progress = max(epoch / config.epochs, elapsed / limit)
        if progress >= 1:
            return limit, epoch
        stage = plan[int(1000 * progress + 1e-6)]
        elapsed += counts[stage] * seconds[stage]
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
        f"{len(found.short_sides):,} smaller than {image_size} pixels, {copies:,} exact "
        f"and {len(found.near):,} near duplicates"
    )
    print_problems("unreadable", found.unreadable)
    print_problems("too small", list(found.short_sides))
    print_problems("exact duplicates", [" = ".join(group) for group in found.exact])
    print_problems("near duplicates", [" ~ ".join(pair) for pair in found.near])


def refuse(found: Scan) -> None:
    """Raise what training would: a `UserError` if too much is unreadable."""
    allowed = 1.0 if is_shards(found.root) else MAX_UNREADABLE
    require_readable(found.unreadable, found.files, found.root, found.flag, allowed)


def report(config: Config) -> None:
    """Print what a run of `config` would learn from and what it would cost, one process being all.

    Raises:
        UserError: where training would for its data, device or --init, after all that was found is printed.
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
    exact, near = find_overlap(train.fingerprints, val.fingerprints)
    print(f"  of validation in training: {len(exact):,} exact and {len(near):,} near duplicates")
    print_problems("exact overlap", [" = ".join(pair) for pair in exact])
    print_problems("near overlap", [" ~ ".join(pair) for pair in near])
    refuse(train)
    refuse(val)
    if config.mask_root:
        masks = MaskFolder(Path(config.mask_root), size, config.invert_mask, None)
        print(f"  --mask_root {config.mask_root}: {len(masks.pixels):,} masks")

    print("time, without loading, validating and writing")
    counts = {stage: train.count_at(stage[0], config.max_enlarge) for stage in cost.seconds}
    for (side, batch_size), each in cost.seconds.items():
        step = to_text(each * batch_size * config.accumulate)
        count = counts[side, batch_size]
        epoch = to_text(each * count)
        print(f"  {side} pixels, {batch_size} a batch: {step} a step, {epoch} an epoch of {count:,} images")
    total, epochs = predict(config, counts, cost.seconds)
    end = " when --max_minutes ends it" if epochs < config.epochs or total == 60 * config.max_minutes else ""
    print(f"  the run: {to_text(total)}, {epochs:,} of {config.epochs:,} epochs begun{end}")
