"""What test.py does: score the completions of a folder beside classical methods, or fill files."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset import InpaintingDataset, Loader, report_unreadable
from evaluation.baselines import BASELINES
from evaluation.evaluate import OUTPUTS, ScoreSettings, save_attention, score_folder, summary_lines, versions
from evaluation.mask_packs import PackDataset, make_pack
from evaluation.paper_metrics import FrechetDistance
from imaging.files import SAMPLE, list_root
from inference.checkpoints import Network, open_network
from inference.device import seed_everything, select_device
from inference.fill_files import REPORT_FILES, FillSettings, Job, fill_folder, fill_job, print_job, read_named
from inference.inpainter import Inpainter
from inference.tiling import to_tensor
from inference.visualize import comparison_grid, small_copy
from metrics import MetricsCalculator, lpips_score
from models import InpaintingNetwork
from utils import UserError, write_json

DEFAULT_SIZE = 256  # pixels, of a pack


def fill(network: Network, trained: tuple[float, float], args: argparse.Namespace, job: Job | None) -> int:
    """Fill one image, which was read, or all in a folder; returns the exit status."""
    inpainter = Inpainter(network, max_memory=args.max_memory * 2**30, flip=args.flip, passes=args.passes)
    settings = FillSettings.of(args)
    if job is None:
        filled: Iterable[Job | None] = fill_folder(inpainter, settings, trained)
    else:
        print_job(job, trained, fill_job(inpainter, settings, job))
        filled = [job]
    failed = 0
    for done in filled:
        if done is None:
            failed += 1
        elif done.truth is not None or args.save_attention:
            describe(network, done, args)
    return int(failed > 0)


@torch.no_grad()
def describe(network: Network, done: Job, args: argparse.Namespace) -> None:
    """Score a completion against the truth, if there is one, and draw its stages on a smaller copy."""
    from torchvision.utils import save_image  # slow to import

    filled, missing, truth = read_named(done.target_file, "--save_dir").colors(), done.missing, done.truth
    device = network.device
    folder = Path(args.save_dir)
    if truth is not None:
        calculator = MetricsCalculator(use_lpips=args.use_lpips, lpips_weights=args.lpips_weights or None)
        mask = torch.from_numpy(missing[None, None].astype(np.float32)).to(device)
        calculator.update(to_tensor(filled).to(device), to_tensor(truth).to(device), mask)
        scores = calculator.compute()
        write_json({"checkpoint": str(args.checkpoint), "output": scores}, folder / REPORT_FILES[0])
        print(", ".join(f"{metric} {value:.4g}" for metric, value in scores.items()))
    image, mask = (each.to(device) for each in small_copy(filled, missing))
    target = image if truth is None else small_copy(truth, missing)[0].to(device)
    outputs = network(image, mask, return_attention=args.save_attention)
    if args.save_attention and isinstance(network, InpaintingNetwork):
        name = done.relative.with_suffix("").as_posix()
        save_attention(network, image, mask, outputs, name, folder / "attention")
    if truth is not None:
        save_image(comparison_grid(target, mask, outputs), folder / REPORT_FILES[1])


def run(args: argparse.Namespace, job: Job | None = None) -> int:
    """Evaluate as `test.py` was told; returns the exit status: 1 if some images of a folder were not filled.

    Args:
        job: the single image to be filled, if there is one.

    Raises:
        UserError: for anything that the user can mend.
    """
    seed_everything(args.seed)
    torch.set_flush_denormal(True)
    if args.make_pack:
        folder, size = Path(args.make_pack), args.image_size or DEFAULT_SIZE
        count = make_pack(args.test_root, folder, size, args.seed, args.max_images or None)
        print(f"{folder}: {count:,} masks of {size} px and manifest.json")
        return 0
    try:
        Path(args.save_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--save_dir: cannot write to {args.save_dir}: {error.strerror}") from None
    network, trained, digest = open_network(args.checkpoint, select_device(args.device), "--checkpoint")
    if args.use_lpips:  # find out before anything is written
        probe = torch.zeros(1, 3, 64, 64)
        lpips_score(probe, probe, args.lpips_weights or None)
    if args.image_path:
        return fill(network, tuple(trained["mask_ratio"]), args, job)
    score(network, trained, digest, args)
    return 0


def refuse_outputs(root: str, folder: Path) -> None:
    """Raise a `UserError` if completions written to `folder` could overwrite images of `root`."""
    real = Path(os.path.realpath(folder))
    if root != SAMPLE and any(
        real in Path(os.path.realpath(path)).parents for path in list_root(root, False, "--test_root")[0]
    ):
        raise UserError(f"--save_dir: completions would be written among images of --test_root, in {folder}")


def score(network: Network, trained: dict[str, Any], digest: str, args: argparse.Namespace) -> None:
    """Score a folder of images as `test.py` was told; `trained` and `digest` are as of `open_network`."""
    device = network.device
    refuse_outputs(args.test_root, Path(args.save_dir) / OUTPUTS)
    against, _, against_digest = (
        open_network(args.against, device, "--against") if args.against else (None, {}, "")
    )
    frechet = FrechetDistance(args.fid_weights or None, device) if args.fid else None
    dataset: InpaintingDataset | PackDataset
    if args.pack:
        dataset = PackDataset(Path(args.pack), args.test_root, args.cache_dir)
        args.image_size = dataset.image_size
        masks = f"pack, sha256 {dataset.digest}"
    else:
        args.image_size = args.image_size or trained["image_size"]
        dataset = InpaintingDataset(
            args.test_root,
            args.image_size,
            training=False,
            max_images=args.max_images or None,
            mask_ratio=tuple(args.mask_ratio),
            mask_root=args.mask_root,
            invert_mask=args.invert_mask,
            seed=args.seed,
            cache_dir=args.cache_dir,
            flag="--test_root",
        )
        report_unreadable(dataset)
        masks = args.mask_root or f"drawn, {args.mask_ratio[0]:g} to {args.mask_ratio[1]:g} missing"
    protocol = {
        "checkpoint": str(args.checkpoint),
        "weights_sha256": digest,
        "image_size": args.image_size,
        "masks": masks,
        "seed": args.seed,
        "versions": versions(),
    }
    if against is not None:
        protocol |= {"against": args.against, "against_sha256": against_digest}
    settings = ScoreSettings(
        floors=tuple(name for name in BASELINES if args.biharmonic or name != "biharmonic"),
        use_lpips=args.use_lpips,
        lpips_weights=args.lpips_weights or None,
        paper=args.protocol == "paper",
        save_attention=args.save_attention,
        gallery=args.gallery,
    )
    loader = Loader(dataset, batch_size=args.batch_size, num_workers=args.num_workers)
    folder = Path(args.save_dir)
    report = score_folder(network, loader, folder, protocol, settings, against, frechet)
    print("\n".join(summary_lines(report)))
    print(f"report.md, report.json, metrics.csv and pictures in {folder}")
