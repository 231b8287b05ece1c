"""Time and size of writing a JPEG with only its touched blocks re-encoded, against re-encoding all of it."""

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from imaging.formats import QUALITY
from imaging.image_file import ImageFile
from utils import atomic_path


def make_image(megapixels: float, seed: int = 0) -> Image.Image:
    """A 4:3 image with shapes of all sizes and noise, about as hard to encode as a photograph."""
    generator = np.random.default_rng(seed)
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = height * 4 // 3
    pixels = np.zeros((height, width, 3), np.float32)
    for side in (8, 32, 128, 512):
        coarse = generator.integers(0, 256, (side, side * 4 // 3, 3), dtype=np.uint8)
        enlarged = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels += np.asarray(enlarged, np.float32) / 4
    pixels += generator.standard_normal(pixels.shape, dtype=np.float32) * 3
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def timed(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of an action, and the seconds of wall-clock and processor time that it took."""
    start, cpu = time.perf_counter(), time.process_time()
    result = action()
    return result, time.perf_counter() - start, time.process_time() - cpu


def encode_all(pixels: np.ndarray, target: Path, progressive: bool) -> int:
    """Write all of a JPEG by Pillow, and return its size in bytes."""
    with atomic_path(target) as temporary:
        image = Image.fromarray(pixels)
        image.save(temporary, "JPEG", quality=QUALITY, subsampling=0, progressive=progressive)
    return target.stat().st_size


def main(argv: list[str] | None = None) -> None:
    """Print a table of medians; the two ways alternate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megapixels", type=float, default=12.0, metavar="MP", help="size of the image")
    parser.add_argument(
        "--repeats", type=int, default=7, metavar="N", help="repeats, of which the median counts"
    )
    parser.add_argument(
        "--wait", type=float, default=1.0, metavar="SECONDS", help="time to complete a hole, at least"
    )
    args = parser.parse_args(argv)
    image = make_image(args.megapixels)
    print("| JPEG | all, s | blocks, s | ratio | processor time, opening included | bytes all / blocks |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jpg"), Path(folder, "out.jpg")
        for kind, subsampling, progressive in (
            ("baseline 4:2:0", 2, False),
            ("baseline 4:4:4", 0, False),
            ("progressive 4:2:0", 2, True),
        ):
            image.save(source, quality=92, subsampling=subsampling, progressive=progressive)
            rows = []
            for _ in range(args.repeats):
                pixels, _, open_cpu = timed(lambda: np.array(Image.open(source)))
                size, all_s, all_cpu = timed(functools.partial(encode_all, pixels, target, progressive))
                start = time.process_time()
                file = ImageFile(source, for_writing=True)
                height, width = file.shape
                hole = np.zeros(file.shape, bool)
                hole[height // 3 : height // 2, width // 3 : width // 2] = True
                time.sleep(args.wait)
                file.put(np.s_[:, :], np.full((height, width, 3), 128, np.uint8), hole)
                opening = time.process_time() - start
                _, blocks_s, blocks_cpu = timed(functools.partial(file.save, target, hole))
                cost = (opening + blocks_cpu) / (open_cpu + all_cpu)
                rows.append((all_s, blocks_s, blocks_s / all_s, cost, size / target.stat().st_size))
            medians = (f"{statistics.median(column):.2f}" for column in zip(*rows, strict=True))
            print(f"| {kind} | {' | '.join(medians)} |", flush=True)


if __name__ == "__main__":
    main()
