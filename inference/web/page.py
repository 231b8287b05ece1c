"""The page: its controls, the functions that they call, and its looks."""

import contextlib
import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from skimage import data

from imaging.image_file import ImageFile
from imaging.mask_file import mask_warnings, read_mask_for
from inference.fill_files import Job, fill_job
from inference.inpainter import Inpainter
from inference.tiling import count_runs
from inference.visualize import draw_stages
from inference.web.sessions import Session, Sessions
from inference.web.uploads import (
    MAX_GROW,
    TINT,
    Limits,
    open_request,
    preview,
    read_strokes,
    share,
    whole_number,
)
from models import InpaintingNetwork
from texture import DETAIL
from utils import UserError, one_line

EXAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")  # bundled with scikit-image
SAMPLES = [str(Path(data.__file__).parent / name) for name in EXAMPLES]
CAPTIONS = {
    "coarse": "Coarse",
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
Networks = dict[str, tuple[Inpainter, tuple[float, float]]]  # by name, with the mask ratios trained on


class Page:
    """The functions that the page's controls call, and the controls.

    gradio passes on the browser's values unread (`preprocess=False`); each file is looked up among those of
    the session that asks.
    """

    def __init__(self, networks: Networks, sessions: Sessions, limits: Limits) -> None:
        self.networks, self.sessions, self.limits = networks, sessions, limits

    def choose(self, index: Any, request: gr.Request) -> str:
        """Open one of the examples, by its number: a copy of it in the session's folder."""
        if type(index) is not int or not 0 <= index < len(SAMPLES):
            raise gr.Error("There is no such example.", print_exception=False)
        with errors_shown():
            session = self.sessions.named(request.session_hash)
        return session.add(Path(shutil.copyfile(SAMPLES[index], session.new_path(EXAMPLES[index]))))

    def show(self, image: Any, mask: Any, request: gr.Request) -> list[Any]:
        """Show an image to be painted on, and forget the last one's result."""
        hidden = gr.update(visible=False)
        no_result = [gr.update(value=None), "", hidden, hidden, gr.update(value=None, visible=False)]
        nothing = [hidden, gr.update(value=None), "", *no_result]
        if not image:
            return nothing
        try:
            session = self.sessions.named(request.session_hash)
            image_path = self.limits.open(image, session)
            mask_path = self.limits.open(mask, session, is_mask=True)
            image_file = ImageFile(Path(image_path or ""))
            missing, mask_notes = read_mask_for(mask_path, image_file.shape) if mask_path else (None, [])
        except UserError as error:
            gr.Warning(sentence(one_line(error), image, mask))
            return nothing
        height, width = image_file.shape
        notes = [f"{width} × {height} pixels, {image_file.format}", *image_file.notes, *mask_notes]
        shown = add_image(preview(image_file, missing), session)
        canvas: dict[str, Any] = {"background": shown, "layers": [], "composite": None}
        return [gr.update(visible=True), canvas, sentences(notes, image, mask), *no_result]

    def fill(
        self,
        image: Any,
        mask: Any,
        canvas: Any,
        name: Any,
        dilate: Any,
        feather: Any,
        detail: Any,
        lossless: Any,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008 (gradio looks for it there)
    ) -> list[Any]:
        """Fill the hole; the file to download has the format, and every other pixel, of the image."""
        progress(0, desc="Reading")
        with errors_shown(image, mask):
            session = self.sessions.named(request.session_hash)
            inpainter, trained_ratio = self.find_network(name)
            job = self.open_job(
                session, image, mask, canvas, session.new_path("result"),
                dilate=whole_number(dilate, "the grown area"), feather=whole_number(feather, "the soft edge"),
                lossless=lossless is True,
            )  # fmt: skip
            inpainter.detail = share(detail, "the detail")
            report_runs(inpainter, job.mask, progress)
            before = preview(job.image_file)
            proof = fill_job(inpainter, job)
            after = preview(ImageFile(job.target_path))
        height, width = job.mask.shape
        notes = [f"{job.mask.mean():.1%} of {width} × {height} pixels filled", proof]
        notes += [*job.notes, *mask_warnings(job.mask, trained_ratio)]
        result = session.add(job.target_path)
        return [
            (add_image(before, session), add_image(after, session)),
            sentences(notes, image, mask),
            gr.update(value=result, label=f"Download {job.target_path.name}", visible=True),
            gr.update(visible=True),
            gr.update(value=None, visible=False),
        ]

    def explain(self, image: Any, mask: Any, canvas: Any, name: Any, dilate: Any, request: gr.Request) -> Any:
        """Show the stages of a completion, on a copy of at most 512 pixels per side."""
        with errors_shown(image, mask):
            session = self.sessions.named(request.session_hash)
            inpainter, _ = self.find_network(name)
            grown = whole_number(dilate, "the grown area")
            job = self.open_job(session, image, mask, canvas, session.folder, dilate=grown)
        network = inpainter.network
        assert isinstance(network, InpaintingNetwork)  # the page offers checkpoints alone
        stages = draw_stages(network, job.image_file.colors(), job.mask)
        drawn = [
            (add_image(Image.fromarray(stage), session), CAPTIONS[name]) for name, stage in stages.items()
        ]
        return gr.update(value=drawn, visible=True)

    def find_network(self, name: Any) -> tuple[Inpainter, tuple[float, float]]:
        """The inpainter of a checkpoint, and the range of mask ratios that it was trained on."""
        if not isinstance(name, str) or name not in self.networks:
            raise UserError("there is no such checkpoint")
        return self.networks[name]

    def open_job(
        self, session: Session, image: Any, mask: Any, canvas: Any, folder: Path, **settings: Any
    ) -> Job:
        """The job to fill an uploaded image; see `open_request`."""
        image_path = self.limits.open(image, session)
        mask_path = self.limits.open(mask, session, is_mask=True)
        return open_request(image_path, mask_path, read_strokes(canvas, session), folder, **settings)

    def build(self) -> gr.Blocks:
        """The controls, each bound to its function."""
        with gr.Blocks(title="Inpaint", analytics_enabled=False) as blocks:
            gr.Markdown(HEADER)
            add_step(1, "Open a picture")
            with gr.Row(equal_height=True):
                image = gr.File(show_label=False, height=130, elem_id="picture")
                examples = gr.Dataset(
                    components=["image"],
                    samples=[[sample] for sample in SAMPLES],
                    type="index",
                    label="Or try an example",
                    elem_id="examples",
                )
            with gr.Row(visible=False) as workspace:
                with gr.Column():
                    add_step(2, "Paint over what should go")
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
                    fill_button = gr.Button("Fill", variant="primary", elem_id="fill")
                    with gr.Accordion("Options", open=False):
                        mask = gr.File(label="Mask file: white is filled", height=110, elem_id="mask")
                        names = list(self.networks)
                        checkpoint = gr.Dropdown(names, value=names[0], label="Checkpoint")
                        dilate = gr.Slider(0, MAX_GROW, 0, step=1, label="Grow the marked area, pixels")
                        feather = gr.Slider(0, MAX_GROW, 0, step=1, label="Soften its edge, pixels")
                        detail = gr.Slider(0, 100, 100 * DETAIL, step=5, label="Detail, % (0 is smoothest)")
                        lossless = gr.Checkbox(
                            label="Write JPEG and AVIF as PNG, which keeps every other pixel"
                        )
                with gr.Column():
                    add_step(3, "Compare and download")
                    slider = gr.ImageSlider(
                        show_label=False, height=500, format="png", buttons=["fullscreen"], elem_id="result"
                    )
                    notes = gr.Markdown(elem_id="notes")
                    download = gr.DownloadButton(
                        "Download", visible=False, variant="primary", elem_id="download"
                    )
                    explain_button = gr.Button("Show how it came about", visible=False)
                    stages = gr.Gallery(
                        show_label=False,
                        visible=False,
                        format="png",
                        columns=3,
                        height="auto",
                        object_fit="contain",
                    )

            inputs = [image, mask, canvas, checkpoint, dilate]
            result = [slider, notes, download, explain_button, stages]
            bound: Any = {"preprocess": False, "api_visibility": "private"}
            one_at_a_time: Any = {"concurrency_limit": 1, "concurrency_id": "network"}
            gr.on(
                [image.change, mask.change], self.show, [image, mask], [workspace, canvas, info, *result],
                api_name="show", concurrency_limit=2, **bound,
            )  # fmt: skip
            examples.click(self.choose, examples, image, api_name="choose", **bound)
            fill_button.click(
                self.fill, [*inputs, feather, detail, lossless], result,
                show_progress_on=slider, api_name="fill", **one_at_a_time, **bound,
            )  # fmt: skip
            explain_button.click(self.explain, inputs, stages, api_name="explain", **one_at_a_time, **bound)
        return blocks


def add_step(number: int, text: str) -> None:
    """Add the headline of a step to the page."""
    gr.Markdown(f"### <b>{number}</b>{text}", elem_classes="step")


def add_image(image: Image.Image, session: Session) -> str:
    """The path of an image, written for the page to show it to this session."""
    path = session.new_path("image.png")
    image.save(path)
    return session.add(path)


def report_runs(inpainter: Inpainter, mask: np.ndarray, progress: Callable[..., Any]) -> None:
    """Make the inpainter call `progress` with (done, all) tiles while it fills a hole (H, W) bool."""
    count, done = count_runs(mask, inpainter.tile), itertools.count(1)
    progress((0, count), desc="Filling", unit="tiles")
    inpainter.after_run = lambda: progress((next(done), count), desc="Filling", unit="tiles")


@contextlib.contextmanager
def errors_shown(*files: Any) -> Iterator[None]:
    """Show user errors in the page; see `sentence`."""
    try:
        yield
    except UserError as error:
        raise gr.Error(sentence(one_line(error), *files), print_exception=False) from None


def sentences(messages: list[str], *files: Any) -> str:
    """Messages, of which some may be empty, one after the other; see `sentence`."""
    return " ".join(sentence(message, *files) for message in messages if message)


def sentence(message: str, *files: Any) -> str:
    """A message of the command line as a sentence, without flags and the server's folders.

    Messages name a flag in front, `--flag: text`, or in a hint in parentheses, `text (--flag)`.

    Args:
        files: gradio files, as the browser has sent them, that the message may name by their path.
    """
    paths = [file.get("path") for file in files if isinstance(file, dict)]
    for path in [path for path in paths if path and isinstance(path, str)]:
        message = message.replace(path, Path(path).name)
    message = re.sub(r"^--\w+: | \(--[^)]*\)", "", message)
    return message[:1].upper() + message[1:] + "." * (message[-1:] not in ".?!")
