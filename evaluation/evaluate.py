"""Score the completions of a folder against baselines; write the report, the completions and the gallery."""

import contextlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from evaluation.baselines import BASELINES
from evaluation.gallery import Against, Entry, gallery_writer
from evaluation.mask_packs import bucket_of
from evaluation.paper_metrics import FrechetDistance, LiteFrechetDistance
from evaluation.report import Scored, make_report, to_csv, to_markdown
from imaging.files import SAMPLE, list_root
from inference.checkpoints import Network
from inference.fill_files import REPORT_FILES, Job, is_below, open_image
from inference.tiling import to_tensor
from inference.visualize import attention_heatmaps, comparison_grid, heatmap_grid, small_copy, viridis
from metrics import all_metrics
from models import InpaintingNetwork
from texture import add_texture
from utils import UserError, atomic_path, write_json, write_text

MAX_GRID_ROWS = 16  # in test_results.png
OUTPUTS = "outputs"  # folder of the completions, inside the folder of results


@dataclass(frozen=True)
class ScoreSettings:
    """Methods and metrics to score by, and what to draw.

    Attributes:
        baselines: names in `BASELINES`.
        detail: share of copied detail in completions; see `add_texture`.
        use_lpips, lpips_weights: see `lpips_score`.
        paper: add the variants that papers used.
        save_attention: draw structure and attention of every image.
        gallery: write `gallery.html`.
    """

    baselines: tuple[str, ...] = ()
    detail: float = 0.0
    use_lpips: bool = False
    lpips_weights: str | None = None
    paper: bool = False
    save_attention: bool = False
    gallery: bool = False


class Item(NamedTuple):
    """One hole: its name, its image's name, image (1, 3, H, W) and mask (1, 1, H, W), 1 = missing."""

    name: str
    source: str
    image: torch.Tensor
    mask: torch.Tensor


class Completion(NamedTuple):
    """Outputs of a network for one item, and heat maps of its attention, if it was asked and gives them."""

    outputs: dict[str, torch.Tensor]
    heatmaps: dict[str, torch.Tensor]


@torch.no_grad()
def score_folder(
    network: Network,
    loader: DataLoader,
    folder: Path,
    protocol: dict[str, Any],
    settings: ScoreSettings,
    against: Network | None = None,
    frechet: FrechetDistance | None = None,
    lite: LiteFrechetDistance | None = None,
) -> dict[str, Any]:
    """Complete and score every image; write `outputs/`, the report, `metrics.csv` and images to `folder`.

    Images go through the network one by one, so that no score depends on batches.

    Args:
        protocol: the settings that the report states.
        against: another network, scored on the same holes.
        frechet, lite: distances to add, of the output alone and of every method.

    Returns:
        The content of report.json.
    """
    holes: list[Scored] = []
    grids: list[torch.Tensor] = []
    with_heatmaps = settings.save_attention or settings.gallery
    with contextlib.ExitStack() as stack:
        add_to_gallery = stack.enter_context(open_gallery(folder, protocol)) if settings.gallery else None
        for item in one_by_one(loader, network.device):
            ours = complete(network, item, settings.detail, with_heatmaps)
            theirs = None
            if against is not None:
                theirs = complete(against, item, settings.detail, with_heatmaps)
            baselines = {name: BASELINES[name].fill(item.image, item.mask) for name in settings.baselines}
            completions = composited(item, ours, theirs) | baselines
            holes.append(score_methods(item, ours, theirs, completions, settings))

            write_png(to_bytes(ours.outputs["output"])[0], folder / OUTPUTS / f"{item.name}.png")
            if settings.save_attention:
                draw_heatmaps(item, ours.heatmaps, folder)
            if add_to_gallery is not None:
                add_to_gallery(gallery_entry(holes[-1], item, ours, theirs, baselines))
            if frechet is not None:
                frechet.update(ours.outputs["output"], item.image)
            if lite is not None:
                lite.update(completions, item.image)
            if len(grids) < MAX_GRID_ROWS:
                grids.append(comparison_grid(item.image, item.mask, ours.outputs))

    distances: dict[str, Any] = {} if frechet is None else {"frechet_distance": frechet.compute()}
    if lite is not None:
        distances["frechet_distance_lite0"] = {"n": len(holes), "methods": lite.compute()}
    report = make_report(protocol | {"images": len({hole.source for hole in holes})}, holes, **distances)
    write_text(to_csv(holes), folder / "metrics.csv")
    write_json(report, folder / "report.json")
    write_text(to_markdown(report), folder / "report.md")
    write_grid(grids, folder)
    return report


