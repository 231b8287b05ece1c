"""Evaluate a checkpoint: score a folder beside classical methods, or fill holes in images."""

import argparse
import math
import sys
from pathlib import Path

from inference.fill_files import FillSettings, open_single
from utils import OneLineParser, UserError, one_line, run_program


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
    folder.add_argument("--mask_ratio", "--mask_coverage", type=float, nargs=2, default=(0.1, 0.4),
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


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit status: 2 for a user's mistake, 1 if some images
    of a folder could not be filled.
    """
    try:
        args = parse_args(argv)
        job = None
        if args.image_path and not Path(args.image_path).is_dir():
            job = open_single(FillSettings.of(args))
            if job is None:  # it was there
                return 0
        from evaluation.entry import run  # slow to import: torch; a bad file is refused before

        return run(args, job)
    except UserError as error:
        print(f"test.py: error: {one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    run_program(main, "test.py")
