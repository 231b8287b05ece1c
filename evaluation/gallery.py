"""A self-contained HTML page that shows the completions of an evaluation, worst first."""

import base64
import contextlib
import hashlib
import html
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.mask_packs import bucket_order
from inference.visualize import viridis
from metrics import METRICS, Metric
from utils import atomic_path

PAGE = Path(__file__).with_name("gallery.html")
QUALITY = 88  # WebP; scores are computed before compression
EFFORT = 2  # WebP, 0 to 6: 0.6 of the default's time for files 4 % larger
MAX_ERROR = 0.25  # mean absolute difference that gets the brightest colour


@dataclass(frozen=True)
class Against:
    """A second checkpoint's scores, by the same names, and images for the same hole."""

    scores: dict[str, float]
    images: dict[str, np.ndarray]


@dataclass(frozen=True)
class Entry:
    """One hole: its scores, and its images, each (H, W, 3) uint8.

    Args:
        name: the image's; need not be unique.
        scores: by the names of `SCORES`, or others.
        mask: (H, W), 1 = missing.
        images: `truth` and `output`, and any others, by the names of `IMAGES` or of baselines.
    """

    name: str
    bucket: str
    scores: dict[str, float]
    mask: np.ndarray
    images: dict[str, np.ndarray]
    against: Against | None = None


# fmt: off
GAINS = {
    "gain":       Metric("gain", "gain", "dB", "hole", "higher", 2,
                         "PSNR of the output minus that of the best baseline on the same hole; below "
                         "zero, the network is worse"),
    "difference": Metric("difference", "difference in gain", "dB", "hole", "higher", 2,
                         "gain of the first checkpoint minus that of the second, on the same hole"),
}
SCORES = GAINS | METRICS | {
    "mask_ratio": Metric("mask_ratio", "mask ratio", "%", digits=1, about="missing part of the image"),
}
IMAGES = {  # label and description
    "input":     ("input", "the network's input: the hole is white"),
    "output":    ("output", "the completion: the network's pixels in the hole, the image's own outside"),
    "detail_0":  ("detail 0", "the completion without the texture stage"),
    "truth":     ("truth", "the original image"),
    "error":     ("error", "absolute difference of output and truth, averaged over the channels, from 0 "
                           f"(dark) to {MAX_ERROR:g} of the range or more (bright); known pixels pale grey"),
    "coarse":    ("coarse", "the coarse decoder's completion, before refinement"),
    "refined":   ("refined", "the refinement's output before compositing, known pixels included"),
    "structure": ("S", "structure confidence, from 0 (dark) to 1 (bright): high at edges and corners"),
    "stage 1":   ("stage 1", "attention of the structure stage from inside the hole; brightest is most"),
    "stage 2":   ("stage 2", "attention of the shape stage"),
    "stage 3":   ("stage 3", "attention of the texture stage"),
}
# fmt: on
BASELINE = "this baseline's completion of the same hole"
SHARED = ("input", "truth")  # like the baselines' completions, the same for both checkpoints


