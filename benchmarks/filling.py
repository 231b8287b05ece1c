"""Measures time and peak memory of filling holes, by image and hole size, beside the baselines.

Each case runs in a process of its own; the methods take turns on an image, and medians over the rounds are
printed. Memory is the growth of the peak resident size while the hole is filled. The cold start of the
command is compared with importing its two libraries.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import skimage.restoration

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# pixels per side of the image; mask ratio, or pixels per side of the hole
CASES = ((256, 0.1), (512, 0.1), (1024, 200), (4096, 200), (1024, 0.3), (4096, 0.3))
MAX_SLOW = 300 * 300  # missing pixels up to which the biharmonic method and flipping are measured
METHODS = ("network", "network, texture", "network, flip", "telea", "navier-stokes", "biharmonic")


def make_case(size: int, extent: float) -> tuple[np.ndarray, np.ndarray]:
    """An image of `size` pixels per side, and a square hole of this mask ratio or side."""
    image = cv2.resize(skimage.data.astronaut(), (size, size), interpolation=cv2.INTER_CUBIC)
    side = round(size * extent**0.5) if extent < 1 else round(extent)
    start = (size - side) // 2
    mask = np.zeros((size, size), bool)
    mask[start : start + side, start : start + side] = True
    return image, mask


def make_method(name: str, checkpoint: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    if name.startswith("network"):
        import torch

        from inference.inpainter import Inpainter

        torch.set_flush_denormal(True)
        return Inpainter.from_checkpoint(
            checkpoint, "cpu", flip="flip" in name, detail=float("texture" in name)
        )
    if name == "biharmonic":
        return lambda image, mask: skimage.restoration.inpaint_biharmonic(image, mask, channel_axis=2)
    flag = {"telea": cv2.INPAINT_TELEA, "navier-stokes": cv2.INPAINT_NS}[name]
    return lambda image, mask: cv2.inpaint(image, mask.astype(np.uint8), 3, flag)


def peak_bytes() -> int:
    """The peak resident size of this process on Linux (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure(name: str, size: int, extent: float, checkpoint: str) -> dict[str, float]:
    method = make_method(name, checkpoint)
    if name.startswith("network"):
        method(*make_case(64, 0.1))  # so that the memory of every call is not counted
    image, mask = make_case(size, extent)
    before, start = peak_bytes(), time.perf_counter()
    method(image, mask)
    return {"seconds": time.perf_counter() - start, "bytes": peak_bytes() - before, "resident": peak_bytes()}


def run_script(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout


def cold_start(checkpoint: str, rounds: int) -> tuple[float, float]:
    """Median seconds of `test.py` on an image of 256 pixels, and of importing torch and cv2."""
    times: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        commands = (
            ["test.py", "--checkpoint", checkpoint, "--image_path", "examples/astronaut.png",
             "--mask_path", "examples/astronaut_mask.png", "--save_dir", folder],
            ["-c", "import torch, cv2"],
        )  # fmt: skip
        for _ in range(rounds):
            for command, seconds in zip(commands, times, strict=True):
                start = time.perf_counter()
                run_script(*command)
                seconds.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="default", help="see test.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--case", nargs=3, metavar=("METHOD", "SIZE", "EXTENT"), help="measure one case and print JSON"
    )
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case[0], int(args.case[1]), float(args.case[2]), args.checkpoint)))
        return
    print("| image | hole | method | seconds | memory | resident |\n|---|---|---|---|---|---|")
    for size, extent in CASES:
        hole_size = make_case(size, extent)[1].sum()
        names = [
            name for name in METHODS if hole_size <= MAX_SLOW or name not in ("biharmonic", "network, flip")
        ]
        results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(args.rounds):
            for name in names:
                case = ["--case", name, str(size), str(extent), "--checkpoint", args.checkpoint]
                results[name].append(json.loads(run_script(__file__, *case)))
        text = f"{extent:.0%}" if extent < 1 else f"{extent}×{extent}"
        for name in names:
            seconds, grown, resident = (
                statistics.median(result[key] for result in results[name])
                for key in ("seconds", "bytes", "resident")
            )
            print(f"| {size}×{size} | {text} | {name} | {seconds:.2f} | {grown / 2**20:.0f} MiB "
                  f"| {resident / 2**20:.0f} MiB |", flush=True)  # fmt: skip
    ours, libraries = cold_start(args.checkpoint, 3 * args.rounds)
    print(f"\ncold start {ours:.2f} s, {ours / libraries:.2f} times `import torch, cv2` ({libraries:.2f} s)")


if __name__ == "__main__":
    main()
