"""Draw the best, the median and the worst completions of scikit-image's photographs.

Every photograph, cut to a square of 256 pixels, gets random holes in three ranges of the mask ratio. All
completions are sorted by PSNR in the hole; three of each kind are drawn, beside the better result of
`cv2.inpaint` for the same hole and the truth. The bundled weights were trained on none of these photographs.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import skimage
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import metrics
from evaluation.baselines import BASELINES, OPENCV
from evaluation.evaluate import to_bytes
from imaging.random_masks import random_mask
from imaging.read import read_image, resize_image
from inference.inpainter import Inpainter
from inference.tiling import to_tensor
from utils import OneLineParser, UserError, atomic_path

NAMES = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
BUCKETS = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.6))
SIZE = 256  # pixels
SHOWN = 3  # completions of each kind: best, median, worst
GAP = 4  # pixels


def photographs() -> dict[str, np.ndarray]:
    """The middle of each photograph, (SIZE, SIZE, 3) uint8."""
    folder = Path(skimage.__file__).parent / "data"
    squares = {}
    for name in NAMES:
        image = resize_image(read_image(folder / name), SIZE)
        top, left = ((side - SIZE) // 2 for side in image.shape[:2])
        squares[name] = image[top : top + SIZE, left : left + SIZE]
    return squares


def psnr(filled: np.ndarray, image: np.ndarray, hole: np.ndarray) -> float:
    """PSNR in the hole, dB; images (H, W, 3) uint8, hole (H, W) bool."""
    mask = torch.from_numpy(hole)[None, None]
    return metrics.psnr(to_tensor(filled), to_tensor(image), mask).item()


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(prog="gallery.py", description=__doc__)
    parser.add_argument("file", metavar="FILE", help="PNG to write")
    parser.add_argument(
        "--checkpoint", default="default", metavar="FILE", help="checkpoint, or name of bundled weights"
    )
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="random seed of the holes")
    try:
        args = parser.parse_args(argv)
        inpainter = Inpainter.from_checkpoint(args.checkpoint, "cpu")
    except UserError as error:
        print(f"gallery.py: error: {error}", file=sys.stderr)
        return 2
    torch.set_flush_denormal(True)
    rows = []
    for number, (name, image) in enumerate(photographs().items()):
        for bucket, mask_ratio in enumerate(BUCKETS):
            hole = random_mask(SIZE, SIZE, mask_ratio, np.random.default_rng([args.seed, number, bucket])) > 0
            inputs = to_tensor(image), torch.from_numpy(hole)[None, None].float()
            opencv = [to_bytes(BASELINES[method].fill(*inputs))[0] for method in OPENCV]
            baseline = max(opencv, key=lambda filled: psnr(filled, image, hole))
            ours = inpainter(image, hole)
            masked = np.where(hole[:, :, None], 255, image)
            images = [masked, baseline, ours, image]
            rows.append((psnr(ours, image, hole), psnr(baseline, image, hole), name, hole.mean(), images))
    rows.sort(key=lambda row: -row[0])
    middle = (len(rows) - SHOWN) // 2
    chosen = [*rows[:SHOWN], *rows[middle : middle + SHOWN], *rows[-SHOWN:]]

    cell = SIZE + GAP
    canvas = np.full((SHOWN * cell + GAP, 3 * (4 * cell + 4 * GAP) - 3 * GAP, 3), 255, np.uint8)
    for i, (score, baseline_score, name, ratio, images) in enumerate(chosen):
        column, line = divmod(i, SHOWN)
        for j, image in enumerate(images):
            top, left = GAP + line * cell, GAP + column * (4 * cell + 4 * GAP) + j * cell
            canvas[top : top + SIZE, left : left + SIZE] = image
        kind = ("best", "median", "worst")[column]
        scores = f"{score:.2f} | {baseline_score:.2f} | {score - baseline_score:+.2f}"
        print(f"| {kind} | {Path(name).stem} | {ratio:.0%} | {scores} |")
    with atomic_path(Path(args.file)) as temporary:
        temporary.write_bytes(cv2.imencode(".png", canvas[:, :, ::-1])[1].tobytes())
    gains = [row[0] - row[1] for row in rows]
    print(f"{len(rows)} holes; {sum(gain > 0 for gain in gains)} better than cv2.inpaint's better method, "
          f"{np.mean(gains):+.2f} dB on average")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
