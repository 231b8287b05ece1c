"""Throughput of training: data loader, optimizations of a step, time spent waiting for data, memory.

Loader: images/s of the cold and the warm cache and of torchvision's ImageFolder with Resize, on JPEGs of
1024 px. Step: seconds of an optimizer step with and without each optimization; every case runs in its own
process, the cases take turns, medians are printed. Waiting: share of the time in which a step waits for its
batch. Memory: resident size of a process over many steps, and its slope.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
import torchvision
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import Config, get_config
from dataset import InpaintingDataset, get_dataloaders
from losses import InpaintingLoss
from training.loaders import make_loaders
from training.process import keep_freed_memory
from training.state import TrainingState
from training.step import train_step
from utils import OneLineParser

OPTIMIZATIONS = {
    "plain: eager, NCHW, float32": (),
    "freed memory kept": ("memory",),
    "denormals flushed": ("denormals",),
    "channels last": ("channels_last",),
    "bfloat16": ("amp",),
    "all but bfloat16 (the default)": ("memory", "denormals", "channels_last"),
    "all (--amp)": ("memory", "denormals", "channels_last", "amp"),
}


def write_jpegs(folder: Path, count: int, side: int = 1024) -> None:
    """Crops of scikit-image's photographs, enlarged or reduced to `side` pixels, in one class folder."""
    photographs = [
        skimage.data.astronaut(),
        skimage.data.chelsea(),
        skimage.data.coffee(),
        skimage.data.rocket(),
    ]
    generator = np.random.default_rng(0)
    (folder / "class").mkdir(parents=True)
    for i in range(count):
        image = Image.fromarray(photographs[i % len(photographs)]).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(image).astype(int) + generator.integers(-8, 9, (side, side, 3))  # sensor noise
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            folder / "class" / f"{i:04d}.jpg", quality=92
        )


def rate(images: Iterator[Any], count: int) -> float:
    """Images/s of an iterator of single images."""
    start = time.perf_counter()
    for number, _ in enumerate(images, start=1):
        if number == count:
            break
    return count / (time.perf_counter() - start)


def measure_loader(count: int, rounds: int, size: int = 256) -> None:
    """Print images/s of one thread of this process; only the cold cache is built by all cores."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "jpegs"
        write_jpegs(folder, count)
        transform = torchvision.transforms.Compose(
            [torchvision.transforms.Resize((size, size)), torchvision.transforms.ToTensor()]
        )
        plain = torchvision.datasets.ImageFolder(str(folder), transform)
        titles = ("ImageFolder and Resize", "cold cache", "warm cache", "no cache")
        rates: dict[str, list[float]] = {title: [] for title in titles}
        for number in range(rounds):
            rates["ImageFolder and Resize"].append(rate((plain[i][0] for i in range(count)), count))
            start = time.perf_counter()
            data = InpaintingDataset(str(folder), size, cache_dir=f"{name}/cache{number}")
            rates["cold cache"].append(count / (time.perf_counter() - start))
            rates["warm cache"].append(rate((data[i] for i in range(10**9)), 4 * count))
            uncached = InpaintingDataset(str(folder), size, cache_dir=None)
            rates["no cache"].append(rate((uncached[i] for i in range(count)), count))
        base = statistics.median(rates["ImageFolder and Resize"])
        print(f"| loader, {count} JPEGs of 1024 px to {size} px | images/s | relative |\n|---|---|---|")
        for title, values in rates.items():
            median = statistics.median(values)
            print(f"| {title} | {median:.0f} | {median / base:.1f} |")


def make_step(config: Config) -> Callable[[], float]:
    """A function that takes one step on the same random batch and returns the loss."""
    torch.manual_seed(0)
    state = TrainingState(config, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(
        config.batch_size, 3, config.image_size // 8, config.image_size // 8, generator=generator
    )
    image = torch.nn.functional.interpolate(noise, scale_factor=8, mode="bilinear")
    mask = torch.zeros_like(image[:, :1])
    quarter = config.image_size // 4
    mask[:, :, quarter : 3 * quarter, quarter : 2 * quarter] = 1
    criterion = InpaintingLoss()

    def step() -> float:
        losses = train_step(state, state.model, criterion, [{"image": image, "mask": mask}], 0.5)
        return losses["total"] if losses else float("nan")

    return step


def measure_case(optimizations: list[str], size: int, batch_size: int) -> dict[str, Any]:
    if "memory" in optimizations:
        keep_freed_memory()
    torch.set_flush_denormal("denormals" in optimizations)
    step = make_step(
        get_config(
            "default", image_size=size, batch_size=batch_size, lr=1e-3, amp="amp" in optimizations,
            channels_last="channels_last" in optimizations, device="cpu",
        )
    )  # fmt: skip
    losses, seconds = [step()], []
    for _ in range(5):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "losses": losses}


def measure_steps(rounds: int, size: int, batch_size: int) -> None:
    results: dict[str, list[dict[str, Any]]] = {title: [] for title in OPTIMIZATIONS}
    for _ in range(rounds):
        for title, optimizations in OPTIMIZATIONS.items():
            case = json.dumps([optimizations, size, batch_size])
            output = subprocess.run(
                [sys.executable, __file__, "--case", case], check=True, capture_output=True
            )
            results[title].append(json.loads(output.stdout))
    plain = next(iter(results.values()))
    base = statistics.median(case["seconds"] for case in plain)
    print(f"| step, {size} px, batch {batch_size} | seconds | speed-up | loss, first and sixth |")
    print("|---|---|---|---|")
    for title, cases in results.items():
        seconds = statistics.median(case["seconds"] for case in cases)
        losses = cases[0]["losses"]
        print(
            f"| {title} | {seconds:.2f} | {base / seconds:.2f} | {losses[0]:.4f}, {losses[-1]:.4f} |",
            flush=True,
        )


def measure_waiting(steps: int, size: int, batch_size: int) -> None:
    """Print the share of waiting with two loader processes and a warm cache, over epochs of 25 steps."""
    keep_freed_memory()
    torch.set_flush_denormal(True)
    config = get_config(
        "default", image_size=size, batch_size=batch_size, train_root="sample", val_root="sample"
    )
    with tempfile.TemporaryDirectory() as cache_dir:
        loader, _ = get_dataloaders("sample", "sample", batch_size, size, num_workers=2, cache_dir=cache_dir)
        state, criterion = TrainingState(config, torch.device("cpu")), InpaintingLoss()
        waited = worked = 0.0
        batches = (batch for _ in range(10**6) for batch in loader)
        train_step(state, state.model, criterion, [next(iter(loader))], 0.5)  # the first is slow
        for _ in range(steps):
            start = time.perf_counter()
            batch = next(batches)
            middle = time.perf_counter()
            train_step(state, state.model, criterion, [batch], 0.5)
            waited, worked = waited + middle - start, worked + time.perf_counter() - middle
    share = waited / (waited + worked)
    print(f"waiting for data: {share:.2%} of {steps} steps of {batch_size} images of {size} px")


def resident_bytes() -> int:
    """Resident memory of this process (`VmRSS` of Linux)."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])


