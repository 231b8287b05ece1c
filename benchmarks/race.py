"""Race variants of the network for equal processor time: what each part brings in the same minutes.

Every variant trains from scratch on one core, by train.py's own steps and with any of its flags, with the
same seed, images and masks, until its process has used the given minutes of processor time (not
wall-clock: the runs may share a machine). Its averaged weights are then scored on the same masks as
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
from cli import OneLineParser
from config import parse_config
from dataset import InpaintingDataset
from losses import InpaintingLoss
from models import (
    CoarseDecoder,
    InpaintingNetwork,
    MaskQueryCrossAttention,
    ResidualBlock,
)
from run import Run, keep_freed_memory, train_step
from train import make_loaders
from utils import seed_everything

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


class ChannelNorm(nn.Module):
    """Scales the channels of each position to a root mean square of 1, then each by a learnt factor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6) * self.scale[:, None, None]


class ChannelNormedBlock(ResidualBlock):
    """A residual block behind a `ChannelNorm`."""

    def __init__(self, channels: int, hidden: int | None = None, dilation: int = 1) -> None:
        super().__init__(channels, hidden, dilation)
        self.norm = ChannelNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(models.activation(self.conv1(models.activation(self.norm(x)))))


def normed_blocks(count: int, hidden: int | None = None) -> nn.Sequential:
    """Residual blocks that each see a normalised input, and the norm of what they add up to."""
    blocks = (ChannelNormedBlock(160, hidden, dilation=(1, 2, 4)[i % 3]) for i in range(count))
    return nn.Sequential(*blocks, ChannelNorm(160))


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


def channel_normed(
    network: InpaintingNetwork | None = None, depth: int = 4, refinement: int = 1
) -> InpaintingNetwork:
    network = network or base()
    network.coarse_decoder.bottleneck = nn.Sequential(ChannelNorm(160), normed_blocks(depth))
    network.refinement_decoder.blocks = normed_blocks(refinement, hidden=80)
    return network


class Joined(InpaintingNetwork):
    """The refinement also starts each stage from what the coarse decoder has at that size."""

    def __init__(self) -> None:
        super().__init__(40)
        self.joints = nn.ModuleList(nn.Conv2d(width, width, 1) for width in (40, 80, 160))

    def complete_padded(
        self, prefill: torch.Tensor, image: torch.Tensor, hole: torch.Tensor, return_attention: bool = False
    ) -> dict[str, Any]:
        features, masks = self.encoder(image, hole)
        coarse, decoded = self.coarse_decoder(features, prefill, hole)
        completed = torch.where(hole > 0, coarse, image)
        context = [torch.where(m > 0, d, e) for e, d, m in zip(features, decoded, masks, strict=False)]
        f0 = models.activation(self.embed(torch.cat([2 * completed - 1, hole], dim=1)))
        structure = self.structure_encoder(f0, hole) if self.structure_encoder is not None else None
        joints = [joint(d) for joint, d in zip(self.joints, decoded, strict=True)]
        stages = self.refinement
        f1 = f0 + stages.structure_stage(f0, context[0], hole, structure)[0] + joints[0]
        x = models.activation(stages.down2(f1)) + joints[1]
        f2 = x + stages.shape_stage(x, context[1], hole, structure)[0]
        x = models.activation(stages.down3(f2)) + joints[2]
        f3 = x + stages.texture_stage(x, context[2], hole, structure)[0]
        return {"coarse": coarse, "refined": coarse + self.refinement_decoder([f1, f2, f3])}


