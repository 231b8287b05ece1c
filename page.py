"""The page: what it makes of a picture and what was painted over it, and how it looks."""

import dataclasses
import itertools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from cli import UserError, one_line
from fill import FillSettings, Job, fill_job, open_job
from gallery import viridis
from masks import doctor, read_hole
from pictures import LOSSY, Picture

if TYPE_CHECKING:  # slow to import
    from gradio import Blocks

    from inference import Inpainter

PREVIEW = (512, 1280)  # pixels of the longer side of the copy that is shown and painted on: least and most
TINT = (230, 40, 90)  # of what is to be filled
EXAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")  # come with scikit-image
CAPTIONS = {
    "structure": "Structure S",
    "stage 1": "Attention 1",
    "stage 2": "Attention 2",
    "stage 3": "Attention 3",
}
HEADER = """# Inpaint
Paint over what should go, and the network completes the picture. Nothing leaves this machine."""
CSS = """
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: 0 auto !important; }
.step h3 { margin: 12px 0 0; font-size: 16px; font-weight: 600; }
.step h3 b { display: inline-block; width: 24px; line-height: 24px; margin-right: 8px; border-radius: 12px;
  font-size: 13px; text-align: center; color: white; background: var(--primary-600); }
#examples > .gallery { display: grid; grid-template-columns: repeat(4, minmax(0, 100px)); gap: 12px; }
#examples .container, #examples img { width: 100%; height: auto; max-width: none;
  max-height: none; aspect-ratio: 1; object-fit: cover; }
#canvas button[aria-label="Color"] { display: none; }
@media (max-width: 640px) { #canvas, #result { height: 400px !important; } }
"""
Networks = dict[str, tuple["Inpainter", tuple[float, float]]]  # by name; with the shares trained on


def preview(picture: Picture, colors: np.ndarray, missing: np.ndarray | None = None) -> Image.Image:
    """`colors` of a picture as a browser can show them, over white where transparent, `missing` tinted."""
    height, width = colors.shape[:2]
    side = max(height, width)
    scale = min(max(side, PREVIEW[0]), PREVIEW[1]) / side
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST

    def resized(pixels: np.ndarray) -> np.ndarray:
        return np.atleast_3d(cv2.resize(pixels, size, interpolation=kind))

    scaled: np.ndarray = resized(colors).astype(np.float32)
    if colors.dtype.kind == "u":
        scaled /= np.iinfo(colors.dtype).max
    shown: np.ndarray = np.broadcast_to(scaled, (size[1], size[0], 3))
    if picture.alpha is not None:
        shown = 1 + resized(picture.alpha) * (shown - 1)
    if missing is not None:
        weight = 0.6 * resized(missing.astype(np.float32))
        shown = shown + weight * (np.array(TINT, np.float32) / 255 - shown)
    image = Image.fromarray((shown * 255).round().astype(np.uint8))
    if picture.image.mode in ("RGB", "RGBA") and "icc_profile" in picture.image.info:
        image.info["icc_profile"] = picture.image.info["icc_profile"]
    return image


def strokes_of(editor: dict[str, Any] | None) -> np.ndarray | None:
    """The opacity (h, w) uint8 of all that was painted in the editor; None if nothing was."""
    layers = [layer[:, :, 3] for layer in (editor or {}).get("layers", [])]
    painted = np.maximum.reduce(layers) if layers else None
    return painted if painted is not None and painted.any() else None


def open_request(
    picture: str | None, mask: str | None, strokes: np.ndarray | None, folder: str, **settings: Any
) -> tuple[FillSettings, Job]:
    """How to fill an uploaded picture, and its job: what was painted over it, or a mask file, or both.

    Args:
        folder: where the result goes.
        settings: other fields of `FillSettings`.

    Raises:
        UserError: if there is no picture or no hole, or a file cannot be read.
    """
    if not picture:
        raise UserError("open a picture first")
    if not mask and strokes is None:
        raise UserError("nothing is marked: paint over what should go, or load a mask")
    file = Path(picture)
    name = Path(f"{file.stem}_filled{file.suffix}")
    how = FillSettings(picture, folder, mask or "", **settings)
    job = open_job(how, file, Path(mask) if mask else None, name, strokes)
    assert job is not None  # which it is only where existing results are left
    if not job.missing.any():
        raise UserError("nothing is marked: the mask is black, or the strokes are finer than a pixel")
    exact = how.lossless or job.picture.format not in LOSSY
    return dataclasses.replace(how, verify=exact and job.picture.colors.dtype.kind == "u"), job