def one_by_one(loader: DataLoader, device: torch.device) -> Iterator[Item]:
    """The items of a loader on a device, with a progress bar."""
    bar = tqdm(total=len(loader.dataset), desc="evaluating", unit="image", disable=None)  # type: ignore[arg-type]
    for batch in loader:
        sources = batch.get("source", batch["name"])
        for i, (name, source) in enumerate(zip(batch["name"], sources, strict=True)):
            yield Item(name, source, *(batch[key][i : i + 1].to(device) for key in ("image", "mask")))
            bar.update()
    bar.close()


def complete(network: Network, item: Item, detail: float, with_heatmaps: bool) -> Completion:
    """Run a network and the texture stage on an item; an exported network gives no heat maps.

    With detail, the output without it is `detail_0` of the outputs.
    """
    heatmaps = {}
    if with_heatmaps and isinstance(network, InpaintingNetwork):
        outputs = network(item.image, item.mask, return_attention=True)
        heatmaps = attention_heatmaps(network, outputs, item.mask)
    else:
        outputs = network(item.image, item.mask)
    if detail:
        output = add_texture(outputs["output"], item.mask, detail)
        outputs |= {"detail_0": outputs["output"], "output": output}
    return Completion(outputs, heatmaps)


def composited(item: Item, ours: Completion, theirs: Completion | None) -> dict[str, torch.Tensor]:
    """The networks' completions of an item with its known pixels, by method."""
    completions: dict[str, torch.Tensor] = {"output": ours.outputs["output"]}
    if "detail_0" in ours.outputs:
        completions["detail_0"] = ours.outputs["detail_0"]
    if "coarse" in ours.outputs:
        completions["coarse"] = torch.where(item.mask > 0, ours.outputs["coarse"], item.image)
    if theirs is not None:
        completions["against"] = theirs.outputs["output"]
    return completions


def score_methods(
    item: Item,
    ours: Completion,
    theirs: Completion | None,
    completions: dict[str, torch.Tensor],
    settings: ScoreSettings,
) -> Scored:
    """Scores of every method's completion of one item."""
    uncomposited = {"output": before_compositing(item, ours), "coarse": ours.outputs.get("coarse")}
    uncomposited["detail_0"] = ours.outputs.get("refined")
    if theirs is not None:
        uncomposited["against"] = before_compositing(item, theirs)
    scores = {
        method: score(pred, item, settings, uncomposited.get(method, pred))
        for method, pred in completions.items()
    }
    ratio = item.mask.double().mean().item()
    return Scored(item.name, item.source, bucket_of(ratio), ratio, scores)


def before_compositing(item: Item, completion: Completion) -> torch.Tensor | None:
    """The output with the network's own pixels outside the hole; None if it does not return them."""
    refined = completion.outputs.get("refined")
    return None if refined is None else torch.where(item.mask > 0, completion.outputs["output"], refined)


def score(
    pred: torch.Tensor, item: Item, settings: ScoreSettings, uncomposited: torch.Tensor | None = None
) -> dict[str, float]:
    """All metrics of one completion; `uncomposited` is the network's image before compositing, if known."""
    values = all_metrics(
        pred, item.image, item.mask, use_lpips=settings.use_lpips, lpips_weights=settings.lpips_weights
    )
    scores = {name: value.item() for name, value in values.items()}
    if settings.paper:
        from evaluation.paper_metrics import paper_scores  # slow to import

        scores |= paper_scores(pred, uncomposited, item.image)
    return scores


def open_gallery(
    folder: Path, protocol: dict[str, Any]
) -> contextlib.AbstractContextManager[Callable[[Entry], None]]:
    """A context that yields the function to add entries, and writes `gallery.html` when it ends well."""
    labels = tuple(str(protocol[name]) for name in ("checkpoint", "against") if name in protocol)
    return gallery_writer(folder / "gallery.html", title="Evaluation", protocol=protocol, labels=labels)