def measure_memory(steps: int) -> None:
    """Print the slope of memory over many steps of a small network, which allocates like a large one."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as cache_dir:
        config = get_config(
            "debug",
            image_size=32,
            batch_size=2,
            num_workers=0,
            optimizer="muon",
            cache_dir=cache_dir,
            device="cpu",
        )
        state, criterion = TrainingState(config, torch.device("cpu")), InpaintingLoss()
        loader, _ = make_loaders(state)
        sizes: list[int] = []
        while state.step < steps:
            for batch in loader:
                train_step(state, state.model, criterion, [batch], 0.5)
                state.step += 1
                if state.step % 20 == 0:
                    sizes.append(resident_bytes())
    later = np.array(sizes[len(sizes) // 5 :]) / 2**20  # without the warm-up
    at = 20 * np.arange(len(later))
    slope, offset = np.polyfit(at, later, 1)
    noise = (later - (slope * at + offset)).std()
    print(f"resident memory from step {steps // 5} to {steps}: {later[0]:.1f} to {later[-1]:.1f} MiB, "
          f"slope {1000 * slope:+.3f} MiB in 1,000 steps, deviation from it {noise:.2f} MiB")  # fmt: skip


def main() -> None:
    parser = OneLineParser(prog="train_throughput.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measured rounds")
    parser.add_argument(
        "--steps", type=int, default=2000, metavar="N", help="steps of the memory measurement"
    )
    parser.add_argument("--only", choices=("loader", "step", "waiting", "memory"), help="measure only this")
    parser.add_argument("--case", metavar="JSON", help="measure one case of a step and print JSON")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure_case(*json.loads(args.case))))
        return
    parts: dict[str, Callable[[], None]] = {
        "loader": lambda: measure_loader(64, args.rounds),
        "step": lambda: measure_steps(args.rounds, 128, 4),
        "waiting": lambda: measure_waiting(60, 256, 4),
        "memory": lambda: measure_memory(args.steps),
    }
    for name, measure in parts.items():
        if args.only in (None, name):
            measure()
            print(flush=True)


if __name__ == "__main__":
    main()