def explain(inpainter: "Inpainter", job: Job) -> list[tuple[np.ndarray, str]]:
    """Pictures of how a completion comes about, with captions: coarse, S, and where each stage looks."""
    import torch

    from inference import small_copy
    from models import InpaintingNetwork, attention_heatmaps

    network = inpainter.network
    assert isinstance(network, InpaintingNetwork)  # the page offers checkpoints alone

    image, mask = (each.to(inpainter.device) for each in small_copy(job.picture.colors, job.missing))
    with torch.inference_mode():
        outputs = network(image, mask, return_attention=True)
        heatmaps = attention_heatmaps(network, outputs, mask)
        coarse = torch.where(mask > 0, outputs["coarse"], image)[0].clamp(0, 1).permute(1, 2, 0)
    pictures: list[tuple[np.ndarray, str]] = []
    pictures.append(((coarse.cpu().numpy() * 255).round().astype(np.uint8), "Coarse"))
    for name, heat in heatmaps.items():
        pictures.append((viridis(heat[0, 0].cpu().numpy()), CAPTIONS[name]))
    return pictures


def plain(message: str, *files: str | None) -> str:
    """A message of the command line for the page: a sentence, without flags or the server's folders."""
    for file in filter(None, files):
        message = message.replace(file, Path(file).name)
    message = message.replace("(--lossless:", "(Options:")
    message = re.sub(r"^--\w+: | ?\(--\w[^)]*\)", "", message)
    return message[:1].upper() + message[1:] + "." * (message[-1:] not in ".?!")


def report_runs(inpainter: "Inpainter", missing: np.ndarray, progress: Callable[..., Any]) -> None:
    """Let the inpainter tell `progress`, called with (done, all), of its runs while it fills a hole."""
    from inference import count_runs

    count, done = count_runs(missing, inpainter.tile), itertools.count(1)
    progress((0, count), desc="Filling", unit="tiles")
    inpainter.after_run = lambda: progress((next(done), count), desc="Filling", unit="tiles")


