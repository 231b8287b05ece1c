"""Evaluate a checkpoint: score a folder beside classical methods, or fill holes in images."""

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from utils import DEFAULT_MASK_RATIO, OneLineParser, UserError, make_folder, one_line, run_program

if TYPE_CHECKING:
    from dataset import InpaintingDataset
    from evaluation.mask_packs import PackDataset


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: for a flag that is unknown, missing, or at odds with another.
    """
    parser = OneLineParser(prog="test.py", description=__doc__)
    parser.add_argument(
        "--checkpoint", default="default", metavar="FILE",
        help="of train.py, the name of one that comes along, or an ONNX file of export.py",
    )  # fmt: skip
    parser.add_argument("--save_dir", default="results", metavar="DIR", help="where everything is written")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cuda, cuda:1, mps or cpu")
    parser.add_argument("--use_lpips", action="store_true", help="add LPIPS (needs the lpips package)")
    parser.add_argument(
        "--lpips_weights", default="", metavar="FILE", help="file with AlexNet's features.* layers"
    )
    parser.add_argument(
        "--save_attention", action="store_true", help="draw structure and attention of every image"
    )
    parser.add_argument(
        "--invert_mask", action="store_true", help="in mask files black is missing, not white"
    )

    folder = parser.add_argument_group("score a folder")
    folder.add_argument(
        "--test_root", default="", metavar="DIR", help="images, searched recursively; or 'sample'"
    )
    folder.add_argument(
        "--mask_root", default="", metavar="DIR", help="mask files, paired by stem or drawn at random"
    )
    folder.add_argument("--mask_ratio", "--mask_coverage", type=float, nargs=2, default=DEFAULT_MASK_RATIO,
                        metavar=("LOW", "HIGH"),
                        help="range of missing shares of drawn masks")  # fmt: skip
    folder.add_argument(
        "--image_size", type=int, default=0, metavar="PIXELS", help="side of the square crops; 0: as trained"
    )
    folder.add_argument(
        "--max_images", type=int, default=0, metavar="IMAGES", help="at most so many; 0 for all"
    )
    folder.add_argument(
        "--batch_size", type=int, default=8, metavar="IMAGES", help="images the loader reads at once"
    )
    folder.add_argument("--num_workers", type=int, default=0, metavar="N", help="loader processes")
    folder.add_argument("--seed", type=int, default=42, metavar="N", help="of the drawn masks")
    folder.add_argument(
        "--make_pack",
        default="",
        metavar="DIR",
        help="draw a pack of masks for the images, and no more",
    )
    folder.add_argument("--pack", default="", metavar="DIR", help="masks of a pack instead of drawn ones")
    folder.add_argument(
        "--protocol", choices=("default", "paper"), default="default",
        help="paper adds the variants of PSNR, SSIM and L1 that published tables hold",
    )  # fmt: skip
    folder.add_argument(
        "--biharmonic", action="store_true", help="add scikit-image's biharmonic completion to the floors"
    )
    folder.add_argument(
        "--gallery", action="store_true", help="write gallery.html: every hole, worst first, to be looked at"
    )
    folder.add_argument(
        "--against", default="", metavar="FILE", help="another checkpoint, scored on the same holes"
    )
    folder.add_argument("--fid", action="store_true",
                        help="add the Fréchet distance (needs torchmetrics and torch-fidelity)")  # fmt: skip
    folder.add_argument("--fid_weights", default="", metavar="FILE", help="InceptionV3's, of torch-fidelity")
    folder.add_argument("--cache_dir", default="", metavar="DIR", help="where decoded images are kept")

    single = parser.add_argument_group("fill one image, or all in a folder")
    single.add_argument("--image_path", default="", metavar="PATH", help="a file of any size, or a folder")
    single.add_argument(
        "--mask_path",
        default="",
        metavar="PATH",
        help="one mask for all, or a folder of masks of the same names",
    )
    single.add_argument("--box", type=parse_box, metavar="X,Y,W,H", help="fill this rectangle instead")
    single.add_argument(
        "--alpha_mask", action="store_true", help="fill what is transparent in the image itself"
    )
    single.add_argument("--dilate", type=int, default=0, metavar="PIXELS", help="grow the hole by so much")
    single.add_argument("--feather", type=int, default=0, metavar="PIXELS",
                        help="blend into what was under the hole, so far inside its edge")  # fmt: skip
    single.add_argument(
        "--flip", action="store_true", help="average with the mirrored image's; twice the time"
    )
    single.add_argument("--passes", type=int, default=1, metavar="N", help="completions, each over the last")
    single.add_argument(
        "--max_memory", type=float, default=2.0, metavar="GIB", help="that filling should need"
    )
    single.add_argument(
        "--max_megapixels", type=float, default=0, metavar="MP", help="refuse larger images; 0 for no limit"
    )
    single.add_argument("--lossless", action="store_true", help="write JPEG, HEIC and AVIF as PNG")
    single.add_argument(
        "--verify", action="store_true",
        help="prove by another library that nothing outside the hole changed",
    )  # fmt: skip
    single.add_argument(
        "--overwrite", action="store_true", help="allow writing over an image, or files beside it"
    )
    single.add_argument("--skip_existing", action="store_true", help="leave results that are there")
    single.add_argument("--gt_path", default="", metavar="FILE", help="the true image, to score one result")
    args = parser.parse_args(argv)

    if bool(args.test_root) == bool(args.image_path):
        raise UserError("--test_root or --image_path: exactly one of them is required")
    if args.checkpoint.endswith(".onnx") and (args.save_attention or args.device not in ("auto", "cpu")):
        flag = "save_attention" if args.save_attention else "device"
        raise UserError(
            f"--{flag}: an ONNX file gives the output alone, on the CPU; name the checkpoint it was made from"
        )
    if (args.make_pack or args.pack) and not args.test_root:
        raise UserError("--make_pack and --pack: --test_root is required with them")
    if args.pack and (args.make_pack or args.mask_root or args.max_images or args.image_size):
        raise UserError(
            "--pack: not with --make_pack, --mask_root, --max_images or --image_size, which it fixes"
        )
    sources = [bool(args.mask_path), bool(args.box), args.alpha_mask]
    if args.image_path and sum(sources) != 1:
        raise UserError(
            "--mask_path, --box or --alpha_mask: exactly one of them is required with --image_path"
        )
    if args.gt_path and Path(args.image_path).is_dir():
        raise UserError("--gt_path: scores one image, not a folder")
    low, high = args.mask_ratio
    if not 0 < low <= high < 1:
        raise UserError(
            f"--mask_ratio: must be two shares between 0 and 1, the lower first, got {low:g} {high:g}"
        )
    for name in ("max_memory", "max_megapixels"):
        value = getattr(args, name)
        if not math.isfinite(value) or value < 0 or (name == "max_memory" and value == 0):
            raise UserError(f"--{name}: must be a finite number above 0, got {value:g}")
    for name, least in (
        ("image_size", 0),
        ("max_images", 0),
        ("batch_size", 1),
        ("num_workers", 0),
        ("seed", 0),
        ("dilate", 0),
        ("feather", 0),
        ("passes", 1),
    ):
        if getattr(args, name) < least:
            raise UserError(f"--{name}: must be at least {least}, got {getattr(args, name)}")
    if 0 < args.image_size < 16:
        raise UserError(f"--image_size: must be at least 16 pixels, got {args.image_size}")
    if args.seed >= 2**32:
        raise UserError(f"--seed: must be below 2^32, got {args.seed}")
    return args


def parse_box(text: str) -> tuple[int, int, int, int]:
    """`left,top,width,height` in pixels."""
    try:
        left, top, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be left,top,width,height in pixels, got {text}") from None
    return left, top, width, height


def fill(args: argparse.Namespace) -> int:
    """Fill one image file, or all in a folder; returns the exit status, 1 if some could not be filled."""
    from evaluation.evaluate import describe  # slow to import: torch
    from inference.checkpoints import open_network
    from inference.device import select_device
    from inference.fill_files import FillSettings, fill_file, fill_folder
    from inference.inpainter import Inpainter

    names = [field.name for field in dataclasses.fields(FillSettings)]
    settings = FillSettings(**{name: getattr(args, name) for name in names})
    trained = open_network(args.checkpoint, select_device(args.device), "--checkpoint")
    inpainter = Inpainter(
        trained.network, max_memory=args.max_memory * 2**30, flip=args.flip, passes=args.passes
    )
    failed = 0
    fill_path = fill_folder if Path(args.image_path).is_dir() else fill_file
    for job in fill_path(inpainter, settings, tuple(trained.settings["mask_ratio"])):
        if job is None:
            failed += 1
        elif job.truth is not None or args.save_attention:
            describe(
                trained.network,
                job,
                Path(args.save_dir),
                checkpoint=str(args.checkpoint),
                save_attention=args.save_attention,
                use_lpips=args.use_lpips,
                lpips_weights=args.lpips_weights or None,
            )
    return int(failed > 0)


def make_pack(args: argparse.Namespace) -> None:
    """Draw a pack of masks for the images of `--test_root`."""
    from evaluation.mask_packs import DEFAULT_SIZE, make_pack  # slow to import: torch

    size = args.image_size or DEFAULT_SIZE
    count = make_pack(args.test_root, Path(args.make_pack), size, args.seed, args.max_images or None)
    print(f"{args.make_pack}: {count:,} masks of {size} px and manifest.json")


def open_for_scoring(args: argparse.Namespace, image_size: int) -> "InpaintingDataset | PackDataset":
    """The images of `--test_root`, under the masks that the flags ask for."""
    from dataset import InpaintingDataset, report_unreadable
    from evaluation.mask_packs import PackDataset

    if args.pack:
        return PackDataset(Path(args.pack), args.test_root, args.cache_dir)
    dataset = InpaintingDataset(
        args.test_root,
        image_size,
        training=False,
        max_images=args.max_images or None,
        mask_ratio=tuple(args.mask_ratio),
        mask_root=args.mask_root,
        invert_mask=args.invert_mask,
        seed=args.seed,
        cache_dir=args.cache_dir,
        flag="--test_root",
    )
    report_unreadable(dataset)
    return dataset


def score(args: argparse.Namespace) -> None:
    """Score a folder of images against the baselines; write the report, the completions and the gallery."""
    import torch  # slow to import, and all that follows with it

    from dataset import Loader
    from evaluation.baselines import BASELINES
    from evaluation.evaluate import (
        OUTPUTS,
        ScoreSettings,
        refuse_outputs,
        score_folder,
        summary_lines,
        versions,
    )
    from evaluation.mask_packs import PackDataset
    from evaluation.paper_metrics import FrechetDistance
    from inference.checkpoints import open_network
    from inference.device import select_device
    from metrics import lpips_score

    folder = Path(args.save_dir)
    make_folder(folder, "--save_dir")
    device = select_device(args.device)
    trained = open_network(args.checkpoint, device, "--checkpoint")
    against = open_network(args.against, device, "--against") if args.against else None
    refuse_outputs(args.test_root, folder / OUTPUTS)
    if args.use_lpips:  # find out before anything is written
        probe = torch.zeros(1, 3, 64, 64)
        lpips_score(probe, probe, args.lpips_weights or None)
    frechet = FrechetDistance(args.fid_weights or None, device) if args.fid else None
    dataset = open_for_scoring(args, args.image_size or trained.settings["image_size"])
    masks = f"drawn, {args.mask_ratio[0]:g} to {args.mask_ratio[1]:g} missing"
    protocol = {
        "checkpoint": str(args.checkpoint),
        "weights_sha256": trained.weights_sha256,
        "image_size": dataset.image_size,
        "masks": f"pack, sha256 {dataset.digest}"
        if isinstance(dataset, PackDataset)
        else args.mask_root or masks,
        "seed": args.seed,
        "versions": versions(),
    }
    if against is not None:
        protocol |= {"against": args.against, "against_sha256": against.weights_sha256}
    settings = ScoreSettings(
        baselines=tuple(name for name in BASELINES if args.biharmonic or name != "biharmonic"),
        use_lpips=args.use_lpips,
        lpips_weights=args.lpips_weights or None,
        paper=args.protocol == "paper",
        save_attention=args.save_attention,
        gallery=args.gallery,
    )
    loader = Loader(dataset, batch_size=args.batch_size, num_workers=args.num_workers)
    report = score_folder(
        trained.network, loader, folder, protocol, settings, against.network if against else None, frechet
    )
    print("\n".join(summary_lines(report)))
    print(f"report.md, report.json, metrics.csv and pictures in {folder}")


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the command line says.

    Returns:
        The exit status: 2 for a user error, 1 if some images of a folder could not be filled.
    """
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
