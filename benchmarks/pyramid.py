"""PSNR at each size of the pyramid: its prefill, its coarse completion, its refined completion.

Each size is scored in its own hole against the truth, shrunk to that size. The next column follows one hole
through all sizes: the completion of each size is averaged over the smallest size's missing pixels. The last
two are the root mean squares of the bottleneck and of the coarse decoder's residual; a decoder that the
training has switched off has a residual of zero.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import metrics
from benchmarks.holes import parse_holes
from models import InpaintingNetwork
from utils import UserError


class Traced(InpaintingNetwork):
    """Network that keeps the inputs and results of every size, the smallest first."""

    def complete_from_prefill(
        self, prefill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False
    ) -> dict:
        outputs = super().complete_from_prefill(prefill, image, mask, return_attention)
        self.trace.append((mask, image, prefill, outputs["coarse"], outputs["refined"]))
        return outputs

    def complete_with_mirror_image(
        self, prefill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False
    ) -> dict:
        outputs = super().complete_with_mirror_image(prefill, image, mask, return_attention)
        self.trace[-1] = (mask, image, prefill, outputs["coarse"], outputs["refined"])  # instead of the pair
        return outputs

    def forward(self, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False) -> dict:
        self.trace: list[tuple[torch.Tensor, ...]] = []
        return super().forward(image, mask, return_attention)


def shrink(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Means of x over the area of each pixel of `like`."""
    return F.adaptive_avg_pool2d(x, (like.shape[-2], like.shape[-1]))


def score(network: InpaintingNetwork, image: torch.Tensor, mask: torch.Tensor) -> list[list[float]]:
    """PSNR of prefill, coarse and refined, then in the smallest size's hole: one row per size."""
    assert isinstance(network, Traced)
    network(image, mask)
    smallest = network.trace[0][0]
    rows = []
    for hole, known, *stages in network.trace:
        truth = shrink(image, like=hole)
        filled = torch.where(hole > 0, stages[-1], known)
        means, right = shrink(filled, like=smallest), shrink(image, like=smallest)
        pairs = [(stage, truth, hole) for stage in stages] + [(means, right, smallest)]
        rows.append([metrics.psnr(a, b, m).item() if m.any() else np.nan for a, b, m in pairs])
    return rows


def main(argv: list[str] | None = None) -> int:
    try:
        args, network, holes = parse_holes(argv, __file__, __doc__, image_size=256, mask_ratio=(0.2, 0.4))
    except UserError as error:
        print(f"pyramid.py: error: {error}", file=sys.stderr)
        return 2
    network.__class__ = Traced
    strength: dict[str, list[float]] = {"bottleneck": [], "to_rgb": []}
    for name, values in strength.items():
        module = getattr(network.coarse_decoder, name)
        module.register_forward_hook(lambda _, __, y, v=values: v.append(y.square().mean().sqrt().item()))
    with torch.no_grad():
        scores = [score(network, image, mask) for image, mask in holes]
    assert isinstance(network, Traced)
    sides = [max(mask.shape[-2:]) for mask, *_ in network.trace]
    means = np.nanmean(np.array(scores), axis=0)
    rms = [np.reshape(values, (-1, len(sides))).mean(axis=0) for values in strength.values()]
    print(f"n {len(scores)}, mask ratio {args.mask_ratio[0]:.0%} to {args.mask_ratio[1]:.0%}; PSNR in dB")
    print(f"| size | prefill | coarse | refined | averaged at {sides[0]} px | bottleneck | residual |")
    print("|---|---|---|---|---|---|---|")
    for side, row, bottleneck, residual in zip(sides, means, *rms, strict=True):
        cells = [f"{side}", *(f"{value:.2f}" for value in row), f"{bottleneck:.2f}", f"{residual:.4f}"]
        print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