def build_page(networks: Networks) -> "Blocks":
    """The page, and what its controls call."""
    import gradio as gr
    from skimage import data

    samples = [str(Path(data.__file__).parent / name) for name in EXAMPLES]
    hidden = gr.update(visible=False)
    no_result = [gr.update(value=None), "", hidden, hidden, gr.update(value=None, visible=False)]

    def show(picture: str | None, mask: str | None) -> list[Any]:
        """Show a picture to be painted on, and forget the last one's result."""
        if not picture:
            return [hidden, gr.update(value=None), "", *no_result]
        try:
            opened = Picture(Path(picture))
            height, width = opened.colors.shape[:2]
            hole = read_hole(Path(mask), (height, width)) if mask else None
        except UserError as error:
            message = plain(one_line(error), picture, mask)
            gr.Warning(message)
            return [hidden, gr.update(value=None), "", *no_result]
        notes = [f"{width} × {height} pixels, {opened.format}", *opened.notes, *(hole.notes if hole else [])]
        image = preview(opened, opened.colors, hole.missing if hole else None)
        canvas = {"background": image, "layers": [], "composite": None}
        said = " ".join(plain(note, picture, mask) for note in notes)
        return [gr.update(visible=True), canvas, said, *no_result]

    def fill(
        picture: str | None,
        mask: str | None,
        canvas: dict[str, Any] | None,
        name: str,
        dilate: int,
        feather: int,
        lossless: bool,
        progress: Any = gr.Progress(),  # noqa: B008 (gradio looks for it there)
    ) -> list[Any]:
        """Fill the hole; the file to download has the format, and every other pixel, of the picture."""
        progress(0, desc="Reading")
        inpainter, trained = networks[name]
        options = {"dilate": int(dilate), "feather": int(feather), "lossless": lossless}
        try:
            how, job = open_request(picture, mask, strokes_of(canvas), tempfile.mkdtemp(), **options)
            report_runs(inpainter, job.missing, progress)
            done = fill_job(inpainter, how, trained, job)
        except UserError as error:
            raise gr.Error(plain(one_line(error), picture, mask), print_exception=False) from None
        height, width = job.missing.shape
        notes = [f"{job.missing.mean():.1%} of {width} × {height} pixels filled"]
        notes += ["every other pixel is identical"] * how.verify
        notes += [*job.notes, *doctor(job.missing, trained)]
        return [
            (preview(job.picture, done.before), preview(job.picture, done.after)),
            " ".join(plain(note, picture, mask) for note in notes),
            gr.update(value=str(job.target_file), label=f"Download {job.target_file.name}", visible=True),
            gr.update(visible=True),
            gr.update(value=None, visible=False),
        ]

    def explain_fill(
        picture: str | None, mask: str | None, canvas: dict[str, Any] | None, name: str, dilate: int
    ) -> Any:
        """Show the stages of a completion, on a copy of at most 512 pixels a side."""
        try:
            strokes, folder = strokes_of(canvas), tempfile.gettempdir()
            _, job = open_request(picture, mask, strokes, folder, dilate=int(dilate))
        except UserError as error:
            raise gr.Error(plain(one_line(error), picture, mask), print_exception=False) from None
        return gr.update(value=explain(networks[name][0], job), visible=True)

    with gr.Blocks(title="Inpaint", analytics_enabled=False, delete_cache=(3600, 86400)) as page:

        def step(number: int, text: str) -> None:
            gr.Markdown(f"### <b>{number}</b>{text}", elem_classes="step")

        gr.Markdown(HEADER)
        step(1, "Open a picture")
        with gr.Row(equal_height=True):
            picture = gr.File(show_label=False, height=130, elem_id="picture")
            examples = gr.Dataset(
                components=["image"],
                samples=[[sample] for sample in samples],
                type="index",
                label="Or try an example",
                elem_id="examples",
            )
        with gr.Row(visible=False) as work:
            with gr.Column():
                step(2, "Paint over what should go")
                canvas = gr.ImageEditor(
                    show_label=False,
                    height=500,
                    format="png",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(colors=[(f"rgb{TINT}", 0.7)], color_mode="fixed"),
                    elem_id="canvas",
                    buttons=[],
                )
                info = gr.Markdown(elem_id="info")
                button = gr.Button("Fill", variant="primary", elem_id="fill")
                with gr.Accordion("Options", open=False):
                    mask = gr.File(label="Mask file: white is filled", height=110, elem_id="mask")
                    checkpoint = gr.Dropdown(list(networks), value=next(iter(networks)), label="Checkpoint")
                    dilate = gr.Slider(0, 32, 0, step=1, label="Grow the marked area, pixels")
                    feather = gr.Slider(0, 32, 0, step=1, label="Soften its edge, pixels")
                    lossless = gr.Checkbox(label="Write JPEG and AVIF as PNG, which keeps every other pixel")
            with gr.Column():
                step(3, "Compare and download")
                slider = gr.ImageSlider(
                    show_label=False, height=500, format="png", buttons=["fullscreen"], elem_id="result"
                )
                notes = gr.Markdown(elem_id="notes")
                download = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="download")
                why = gr.Button("Show how it came about", visible=False)
                stages = gr.Gallery(
                    show_label=False,
                    visible=False,
                    format="png",
                    columns=3,
                    height="auto",
                    object_fit="contain",
                )

        asked = [picture, mask, canvas, checkpoint, dilate]
        result = [slider, notes, download, why, stages]
        network: Any = {"concurrency_limit": 1, "concurrency_id": "network"}
        files = [picture, mask]
        gr.on([picture.change, mask.change], show, files, [work, canvas, info, *result], api_name="show")
        examples.click(lambda index: samples[index], examples, picture, api_visibility="private")
        button.click(
            fill, [*asked, feather, lossless], result, show_progress_on=slider, api_name="fill", **network
        )
        why.click(explain_fill, asked, stages, api_name="explain", **network)
    return page
