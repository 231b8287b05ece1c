"""Whether MSSE does anything: what S is on either side of the mask, what α became, and what α·S is worth.

S matters through the softmax alone, where what all keys share cancels: it has to differ among *known* keys.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import metrics
from cli import OneLineParser, UserError
from dataset import InpaintingDataset
from inference import load_network
from utils import dilate

STAGES = ("structure_stage", "shape_stage", "texture_stage")
FAR = 8  # pixels from the hole, beyond the reach of S's largest patch


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(prog="structure.py", description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default="default", metavar="FILE", help="as of test.py")
    parser.add_argument("--test_root", default="sample", metavar="DIR", help="images")
    parser.add_argument("--image_size", type=int, default=128, metavar="PIXELS", help="side of the crops")
    parser.add_argument("--max_images", type=int, default=50, metavar="IMAGES", help="at most so many")
    parser.add_argument("--mask_coverage", type=float, nargs=2, default=(0.1, 0.6), help="missing shares")
    parser.add_argument("--cache_dir", default="", metavar="DIR", help="where decoded images are kept")
    try:
        args = parser.parse_args(argv)
        network, state = load_network(args.checkpoint, torch.device("cpu"))
        if not state["architecture"]["use_structure_encoder"]:
            raise UserError(f"{args.checkpoint}: has no structure encoder")
        dataset = InpaintingDataset(
            args.test_root,
            args.image_size,
            training=False,
            max_images=args.max_images,
            coverage=tuple(args.mask_coverage),
            cache_dir=args.cache_dir,
        )
    except UserError as error:
        print(f"structure.py: error: {error}", file=sys.stderr)
        return 2
    torch.set_flush_denormal(True)
    deaf = copy.deepcopy(network)  # attention that does not hear S
    for name in STAGES:
        gate = getattr(network.refinement, name).gate
        print(f"α of the {name.replace('_', ' ')}: {' '.join(f'{a:.2f}' for a in gate.alpha.tolist())}")
        getattr(deaf.refinement, name).gate.alpha.data.zero_()
    worth: list[float] = []
    shares: dict[str, list[tuple[float, float]]] = {
        "in the hole": [],
        "known": [],
        f"known, {FAR} px from the hole": [],
    }
    with torch.no_grad():
        for i in range(len(dataset)):
            image, mask = dataset[i]["image"][None], dataset[i]["mask"][None]
            outputs = network(image, mask)
            worth.append(
                (
                    metrics.psnr(outputs["output"], image, mask)
                    - metrics.psnr(deaf(image, mask)["output"], image, mask)
                ).item()
            )
            regions = (mask > 0, mask == 0, dilate(mask, FAR) == 0)
            for values, region in zip(shares.values(), regions, strict=True):
                if region.any():
                    S = outputs["structure"][region]
                    values.append((S.mean().item(), S.std().item()))
    for name, values in shares.items():
        mean, deviation = np.mean(values, axis=0)
        print(f"S {name}: mean {mean:.3f}, standard deviation within an image {deviation:.3f}")
    low, high = metrics.mean_interval(worth) or (np.nan, np.nan)
    print(
        f"PSNR in the hole with α·S over without: {np.mean(worth):+.3f} dB "
        f"({low:+.3f} to {high:+.3f}, n {len(worth)})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