def gallery_entry(
    hole: Scored, item: Item, ours: Completion, theirs: Completion | None, baselines: dict[str, torch.Tensor]
) -> Entry:
    """Scores and images of one item for the gallery."""

    def with_gain(method: str) -> dict[str, float]:
        gain = hole.gain(hole.baselines(), method)
        return hole.scores[method] | {"mask_ratio": hole.mask_ratio, "gain": gain}

    images = {"truth": to_bytes(item.image)[0]} | gallery_images(ours)
    images |= {name: to_bytes(filled)[0] for name, filled in baselines.items()}
    against = None if theirs is None else Against(with_gain("against"), gallery_images(theirs))
    mask = item.mask[0, 0].cpu().numpy()
    return Entry(hole.name, hole.bucket, with_gain("output"), mask, images, against)


def gallery_images(completion: Completion) -> dict[str, np.ndarray]:
    """A network's images of one item by the names of the gallery, (H, W, 3) uint8 each."""
    outputs = completion.outputs
    images = {
        name: to_bytes(outputs[name])[0]
        for name in ("output", "detail_0", "coarse", "refined")
        if name in outputs
    }
    return images | {name: viridis(x[0, 0].cpu().numpy()) for name, x in completion.heatmaps.items()}


def versions() -> str:
    """Versions of the software that computes the scores."""
    return f"Python {platform.python_version()}, torch {torch.__version__}, OpenCV {cv2.__version__}"


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] to (B, H, W, 3) uint8, rounded."""
    return (image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def write_png(pixels: np.ndarray, path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def write_grid(grids: list[torch.Tensor], folder: Path) -> None:
    """Write comparison grids below each other to `test_results.png`."""
    from torchvision.utils import save_image  # slow to import

    with atomic_path(folder / REPORT_FILES[1]) as temporary:
        save_image(torch.cat(grids, dim=1), temporary, format="png")


def draw_heatmaps(item: Item, heatmaps: dict[str, torch.Tensor], folder: Path) -> None:
    """Write masked input, structure and attention of the three stages as one image to `attention/`."""
    from torchvision.utils import save_image  # slow to import

    if heatmaps:
        with atomic_path(folder / "attention" / f"{item.name}.png") as temporary:
            save_image(heatmap_grid(item.image, item.mask, heatmaps), temporary, format="png")


@torch.no_grad()
def evaluate_file(network: Network, job: Job, folder: Path, checkpoint: str, settings: ScoreSettings) -> None:
    """Score one file's completion against its truth, if given, and draw its stages on a small copy.

    Writes `metrics.json` and `test_results.png` to `folder` if the truth is known, and heat maps to
    `attention/` on request.
    """
    filled, missing, truth = open_image(job.target_path, "--save_dir").colors(), job.mask, job.truth
    device, relative = network.device, job.source.relative
    name = (relative if job.source.is_namesake else relative.with_suffix("")).as_posix()
    if truth is not None:
        mask = torch.from_numpy(missing[None, None].astype(np.float32)).to(device)
        item = Item(name, name, to_tensor(truth).to(device), mask)
        scores = score(to_tensor(filled).to(device), item, settings)
        write_json({"checkpoint": checkpoint, "output": scores}, folder / REPORT_FILES[0])
        print(", ".join(f"{metric} {value:.4g}" for metric, value in scores.items()))
    item = Item(name, name, *(tensor.to(device) for tensor in small_copy(filled, missing)))
    completion = complete(network, item, settings.detail, settings.save_attention)
    draw_heatmaps(item, completion.heatmaps, folder)
    if truth is not None:
        target = small_copy(truth, missing)[0].to(device)
        write_grid([comparison_grid(target, item.mask, completion.outputs)], folder)


def refuse_outputs(root: str, folder: Path) -> None:
    """Raise a `UserError` if completions written to `folder` could overwrite images of `root`."""
    if root != SAMPLE and any(is_below(path, folder) for path in list_root(root, False, "--test_root")[0]):
        raise UserError(f"--save_dir: completions would be written among images of --test_root, in {folder}")
