"""Scores of holes summarised over all and by bucket, with intervals, as JSON, CSV and Markdown."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.baselines import OPENCV
from metrics import counts, mean_interval

Summary = dict[str, Any]
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "boundary_psnr": True, "l1": False, "lpips": False}
OURS = ("output", "coarse", "against")  # what is not a floor


@dataclass(frozen=True)
class Scored:
    """One hole: where it is and what every method made of it.

    Attributes:
        name: of the hole, its image's unless there are several.
        source: the image's; holes of one image are not independent.
        mask_ratio: missing share, exact.
        scores: by method (`output` first), the values of the metrics by name.
    """

    name: str
    source: str
    bucket: str
    mask_ratio: float
    scores: dict[str, dict[str, float]]

    def floors(self) -> list[str]:
        return [method for method in self.scores if method not in OURS]

    def gain(self, over: Sequence[str], method: str = "output") -> float:
        """PSNR of a method over the best of some others on this hole, dB; 0 of an empty hole."""
        return self.scores[method]["psnr"] - max(self.scores[method]["psnr"] for method in over)


def means(holes: list[Scored], method: str) -> dict[str, float]:
    """The mean of every metric over the holes in which it means something; over all if it does in none."""
    result = {}
    for name in holes[0].scores[method]:
        counted = [hole for hole in holes if counts(name, hole.mask_ratio)] or holes
        result[name] = float(np.mean([hole.scores[method][name] for hole in counted]))
    return result


def gain(holes: list[Scored], over: Sequence[str]) -> Summary:
    """The paired gain in PSNR over the best of some methods, hole by hole.

    Returns:
        `mean` in dB over the holes; its 95 % `interval`, which resamples images, not holes (None for one
        image); `share` of the holes that gained.
    """
    holes = [hole for hole in holes if counts("psnr", hole.mask_ratio)] or holes
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
    """Means of every method, the best floor's of each metric, and the paired gains.

    Returns:
        `holes` and `images`, counts; a dict of metrics for every method; `best_baseline`, of every metric the
        best of the floors' means; `gain` over the best floor, `gain_opencv` over the better of
        `cv2.inpaint`'s two methods, and over `coarse` and `against` where there are such.
    """
    floors = holes[0].floors()
    summary: Summary = {"holes": len(holes), "images": len({hole.source for hole in holes})}
    summary |= {method: means(holes, method) for method in holes[0].scores}
    summary["best_baseline"] = {
        name: (max if better else min)(summary[floor][name] for floor in floors)
        for name, better in HIGHER_IS_BETTER.items()
        if name in summary["output"]
    }
    summary["gain"] = gain(holes, floors)
    summary["gain_opencv"] = gain(holes, [floor for floor in floors if floor in OPENCV])
    for method in ("coarse", "against"):
        if method in holes[0].scores:
            summary[f"gain_{method}"] = gain(holes, [method])
    return summary


def by_bucket(holes: list[Scored]) -> dict[str, Summary]:
    """`summarize` of the holes of each bucket, in the order of the buckets' names."""
    labels = sorted({hole.bucket for hole in holes}, key=lambda label: (label == "other", len(label), label))
    return {label: summarize([hole for hole in holes if hole.bucket == label]) for label in labels}


def make_report(protocol: dict[str, Any], holes: list[Scored], **other: Any) -> dict[str, Any]:
    """All of report.json: the protocol, the summary of all holes, `buckets`, and what else there is."""
    return {"protocol": protocol, **summarize(holes), **other, "buckets": by_bucket(holes)}


def signed(paired: Summary) -> str:
    """A paired gain with its interval: `+1.23 (+1.00 to +1.46)`."""
    low_high = paired["interval"]
    return f"{paired['mean']:+.2f}" + (f" ({low_high[0]:+.2f} to {low_high[1]:+.2f})" if low_high else "")


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def bucket_table(report: dict[str, Any]) -> list[str]:
    """One row a bucket and one for all: the output beside the best floor, and the paired gains."""
    parts = report["buckets"] | {"all": report}
    others = [name for name in report["best_baseline"] if name != "psnr"]
    gains = {"gain": "gain over the best floor", "gain_opencv": "over OpenCV's better"}
    gains |= {"gain_coarse": "over coarse", "gain_against": "over the other checkpoint"}
    gains = {key: title for key, title in gains.items() if key in report}
    header = ["hole", "n", "PSNR, dB", "best floor", *(f"{title}, dB (95 %)" for title in gains.values())]
    header += [f"{name} / best floor" for name in others]
    rows = []
    for label, part in parts.items():
        row = [
            label,
            str(part["holes"]),
            f"{part['output']['psnr']:.2f}",
            f"{part['best_baseline']['psnr']:.2f}",
        ]
        row += [signed(part[key]) for key in gains]
        row += [f"{part['output'][name]:.3f} / {part['best_baseline'][name]:.3f}" for name in others]
        rows.append(row)
    return table(header, rows)


def method_table(report: dict[str, Any]) -> list[str]:
    """One row a method, all metrics, means over all holes."""
    methods = [method for method in report if isinstance(report[method], dict) and "psnr" in report[method]]
    methods.remove("best_baseline")
    names = list(report["output"])
    rows = [[method, *(f"{report[method][name]:.4f}" for name in names)] for method in methods]
    return table(["method", *names], rows)


def to_markdown(report: dict[str, Any]) -> str:
    """The protocol in words, a table by bucket, and one by method."""
    lines = ["# Evaluation", "", *(f"- {name}: {value}" for name, value in report["protocol"].items())]
    if report.get("frechet_distance") is not None:
        lines.append(f"- Fréchet distance to the true images: {report['frechet_distance']:.3f}")
    lines += ["", "Gains are differences in PSNR on the same hole; intervals are bootstraps over images.", ""]
    return "\n".join([*lines, *bucket_table(report), "", *method_table(report)]) + "\n"


def to_csv(holes: list[Scored]) -> str:
    """One row a hole; the output's metrics under their names, others' as `method_metric`; `gain` in dB."""
    rows = []
    for hole in holes:
        row: dict[str, Any] = {"name": hole.name, "bucket": hole.bucket, "mask_ratio": hole.mask_ratio}
        for method, scores in hole.scores.items():
            prefix = "" if method == "output" else f"{method}_"
            row |= {prefix + name: value for name, value in scores.items()}
        rows.append(row | {"gain": hole.gain(hole.floors())})
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
