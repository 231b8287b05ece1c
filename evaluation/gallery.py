"""One self-contained page on which the completions of an evaluation are looked at, worst first."""

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
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from inference.visualize import viridis
from utils import atomic_path

PAGE = Path(__file__).with_name("gallery.html")
QUALITY = 88  # of the WebP pictures, which are for looking at: scores are computed before
EFFORT = 2  # of 6: 0.6 of the default's time for files 4 % larger
MAX_ERROR = 0.25  # mean absolute difference that gets the brightest colour


@dataclass(frozen=True)
class Against:
    """What a second checkpoint made of the same hole: scores of the same names, and its own pictures."""

    scores: dict[str, float]
    pictures: dict[str, np.ndarray]


@dataclass(frozen=True)
class Entry:
    """One hole: its scores, and its pictures, each (H, W, 3) uint8.

    Args:
        name: of the image; need not be unique.
        scores: by the names of `METRICS`, or others.
        mask: (H, W), 1 = missing.
        pictures: `truth` and `output`, and any others, by the names of `PICTURES` or of classical methods.
    """

    name: str
    bucket: str
    scores: dict[str, float]
    mask: np.ndarray
    pictures: dict[str, np.ndarray]
    against: Against | None = None


class Metric(NamedTuple):
    """How a score is written, which end of it is worse (`low`, `high` or neither), and what it is."""

    label: str
    unit: str = ""
    digits: int = 3
    worst: str = ""
    about: str = ""
    factor: float = 1
    signed: bool = False


# fmt: off
METRICS = {
    "gain":          Metric("gain", "dB", 2, "low", signed=True,
                            about="PSNR of the output minus that of the best classical method on the same "
                                  "hole; below zero, the network is worse than it"),
    "difference":    Metric("difference in gain", "dB", 2, "low", signed=True,
                            about="gain of the first checkpoint minus that of the second, on the same hole"),
    "psnr":          Metric("PSNR", "dB", 2, "low", "peak signal-to-noise ratio in the hole; more is better"),
    "boundary_psnr": Metric("PSNR, rim", "dB", 2, "low",
                            "of the missing pixels next to known ones: low where a seam shows"),
    "ssim":          Metric("SSIM", "", 3, "low", "structural similarity in the hole, more is better"),
    "seam_jump":     Metric("seam", "", 4, "high", signed=True,
                            about="how much harder the step across the hole's edge is than in the truth"),
    "l1":            Metric("L1", "", 4, "high",
                            "mean absolute difference in the hole, of a range of 1; less is better"),
    "lpips":         Metric("LPIPS", "", 3, "high",
                            "distance between AlexNet's features, nearer to what people see; less is better"),
    "psnr_full":     Metric("PSNR, all", "dB", 2, "low", "of the whole image, known pixels included"),
    "ssim_full":     Metric("SSIM, all", "", 3, "low", "of the whole image, known pixels included"),
    "mask_ratio":    Metric("hole", "%", 1, factor=100, about="missing share of the image"),
}
PICTURES = {  # label, and what it is
    "input":     ("input", "what the network was given: the hole is white"),
    "output":    ("output", "the completion: the network's pixels in the hole, the image's own outside"),
    "truth":     ("truth", "the image as it was"),
    "error":     ("error", "where the output differs from the truth: absolute difference, averaged over the "
                           f"channels, from 0 (dark) to {MAX_ERROR:g} of the range and more (bright); known "
                           "pixels are pale grey"),
    "coarse":    ("coarse", "the coarse decoder's completion, before refinement"),
    "refined":   ("refined", "the refinement's output as it left the network, outside the hole as well"),
    "structure": ("S", "structure confidence, from 0 (dark) to 1 (bright): where edges and corners are"),
    "stage 1":   ("stage 1", "where the structure stage looks to fill the hole; brightest is most"),
    "stage 2":   ("stage 2", "where the shape stage looks"),
    "stage 3":   ("stage 3", "where the texture stage looks"),
}
# fmt: on
FLOOR = "what this classical method makes of the same hole"
SHARED = ("input", "truth")  # with the classical methods: the same for both checkpoints


