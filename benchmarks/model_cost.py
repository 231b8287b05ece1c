"""Cost of the network of each preset: parameters, multiply-accumulates, time and memory by image size.

Times are medians of interleaved rounds, per image. "× dense" is the time relative to a stack of plain 3×3
convolutions (64 channels, ReLU between) with the same number of multiply-accumulates at the same
image size, timed in the same rounds: the distance from the best that the machine can do.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import PRESETS, get_config
from losses import InpaintingLoss
from models import InpaintingNetwork
from training.dry_run import peak_memory
from training.process import keep_freed_memory

WIDTH = 64  # channels of the dense stack
REDUCTION = 4  # the stack works at 1/4 of the resolution, like much of the network


def inputs(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One image, and a mask of a quarter of it."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, size, size).to(memory_format=torch.channels_last)
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return image, mask


def network_of(preset: str) -> InpaintingNetwork:
    torch.manual_seed(0)
    network = InpaintingNetwork(**get_config(preset).architecture())
    return network.to(memory_format=torch.channels_last)


def count_macs(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops() // 2


def dense_stack(macs: int, size: int) -> tuple[nn.Module, torch.Tensor]:
    """Plain convolutions with about this many multiply-accumulates, and their input."""
    side = size // REDUCTION
    layers = max(1, round(macs / (9 * WIDTH**2 * side**2)))
    pieces = [piece for _ in range(layers) for piece in (nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU())]
    stack = nn.Sequential(*pieces).to(memory_format=torch.channels_last)
    return stack, torch.rand(1, WIDTH, side, side).to(memory_format=torch.channels_last)


def medians(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """The median seconds of each function, called in turn, after one unmeasured round."""
    times: list[list[float]] = [[] for _ in functions]
    for i in range(rounds + 1):
        for seconds, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            function()
            if i:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def measure_memory(preset: str, size: int, training: bool) -> float:
    """Peak resident MiB of a new process that does two forward passes or two training steps."""
    command = [sys.executable, __file__, "--memory_of", preset, str(size), "train" if training else "forward"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def use_memory(preset: str, size: int, mode: str) -> None:
    """Do the work whose memory is measured; print the peak minus the memory of imports and weights."""
    image, mask = inputs(size)
    network = network_of(preset)
    before = peak_memory()
    for _ in range(2):
        if mode == "train":
            InpaintingLoss()(network(image, mask), image, mask)["total"].backward()
        else:
            with torch.no_grad():
                network.eval()(image, mask)
    print((peak_memory() - before) / 2**20)


def same_networks(presets: list[str]) -> dict[str, str]:
    """The labels of the presets with the same architecture, by the first of them."""
    labels: dict[str, list[str]] = {}
    for preset in presets:
        architecture = get_config(preset).architecture()
        first = next((name for name in labels if get_config(name).architecture() == architecture), preset)
        labels.setdefault(first, []).append(f"`{preset}`")
    return {first: ", ".join(names) for first, names in labels.items()}


def measure(preset: str, label: str, size: int, rounds: int) -> str:
    """One row of the table."""
    network = network_of(preset)
    criterion = InpaintingLoss()
    image, mask = inputs(size)

    def forward() -> None:
        with torch.no_grad():
            network.eval()(image, mask)

    def train() -> None:
        criterion(network.train()(image, mask), image, mask)["total"].backward()

    macs = count_macs(forward)
    stack, features = dense_stack(macs, size)

    def dense_forward() -> None:
        with torch.no_grad():
            stack(features)

    def dense_train() -> None:
        stack(features).mean().backward()

    times = medians([forward, dense_forward, train, dense_train], rounds)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    fitted = sum(buffer.numel() for buffer in network.buffers())
    cells = [label, str(size), f"{parameters / 1e6:.2f} + {fitted / 1e6:.2f} M", f"{macs / 1e9:.2f}"]
    cells += [f"{times[0] * 1e3:.0f} ms", f"{times[0] / times[1]:.1f}"]
    cells += [f"{times[2] * 1e3:.0f} ms", f"{times[2] / times[3]:.1f}"]
    cells += [f"{measure_memory(preset, size, training):.0f} MiB" for training in (False, True)]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS, metavar="PRESET")
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256, 512], metavar="PIXELS")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="timed rounds")
    parser.add_argument("--memory_of", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    if args.memory_of:
        use_memory(args.memory_of[0], int(args.memory_of[1]), args.memory_of[2])
        return
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {args.rounds}\n")
    columns = ["preset", "size", "parameters", "GMAC", "forward", "× dense", "training step", "× dense"]
    columns += ["forward memory", "training memory"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for preset, label in same_networks(args.presets).items():
        for size in args.sizes:
            print(measure(preset, label, size, args.rounds), flush=True)


if __name__ == "__main__":
    main()
