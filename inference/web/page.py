"""The page: what it makes of a picture and what was painted over it, and how it looks."""

import dataclasses
import itertools
import multiprocessing
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from imaging.image_file import ImageFile, read_colors
from imaging.mask_file import mask_warnings, read_mask_for
from inference.fill_files import FillSettings, Job, Source, fill_job, open_job, targets_of
from inference.visualize import viridis
from inference.web.sessions import Session, Sessions
from utils import UserError, one_line

if TYPE_CHECKING:  # slow to import
    from gradio import Blocks

    from inference.inpainter import Inpainter

PREVIEW = (512, 1280)  # pixels of the longer side of the copy that is shown and painted on: least and most
TINT = (230, 40, 90)  # of what is to be filled
MAX_GROW = 32  # pixels, of the marked area and of its edge
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


def preview(picture: ImageFile, missing: np.ndarray | None = None) -> Image.Image:
    """A picture as a browser can show it, over white where transparent, `missing` (H, W) bool tinted."""
    height, width = picture.shape
    side = max(height, width)
    scale = min(max(side, PREVIEW[0]), PREVIEW[1]) / side
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST

    def resized(pixels: np.ndarray) -> np.ndarray:
        return np.atleast_3d(cv2.resize(pixels, size, interpolation=kind))

    colors = picture.colors()
    scaled: np.ndarray = resized(colors).astype(np.float32)
    if colors.dtype.kind == "u":
        scaled /= np.iinfo(colors.dtype).max
    shown: np.ndarray = np.broadcast_to(scaled, (size[1], size[0], 3))
    opacity = picture.alpha
    if opacity is not None:
        shown = 1 + resized(opacity) * (shown - 1)
    if missing is not None:
        weight = 0.6 * resized(missing.astype(np.float32))
        shown = shown + weight * (np.array(TINT, np.float32) / 255 - shown)
    image = Image.fromarray((shown.clip(0, 1) * 255).round().astype(np.uint8))
    if picture.raster.space == "rgb" and picture.icc:
        image.info["icc_profile"] = picture.icc
    return image


def strokes_of(layers: list[np.ndarray]) -> np.ndarray | None:
    """The opacity (h, w) uint8 of all layers (h, w, 4) painted in the editor; None if nothing was painted."""
    painted = np.maximum.reduce([layer[:, :, 3] for layer in layers]) if layers else None
    return painted if painted is not None and painted.any() else None


def read_layers(canvas: Any, session: Session) -> list[np.ndarray]:
    """The layers (h, w, 4) uint8 that the editor has uploaded.

    Raises:
        UserError: if they are not PNG files of this session, of one size that the editor can have.
    """
    layers = []
    for file in (canvas or {}).get("layers") or []:
        path = session.open(file)
        try:
            with Image.open(path or "", formats=["PNG"]) as image:
                if max(image.size) > 2 * PREVIEW[1]:
                    raise ValueError("too large")
                layers.append(np.asarray(image.convert("RGBA")))
        except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError):
            raise UserError("what was painted cannot be read: reload the page") from None
    if len({layer.shape for layer in layers}) > 1:
        raise UserError("what was painted cannot be read: reload the page")
    return layers


def decode(path: str, is_mask: bool, max_megapixels: float, answer: Connection) -> None:
    """Read a picture or mask, in a process of its own, and answer why it cannot be read, or ""."""
    try:
        if is_mask:
            read_colors(Path(path), max_megapixels)
        else:
            ImageFile(Path(path), max_megapixels)
    except UserError as error:
        answer.send(one_line(error))
    else:
        answer.send("")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an uploaded picture may cost: pixels, by its header, in millions, and seconds until it is read."""

    max_megapixels: float = 50.0
    max_seconds: float = 30.0

    def check(self, path: Path | None, session: Session, is_mask: bool = False) -> str | None:
        """Decode a file once in a process that can be stopped, before it is decoded here; returns its path.

        Raises:
            UserError: if it cannot be read, is too large, or takes too long.
        """
        if path is None or (str(path), is_mask) in session.checked:
            return None if path is None else str(path)
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        answer, end = context.Pipe(duplex=False)
        process = context.Process(
            target=decode, args=(str(path), is_mask, self.max_megapixels, end), daemon=True
        )
        process.start()
        end.close()
        try:
            if not answer.poll(self.max_seconds):
                raise UserError(f"takes more than {self.max_seconds:g} seconds to read: {path}")
            message = answer.recv()
        except EOFError:
            raise UserError(f"not a readable image: {path} (its decoder crashed)") from None
        finally:
            process.kill()
            process.join()
            answer.close()
        if message:
            raise UserError(message)
        session.checked.add((str(path), is_mask))
        return str(path)


def warm_up() -> None:
    """Start what the processes of `decode` are forked from, so that the first upload need not wait for it."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        multiprocessing.set_forkserver_preload(["inference.web.page"])
        forkserver.ensure_running()


