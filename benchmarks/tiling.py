"""Measures the seams that tiles leave, and their cost in PSNR.

Every image, enlarged to twice its size, is filled in tiles of half its side, and in one piece. The mean
absolute difference between neighbouring pixels across the tiles' borders in the hole is divided by that
elsewhere in the hole. The image's content makes it differ from 1 (borders cross the middle of images), so
that the quotient of tiled over whole measures the seams. PSNR in the hole is compared with that of the plain
network on the image at its own size.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import metrics
from dataset import InpaintingDataset
from inference.inpainter import Inpainter
from inference.tiling import bands, to_tensor
from utils import OneLineParser, UserError


def psnr(filled: np.ndarray, image: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in the hole, in dB."""
    return metrics.psnr(to_tensor(filled), to_tensor(image), torch.from_numpy(mask)[None, None]).item()


def border_steps(filled: np.ndarray, mask: np.ndarray, side: int) -> tuple[list[float], list[float]]:
    """Absolute differences in the hole of `filled` (H, W, 3): across tile borders, and elsewhere."""
    across: list[float] = []
    elsewhere: list[float] = []
    covered = list(bands(mask, side))
    for axis in (0, 1):
        difference = np.abs(np.diff(filled, axis=axis)).mean(axis=2)
        inside = mask[1:] & mask[:-1] if axis == 0 else mask[:, 1:] & mask[:, :-1]
        at_border = np.zeros_like(inside)
        for (rows, _), columns in covered:
            if axis == 0:
                at_border[[edge - 1 for edge in (rows.start, rows.stop) if 0 < edge < len(mask)]] = True
            for span, _ in columns if axis == 1 else []:
                edges = [edge - 1 for edge in (span.start, span.stop) if 0 < edge < mask.shape[1]]
                at_border[rows, edges] = True
        across += difference[inside & at_border].tolist()
        elsewhere += difference[inside & ~at_border].tolist()
    return across, elsewhere


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(prog="tiling.py", description=__doc__)
    parser.add_argument("--test_root", required=True, metavar="DIR", help="images")
    parser.add_argument("--checkpoint", default="default", metavar="FILE", help="see test.py")
    parser.add_argument("--count", type=int, default=40, metavar="N", help="number of images")
    parser.add_argument(
        "--image_size",
        type=int,
        default=256,
        metavar="PIXELS",
        help="size of the images before they are enlarged",
    )
    parser.add_argument("--cache_dir", default="", metavar="DIR", help="folder of the decoded images")
    try:
        args = parser.parse_args(argv)
        inpainter = Inpainter.from_checkpoint(args.checkpoint, "cpu", detail=0)
        dataset = InpaintingDataset(
            args.test_root, args.image_size, training=False, max_images=args.count, mask_ratio=(0.1, 0.6),
            cache_dir=args.cache_dir,
        )  # fmt: skip
    except UserError as error:
        print(f"tiling.py: error: {error}", file=sys.stderr)
        return 2
    plain, enlarged = [], []
    steps: dict[int, tuple[list[float], list[float]]] = {
        args.image_size: ([], []),
        2 * args.image_size: ([], []),
    }
    for item in dataset:
        image, mask = item["image"].permute(1, 2, 0).numpy(), item["mask"][0].numpy() > 0
        inpainter.tile = args.image_size
        plain.append(psnr(inpainter(image, mask), image, mask))
        large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC).clip(0, 1)
        large_mask = np.kron(mask, np.ones((2, 2), bool))
        for tile, (across, elsewhere) in steps.items():
            inpainter.tile = tile
            filled = inpainter(large, large_mask)
            steps_across, steps_elsewhere = border_steps(filled, large_mask, args.image_size)
            across += steps_across
            elsewhere += steps_elsewhere
            if tile == args.image_size:
                enlarged.append(psnr(filled, large, large_mask))
    print(f"{len(plain)} images: PSNR in the hole {np.mean(enlarged):.2f} dB in tiles at twice the size, "
          f"{np.mean(plain):.2f} dB plain")  # fmt: skip
    tiled, whole = (np.mean(across) / np.mean(elsewhere) for across, elsewhere in steps.values())
    print(f"step at tile borders over step elsewhere in holes: {tiled:.4f} in tiles, {whole:.4f} "
          f"in one piece, quotient {tiled / whole:.4f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
