"""Whether tiles leave seams, and what they cost in PSNR: pictures enlarged twice, against the plain network.

Every picture, enlarged to twice its size, is filled in tiles of half its side, and in one piece. The mean
absolute difference between neighbouring pixels across the tiles' borders inside holes is divided by that
elsewhere inside holes; what is drawn at those places makes it differ from 1 (borders cross the middle of
pictures), so that the quotient of the one in tiles and the one in one piece tells of seams. PSNR in the
hole is compared with that of the plain network on the picture as it is.
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
from inference.tiling import tiles, to_tensor
from utils import OneLineParser, UserError


def psnr(filled: np.ndarray, image: np.ndarray, hole: np.ndarray) -> float:
    """In the hole, dB."""
    mask = torch.from_numpy(hole)[None, None]
    return metrics.psnr(to_tensor(filled), to_tensor(image), mask).item()


def border_steps(filled: np.ndarray, hole: np.ndarray, side: int) -> tuple[list[float], list[float]]:
    """Absolute differences in the hole (H, W) of `filled` (H, W, 3): across tile borders, and elsewhere."""
    across: list[float] = []
    elsewhere: list[float] = []
    bands = tiles(np.any(hole, axis=1), side)
    rows = {edge for span, _ in bands for edge in (span.start, span.stop)}
    vertical = np.abs(np.diff(filled, axis=0)).mean(axis=2)
    inside = hole[1:] & hole[:-1]
    at_border = np.zeros_like(inside)
    at_border[[row - 1 for row in rows if 0 < row < len(hole)]] = True
    across += vertical[inside & at_border].tolist()
    elsewhere += vertical[inside & ~at_border].tolist()
    horizontal = np.abs(np.diff(filled, axis=1)).mean(axis=2)
    inside = hole[:, 1:] & hole[:, :-1]
    at_border = np.zeros_like(inside)
    for band, _ in bands:
        for span, _ in tiles(np.any(hole[band], axis=0), side) if hole[band].any() else []:
            for column in (span.start, span.stop):
                if 0 < column < hole.shape[1]:
                    at_border[band, column - 1] = True
    across += horizontal[inside & at_border].tolist()
    elsewhere += horizontal[inside & ~at_border].tolist()
    return across, elsewhere


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(prog="tiling.py", description=__doc__)
    parser.add_argument("--test_root", required=True, metavar="DIR", help="pictures")
    parser.add_argument("--checkpoint", default="default", metavar="FILE", help="as of test.py")
    parser.add_argument("--count", type=int, default=40, metavar="N", help="pictures")
    parser.add_argument(
        "--image_size", type=int, default=256, metavar="PIXELS", help="before they are enlarged"
    )
    parser.add_argument("--cache_dir", default="", metavar="DIR", help="where decoded images are kept")
    try:
        args = parser.parse_args(argv)
        inpainter = Inpainter.from_checkpoint(args.checkpoint, "cpu")
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
        image, hole = item["image"].permute(1, 2, 0).numpy(), item["mask"][0].numpy() > 0
        inpainter.tile = args.image_size
        plain.append(psnr(inpainter(image, hole), image, hole))
        large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC).clip(0, 1)
        large_hole = np.kron(hole, np.ones((2, 2), bool))
        for tile, (across, elsewhere) in steps.items():
            inpainter.tile = tile
            filled = inpainter(large, large_hole)
            more = border_steps(filled, large_hole, args.image_size)
            across += more[0]
            elsewhere += more[1]
            if tile == args.image_size:
                enlarged.append(psnr(filled, large, large_hole))
    print(f"{len(plain)} pictures: PSNR in the hole {np.mean(enlarged):.2f} dB in tiles at twice the size, "
          f"{np.mean(plain):.2f} dB plain")  # fmt: skip
    tiled, whole = (np.mean(across) / np.mean(elsewhere) for across, elsewhere in steps.values())
    print(f"step at tile borders over step elsewhere in holes: {tiled:.4f} in tiles, {whole:.4f} "
          f"in one piece, quotient {tiled / whole:.4f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
