"""Gain in PSNR and cost in time of flipping and of more passes, on images with random masks."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import metrics
from dataset import InpaintingDataset
from inference.inpainter import Inpainter
from utils import OneLineParser, UserError

LEVERS: tuple[dict[str, Any], ...] = (
    {},
    {"flip": True},
    {"passes": 2},
    {"passes": 3},
    {"flip": True, "passes": 2},
)


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(prog="levers.py", description=__doc__)
    parser.add_argument("--test_root", required=True, metavar="DIR", help="folder of images")
    parser.add_argument(
        "--checkpoint", default="default", metavar="FILE", help="checkpoint, or bundled weights"
    )
    parser.add_argument("--count", type=int, default=100, metavar="N", help="number of images")
    parser.add_argument(
        "--image_size", type=int, default=256, metavar="PIXELS", help="side of the square crops"
    )
    parser.add_argument("--cache_dir", default="", metavar="DIR", help="folder to cache decoded images in")
    try:
        args = parser.parse_args(argv)
        inpainters = [
            Inpainter.from_checkpoint(args.checkpoint, "cpu", detail=0, **lever) for lever in LEVERS
        ]
        dataset = InpaintingDataset(
            args.test_root, args.image_size, training=False, max_images=args.count, mask_ratio=(0.1, 0.6),
            cache_dir=args.cache_dir,
        )  # fmt: skip
    except UserError as error:
        print(f"levers.py: error: {error}", file=sys.stderr)
        return 2
    torch.set_flush_denormal(True)
    scores: list[list[float]] = []
    seconds: list[list[float]] = []
    for item in dataset:  # every lever fills each image in turn
        image, mask = item["image"][None], item["mask"][None]
        scores.append([])
        seconds.append([])
        for inpainter in inpainters:
            start = time.perf_counter()
            filled = inpainter(image, mask)
            seconds[-1].append(time.perf_counter() - start)
            scores[-1].append(metrics.psnr(filled, image, mask).item())
    values, times = np.array(scores), np.median(seconds, axis=0)
    print("| lever | PSNR in the hole, dB | gain (95 %) | time |\n|---|---|---|---|")
    for i, lever in enumerate(LEVERS):
        name = ", ".join(key if value is True else f"{key} {value}" for key, value in lever.items()) or "none"
        gains = values[:, i] - values[:, 0]
        low, high = metrics.mean_interval(gains.tolist()) or (gains.mean(),) * 2
        gain = f"{gains.mean():+.3f} ({low:+.3f} to {high:+.3f})" if i else ""
        print(f"| {name} | {values[:, i].mean():.3f} | {gain} | {times[i] / times[0]:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
