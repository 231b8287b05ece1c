"""What writing a JPEG block by block costs, beside writing all of it anew: time, size, and what changes."""

import argparse
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from imaging.image_file import ImageFile
from utils import atomic_path

QUALITY = 95  # at which all of a JPEG was written anew


def picture(megapixels: float, seed: int = 0) -> Image.Image:
    """A picture of 4:3 with shapes of all sizes and noise, about as hard to code as a photograph."""
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


def timed(action: object, *arguments: object) -> tuple[float, float]:
    """Seconds of the clock and of the processors."""
    start, cpu = time.perf_counter(), time.process_time()
    action(*arguments)  # type: ignore[operator]
    return time.perf_counter() - start, time.process_time() - cpu


def main(argv: list[str] | None = None) -> None:
    """Print a table of medians, interleaved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megapixels", type=float, default=12.0, metavar="MP", help="of the picture")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="medians of so many")
    parser.add_argument(
        "--wait", type=float, default=1.0, metavar="SECONDS", help="that completing a hole takes at least"
    )
    args = parser.parse_args(argv)
    image = picture(args.megapixels)
    print("| JPEG | anew, s | blocks, s | ratio | processor time, opening included | bytes anew / blocks |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jpg"), Path(folder, "out.jpg")
        for kind, settings in (
            ("baseline 4:2:0", {"subsampling": 2}),
            ("baseline 4:4:4", {"subsampling": 0}),
            ("progressive 4:2:0", {"subsampling": 2, "progressive": True}),
        ):
            image.save(source, quality=92, **settings)  # type: ignore[arg-type]
            rows = []
            for _ in range(args.repeats):
                opened: list[object] = []
                open_old = timed(lambda into: into.append(np.array(Image.open(source))), opened)
                buffer = io.BytesIO()

                def write_anew(pixels: object, file: io.BytesIO) -> None:
                    progressive = kind.startswith("progressive")  # noqa: B023 (called at once)
                    Image.fromarray(pixels).save(  # type: ignore[arg-type]
                        file, "JPEG", quality=QUALITY, subsampling=0, progressive=progressive
                    )
                    with atomic_path(target) as temporary:
                        temporary.write_bytes(file.getvalue())

                old = timed(write_anew, opened[0], buffer)
                start = time.process_time()
                file = ImageFile(source, for_writing=True)
                height, width = file.shape
                hole = np.zeros(file.shape, bool)
                hole[height // 3 : height // 2, width // 3 : width // 2] = True
                time.sleep(args.wait)
                file.put(np.s_[:, :], np.full((height, width, 3), 128, np.uint8), hole)
                opening = time.process_time() - start
                new = timed(file.save, target, hole)
                rows.append((old[0], new[0], (opening + new[1]) / (open_old[1] + old[1]), buffer.tell()))
            anew, blocks = (statistics.median(row[i] for row in rows) for i in (0, 1))
            cost = statistics.median(row[2] for row in rows)
            ratio = statistics.median(row[1] / row[0] for row in rows)
            sizes = rows[0][3] / target.stat().st_size
            print(
                f"| {kind} | {anew:.2f} | {blocks:.2f} | {ratio:.2f} | {cost:.2f} | {sizes:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
