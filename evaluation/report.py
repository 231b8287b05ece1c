"""Scores of holes, summarized over all and by bucket with confidence intervals, as JSON, CSV and Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.baselines import OPENCV
from evaluation.mask_packs import bucket_order
from metrics import METRICS, has_region, mean_interval, mean_over_images
from utils import csv_text

Summary = dict[str, Any]
NETWORKS = ("output", "detail_0", "coarse", "against")  # methods that are no baselines


@dataclass(frozen=True)
class Scored:
    """One hole and the scores of every method on it.

    Attributes:
        name: unique; the image's name, unless it has several holes.
        source: the image's name; holes of one image are not independent.
        mask_ratio: exact.
        scores: by method (`output` first), the values of the metrics by name.
    """

    name: str
    source: str
    bucket: str
    mask_ratio: float
    scores: dict[str, dict[str, float]]

    def baselines(self) -> list[str]:
        return [method for method in self.scores if method not in NETWORKS]

    def gain(self, over: Sequence[str], method: str = "output") -> float:
        """PSNR of a method minus the best PSNR of other methods on this hole, dB; 0 for an empty hole."""
        return self.scores[method]["psnr"] - max(self.scores[name]["psnr"] for name in over)


def means(holes: list[Scored], method: str) -> dict[str, float]:
    """The mean of every metric of a method (see `mean_over_images`)."""
    ratios = [hole.mask_ratio for hole in holes]
    return {
        name: mean_over_images(name, [hole.scores[method][name] for hole in holes], ratios)
        for name in holes[0].scores[method]
    }


def gain(holes: list[Scored], over: Sequence[str]) -> Summary:
    """The paired gain in PSNR over the best of some methods, hole by hole.

    Returns:
        `mean` in dB over the holes; its 95 % `interval`, which resamples images, not holes (None for one
        image); `share` of the holes that gained.
    """
    holes = [hole for hole in holes if has_region("psnr", hole.mask_ratio)] or holes
    gains: dict[str, list[float]] = {}
    for hole in holes:
        gains.setdefault(hole.source, []).append(hole.gain(over))
    flat = [value for values in gains.values() for value in values]
    return {
        "over": list(over),
        "mean": float(np.mean(flat)),
        "interval": mean_interval([float(np.mean(values)) for values in gains.values()]),
        "share": float(np.mean([value > 0 for value in flat])),
    }


def summarize(holes: list[Scored]) -> Summary:
    """Means of every method, the best baseline's of each metric, and the paired gains.

    Returns:
        `holes` and `images`, counts; `methods`, the metrics of each; `best_baseline`, the best of the
        baselines' means for each headline metric; `gain` over the best baseline, `gain_opencv` over the
        better of `cv2.inpaint`'s two methods, `gain_coarse` and `gain_against` if there are such methods.
    """
    baselines = holes[0].baselines()
    methods = {method: means(holes, method) for method in holes[0].scores}
    summary: Summary = {"holes": len(holes), "images": len({hole.source for hole in holes})}
    summary["methods"] = methods
    summary["best_baseline"] = {
        name: max((methods[baseline][name] for baseline in baselines), key=metric.rank)
        for name, metric in METRICS.items()
        if metric.headline and name in methods["output"]
    }
    summary["gain"] = gain(holes, baselines)
    summary["gain_opencv"] = gain(holes, [baseline for baseline in baselines if baseline in OPENCV])
    for method in ("coarse", "against"):
        if method in methods:
            summary[f"gain_{method}"] = gain(holes, [method])
    return summary


def by_bucket(holes: list[Scored]) -> dict[str, Summary]:
    """`summarize` for the holes of each bucket, in order."""
    labels = sorted({hole.bucket for hole in holes}, key=bucket_order)
    return {label: summarize([hole for hole in holes if hole.bucket == label]) for label in labels}


def make_report(protocol: dict[str, Any], holes: list[Scored], **more: Any) -> dict[str, Any]:
    """All of report.json: the protocol, the summary of all holes, further entries, and `buckets`."""
    return {"protocol": protocol, **summarize(holes), **more, "buckets": by_bucket(holes)}


def signed(paired: Summary) -> str:
    """A paired gain with its interval: `+1.23 (+1.00 to +1.46)`."""
    low_high = paired["interval"]
    return f"{paired['mean']:+.2f}" + (f" ({low_high[0]:+.2f} to {low_high[1]:+.2f})" if low_high else "")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def bucket_table(report: dict[str, Any]) -> list[str]:
    """One row per bucket and one for all: the output beside the best baseline, and the paired gains."""
    further = [name for name in report["best_baseline"] if name != "psnr"]
    gains = {"gain": "gain over the best baseline", "gain_opencv": "over OpenCV's better"}
    gains |= {"gain_coarse": "over coarse", "gain_against": "over the other checkpoint"}
    gains = {key: title for key, title in gains.items() if key in report}
    header = ["hole", "n", "PSNR, dB", "best baseline", *(f"{title}, dB (95 %)" for title in gains.values())]
    header += [f"{name} / best baseline" for name in further]
    rows = []
    for label, summary in (report["buckets"] | {"all": report}).items():
        output, best = summary["methods"]["output"], summary["best_baseline"]
        row = [label, str(summary["holes"]), f"{output['psnr']:.2f}", f"{best['psnr']:.2f}"]
        row += [signed(summary[key]) for key in gains]
        rows.append(row + [f"{output[name]:.3f} / {best[name]:.3f}" for name in further])
    return table(header, rows)


def method_table(report: dict[str, Any]) -> list[str]:
    """One row per method: the means of all metrics over all holes."""
    names = list(report["methods"]["output"])
    rows = [
        [method, *(f"{scores[name]:.4f}" for name in names)] for method, scores in report["methods"].items()
    ]
    return table(["method", *names], rows)


def protocol_lines(report: dict[str, Any]) -> list[str]:
    """The protocol, and the Fréchet distances if there are any, as a Markdown list."""
    lines = [f"- {name}: {value}" for name, value in report["protocol"].items()]
    if report.get("frechet_distance") is not None:
        lines.append(f"- Fréchet distance to the true images: {report['frechet_distance']:.3f}")
    lite = report.get("frechet_distance_lite0")
    if lite and lite["methods"]:
        values = ", ".join(f"{method} {value:.2f}" for method, value in lite["methods"].items())
        note = f"n = {lite['n']}, biased upwards at small n"
        lines.append(f"- Fréchet distance (EfficientNet-Lite0) to the true images, {note}: {values}")
    return lines


def to_markdown(report: dict[str, Any]) -> str:
    """The protocol, a table by bucket, and one by method."""
    note = "Gains are differences in PSNR on the same hole; intervals are bootstraps over images."
    lines = ["# Evaluation", "", *protocol_lines(report), "", note, ""]
    return "\n".join([*lines, *bucket_table(report), "", *method_table(report)]) + "\n"


def to_text(report: dict[str, Any]) -> str:
    """The means of all methods and the paired gains, for the terminal."""
    names = list(report["methods"]["output"])
    lines = [f"{report['holes']} holes in {report['images']} images, masks: {report['protocol']['masks']}"]
    width = max(15, max(map(len, names)) + 2)
    lines.append(f"{'':14}" + "".join(f"{name:>{width}}" for name in names))
    for method, scores in (report["methods"] | {"best_baseline": report["best_baseline"]}).items():
        cells = (f"{scores[name]:{width}.4f}" if name in scores else " " * width for name in names)
        lines.append(f"{method:14}" + "".join(cells))
    titles = {"gain": "the best baseline", "gain_opencv": "the better of cv2.inpaint's two methods"}
    titles |= {"gain_against": "the other checkpoint"}
    lines += [
        f"PSNR over {title}, hole by hole: {signed(report[key])} dB (95 %)"
        for key, title in titles.items()
        if key in report
    ]
    if str(report["protocol"].get("lpips", "")).startswith("left out"):
        lines.append(f"LPIPS {report['protocol']['lpips']}")
    return "\n".join(lines)


def to_csv(holes: list[Scored]) -> str:
    """One row per hole: the output's metrics by name, other methods' as `method_metric`, and `gain` in dB."""
    rows = []
    for hole in holes:
        row: dict[str, Any] = {"name": hole.name, "bucket": hole.bucket, "mask_ratio": hole.mask_ratio}
        for method, scores in hole.scores.items():
            prefix = "" if method == "output" else f"{method}_"
            row |= {prefix + name: value for name, value in scores.items()}
        rows.append(row | {"gain": hole.gain(hole.baselines())})
    return csv_text(rows[0], rows)
