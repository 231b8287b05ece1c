"""Score the completions of a folder beside what needs no learning; write pictures and the report."""

import contextlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from evaluation.baselines import BASELINES
from evaluation.gallery import Against, Entry, gallery_writer
from evaluation.mask_packs import bucket_of
from evaluation.paper_metrics import FrechetDistance
from evaluation.report import Scored, make_report, signed, to_csv, to_markdown
from imaging.files import SAMPLE, list_root
from inference.checkpoints import Network
from inference.fill_files import REPORT_FILES, Job, is_below, open_image
from inference.tiling import to_tensor
from inference.visualize import attention_heatmaps, comparison_grid, heatmap_grid, small_copy, viridis
from metrics import MetricsCalculator, all_metrics
from models import InpaintingNetwork
from utils import UserError, atomic_path, write_json, write_text

MAX_ROWS = 16  # of test_results.png


OUTPUTS = "outputs"  # the folder of the completions, in the folder of results


@dataclass(frozen=True)
class ScoreSettings:
    """What is measured, besides what always is, and drawn.

    Attributes:
        baselines: names out of `BASELINES`.
        use_lpips, lpips_weights: as of `lpips_score`.
        paper: add the variants that papers used.
        save_attention: draw structure and attention of every image.
        gallery: write `gallery.html`.
    """

    baselines: tuple[str, ...]
    use_lpips: bool = False
    lpips_weights: str | None = None
    paper: bool = False
    save_attention: bool = False
    gallery: bool = False


@torch.no_grad()
def score_folder(
    network: Network,
    loader: DataLoader,
    folder: Path,
    protocol: dict[str, Any],
    settings: ScoreSettings,
    against: Network | None = None,
    frechet: FrechetDistance | None = None,
) -> dict[str, Any]:
    """Complete every image; write `outputs/`, the report, `metrics.csv` and pictures to `folder`.

    Images go through the network one by one, so that no score depends on the batches.

    Args:
        protocol: what the report says of how it was made.
        against: another network, scored on the same holes.

    Returns:
        What report.json holds.
    """
    from torchvision.utils import save_image  # slow to import

    holes: list[Scored] = []
    grids: list[torch.Tensor] = []
    maps = settings.save_attention or settings.gallery
    with contextlib.ExitStack() as stack:
        add = stack.enter_context(open_gallery(folder, protocol)) if settings.gallery else None
        for name, source, image, mask in items(loader, network.device):
            outputs = network(image, mask, return_attention=maps and isinstance(network, InpaintingNetwork))
            other = None
            if against is not None:
                other = against(image, mask, return_attention=maps and isinstance(against, InpaintingNetwork))
            completions = {"output": outputs["output"]}
            if "coarse" in outputs:
                completions["coarse"] = torch.where(mask > 0, outputs["coarse"], image)
            if other is not None:
                completions["against"] = other["output"]
            floors = {floor: BASELINES[floor](image, mask) for floor in settings.baselines}
            raw = {"output": outputs.get("refined")}  # of the others, what is composited is all there is
            scores = {
                method: score(each, raw.get(method, each), image, mask, settings)
                for method, each in (completions | floors).items()
            }
            ratio = mask.double().mean().item()
            hole = Scored(name, source, bucket_of(ratio), ratio, scores)
            holes.append(hole)
            write_png(to_bytes(outputs["output"])[0], folder / OUTPUTS / f"{name}.png")
            if settings.save_attention and isinstance(network, InpaintingNetwork):
                draw_attention(network, image, mask, outputs, name, folder / "attention")
            if add is not None:
                pictures = {"truth": to_bytes(image)[0]} | pictures_of(network, outputs, mask)
                pictures |= {floor: to_bytes(filled)[0] for floor, filled in floors.items()}
                beside = None
                if against is not None and other is not None:
                    beside = Against(gallery_scores(hole, "against"), pictures_of(against, other, mask))
                add(
                    Entry(name, hole.bucket, gallery_scores(hole), mask[0, 0].cpu().numpy(), pictures, beside)
                )
            if frechet is not None:
                frechet.update(outputs["output"], image)
            if len(grids) < MAX_ROWS:
                grids.append(comparison_grid(image, mask, outputs))

    distance = {} if frechet is None else {"frechet_distance": frechet.compute()}
    report = make_report(protocol | {"images": len({hole.source for hole in holes})}, holes, **distance)
    write_text(to_csv(holes), folder / "metrics.csv")
    write_json(report, folder / "report.json")
    write_text(to_markdown(report), folder / "report.md")
    save_image(torch.cat(grids, dim=1), folder / "test_results.png")
    return report


def items(loader: DataLoader, device: torch.device) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor]]:
    """Name, name of the source, image (1, 3, H, W) and mask (1, 1, H, W), one by one."""
    bar = tqdm(total=len(loader.dataset), desc="evaluating", unit="image", disable=None)  # type: ignore[arg-type]
    for batch in loader:
        sources = batch.get("source", batch["name"])
        for i, (name, source) in enumerate(zip(batch["name"], sources, strict=True)):
            yield name, source, batch["image"][i : i + 1].to(device), batch["mask"][i : i + 1].to(device)
            bar.update()
    bar.close()


