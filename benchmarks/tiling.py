"""Whether tiles leave seams, and what they cost in PSNR: pictures enlarged twice, against the plain network.

Every picture, enlarged to twice its size, is filled in tiles of half its side. The mean absolute
difference between neighbouring pixels across the tiles' borders inside holes is compared with that
elsewhere inside holes; PSNR in the hole is compared with that of the plain network on the picture as it is.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import metrics
from cli import OneLineParser, UserError
from dataset import InpaintingDataset
from inference import Inpainter, tiles, to_tensor


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
            args.test_root, args.image_size, training=False, max_images=args.count, coverage=(0.1, 0.6),
            cache_dir=args.cache_dir or None,
        )  # fmt: skip
    except UserError as error:
        print(f"tiling.py: error: {error}", file=sys.stderr)
        return 2
    plain, enlarged = [], []
    across: list[float] = []
    elsewhere: list[float] = []
    for item in dataset:
        image, hole = item["image"].permute(1, 2, 0).numpy(), item["mask"][0].numpy() > 0
        inpainter.tile = args.image_size
        plain.append(psnr(inpainter(image, hole), image, hole))
        large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC).clip(0, 1)
        large_hole = np.kron(hole, np.ones((2, 2), bool))
        filled = inpainter(large, large_hole)
        enlarged.append(psnr(filled, large, large_hole))
        steps = border_steps(filled, large_hole, inpainter.tile)
        across += steps[0]
        elsewhere += steps[1]
    print(f"{len(plain)} pictures: PSNR in the hole {np.mean(enlarged):.2f} dB in tiles at twice the size, "
          f"{np.mean(plain):.2f} dB plain")  # fmt: skip
    print(f"step across tile borders {np.mean(across):.5f}, elsewhere in holes {np.mean(elsewhere):.5f}, "
          f"ratio {np.mean(across) / np.mean(elsewhere):.3f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
