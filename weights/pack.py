"""Pack the averaged weights of a checkpoint into a file that comes with the project."""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from inference.checkpoints import load_checkpoint, save_checkpoint, weights_digest
from utils import OneLineParser, UserError


def pack(checkpoint: Path, data: str, reports: list[Path]) -> dict:
    """What a weights file holds: architecture, half-precision weights, their SHA-256, and their origin.

    Raises:
        UserError: for a file that cannot be read, or weights that half precision cannot hold.
    """
    state = load_checkpoint(checkpoint, "CHECKPOINT")
    weights = {name: value.half() for name, value in state["ema"].items()}
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"CHECKPOINT: {broken[0]} does not fit half precision")
    try:
        metrics = [json.loads(path.read_text()) for path in reports]
        for each in metrics:
            each.get("protocol", {}).pop("checkpoint", None)  # nobody's folders
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
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="best_model.pth of a run")
    parser.add_argument("file", metavar="FILE", help="to write: weights/default.pth")
    parser.add_argument("--data", required=True, metavar="TEXT", help="what the weights were trained on")
    parser.add_argument(
        "--metrics", nargs="*", default=[], metavar="FILE", help="metrics.json files that test.py wrote"
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
