"""What an ablation found: means and paired differences with intervals over seeds, as table and picture."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from utils import atomic_path

METRICS = {  # title, digits
    "psnr": ("PSNR, dB", 2),
    "boundary_psnr": ("boundary PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "l1": ("L1", 5),
    "lpips": ("LPIPS", 4),
    "corner_loss": ("corner loss", 5),
}


@dataclass(frozen=True)
class Result:
    """One trained run: a row of the table with one seed.

    Attributes:
        steps, images, minutes: of its training, all sittings together.
        weights_sha256: of the weights that were scored.
        holes: one dict a hole: `name`, `bucket`, `mask_ratio`, and the metrics.
    """

    row: str
    seed: int
    steps: int
    images: int
    minutes: float
    weights_sha256: str
    holes: list[dict[str, Any]]

    def means(self, bucket: str = "") -> dict[str, float]:
        """The mean of every metric over the holes of a bucket, or over all."""
        holes = [hole for hole in self.holes if bucket in ("", hole["bucket"])]
        names = [name for name in METRICS if name in self.holes[0]]
        return {name: float(np.mean([hole[name] for hole in holes])) for name in names}

    def buckets(self) -> list[str]:
        return sorted({hole["bucket"] for hole in self.holes}, key=lambda label: (len(label), label))


def metrics_of(results: list[Result]) -> list[str]:
    """The metrics that all results have: older ones may lack some."""
    return [name for name in METRICS if all(name in result.holes[0] for result in results)]


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds and half the width of its 95 % interval by Student's t; infinite of one seed."""
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
    """By how much a row differs from the first, seed by seed: same order of data, same masks and holes."""
    seeds = sorted(row.keys() & first.keys())
    return [row[seed].means(bucket)[metric] - first[seed].means(bucket)[metric] for seed in seeds]


def written(mean: float, half: float, digits: int, sign: str = "") -> str:
    return f"{mean:{sign}.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")


def to_markdown(results: list[Result]) -> str:
    """One row a variant: training, every metric, and its difference from the first row."""
    rows = rows_of(results)
    first_name, first = next(iter(rows.items()))
    names = metrics_of(results)
    header = ["row", "seeds", "images", "minutes", *(METRICS[name][0] for name in names)]
    header += [f"{METRICS[name][0]} over {first_name}" for name in names]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for label, row in rows.items():
        cells = [label, str(len(row))]
        cells += [
            f"{np.mean([getattr(r, each) for r in row.values()]):,.0f}" for each in ("images", "minutes")
        ]
        cells += [
            written(*over_seeds([r.means()[name] for r in row.values()]), METRICS[name][1]) for name in names
        ]
        for name in names:
            paired = [] if row is first else differences(row, first, name)
            cells.append(written(*over_seeds(paired), METRICS[name][1], "+") if paired else "")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *bucket_lines(rows)]
    explanation = f"Means over seeds of means over {len(results[0].holes)} holes, ± half of the 95 % interval"
    lines += ["", f"{explanation} over seeds (Student's t); differences are paired by seed."]
    return "\n".join(lines) + "\n"


def bucket_lines(rows: dict[str, dict[int, Result]]) -> list[str]:
    """PSNR by bucket, and its difference from the first row."""
    first_name, first = next(iter(rows.items()))
    buckets = next(iter(first.values())).buckets()
    lines = [
        "| PSNR, dB (over " + first_name + ") | " + " | ".join(buckets) + " |",
        "|" + "---|" * (len(buckets) + 1),
    ]
    for label, row in rows.items():
        cells = [label]
        for bucket in buckets:
            text = written(*over_seeds([r.means(bucket)["psnr"] for r in row.values()]), 2)
            paired = [] if row is first else differences(row, first, "psnr", bucket)
            cells.append(text + (f" ({written(*over_seeds(paired), 2, '+')})" if paired else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def to_csv(results: list[Result]) -> str:
    """One row a run."""
    text = io.StringIO()
    metrics = metrics_of(results)
    names = ["row", "seed", "steps", "images", "minutes", *metrics, "weights_sha256"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for result in results:
        counts = {name: getattr(result, name) for name in names if hasattr(result, name)}
        writer.writerow(counts | {name: value for name, value in result.means().items() if name in metrics})
    return text.getvalue()


def draw(results: list[Result], path: Path) -> None:
    """PSNR of every run, and the mean of every row with its interval; beside it the paired differences."""
    import matplotlib  # slow to import

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = rows_of(results)
    first_name, first = next(iter(rows.items()))
    left = [[r.means()["psnr"] for r in row.values()] for row in rows.values()]
    right = [differences(row, first, "psnr") for row in rows.values()]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 1.6 + 0.5 * len(rows)), sharey=True)
    for axis, columns in zip(axes, (left, right), strict=True):
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
    figure.suptitle("a dot a seed; bars are the mean's 95 % interval over seeds")
    figure.tight_layout()
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    finally:
        pyplot.close(figure)
