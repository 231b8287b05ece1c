"""Scores and times of the texture stage with other constants, on equal holes and over equal completions.

The network completes each hole once, and each variant adds its texture to that completion; baselines fill the
same holes. The seconds of a variant do not include the network's, which are those of `detail 0`.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import metrics
import texture
from dataset import InpaintingDataset
from evaluation.baselines import BASELINES
from imaging.files import choose_subset, list_root, name_digest
from imaging.read import read_image, resize_image
from inference.inpainter import Inpainter
from inference.tiling import to_tensor
from inference.visualize import grid_of
from utils import OneLineParser, UserError, atomic_path, make_folder, run_program

# fmt: off
VARIANTS: dict[str, dict[str, float]] = {  # values of constants of `texture`, and the share `detail`
    "detail 0": {}, "default": {}, "detail 0.5": {"detail": 0.5},
    "patch 5": {"PATCH": 5}, "patch 9": {"PATCH": 9}, "stride 2": {"STRIDE": 2},
    "no coherence": {"COHERENCE": 0}, "coherence 0.2": {"COHERENCE": 0.2},
    "no nearness": {"NEARNESS": 0}, "nearness 0.02": {"NEARNESS": 0.02},
    "keys 1024": {"KEYS": 1024}, "keys 16384": {"KEYS": 16384}, "components 8": {"COMPONENTS": 8},
    "blur 2": {"BLUR": 2.0}, "rim 1": {"RIM": 1.0}, "rim 4": {"RIM": 4.0}, "gain 0.8": {"GAIN": 0.8},
    "one octave": {},  # `SMALLEST` is half the longer side
    "search at every size": {"SEARCHED": 10**6},
}
# fmt: on
SEED = 42
LONGER_SIDES = (768, 1280)  # pixels, range for photographs
MIN_MARGIN = 16  # pixels of the scored region on each side of a blob: LPIPS needs 32 per side

Hole = tuple[str, torch.Tensor, torch.Tensor]  # name, image (1, 3, H, W) in [0, 1], mask (1, 1, H, W)


def main(argv: list[str] | None = None) -> int:
    try:
        args = parse_args(argv)
        names = choose_variants(args.variants)
        inpainter = Inpainter.from_checkpoint(args.checkpoint, "cpu", detail=0)
        left_out = "" if args.lpips_weights else metrics.why_no_lpips(None, 2 * MIN_MARGIN)
        weights = None if left_out else args.lpips_weights
        torch.set_flush_denormal(True)
        rows = []
        for name, image, mask in blobs(args) if args.objects else random_masks(args):
            images, seconds = complete(image, mask, inpainter, names)
            region = around(mask) if args.objects else ...
            images, mask = {key: x[region] for key, x in images.items()}, mask[region]
            scores = [score(images[key], images["truth"], mask, weights) for key in names]
            rows.append([[*x, seconds[key]] for x, key in zip(scores, names, strict=True)])
            if args.save:
                save(images, mask, Path(args.save, f"{name.replace('/', '_')}.png"))
    except UserError as error:
        print(f"texture.py: error: {error}", file=sys.stderr)
        return 2
    print_table(names, np.array(rows), left_out)
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="texture.py", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    # fmt: off
    add("--test_root", required=True, metavar="DIR", help="folder of images")
    add("--checkpoint", default="default", metavar="FILE", help="checkpoint, or bundled weights")
    add("--limit", type=int, default=24, metavar="IMAGES", help="maximum number of images")
    add("--size", type=int, default=256, metavar="PIXELS", help="side of the square crops")
    add("--mask_ratio", type=float, nargs=2, default=(0.1, 0.4), metavar=("LOW", "HIGH"),
        help="range of the mask ratio of random masks in the crops")
    add("--objects", action="store_true", help="fill a smooth blob in each whole photograph instead")
    add("--share", type=float, default=0.08, help="share of the photograph in the blob")
    add("--variants", default="", metavar="NAME,...", help="rows of the table (default: all)")
    add("--lpips_weights", default="", metavar="FILE",
        help="file with AlexNet's features.* layers for LPIPS (default: torchvision's cache)")
    add("--save", default="", metavar="DIR", help="folder of images with completions side by side")
    # fmt: on
    args = parser.parse_args(argv)
    low, high = args.mask_ratio
    for flag, is_valid, rule in (
        ("mask_ratio", 0 < low <= high < 1, "two shares between 0 and 1, the lower first"),
        ("share", 0 < args.share < 1, "between 0 and 1"),
        ("limit", args.limit >= 1, "at least 1"),
        ("size", args.size >= 32, "at least 32 pixels"),
    ):
        if not is_valid:
            raise UserError(f"--{flag}: must be {rule}, got {getattr(args, flag)}")
    if args.save:
        make_folder(Path(args.save), "--save")
    return args


def choose_variants(text: str) -> list[str]:
    """The rows that `--variants` names, and `default`, in the table's order; all that can be run for ""."""
    known = [*VARIANTS, "telea"]
    with contextlib.suppress(ModuleNotFoundError):
        import patchmatch  # optional

        known += ["patchmatch"] if patchmatch.patchmatch_available else []
    chosen = [name.strip() for name in text.split(",")] if text else known
    for name in chosen:
        if name not in known:
            raise UserError(f"--variants: no variant {name!r}; choose from: {', '.join(known)}")
    return [name for name in known if name in (*chosen, "default")]


