"""Compare variants of the network after training for equal processor time.

Every variant trains from scratch on one core, by the steps of train.py and with any of its flags, on the
same seed, images and masks, until its process has used the given minutes of processor time (not
wall-clock time: the runs may share a machine). Its averaged weights are then scored on the same masks as
`cv2.INPAINT_TELEA`.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import models
from config import parse_config
from dataset import InpaintingDataset
from layers import ChannelNorm, ResidualBlock, residual_blocks
from models import InpaintingNetwork, MaskQueryCrossAttention
from training.loaders import make_loaders
from training.prior_fit import fit_prior
from training.process import set_up_process
from training.state import TrainingState
from training.step import make_criterion, train_step
from utils import OneLineParser

NO_PYRAMID = 2**31  # pyramid base larger than any image
BUCKETS = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.6))


class NoAttention(nn.Module):
    """Replacement of an attention stage that adds nothing."""

    def forward(self, x: torch.Tensor, *_: object) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(x), None


class SelfAttention(nn.Module):
    """Global attention among the tokens of the bottleneck."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = MaskQueryCrossAttention(
            channels=channels,
            context_channels=channels,
            num_heads=4,
            head_channels=channels // 4,
            use_structure=False,
            scale=1,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attention(x, x, torch.zeros_like(x[:, :1]))[0]


class Deeper(nn.Module):
    """Two residual blocks at half the resolution of the bottleneck."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(ResidualBlock(channels), ResidualBlock(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + models.resize(self.blocks(models.pool(x, 2)), like=x)


def base(**changes: Any) -> InpaintingNetwork:
    return InpaintingNetwork(40, **({"prior_rank": 256} | changes))


def no_attention() -> InpaintingNetwork:
    network = base(use_structure_encoder=False)
    for stage in ("structure_stage", "shape_stage", "texture_stage"):
        setattr(network.refinement, stage, NoAttention())
    return network


def no_prefill() -> InpaintingNetwork:
    models.push_pull = lambda image, mask: torch.where(mask > 0, 0.5, image)
    return base(pyramid_base=NO_PYRAMID, prior_rank=0)


class CoarsePyramid(InpaintingNetwork):
    """Network that completes the smaller copies by the coarse decoder alone."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False) -> dict:
        self.size = image.shape[-2:]
        return super().forward(image, mask, return_attention)

    def complete_from_prefill(
        self, prefill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False
    ) -> dict:
        if image.shape[-2:] == self.size:
            return super().complete_from_prefill(prefill, image, mask, return_attention)
        refinement, decoder = self.refinement, self.refinement_decoder
        self.refinement, self.refinement_decoder = NoRefinement(), NoRefinement()  # type: ignore[assignment]
        outputs = super().complete_from_prefill(prefill, image, mask)
        self.refinement, self.refinement_decoder = refinement, decoder
        return outputs


class NoRefinement(nn.Module):
    """Replacement of the refinement and its decoder: no stages, and a residual of zero."""

    def forward(self, *inputs: object) -> object:
        return ([], []) if len(inputs) > 1 else 0


def bottleneck(*blocks: nn.Module) -> InpaintingNetwork:
    network = base()
    network.coarse_decoder.bottleneck = nn.Sequential(*blocks)
    return network


def full_size() -> InpaintingNetwork:
    """One of the two blocks at 1/8 resolution replaced by one at full resolution."""
    network = base(bottleneck_depth=1)
    network.coarse_decoder.to_rgb = nn.Sequential(ResidualBlock(40), models.zero_module(nn.Conv2d(40, 3, 1)))
    return network


def no_norm() -> InpaintingNetwork:
    network = base()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, ChannelNorm):
                setattr(module, name, nn.Identity())
    return network


def quarter_size(depth: int) -> InpaintingNetwork:
    """Another number of blocks at 1/4 resolution in the coarse decoder."""
    network = base()
    network.coarse_decoder.block3 = residual_blocks(160, depth, hidden=80)
    return network


