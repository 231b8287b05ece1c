"""Pack the averaged weights of a checkpoint into a file of bundled weights."""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from inference.checkpoints import load_checkpoint, save_checkpoint, weights_digest
from utils import OneLineParser, UserError


def pack(checkpoint: Path, data: str, reports: list[Path]) -> dict:
    """Contents of a weights file: architecture, half-precision weights, their SHA-256, and their origin.

    Raises:
        UserError: if a file cannot be read, or half precision cannot hold a weight.
    """
    state = load_checkpoint(checkpoint, "CHECKPOINT")
    weights = {name: value.half() for name, value in state["ema"].items()}
    overflowing = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if overflowing:
        raise UserError(f"CHECKPOINT: {overflowing[0]} does not fit half precision")
    try:
        metrics = [json.loads(path.read_text()) for path in reports]
        for report in metrics:
            report.get("protocol", {}).pop("checkpoint", None)  # the path would name private folders
    except (OSError, ValueError) as error:
        raise UserError(f"--metrics: {error}") from None
    counters = {name: state["counters"][name] for name in ("epoch", "step", "images", "elapsed_s")}
    private = {"train_root", "val_root", "mask_root", "cache_dir", "save_dir", "resume", "init"}
    private |= {"vgg_weights", "lpips_weights"}
    return {
        "architecture": state["architecture"],
        "ema": weights,
        "sha256": weights_digest(weights),
        "config": {name: value for name, value in state["config"].items() if name not in private},
        "counters": counters,
        "data": data,
        "metrics": metrics,
    }


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(prog="pack.py", description=__doc__)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="checkpoint of a run, such as best_model.pth"
    )
    parser.add_argument("file", metavar="FILE", help="file to write, such as weights/default.pth")
    parser.add_argument("--data", required=True, metavar="TEXT", help="description of the training data")
    parser.add_argument(
        "--metrics", nargs="*", default=[], metavar="FILE", help="report.json files of test.py to include"
    )
    try:
        args: argparse.Namespace = parser.parse_args(argv)
        content = pack(Path(args.checkpoint), args.data, [Path(path) for path in args.metrics])
        save_checkpoint(content, Path(args.file))
    except UserError as error:
        print(f"pack.py: error: {error}", file=sys.stderr)
        return 2
    print(f"{args.file}: {Path(args.file).stat().st_size / 2**20:.2f} MiB, sha256 {content['sha256']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