def error_map(output: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Absolute difference in the hole, averaged over the channels, in colours; known pixels pale grey.

    Its mean over the hole is the metric `l1`. A difference of `MAX_ERROR` or more gets the brightest colour.

    Shapes:
        output, truth (H, W, 3) uint8; mask (H, W), 1 = missing. Returns (H, W, 3) uint8.
    """
    error = np.abs(output.astype(np.float32) - truth).mean(axis=2) / 255
    pale = (192 + truth.mean(axis=2, keepdims=True) / 4).astype(np.uint8)
    return np.where(mask[:, :, None] > 0, viridis(error / MAX_ERROR), pale)


def line_through(mask: np.ndarray) -> float:
    """First position of the line between two images, in per cent: a quarter of the hole is left of it."""
    missing = (mask > 0).sum(axis=0).cumsum()
    return 100 * float(np.searchsorted(missing, missing[-1] / 4)) / len(missing)


def data_uri(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 as a WebP image in a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="WEBP", quality=QUALITY, method=EFFORT)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


@contextlib.contextmanager
def gallery_writer(
    path: Path, *, title: str, protocol: Mapping[str, object], labels: tuple[str, ...]
) -> Iterator[Callable[[Entry], None]]:
    """Yield a function that adds an entry; the page is written to `path` if the context ends without error.

    Images go into the file one by one, so that only names and scores stay in memory.

    Args:
        protocol: the settings that a reader needs to repeat the numbers, by name.
        labels: names of the checkpoint, or of both if entries have an `against`.
    """
    head, tail = _fill_in(PAGE.read_text(encoding="utf-8"), title, protocol).split("<!-- entries -->\n")
    rows: list[dict[str, Any]] = []
    found: dict[str, None] = {}  # names of images, in the order of their first appearance

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(head)

        def add(entry: Entry) -> None:
            if (entry.against is not None) != (len(labels) == 2):
                raise ValueError(f"{entry.name}: {len(labels)} labels for its checkpoints")
            sides = _images_by_side(entry)
            found.update(dict.fromkeys(name for side in sides for name in side))
            encoded = [{name: data_uri(image) for name, image in side.items()} for side in sides]
            file.write(_script(f"images-{len(rows)}", encoded))
            rows.append({"id": len(rows), **_row(entry)})

        yield add
        rows.sort(key=lambda row: math.inf if row["scores"].get("gain") is None else row["scores"]["gain"])
        file.write(_script("data", {"labels": labels, "entries": rows, **_legend(rows, found)}))
        file.write(tail)


def _images_by_side(entry: Entry) -> list[dict[str, np.ndarray]]:
    """The images of the checkpoint, and of the second one if there is one, with input and error maps."""
    truth, mask = entry.images["truth"], entry.mask
    images = {"input": np.where(mask[:, :, None] > 0, np.uint8(255), truth), **entry.images}
    sides = [images, entry.against.images] if entry.against is not None else [images]
    return [{**side, "error": error_map(side["output"], truth, mask)} for side in sides]


def _row(entry: Entry) -> dict[str, Any]:
    """An entry without its images, for the page's data."""
    scores, against = dict(entry.scores), entry.against
    if against is not None:
        scores["difference"] = scores["gain"] - against.scores["gain"]
    return {
        "name": entry.name,
        "bucket": entry.bucket,
        "size": [entry.mask.shape[1], entry.mask.shape[0]],
        "line": line_through(entry.mask),
        "scores": _finite(scores),
        "against": None if against is None else _finite(against.scores),
    }


def _legend(rows: list[dict[str, Any]], images: dict[str, None]) -> dict[str, Any]:
    """The metrics, images and buckets that occur, each in the order in which the page lists them."""
    scores = dict.fromkeys(name for row in rows for name in row["scores"])
    metrics = [SCORES.get(name, Metric(name, name)) for name in _in_order(scores, SCORES)]
    return {
        "metrics": [
            {**metric._asdict(), "signed": metric.better == "zero" or metric.name in GAINS}
            for metric in metrics
        ],
        "images": [
            {"name": name, "label": label, "about": about, "shared": name in SHARED or name not in IMAGES}
            for name in _in_order(images, IMAGES)
            for label, about in [IMAGES.get(name, (name.replace("_", " "), BASELINE))]
        ],
        "buckets": sorted({row["bucket"] for row in rows}, key=bucket_order),
        "max_error": MAX_ERROR,
    }


def _in_order(found: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Names, the known ones first, in the order of their table."""
    return [name for name in known if name in found] + [name for name in found if name not in known]


def _finite(scores: dict[str, float]) -> dict[str, float | None]:
    """The scores as JSON can hold them: None for infinities and NaN."""
    return {name: float(value) if math.isfinite(value) else None for name, value in scores.items()}


def _script(identity: str, content: Any) -> str:
    """A block of JSON for the page, with every `<` escaped, so that no content can end the block."""
    text = json.dumps(content, allow_nan=False).replace("&", "\\u0026").replace("<", "\\u003c")
    return f'<script type="application/json" id="{identity}">{text}</script>\n'


def _fill_in(page: str, title: str, protocol: Mapping[str, object]) -> str:
    """The template with its title, protocol and colours, and the digest that lets its script run."""
    code = page.partition("<script>")[2].partition("</script>")[0]
    terms = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in protocol.items()
    )
    values = {
        "title": _text(title),
        "protocol": terms,
        "viridis": ", ".join(f"#{bytes(c).hex()}" for c in viridis(np.linspace(0, 1, 16)[None])[0]),
        "digest": base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], page)


def _text(value: object) -> str:
    """A value as HTML text, in ASCII: file names may hold bytes that are not UTF-8."""
    return html.escape(str(value)).encode("ascii", "xmlcharrefreplace").decode()