VARIANTS: dict[str, Callable[[], InpaintingNetwork]] = {
    "base": base,
    "no_pyramid": lambda: base(pyramid_base=NO_PYRAMID, prior_rank=0),
    "no_prefill": no_prefill,
    "no_prior": lambda: base(prior_rank=0),
    "coarse_pyramid": lambda: CoarsePyramid(40, prior_rank=256),
    "no_attention": no_attention,
    "no_msse": lambda: base(use_structure_encoder=False),
    "depth_1": lambda: base(bottleneck_depth=1),
    "depth_4": lambda: base(bottleneck_depth=4),
    "full_size": full_size,
    "attention_8": lambda: bottleneck(
        ResidualBlock(160),
        ResidualBlock(160, dilation=2),
        SelfAttention(160),
        ResidualBlock(160, dilation=4),
        SelfAttention(160),
        ResidualBlock(160),
    ),
    "deeper_16": lambda: bottleneck(ResidualBlock(160), Deeper(160), ResidualBlock(160)),
    "no_norm": no_norm,
    "no_quarter_size": lambda: quarter_size(0),
    "quarter_size_3": lambda: quarter_size(3),
}


def score(
    network: nn.Module, root: str, size: int, mask_ratio: tuple[float, float], count: int, cache: str
) -> list[float]:
    """Mean PSNR in the hole of output, coarse completion and Telea over `count` images."""
    dataset = InpaintingDataset(
        root, size, training=False, max_images=count, mask_ratio=mask_ratio, cache_dir=cache
    )
    rows = []
    for index in range(len(dataset)):
        item = dataset[index]
        image, mask = item["image"], item["mask"]
        with torch.no_grad():
            outputs = network(image[None], mask[None])
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        telea = cv2.inpaint(pixels, mask[0].numpy().astype(np.uint8), 3, cv2.INPAINT_TELEA)
        telea = torch.from_numpy(telea).permute(2, 0, 1) / 255
        hole = mask[0] > 0
        rows.append(
            [
                -10 * math.log10((completion - image)[:, hole].square().mean())
                for completion in (outputs["output"][0], outputs["coarse"][0], telea)
            ]
        )
    return np.mean(rows, axis=0).round(3).tolist()


def main() -> None:
    parser = OneLineParser(prog="race.py", description=__doc__.splitlines()[0])
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument(
        "--minutes", type=float, default=5, metavar="MINUTES", help="processor time of the training"
    )
    parser.add_argument("--count", type=int, default=50, metavar="IMAGES", help="number of validation images")
    args, flags = parser.parse_known_args()
    config = parse_config(
        ["--device=cpu", "--num_workers=0", "--mask_ratio", "0.1", "0.6", *flags], "race.py"
    )

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    set_up_process(config.seed)
    state = TrainingState(config, torch.device("cpu"), model=VARIANTS[args.variant]())
    criterion = make_criterion(config)
    images: dict[int, int] = {}
    start, progress = time.process_time(), 0.0
    fit_prior(state)
    while progress < 1:
        state.size, state.batch_size = stage = config.stage_at(progress)
        loader, _ = make_loaders(state)
        loader.sampler.epoch = state.epoch  # type: ignore[attr-defined]
        for batch in loader:
            losses = train_step(state, state.model, criterion, [batch], progress) or {}
            images[state.size] = images.get(state.size, 0) + len(batch["image"])
            state.step += 1
            progress = min(1.0, (time.process_time() - start) / (60 * args.minutes))
            if progress >= 1 or config.stage_at(progress) != stage:
                break
        state.epoch += 1
    network = state.ema.module.eval()
    psnr = {
        f"{size} px {low:.0%}-{high:.0%}": score(
            network, config.val_root, size, (low, high), args.count, config.cache_dir
        )
        for size in (128, 256)
        for low, high in BUCKETS
    }
    result = {
        "variant": args.variant,
        "flags": " ".join(flags),
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": state.step,
        "images": images,
        "loss": {name: round(value, 4) for name, value in losses.items()},
        "psnr": psnr,
        "gain": {bucket: round(output - telea, 2) for bucket, (output, _, telea) in psnr.items()},
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