def random_masks(args: argparse.Namespace) -> Iterator[Hole]:
    """Square crops with random masks."""
    settings: dict[str, Any] = {"training": False, "seed": SEED, "cache_dir": None, "flag": "--test_root"}
    settings |= {"max_images": args.limit, "mask_ratio": tuple(args.mask_ratio)}
    for item in InpaintingDataset(args.test_root, args.size, **settings):
        yield item["name"], item["image"][None], item["mask"][None]


def blobs(args: argparse.Namespace) -> Iterator[Hole]:
    """Photographs with blobs, scaled down to a random longer side if they are larger."""
    paths, names = list_root(args.test_root, False, "--test_root")
    for i in choose_subset(len(paths), args.limit, SEED):
        generator = np.random.default_rng([SEED, name_digest(names[i])])
        image = read_image(paths[i])
        scale = min(1, generator.uniform(*LONGER_SIDES) / max(image.shape))
        image = resize_image(image, round(scale * min(image.shape[:2])))
        yield names[i], to_tensor(image), random_blob(image.shape[:2], args.share, generator)


def random_blob(shape: tuple[int, ...], share: float, generator: np.random.Generator) -> torch.Tensor:
    """The mask of a smooth star-shaped blob of a share of an image (H, W), wholly inside if it fits."""
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    radii = np.ones_like(angles)
    for order in (2, 3, 4, 5):
        radii += generator.uniform(0, 0.4 / order) * np.cos(order * angles + generator.uniform(0, 2 * np.pi))
    radii *= np.sqrt(share * shape[0] * shape[1] / (np.pi * np.mean(radii**2)))
    points = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    size, margin = np.array(shape[::-1]), 1 + min(shape) // 16
    low, high = margin - points.min(axis=0), size - margin - points.max(axis=0)
    centre = np.where(low < high, low + generator.uniform(size=2) * (high - low), size / 2)
    mask = cv2.fillPoly(np.zeros(shape, np.float32), [(points + centre).round().astype(np.int32)], 1)
    return torch.from_numpy(mask)[None, None]


def around(mask: torch.Tensor) -> tuple[Any, ...]:
    """The region of a hole's bounding box and a quarter of its sides around it."""
    region: list[Any] = [...]
    for axis in (1, 0):
        span = mask[0, 0].amax(axis).nonzero()[:, 0].tolist()
        margin = max(MIN_MARGIN, len(span) // 4)
        region.append(slice(max(0, span[0] - margin), span[-1] + 1 + margin))
    return tuple(region)


def complete(
    image: torch.Tensor, mask: torch.Tensor, inpainter: Inpainter, names: list[str]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The completions of a hole by variant, beside the `truth`, and their seconds."""
    images, seconds = {"truth": image}, {}
    for name in dict.fromkeys(["detail 0", *names]):
        start = time.perf_counter()
        if name == "detail 0":
            images[name] = inpainter(image, mask)
        elif name in BASELINES:
            images[name] = BASELINES[name].fill(image, mask)
        else:
            images[name] = images["detail 0"].clone()
            for rows, columns in inpainter.regions(mask[0, 0].numpy() > 0):
                region = np.s_[..., rows, columns]
                images[name][region] = add_texture(name, images[name][region], mask[region])
        seconds[name] = time.perf_counter() - start
    return images, seconds


def add_texture(name: str, completed: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run a variant of the texture stage."""
    constants: dict[str, Any] = dict(VARIANTS[name])
    detail = constants.pop("detail", texture.DETAIL)
    if name == "one octave":
        constants["SMALLEST"] = (max(mask.shape) + 1) // 2
    with mock.patch.dict(vars(texture), constants):
        return texture.add_texture(completed, mask, detail)


def score(pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, weights: str | None) -> list[float]:
    """LPIPS (NaN without weights), sharpness and PSNR in the hole."""
    lpips = np.nan if weights is None else metrics.lpips_score(pred, target, weights or None).item()
    return [lpips, *(f(pred, target, mask).item() for f in (metrics.sharpness, metrics.psnr))]


def save(images: dict[str, torch.Tensor], mask: torch.Tensor, path: Path) -> None:
    """Draw the image with its hole in white, and three of its completions, side by side."""
    from torchvision.utils import save_image  # slow to import

    shown = [images[name] for name in ("detail 0", "default", "patchmatch") if name in images]
    with atomic_path(path) as temporary:
        save_image(grid_of([images["truth"].masked_fill(mask > 0, 1), *shown]), temporary, format="png")


def print_table(names: list[str], rows: np.ndarray, left_out: str) -> None:
    """Print means, of seconds medians, of rows (holes, variants, 4): the values of `score`, and seconds."""
    titles = ["LPIPS", "difference to default"] if not left_out else []
    titles = ["variant", *titles, "sharpness", "PSNR in the hole, dB", "seconds", "n"]
    print(f"LPIPS is left out: {left_out}\n\n" if left_out else "", end="")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for i, name in enumerate(names):
        lpips, sharpness, psnr, seconds = rows[:, i].T
        difference = lpips - rows[:, names.index("default"), 0]
        cells = [estimate(lpips, ".4f"), "" if name == "default" else estimate(difference, "+.4f")]
        cells = [name, *([] if left_out else cells), f"{sharpness.mean():.3f}", f"{psnr.mean():.2f}"]
        print(f"| {' | '.join([*cells, f'{np.median(seconds):.3f}', str(len(rows))])} |")


def estimate(values: np.ndarray, form: str) -> str:
    """The mean of a sample with its 95 % interval."""
    low, high = metrics.mean_interval(values.tolist()) or (np.nan, np.nan)
    return f"{values.mean():{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    run_program(main, "texture.py")
