"""What test.py does: score the completions of a folder beside classical methods, or fill files."""

import argparse
import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from cli import UserError
from dataset import InpaintingDataset, report_unreadable
from files import atomic_path
from fill import Filled, FillSettings, Job, fill_folder, fill_job
from inference import WHOLE, Inpainter, Network, load_network, to_tensor, to_unit
from metrics import MetricsCalculator, lpips_score, mean_interval
from models import InpaintingNetwork, attention_heatmaps
from onnx_network import OnnxNetwork
from packs import PackDataset, bucket_of, make_pack
from report import by_bucket, to_markdown
from utils import comparison_grid, heatmap_grid, seed_everything, select_device, weights_digest

MAX_ROWS = 16  # of test_results.png
DEFAULT_SIZE = 256  # pixels, of a pack
PROTOCOL = ("checkpoint", "weights_sha256", "images", "image_size", "masks", "seed")
CLASSICAL_RADIUS = 3  # pixels
FLOORS = {"telea": cv2.INPAINT_TELEA, "navier_stokes": cv2.INPAINT_NS}


def classical(image: torch.Tensor, mask: torch.Tensor, method: int) -> torch.Tensor:
    """Fill the hole by `cv2.inpaint` with one of its two methods: the floor that a network has to beat.

    Shapes:
        image (B, 3, H, W) in [0, 1]; mask (B, 1, H, W), 1 = missing. Returns (B, 3, H, W) in [0, 1].
    """
    filled = []
    holes = mask[:, 0].cpu().numpy().astype(np.uint8)
    for pixels, hole in zip(to_bytes(image * (1 - mask)), holes, strict=True):
        filled.append(cv2.inpaint(np.ascontiguousarray(pixels), hole, CLASSICAL_RADIUS, method))
    result = torch.from_numpy(np.stack(filled).astype(np.float32) / 255).permute(0, 3, 1, 2)
    return torch.where(mask > 0, result.to(image.device), image)


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] to (B, H, W, 3) uint8, rounded."""
    return (image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def write_png(pixels: np.ndarray, path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


@torch.no_grad()
def score_folder(network: Network, loader: DataLoader, folder: Path, args: argparse.Namespace) -> None:
    """Complete every image; write `outputs/`, both `metrics` and `test_results.png` to `folder`."""
    from torchvision.utils import save_image  # slow to import

    device = network.device
    lpips = {"use_lpips": args.use_lpips, "lpips_weights": args.lpips_weights or None}
    own = ("output",) if isinstance(network, OnnxNetwork) else ("output", "coarse")
    calculators = {name: MetricsCalculator(**lpips) for name in (*own, *FLOORS)}
    rows: list[dict[str, Any]] = []
    pictures: list[tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]] = []
    for batch in tqdm(loader, desc="evaluating", unit="batch", disable=None):
        image, mask = batch["image"].to(device), batch["mask"].to(device)
        outputs = network(image, mask, return_attention=args.save_attention)
        completions = {
            **{name: torch.where(mask > 0, outputs[name], image) for name in own},
            **{name: classical(image, mask, method) for name, method in FLOORS.items()},
        }
        scores = {name: calculators[name].update(each, image, mask) for name, each in completions.items()}
        for i, (name, pixels) in enumerate(zip(batch["name"], to_bytes(outputs["output"]), strict=True)):
            write_png(pixels, folder / "outputs" / f"{name}.png")
            row = {"name": name, "hole_ratio": mask[i].mean().item()}
            row["bucket"] = bucket_of(row["hole_ratio"])
            row |= {metric: values[i] for metric, values in scores["output"].items()}
            for other in (*own[1:], *FLOORS):
                row |= {f"{other}_{metric}": values[i] for metric, values in scores[other].items()}
            row["gain"] = row["psnr"] - max(row[f"{floor}_psnr"] for floor in FLOORS)
            rows.append(row)
        if args.save_attention and isinstance(network, InpaintingNetwork):
            save_attention(network, image, mask, outputs, batch["name"], folder / "attention")
        if len(pictures) * len(image) < MAX_ROWS:
            pictures.append((image, mask, outputs))

    gains = [row["gain"] for row in rows]
    masks = args.mask_root or f"drawn, {args.mask_coverage[0]:g} to {args.mask_coverage[1]:g} missing"
    if isinstance(loader.dataset, PackDataset):
        masks = f"pack, sha256 {loader.dataset.digest}"
    summary = {
        "checkpoint": str(args.checkpoint),
        "weights_sha256": digest_of(network),
        "images": len(rows),
        "image_size": args.image_size,
        "masks": masks,
        "seed": args.seed,
        **{name: calculator.compute() for name, calculator in calculators.items()},
        "gain": float(np.mean(gains)),  # dB of PSNR over the better of the floors, image by image
        "gain_interval": mean_interval(gains),
    }
    buckets = by_bucket(rows, tuple(calculators), tuple(FLOORS))
    write_csv(rows, folder / "metrics.csv")
    write_json(summary | {"buckets": buckets}, folder / "metrics.json")
    protocol = {name: summary[name] for name in PROTOCOL}
    write_text(to_markdown(protocol, buckets), folder / "report.md")
    grids = [comparison_grid(*each) for each in pictures]
    save_image(
        torch.cat(grids, dim=1)[:, : MAX_ROWS * (args.image_size + 2) + 2], folder / "test_results.png"
    )
    print(f"{len(rows)} images of {args.image_size} px, masks {summary['masks']}")
    print(f"{'':14}" + "".join(f"{metric:>14}" for metric in summary["output"]))
    for name in calculators:
        print(f"{name:14}" + "".join(f"{value:14.4f}" for value in summary[name].values()))
    interval = summary["gain_interval"]
    print(
        f"PSNR over the better of cv2.inpaint's two methods: {summary['gain']:+.2f} dB"
        + (f" (95 % interval {interval[0]:+.2f} to {interval[1]:+.2f})" if interval else "")
    )
    print(f"pictures, metrics.csv and metrics.json in {folder}")


def digest_of(network: Network) -> str:
    """SHA-256 of the weights; of an exported network, those of the checkpoint that it was made from."""
    if isinstance(network, OnnxNetwork):
        return network.metadata["weights_sha256"]
    return weights_digest(network.state_dict())


def save_attention(
    network: InpaintingNetwork,
    image: torch.Tensor,
    mask: torch.Tensor,
    outputs: dict[str, Any],
    names: list[str],
    folder: Path,
) -> None:
    """Write one picture an image: masked input, structure and the attention of the three stages."""
    from torchvision.utils import save_image  # slow to import

    heatmaps = attention_heatmaps(network, outputs, mask)
    for i, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        each = {title: heat[i : i + 1] for title, heat in heatmaps.items()}
        save_image(heatmap_grid(image[i : i + 1], mask[i : i + 1], each), path)


def fill(
    network: Network,
    trained: tuple[float, float],
    args: argparse.Namespace,
    job: Job | None,
) -> int:
    """Fill one image, which was read, or all in a folder; returns the exit status."""
    inpainter = Inpainter(network, max_memory=args.max_memory * 2**30, flip=args.flip, passes=args.passes)
    settings = FillSettings.of(args)
    completions: Iterable[Filled | None]
    if job is None:
        completions = fill_folder(inpainter, settings, trained)
    else:
        completions = [fill_job(inpainter, settings, trained, job)]
    failed = 0
    for done in completions:
        if done is None:
            failed += 1
        elif done.job.truth is not None or args.save_attention:
            describe(network, done, args)
    return int(failed > 0)


@torch.no_grad()
def describe(network: Network, done: Filled, args: argparse.Namespace) -> None:
    """Score a completion against the truth, if there is one, and draw its stages on a smaller copy."""
    from torchvision.utils import save_image  # slow to import

    before, filled, missing, truth = done.before, done.after, done.job.missing, done.job.truth
    device = network.device
    folder = Path(args.save_dir)
    if truth is not None:
        calculator = MetricsCalculator(use_lpips=args.use_lpips, lpips_weights=args.lpips_weights or None)
        mask = torch.from_numpy(missing[None, None].astype(np.float32)).to(device)
        calculator.update(to_tensor(filled).to(device), to_tensor(truth).to(device), mask)
        scores = calculator.compute()
        write_json({"checkpoint": str(args.checkpoint), "output": scores}, folder / "metrics.json")
        print(", ".join(f"{metric} {value:.4g}" for metric, value in scores.items()))
    size = tuple(max(1, round(side * min(1, WHOLE / max(missing.shape)))) for side in missing.shape[::-1])
    image, target = (
        torch.from_numpy(np.atleast_3d(cv2.resize(to_unit(each), size, interpolation=cv2.INTER_AREA)))
        .permute(2, 0, 1)[None]
        .expand(-1, 3, -1, -1)
        .to(device)
        for each in (before, before if truth is None else truth)
    )
    small = cv2.resize(missing.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    mask = torch.from_numpy(small)[None, None].to(device)
    outputs = network(image, mask, return_attention=args.save_attention)
    if args.save_attention and isinstance(network, InpaintingNetwork):
        names = [done.job.relative.with_suffix("").as_posix()]
        save_attention(network, image, mask, outputs, names, folder / "attention")
    if truth is not None:
        save_image(comparison_grid(target, mask, outputs), folder / "test_results.png")


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(text.getvalue(), path)


def write_text(text: str, path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(content: dict[str, Any], path: Path) -> None:
    write_text(json.dumps(content, indent=2) + "\n", path)


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
    network: Network
    if args.checkpoint.endswith(".onnx"):
        network = OnnxNetwork(Path(args.checkpoint))
        trained = network.trained
    else:
        network, state = load_network(args.checkpoint, select_device(args.device))
        trained = state["config"]
    if args.use_lpips:  # find out before anything is written
        probe = torch.zeros(1, 3, 64, 64)
        lpips_score(probe, probe, args.lpips_weights or None)
    if args.image_path:
        return fill(network, tuple(trained["mask_coverage"]), args, job)
    dataset: InpaintingDataset | PackDataset
    if args.pack:
        dataset = PackDataset(Path(args.pack), args.test_root, args.cache_dir)
        args.image_size = dataset.image_size
    else:
        args.image_size = args.image_size or trained["image_size"]
        dataset = InpaintingDataset(
            args.test_root,
            args.image_size,
            training=False,
            max_images=args.max_images or None,
            coverage=tuple(args.mask_coverage),
            mask_root=args.mask_root,
            invert_mask=args.invert_mask,
            seed=args.seed,
            cache_dir=args.cache_dir,
            flag="--test_root",
        )
        report_unreadable(dataset)
    loader = DataLoader(dataset, batch_size=args.batch_size, num_workers=args.num_workers)
    score_folder(network, loader, Path(args.save_dir), args)
    return 0
