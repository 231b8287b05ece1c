"""Race variants of the network for equal processor time: what each part brings in the same minutes.

Every variant trains from scratch on one core, first at 64 px, then at 128 px, with the same seed, images
and masks, until its process has used the given minutes of processor time (not wall-clock: the runs may
share a machine). Its averaged weights are then scored on the same masks as `cv2.INPAINT_TELEA`.
"""

import argparse
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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

sys.path.insert(0, str(Path(__file__).parents[1]))

import models
from dataset import InpaintingDataset, get_dataloaders
from losses import InpaintingLoss
from models import InpaintingNetwork, MaskQueryCrossAttention, ResidualBlock

WHOLE = 2**31  # a pyramid's base that no image is larger than
BUCKETS = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.6))


class NoAttention(nn.Module):
    """Stands where an attention stood and adds nothing."""

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


class NormedBlock(ResidualBlock):
    """A residual block that normalises the channels of each position first."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__(channels, dilation=dilation)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.conv2(models.activation(self.conv1(normed)))


def base(**changes: Any) -> InpaintingNetwork:
    return InpaintingNetwork(40, **changes)


def no_attention() -> InpaintingNetwork:
    network = base(use_structure_encoder=False)
    for stage in ("structure_stage", "shape_stage", "texture_stage"):
        setattr(network.refinement, stage, NoAttention())
    return network


def no_prefill() -> InpaintingNetwork:
    models.push_pull = lambda image, mask: torch.where(mask > 0, 0.5, image)
    return base(pyramid_base=WHOLE)


class CoarsePyramid(InpaintingNetwork):
    """The smaller copies are completed by the coarse decoder alone."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False) -> dict:
        self.size = image.shape
        return super().forward(image, mask, return_attention)

    def complete_over(
        self, prefill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False
    ) -> dict:
        if image.shape == self.size:
            return super().complete_over(prefill, image, mask, return_attention)
        refinement, decoder = self.refinement, self.refinement_decoder
        self.refinement, self.refinement_decoder = Nothing(), Nothing()  # type: ignore[assignment]
        outputs = super().complete_over(prefill, image, mask)
        self.refinement, self.refinement_decoder = refinement, decoder
        return outputs


class Nothing(nn.Module):
    """Stands where the refinement stood: no stages, and a residual of zero."""

    def forward(self, *inputs: object) -> object:
        return ([], []) if len(inputs) > 1 else 0


def bottleneck(*blocks: nn.Module) -> InpaintingNetwork:
    network = base()
    network.coarse_decoder.bottleneck = nn.Sequential(*blocks)
    return network


def full_size() -> InpaintingNetwork:
    """Two of the four blocks at 1/8 size exchanged for one at full size."""
    network = base(bottleneck_depth=2)
    network.coarse_decoder.to_rgb = nn.Sequential(ResidualBlock(40), models.zero_module(nn.Conv2d(40, 3, 1)))
    return network


VARIANTS: dict[str, Callable[[], InpaintingNetwork]] = {
    "base": base,
    "no_pyramid": lambda: base(pyramid_base=WHOLE),
    "no_prefill": no_prefill,
    "coarse_pyramid": lambda: CoarsePyramid(40),
    "no_attention": no_attention,
    "no_msse": lambda: base(use_structure_encoder=False),
    "depth_2": lambda: base(bottleneck_depth=2),
    "depth_8": lambda: base(bottleneck_depth=8),
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
    "normed": lambda: bottleneck(*(NormedBlock(160, dilation=d) for d in (1, 2, 4, 1))),
}


def score(
    network: nn.Module, root: str, size: int, coverage: tuple[float, float], count: int, cache: str
) -> list[float]:
    """Mean PSNR in the hole of output, coarse and Telea over `count` images."""
    dataset = InpaintingDataset(
        root, size, training=False, max_images=count, coverage=coverage, cache_dir=cache
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
                -10 * math.log10((filled - image)[:, hole].square().mean())
                for filled in (outputs["output"][0], outputs["coarse"][0], telea)
            ]
        )
    return np.mean(rows, axis=0).round(3).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--train_root", required=True)
    parser.add_argument("--val_root", required=True)
    parser.add_argument("--minutes", type=float, default=10, help="processor time of the training")
    parser.add_argument("--share_64", type=float, default=0.6, help="share of the time at 64 px")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--count", type=int, default=50, help="validation images")
    parser.add_argument("--cache_dir", default="")
    args = parser.parse_args()

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(42)
    network = VARIANTS[args.variant]().to(memory_format=torch.channels_last)
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    criterion = InpaintingLoss()
    data = {
        "num_workers": 0,
        "batch_size": args.batch_size,
        "coverage": (0.1, 0.6),
        "cache_dir": args.cache_dir,
    }
    loaders = {
        size: get_dataloaders(args.train_root, args.val_root, image_size=size, val_subset=1, **data)[0]
        for size in (64, 128)
    }
    images = {64: 0, 128: 0}
    start, step = time.process_time(), 0
    while (progress := (time.process_time() - start) / (60 * args.minutes)) < 1:
        size = 64 if progress < args.share_64 else 128
        for batch in loaders[size]:
            progress = min(1.0, (time.process_time() - start) / (60 * args.minutes))
            if progress >= 1 or (progress >= args.share_64) != (size == 128):
                break
            for group in optimizer.param_groups:
                group["lr"] = (
                    args.lr
                    * min(1, (step + 1) / 100)
                    * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
                )
            image, mask = batch["image"].to(memory_format=torch.channels_last), batch["mask"]
            losses = criterion(network(image, mask), image, mask, progress, 1)
            optimizer.zero_grad()
            losses["total"].backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            ema.update_parameters(network)
            images[size] += len(image)
            step += 1
    averaged = ema.module.eval()
    result = {
        "variant": args.variant,
        "parameters": sum(p.numel() for p in network.parameters()),
        "images": images,
        "loss": {name: round(loss.item(), 4) for name, loss in losses.items()},
        "psnr": {
            f"{size} px {low:.0%}-{high:.0%}": score(
                averaged, args.val_root, size, (low, high), args.count, args.cache_dir
            )
            for size in (128, 256)
            for low, high in BUCKETS
        },
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
