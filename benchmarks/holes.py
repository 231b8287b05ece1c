"""Network, images and masks of a benchmark, from its command line."""

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
    """Arguments, network in evaluation mode, and pairs of image (1, 3, S, S) and mask (1, 1, S, S).

    Args:
        script: file of the benchmark.
        document: its docstring; `--help` shows the first line.
        image_size, mask_ratio: defaults of the flags.

    Raises:
        UserError: if a flag, a checkpoint or a folder cannot be used.
    """
    parser = OneLineParser(prog=Path(script).name, description=document.splitlines()[0])
    parser.add_argument(
        "checkpoint", nargs="?", default="default", metavar="FILE", help="checkpoint, or bundled weights"
    )
    parser.add_argument("--test_root", default="sample", metavar="DIR", help="folder of images")
    parser.add_argument(
        "--image_size", type=int, default=image_size, metavar="PIXELS", help="side of the crops"
    )
    parser.add_argument(
        "--max_images", type=int, default=40, metavar="IMAGES", help="maximum number of images"
    )
    parser.add_argument("--mask_ratio", type=float, nargs=2, default=mask_ratio, help="range of mask ratios")
    parser.add_argument("--cache_dir", default="", metavar="DIR", help="folder to cache decoded images in")
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