def score(
    pred: torch.Tensor,
    raw: torch.Tensor | None,
    target: torch.Tensor,
    mask: torch.Tensor,
    settings: ScoreSettings,
) -> dict[str, float]:
    """All metrics of one completion; `raw` is the network's own picture, if it gives it."""
    values = all_metrics(
        pred, target, mask, use_lpips=settings.use_lpips, lpips_weights=settings.lpips_weights
    )
    scores = {name: value.item() for name, value in values.items()}
    if settings.paper:
        from evaluation.paper_metrics import paper_scores  # slow to import

        scores |= paper_scores(pred, raw, target)
    return scores


def open_gallery(
    folder: Path, protocol: dict[str, Any]
) -> contextlib.AbstractContextManager[Callable[[Entry], None]]:
    """The page to which the loop adds hole by hole; it is there when the context ends well."""
    labels = tuple(str(protocol[name]) for name in ("checkpoint", "against") if name in protocol)
    return gallery_writer(folder / "gallery.html", title="Evaluation", protocol=protocol, labels=labels)


def pictures_of(network: Network, outputs: dict[str, Any], mask: torch.Tensor) -> dict[str, np.ndarray]:
    """What a network shows of one hole, as the gallery names it: (H, W, 3) uint8 each."""
    pictures: dict[str, np.ndarray] = {
        name: to_bytes(outputs[name])[0] for name in ("output", "coarse", "refined") if name in outputs
    }
    if isinstance(network, InpaintingNetwork):
        maps = attention_heatmaps(network, outputs, mask)
        pictures |= {name: viridis(heat[0, 0].cpu().numpy()) for name, heat in maps.items()}
    return pictures


def gallery_scores(hole: Scored, method: str = "output") -> dict[str, float]:
    """What the gallery shows and sorts by of a network on one hole; the gain is over the best floor."""
    gain = hole.gain(hole.floors(), method)
    return hole.scores[method] | {"mask_ratio": hole.mask_ratio, "gain": gain}


def versions() -> str:
    """What computed the scores."""
    return f"Python {platform.python_version()}, torch {torch.__version__}, OpenCV {cv2.__version__}"


def summary_lines(report: dict[str, Any]) -> list[str]:
    """What a report says in a few lines, for the terminal."""
    methods = [name for name in report if isinstance(report[name], dict) and "psnr" in report[name]]
    names = list(report["output"])
    lines = [f"{report['holes']} holes in {report['images']} images, masks: {report['protocol']['masks']}"]
    lines.append(f"{'':14}" + "".join(f"{name:>15}" for name in names))
    for method in methods:
        cells = (report[method].get(name) for name in names)
        lines.append(f"{method:14}" + "".join(" " * 15 if x is None else f"{x:15.4f}" for x in cells))
    titles = {"gain": "the best floor", "gain_opencv": "the better of cv2.inpaint's two methods"}
    titles |= {"gain_against": "the other checkpoint"}
    lines += [
        f"PSNR over {title}, hole by hole: {signed(report[key])} dB (95 %)"
        for key, title in titles.items()
        if key in report
    ]
    return lines


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] to (B, H, W, 3) uint8, rounded."""
    return (image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def write_png(pixels: np.ndarray, path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def draw_attention(
    network: InpaintingNetwork,
    image: torch.Tensor,
    mask: torch.Tensor,
    outputs: dict[str, Any],
    name: str,
    folder: Path,
) -> None:
    """Write one picture: masked input, structure and the attention of the three stages."""
    from torchvision.utils import save_image  # slow to import

    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(heatmap_grid(image, mask, attention_heatmaps(network, outputs, mask)), path)


@torch.no_grad()
def describe(
    network: Network,
    job: Job,
    folder: Path,
    *,
    checkpoint: str,
    save_attention: bool = False,
    use_lpips: bool = False,
    lpips_weights: str | None = None,
) -> None:
    """Score one file's completion against its truth, if it has one, and draw its stages on a smaller copy.

    Writes `metrics.json` and `test_results.png` to `folder` where the truth is known, and the attention maps
    to `attention/` on request.
    """
    from torchvision.utils import save_image  # slow to import

    filled, missing, truth = open_image(job.target_path, "--save_dir").colors(), job.mask, job.truth
    device = network.device
    if truth is not None:
        calculator = MetricsCalculator(use_lpips=use_lpips, lpips_weights=lpips_weights)
        mask = torch.from_numpy(missing[None, None].astype(np.float32)).to(device)
        calculator.update(to_tensor(filled).to(device), to_tensor(truth).to(device), mask)
        scores = calculator.compute()
        write_json({"checkpoint": checkpoint, "output": scores}, folder / REPORT_FILES[0])
        print(", ".join(f"{metric} {value:.4g}" for metric, value in scores.items()))
    image, mask = (each.to(device) for each in small_copy(filled, missing))
    target = image if truth is None else small_copy(truth, missing)[0].to(device)
    outputs = network(image, mask, return_attention=save_attention)
    if save_attention and isinstance(network, InpaintingNetwork):
        name = job.source.relative.with_suffix("").as_posix()
        draw_attention(network, image, mask, outputs, name, folder / "attention")
    if truth is not None:
        save_image(comparison_grid(target, mask, outputs), folder / REPORT_FILES[1])


def refuse_outputs(root: str, folder: Path) -> None:
    """Raise a `UserError` if completions written to `folder` could overwrite images of `root`."""
    if root != SAMPLE and any(is_below(path, folder) for path in list_root(root, False, "--test_root")[0]):
        raise UserError(f"--save_dir: completions would be written among images of --test_root, in {folder}")
