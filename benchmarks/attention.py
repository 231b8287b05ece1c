"""Effect of attention and MSSE: number of keys that a query attends to, values of S, PSNR without each part.

Whatever all keys of a query share cancels in the softmax: if Q·K hardly differs between keys, attention is an
average, and if S hardly differs between *known* keys, α·S has no effect. Each part is ablated in a copy of
the network, whose completions are then scored on the same holes.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import metrics
from benchmarks.holes import Holes, parse_holes
from metrics import dilate
from models import InpaintingNetwork, MaskQueryCrossAttention
from utils import UserError

STAGES = ("structure_stage", "shape_stage", "texture_stage")
FAR = 8  # pixels from the hole, beyond the reach of S's largest patch


def stages(network: InpaintingNetwork) -> list[MaskQueryCrossAttention]:
    return [getattr(network.refinement, name) for name in STAGES]


def ablate(stage: MaskQueryCrossAttention, part: str) -> None:
    """Remove a part of one stage: its whole `output`, its `choice` among keys by Q·K, or `structure`."""
    if part == "output":
        torch.nn.init.zeros_(stage.to_out.weight)
    elif part == "choice":
        for parameter in stage.to_query.parameters():
            torch.nn.init.zeros_(parameter)
    elif stage.gate is not None:
        torch.nn.init.zeros_(stage.gate.alpha)


def perplexity(attention: torch.Tensor) -> tuple[float, float]:
    """Perplexity of the attention and number of keys in reach: means over queries."""
    entropy = -(attention * attention.clamp_min(1e-12).log()).sum(dim=-1)
    return entropy.exp().mean().item(), (attention > 0).sum(dim=-1).double().mean().item()


def main(argv: list[str] | None = None) -> int:
    try:
        _, network, holes = parse_holes(argv, __file__, __doc__, image_size=128, mask_ratio=(0.1, 0.6))
    except UserError as error:
        print(f"attention.py: error: {error}", file=sys.stderr)
        return 2
    with torch.no_grad():
        describe(network, holes)
        score_ablations(network, holes)
    return 0


def describe(network: InpaintingNetwork, holes: Holes) -> None:
    """Print the selectivity and α of each stage, and S on either side of the mask."""
    selectivity: list[list[tuple[float, float]]] = [[] for _ in STAGES]
    regions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "in the hole": lambda mask: mask > 0,
        "known": lambda mask: mask == 0,
        f"known, {FAR} px from the hole": lambda mask: dilate(mask, FAR) == 0,
    }
    S: dict[str, list[tuple[float, float]]] = {name: [] for name in regions}
    for image, mask in holes:
        outputs = network(image, mask, return_attention=True)
        for pairs, attention in zip(selectivity, outputs["attention"], strict=True):
            pairs.append(perplexity(attention))
        for name, region in regions.items():
            chosen = region(mask)
            if "structure" in outputs and chosen.any():
                values = outputs["structure"][chosen]
                S[name].append((values.mean().item(), values.std().item()))
    for name, pairs, stage in zip(STAGES, selectivity, stages(network), strict=True):
        keys, reach = np.mean(pairs, axis=0)
        alpha = "" if stage.gate is None else "; α " + " ".join(f"{a:.2f}" for a in stage.gate.alpha.tolist())
        print(f"{name}: perplexity {keys:.0f} of {reach:.0f} keys in reach{alpha}")
    for name, pairs in S.items():
        if pairs:
            mean, deviation = np.mean(pairs, axis=0)
            print(f"S {name}: mean {mean:.3f}, standard deviation within an image {deviation:.3f}")


def score_ablations(network: InpaintingNetwork, holes: Holes) -> None:
    """Print the change of the PSNR in the hole without each part."""

    def score(network: InpaintingNetwork) -> np.ndarray:
        return np.array([metrics.psnr(network(i, m)["output"], i, m).item() for i, m in holes])

    full = score(network)
    print(f"PSNR in the hole: {full.mean():.3f} dB, n {len(full)}; without a part, it changes by")
    parts = ["output", "choice"] + (["structure"] if network.structure_encoder is not None else [])
    cases = [(part, STAGES) for part in parts] + [("output", (name,)) for name in STAGES]
    for part, names in cases:
        ablated = copy.deepcopy(network)
        for name in names:
            ablate(getattr(ablated.refinement, name), part)
        change = score(ablated) - full
        low, high = metrics.mean_interval(change.tolist()) or (np.nan, np.nan)
        stage = "all stages" if names == STAGES else names[0]
        print(f"  {part} of {stage}: {change.mean():+.3f} dB ({low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    sys.exit(main())
