"""The network and the holes that a benchmark looks at, as its command line asks."""

import argparse
from pathlib import Path

import torch

from dataset import InpaintingDataset
from inference.checkpoints import load_network
from models import InpaintingNetwork
from utils import OneLineParser

Holes = list[tuple[torch.Tensor, torch.Tensor]]


def parse_holes(
    argv: list[str] | None, script: str, document: str, *, image_size: int, mask_ratio: tuple[float, float]
) -> tuple[argparse.Namespace, InpaintingNetwork, Holes]:
    """The arguments, the network in evaluation mode, and an image (1, 3, S, S) and mask (1, 1, S, S) a hole.

    Args:
        script: its file.
        document: its first line is what `--help` says.
        image_size, mask_ratio: the flags' defaults.

    Raises:
        UserError: for a flag, a checkpoint or a folder that cannot be used.
    """
    parser = OneLineParser(prog=Path(script).name, description=document.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default="default", metavar="FILE", help="as of test.py")
    parser.add_argument("--test_root", default="sample", metavar="DIR", help="images")
    parser.add_argument(
        "--image_size", type=int, default=image_size, metavar="PIXELS", help="side of the crops"
    )
    parser.add_argument("--max_images", type=int, default=40, metavar="IMAGES", help="at most so many")
    parser.add_argument("--mask_ratio", type=float, nargs=2, default=mask_ratio, help="missing shares")
    parser.add_argument("--cache_dir", default="", metavar="DIR", help="where decoded images are kept")
    args = parser.parse_args(argv)
    network, _ = load_network(args.checkpoint, torch.device("cpu"))
    dataset = InpaintingDataset(
        args.test_root,
        args.image_size,
        training=False,
        max_images=args.max_images,
        mask_ratio=tuple(args.mask_ratio),
        cache_dir=args.cache_dir,
    )
    torch.set_flush_denormal(True)
    holes = [(item["image"][None], item["mask"][None]) for item in (dataset[i] for i in range(len(dataset)))]
    return args, network, holes