def error_map(output: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Absolute difference in the hole, averaged over the channels, as colours; known pixels in pale grey.

    Its mean over the hole is the score `l1`. A difference of `MAX_ERROR` or more gets the brightest colour.

    Shapes:
        output, truth (H, W, 3) uint8; mask (H, W), 1 = missing. Returns (H, W, 3) uint8.
    """
    error = np.abs(output.astype(np.float32) - truth).mean(axis=2) / 255
    pale = (192 + truth.mean(axis=2, keepdims=True) / 4).astype(np.uint8)
    return np.where(mask[:, :, None] > 0, viridis(error / MAX_ERROR), pale)


def line_through(mask: np.ndarray) -> float:
    """Where the line between two pictures starts, in per cent: a quarter of the hole is left of it."""
    missing = (mask > 0).sum(axis=0).cumsum()
    return 100 * float(np.searchsorted(missing, missing[-1] / 4)) / len(missing)


def data_uri(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 as a WebP picture inside an address."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="WEBP", quality=QUALITY, method=EFFORT)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


@contextlib.contextmanager
def gallery_writer(
    path: Path, *, title: str, protocol: Mapping[str, object], labels: tuple[str, ...]
) -> Iterator[Callable[[Entry], None]]:
    """Yield a function that adds an entry; the page is whole at `path` once the context ends without error.

    Pictures go into the file as they come, so that only names and scores stay in memory.

    Args:
        protocol: what a reader has to know to repeat the numbers, name and value.
        labels: names of the checkpoint, or of both where entries have an `against`.
    """
    head, tail = _fill_in(PAGE.read_text(encoding="utf-8"), title, protocol).split("<!-- entries -->\n")
    rows: list[dict[str, Any]] = []
    kinds: dict[str, None] = {}  # in the order of their first appearance

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(head)

        def add(entry: Entry) -> None:
            if (entry.against is not None) != (len(labels) == 2):
                raise ValueError(f"{entry.name}: {len(labels)} labels for its checkpoints")
            truth, mask = entry.pictures["truth"], entry.mask
            pictures = {
                "input": np.where(mask[:, :, None] > 0, np.uint8(255), truth),
                **entry.pictures,
                "error": error_map(entry.pictures["output"], truth, mask),
            }
            scores, sides = dict(entry.scores), [pictures]
            if entry.against is not None:
                scores["difference"] = scores["gain"] - entry.against.scores["gain"]
                error = error_map(entry.against.pictures["output"], truth, mask)
                sides.append({**entry.against.pictures, "error": error})
            kinds.update(dict.fromkeys(kind for side in sides for kind in side))
            encoded = [{kind: data_uri(each) for kind, each in side.items()} for side in sides]
            file.write(_script(f"pictures-{len(rows)}", encoded))
            rows.append(
                {
                    "id": len(rows),
                    "name": entry.name,
                    "bucket": entry.bucket,
                    "size": [mask.shape[1], mask.shape[0]],
                    "line": line_through(mask),
                    "scores": _finite(scores),
                    "against": None if entry.against is None else _finite(entry.against.scores),
                }
            )

        yield add
        rows.sort(key=lambda row: math.inf if row["scores"].get("gain") is None else row["scores"]["gain"])
        file.write(_script("data", {"labels": labels, "entries": rows, **_legend(rows, kinds)}))
        file.write(tail)


def _legend(rows: list[dict[str, Any]], kinds: dict[str, None]) -> dict[str, Any]:
    """The metrics, pictures and buckets that occur, each in the order in which the page names them."""
    found = dict.fromkeys(name for row in rows for name in row["scores"])
    metrics = [name for name in METRICS if name in found] + [name for name in found if name not in METRICS]
    pictures = [kind for kind in PICTURES if kind in kinds] + [kind for kind in kinds if kind not in PICTURES]
    words = {kind: PICTURES.get(kind, (kind.replace("_", " "), FLOOR)) for kind in pictures}
    return {
        "metrics": [{"key": name, **METRICS.get(name, Metric(name))._asdict()} for name in metrics],
        "pictures": [
            {
                "key": kind,
                "label": words[kind][0],
                "about": words[kind][1],
                "shared": kind in SHARED or kind not in PICTURES,
            }
            for kind in pictures
        ],
        "buckets": sorted(
            {row["bucket"] for row in rows}, key=lambda name: (name == "other", len(name), name)
        ),
        "max_error": MAX_ERROR,
    }


def _finite(scores: dict[str, float]) -> dict[str, float | None]:
    """Numbers that JSON can hold; None for the others."""
    return {name: float(value) if math.isfinite(value) else None for name, value in scores.items()}


def _script(identity: str, content: Any) -> str:
    """Data for the page that nothing in it can end early: no `<` stays one."""
    text = json.dumps(content, allow_nan=False).replace("&", "\\u0026").replace("<", "\\u003c")
    return f'<script type="application/json" id="{identity}">{text}</script>\n'


def _fill_in(page: str, title: str, protocol: Mapping[str, object]) -> str:
    """The template with title, protocol and colours in place, and the digest by which its script may run."""
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
    """As HTML text, in ASCII: file names may hold what UTF-8 cannot."""
    return html.escape(str(value)).encode("ascii", "xmlcharrefreplace").decode()
