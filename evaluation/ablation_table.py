"""Means and paired differences of ablation runs, with intervals over seeds, as table and chart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from evaluation.mask_packs import bucket_order
from evaluation.report import table
from metrics import METRICS, Metric, mean_over_images
from utils import atomic_path, csv_text

COLUMNS = {name: metric for name, metric in METRICS.items() if metric.headline}
COLUMNS["corner_loss"] = Metric("corner_loss", "corner loss", digits=5)


@dataclass(frozen=True)
class Result:
    """One trained run: a row of the table with one seed.

    Attributes:
        steps, images, minutes: totals of its training, across resumes.
        weights_sha256: hash of the weights that were scored.
        holes: one dict per hole: `name`, `bucket`, `mask_ratio`, and the metrics.
    """

    row: str
    seed: int
    steps: int
    images: int
    minutes: float
    weights_sha256: str
    holes: list[dict[str, Any]]

    def means(self, bucket: str = "") -> dict[str, float]:
        """The mean of every metric (see `mean_over_images`) over the holes of a bucket, or over all."""
        holes = [hole for hole in self.holes if bucket in ("", hole["bucket"])]
        ratios = [hole["mask_ratio"] for hole in holes]
        return {
            name: mean_over_images(name, [hole[name] for hole in holes], ratios)
            for name in COLUMNS
            if name in self.holes[0]
        }

    def buckets(self) -> list[str]:
        return sorted({hole["bucket"] for hole in self.holes}, key=bucket_order)


def metrics_of(results: list[Result]) -> list[str]:
    """The metrics that all results have: older ones may lack some."""
    return [name for name in COLUMNS if all(name in result.holes[0] for result in results)]


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds and half the width of its 95 % interval (Student's t); infinite for one seed."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.inf
    return float(np.mean(values)), float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def rows_of(results: list[Result]) -> dict[str, dict[int, Result]]:
    """The results by row and seed, in the order in which rows first appear."""
    rows: dict[str, dict[int, Result]] = {}
    for result in results:
        rows.setdefault(result.row, {})[result.seed] = result
    return rows


def differences(
    row: dict[int, Result], first: dict[int, Result], metric: str, bucket: str = ""
) -> list[float]:
    """A row's means minus the first row's, paired by seed: same order of data, same masks and holes."""
    seeds = sorted(row.keys() & first.keys())
    return [row[seed].means(bucket)[metric] - first[seed].means(bucket)[metric] for seed in seeds]


def mean_cell(values: Sequence[float], digits: int, sign: str = "") -> str:
    """A mean over seeds and its interval: `21.50 ± 6.35`; empty without values."""
    if not values:
        return ""
    mean, half = over_seeds(values)
    return f"{mean:{sign}.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")


def to_markdown(results: list[Result]) -> str:
    """One row per variant: training, every metric, its difference from the first row; and PSNR by bucket."""
    rows = rows_of(results)
    first_name, first = next(iter(rows.items()))
    columns = [COLUMNS[name] for name in metrics_of(results)]
    header = ["row", "seeds", "images", "minutes", *(metric.title for metric in columns)]
    header += [f"{metric.title} over {first_name}" for metric in columns]
    body = []
    for label, row in rows.items():
        cells = [label, str(len(row))]
        cells += [
            f"{np.mean([getattr(r, name) for r in row.values()]):,.0f}" for name in ("images", "minutes")
        ]
        cells += [mean_cell([r.means()[m.name] for r in row.values()], m.digits) for m in columns]
        paired = [[] if row is first else differences(row, first, m.name) for m in columns]
        cells += [mean_cell(x, m.digits, "+") for x, m in zip(paired, columns, strict=True)]
        body.append(cells)
    note = f"Means over seeds of means over {len(results[0].holes)} holes, ± half of the 95 % interval"
    note += " over seeds (Student's t); differences are paired by seed."
    if "lpips" not in metrics_of(results):
        note += " LPIPS is left out: not all runs were scored with its package and weights at hand."
    return "\n".join([*table(header, body), "", *bucket_lines(rows), "", note]) + "\n"


def bucket_lines(rows: dict[str, dict[int, Result]]) -> list[str]:
    """PSNR by bucket, and its difference from the first row, as a Markdown table."""
    first_name, first = next(iter(rows.items()))
    buckets = next(iter(first.values())).buckets()
    body = []
    for label, row in rows.items():
        cells = [label]
        for bucket in buckets:
            paired = [] if row is first else differences(row, first, "psnr", bucket)
            gain = f" ({mean_cell(paired, 2, '+')})" if paired else ""
            cells.append(mean_cell([r.means(bucket)["psnr"] for r in row.values()], 2) + gain)
        body.append(cells)
    return table([f"{METRICS['psnr'].title} (over {first_name})", *buckets], body)


def to_csv(results: list[Result]) -> str:
    """One row per run."""
    names = ["row", "seed", "steps", "images", "minutes", *metrics_of(results), "weights_sha256"]
    rows = (vars(result) | result.means() for result in results)
    return csv_text(names, ({name: row[name] for name in names} for row in rows))


def draw(results: list[Result], path: Path) -> None:
    """Draw every run's PSNR and every row's mean with its interval; beside it the paired differences."""
    from matplotlib.figure import Figure  # slow to import

    rows = rows_of(results)
    first_name, first = next(iter(rows.items()))
    scores = [[r.means()["psnr"] for r in row.values()] for row in rows.values()]
    gains = [differences(row, first, "psnr") for row in rows.values()]
    figure = Figure(figsize=(11, 1.6 + 0.5 * len(rows)))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, columns in zip(axes, (scores, gains), strict=True):
        for y, values in enumerate(columns):
            axis.plot(values, [y] * len(values), "o", color="#0072b2", alpha=0.5, markersize=6)
            mean, half = over_seeds(values) if values else (math.nan, math.inf)
            axis.errorbar(mean, y, xerr=half if math.isfinite(half) else 0, fmt="|", color="black", capsize=4)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), list(rows))
    axes[0].set_xlabel("PSNR in the hole, dB")
    axes[1].set_xlabel(f"PSNR over {first_name}, seed by seed, dB")
    axes[1].axvline(0, color="grey", linewidth=0.8)
    axes[0].invert_yaxis()
    figure.suptitle("one dot per seed; bars are 95 % intervals of the mean over seeds")
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