class QuarterSizeDecoder(CoarseDecoder):
    """A coarse decoder that has blocks at 1/4 size as well, and sees the prefill there."""

    def __init__(self, base_channels: int, bottleneck_depth: int, blocks: int) -> None:
        super().__init__(base_channels, bottleneck_depth)
        self.bottleneck = nn.Sequential(ChannelNorm(160), normed_blocks(bottleneck_depth))
        self.guide3 = nn.Conv2d(4, 4 * base_channels, 3, padding=1)
        self.blocks3 = normed_blocks(blocks, hidden=80)

    def forward(
        self, features: list[torch.Tensor], prefill: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        e1, e2, e3, e4 = features
        seen = torch.cat([2 * prefill - 1, mask], dim=1)
        d4 = self.bottleneck(e4 + self.guide(models.pool(seen, models.STRIDE)))
        d3 = models.resize(self.up3(d4), like=e3) + e3 + self.guide3(models.pool(seen, 4))
        d3 = models.activation(self.blocks3(d3))
        d2 = models.activation(models.resize(self.up2(d3), like=e2) + e2)
        d1 = models.activation(models.resize(self.up1(d2), like=e1) + e1)
        return prefill + self.to_rgb(d1), [d1, d2, d3]


class EverySize(InpaintingNetwork):
    """In training also gives what the smaller copies became, for `EverySizeLoss`."""

    def complete(self, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False) -> dict:
        outputs = super().complete(image, mask, return_attention)
        self.sizes.append((mask, outputs["coarse"], outputs["refined"]))
        return outputs

    def forward(self, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False) -> dict:
        self.sizes: list[tuple[torch.Tensor, ...]] = []
        outputs = super().forward(image, mask, return_attention)
        *smaller, _ = self.sizes
        self.sizes = []  # nothing of a graph stays behind
        return outputs | ({"smaller": smaller} if self.training else {})


class EverySizeLoss(InpaintingLoss):
    """Adds 0.3 times the reconstruction losses of each smaller copy, coarse and refined, if there are any."""

    def forward(
        self,
        outputs: dict,
        target: torch.Tensor,
        mask: torch.Tensor,
        epoch: float = 0,
        total_epochs: float = 1,
    ) -> dict[str, torch.Tensor]:
        losses = super().forward(outputs, target, mask, epoch, total_epochs)
        for hole, *completions in outputs.get("smaller", []):
            truth = models.pool(target, target.shape[-1] // hole.shape[-1])
            has_hole = hole.amax(dim=(1, 2, 3))
            for completion in completions:
                distance = self.reconstruction(completion.float(), truth, hole)
                losses["total"] = losses["total"] + 0.3 * (distance * has_hole).mean()
        return losses


def every_size() -> InpaintingNetwork:
    network = channel_normed(EverySize(40))
    network.coarse_decoder = QuarterSizeDecoder(40, bottleneck_depth=2, blocks=1)
    return network


def joined(decoder: CoarseDecoder | None = None, **changes: int) -> InpaintingNetwork:
    network = channel_normed(Joined(), **changes)
    if decoder is not None:
        network.coarse_decoder = decoder
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
    "channel_normed": channel_normed,
    "every_size": every_size,
    "joined": joined,
    "joined_quarter_size": lambda: joined(QuarterSizeDecoder(40, bottleneck_depth=2, blocks=2)),
    "joined_refinement_3": lambda: joined(depth=1, refinement=3),
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
    parser = OneLineParser(prog="race.py", description=__doc__.splitlines()[0])
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--minutes", type=float, default=5, help="processor time of the training")
    parser.add_argument("--count", type=int, default=50, help="validation images")
    args, flags = parser.parse_known_args()
    config = parse_config(
        ["--device=cpu", "--num_workers=0", "--mask_coverage", "0.1", "0.6", *flags], "race.py", presets=True
    )

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    seed_everything(config.seed)
    run = Run(config, torch.device("cpu"), model=VARIANTS[args.variant]())
    weights = {name: getattr(config, name) for name in vars(config) if name.startswith("lambda_")}
    criterion = EverySizeLoss(**weights, reconstruction=config.reconstruction)
    images: dict[int, int] = {}
    start, progress = time.process_time(), 0.0
    while progress < 1:
        run.size, run.batch_size = stage = config.stage_at(progress)
        loader, _ = make_loaders(run)
        loader.sampler.epoch = run.epoch  # type: ignore[attr-defined]
        for batch in loader:
            losses = train_step(run, run.model, criterion, [batch], progress) or {}
            images[run.size] = images.get(run.size, 0) + len(batch["image"])
            run.step += 1
            progress = min(1.0, (time.process_time() - start) / (60 * args.minutes))
            if progress >= 1 or config.stage_at(progress) != stage:
                break
        run.epoch += 1
    network = run.ema.module.eval()
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
        "steps": run.step,
        "images": images,
        "loss": {name: round(value, 4) for name, value in losses.items()},
        "psnr": psnr,
        "gain": {bucket: round(output - telea, 2) for bucket, (output, _, telea) in psnr.items()},
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