def whole_number(value: Any, what: str) -> int:
    """A number of pixels that a slider says.

    Raises:
        UserError: if it is none, or none that the slider can be moved to.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_GROW:
        raise UserError(f"{what} must be from 0 to {MAX_GROW} pixels")
    return int(value)


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
    how = FillSettings(picture, folder, mask or "", **settings)
    source = Source(file, Path(mask) if mask else None, Path(f"{file.stem}_filled{file.suffix}"))
    job = open_job(how, source, targets_of(how, [source]), strokes)
    assert job is not None  # which it is only where existing results are left
    if not job.missing.any():
        raise UserError("nothing is marked: the mask is black, or the strokes are finer than a pixel")
    return dataclasses.replace(how, verify=job.picture.exact(how.lossless)), job


def explain(inpainter: "Inpainter", job: Job) -> list[tuple[np.ndarray, str]]:
    """Pictures of how a completion comes about, with captions: coarse, S, and where each stage looks."""
    import torch

    from inference.visualize import attention_heatmaps, small_copy
    from models import InpaintingNetwork

    network = inpainter.network
    assert isinstance(network, InpaintingNetwork)  # the page offers checkpoints alone

    image, mask = (each.to(inpainter.device) for each in small_copy(job.picture.colors(), job.missing))
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
    message = message.replace("(--lossless:", "(Options:").replace("--max_megapixels", "the limit of")
    message = re.sub(r"^--\w+: | ?\(--\w[^)]*\)", "", message)
    return message[:1].upper() + message[1:] + "." * (message[-1:] not in ".?!")


def report_runs(inpainter: "Inpainter", missing: np.ndarray, progress: Callable[..., Any]) -> None:
    """Let the inpainter tell `progress`, called with (done, all), of its runs while it fills a hole."""
    from inference.tiling import count_runs

    count, done = count_runs(missing, inpainter.tile), itertools.count(1)
    progress((0, count), desc="Filling", unit="tiles")
    inpainter.after_run = lambda: progress((next(done), count), desc="Filling", unit="tiles")


def build_page(networks: Networks, sessions: Sessions, limits: Limits) -> "Blocks":
    """The page, and what its controls call.

    gradio hands on what the browser has sent, unread (`preprocess=False`); each file is looked up among those
    of the session that asks.
    """
    import gradio as gr
    from skimage import data

    samples = [str(Path(data.__file__).parent / name) for name in EXAMPLES]
    hidden = gr.update(visible=False)
    no_result = [gr.update(value=None), "", hidden, hidden, gr.update(value=None, visible=False)]

    def shown(image: Image.Image, session: Session) -> str:
        """The file of an image to show in the page."""
        path = session.new_path("image.png")
        image.save(path)
        return session.add(path)

    def opened(file: Any, session: Session, is_mask: bool = False) -> str | None:
        """The path of a picture or mask that this session has uploaded, and that can be read in time."""
        return limits.check(session.open(file), session, is_mask)

    def complaint(error: UserError, *files: Any) -> str:
        """What the page says of a mistake."""
        paths = [file.get("path") for file in files if isinstance(file, dict)]
        return plain(one_line(error), *(path for path in paths if isinstance(path, str)))

    def choose(index: Any, request: gr.Request) -> str:
        """Open one of the examples, by its number: a copy of it in the session's folder."""
        if type(index) is not int or not 0 <= index < len(samples):
            raise gr.Error("There is no such example.", print_exception=False)
        try:
            session = sessions.named(request.session_hash)
        except UserError as error:
            raise gr.Error(complaint(error), print_exception=False) from None
        return session.add(Path(shutil.copyfile(samples[index], session.new_path(EXAMPLES[index]))))

    def show(picture: Any, mask: Any, request: gr.Request) -> list[Any]:
        """Show a picture to be painted on, and forget the last one's result."""
        if not picture:
            return [hidden, gr.update(value=None), "", *no_result]
        try:
            session = sessions.named(request.session_hash)
            image_file, mask_file = opened(picture, session), opened(mask, session, is_mask=True)
            image = ImageFile(Path(str(image_file)))
            height, width = image.shape
            hole, mask_notes = read_mask_for(Path(mask_file), (height, width)) if mask_file else (None, [])
        except UserError as error:
            gr.Warning(complaint(error, picture, mask))
            return [hidden, gr.update(value=None), "", *no_result]
        notes = [f"{width} × {height} pixels, {image.format}", *image.notes, *mask_notes]
        copy = shown(preview(image, hole), session)
        canvas: dict[str, Any] = {"background": copy, "layers": [], "composite": None}
        said = " ".join(plain(note, image_file, mask_file) for note in notes)
        return [gr.update(visible=True), canvas, said, *no_result]

    def fill(
        picture: Any,
        mask: Any,
        canvas: Any,
        name: Any,
        dilate: Any,
        feather: Any,
        lossless: Any,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008 (gradio looks for it there)
    ) -> list[Any]:
        """Fill the hole; the file to download has the format, and every other pixel, of the picture."""
        progress(0, desc="Reading")
        try:
            session, inpainter, trained, image_file, mask_file, strokes = asked_for(
                picture, mask, canvas, name, request
            )
            how, job = open_request(
                image_file, mask_file, strokes, str(session.new_path("result")),
                dilate=whole_number(dilate, "the grown area"), feather=whole_number(feather, "the soft edge"),
                lossless=lossless is True,
            )  # fmt: skip
            report_runs(inpainter, job.missing, progress)
            before = preview(job.picture)
            proof = fill_job(inpainter, how, job)
            after = preview(ImageFile(job.target_file))
        except UserError as error:
            raise gr.Error(complaint(error, picture, mask), print_exception=False) from None
        height, width = job.missing.shape
        notes = [f"{job.missing.mean():.1%} of {width} × {height} pixels filled"]
        notes += [proof.replace("the others are identical", "every other pixel is identical")] * bool(proof)
        notes += [*job.notes, *mask_warnings(job.missing, trained)]
        target = session.add(job.target_file)
        return [
            (shown(before, session), shown(after, session)),
            " ".join(plain(note, image_file, mask_file) for note in notes),
            gr.update(value=target, label=f"Download {job.target_file.name}", visible=True),
            gr.update(visible=True),
            gr.update(value=None, visible=False),
        ]

    def asked_for(picture: Any, mask: Any, canvas: Any, name: Any, request: gr.Request) -> tuple[Any, ...]:
        """What `fill` and `explain_fill` need: session, network, its training shares, files, strokes."""
        session = sessions.named(request.session_hash)
        if not isinstance(name, str) or name not in networks:
            raise UserError("there is no such checkpoint")
        files = opened(picture, session), opened(mask, session, is_mask=True)
        return session, *networks[name], *files, strokes_of(read_layers(canvas, session))

    def explain_fill(
        picture: Any, mask: Any, canvas: Any, name: Any, dilate: Any, request: gr.Request
    ) -> Any:
        """Show the stages of a completion, on a copy of at most 512 pixels a side."""
        try:
            session, inpainter, _, image_file, mask_file, strokes = asked_for(
                picture, mask, canvas, name, request
            )
            grown = whole_number(dilate, "the grown area")
            _, job = open_request(image_file, mask_file, strokes, str(session.folder), dilate=grown)
        except UserError as error:
            raise gr.Error(complaint(error, picture, mask), print_exception=False) from None
        stages = [
            (shown(Image.fromarray(pixels), session), caption) for pixels, caption in explain(inpainter, job)
        ]
        return gr.update(value=stages, visible=True)

    with gr.Blocks(title="Inpaint", analytics_enabled=False) as page:

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
                    dilate = gr.Slider(0, MAX_GROW, 0, step=1, label="Grow the marked area, pixels")
                    feather = gr.Slider(0, MAX_GROW, 0, step=1, label="Soften its edge, pixels")
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
        own: Any = {"preprocess": False, "api_visibility": "private"}
        changes, files = [picture.change, mask.change], [picture, mask]
        gr.on(
            changes, show, files, [work, canvas, info, *result], api_name="show", concurrency_limit=2, **own
        )
        examples.click(choose, examples, picture, api_name="choose", **own)
        button.click(
            fill,
            [*asked, feather, lossless],
            result,
            show_progress_on=slider,
            api_name="fill",
            **network,
            **own,
        )
        why.click(explain_fill, asked, stages, api_name="explain", **network, **own)
    return page
