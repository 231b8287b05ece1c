"""History of training runs, epoch by epoch, as a table and as curves: one run, or several on shared axes."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from metrics import METRICS
from utils import OneLineParser, UserError, atomic_path, csv_text, one_line, run_program

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# others are labelled by their names
BASELINE_LABELS = {
    "telea": "Telea",
    "navier_stokes": "Navier-Stokes",
    "patchmatch": "PatchMatch",
    "fsr": "FSR",
}
# methods without a line: those of the network, and one so low that it would flatten all curves
NOT_DRAWN = ("output", "coarse", "against", "best_baseline", "best_floor", "mean_fill")
BASELINE_DASHES = ((0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (1, 4)))
SMOOTH = 1.0  # percent of a curve's values


class MetricsTracker:
    """The history of a run: one row per epoch, with the losses and, if it was validated, the metrics.

    Args:
        rows: an earlier history to continue.

    Attributes:
        rows: dicts of column name to number; `epoch` is the number of epochs completed, losses are
            named `loss_<term>`.
    """

    def __init__(self, rows: list[dict[str, float]] | None = None) -> None:
        self.rows = list(rows or [])

    @classmethod
    def from_csv(cls, path: Path) -> "MetricsTracker":
        """Read a table of `to_csv`; an incomplete last row is left out, with a warning.

        If epochs start over, the run was resumed, and the later rows replace the earlier ones.

        Raises:
            UserError: if the file cannot be read, is another table, or has no whole epoch.
        """
        try:
            text = path.read_text(encoding="utf-8-sig", errors="replace")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        *lines, rest = text.split("\n")
        header = lines[0].split(",") if lines else []
        if "epoch" not in header or not any(name.startswith("loss_") or name in METRICS for name in header):
            raise UserError(f"{path}: not the history of a run (its first line names no epoch and losses)")
        rows: list[dict[str, float]] = []
        is_cut = bool(rest)
        for number, line in enumerate(lines[1:], 2):
            if not line or line == lines[0]:
                continue
            try:
                cells = zip(header, line.split(","), strict=True)
                row = {name: float(cell) for name, cell in cells if cell.strip()}
                while rows and rows[-1]["epoch"] >= row["epoch"]:
                    rows.pop()
            except (ValueError, KeyError):
                if number < len(lines) or rest:
                    raise UserError(f"{path}: line {number} is damaged: {line[:60]!r}") from None
                is_cut = True
            else:
                rows.append(row)
        if not rows:
            raise UserError(f"{path}: holds no whole epoch")
        if is_cut:
            print(f"warning: {path}: the last row is cut off; it is left out", file=sys.stderr)
        return cls(rows)

    def add(self, epoch: int, losses: dict[str, float], metrics: dict[str, float], **columns: float) -> None:
        """Add one epoch: losses by term, metrics by name (none if it was not validated), other columns."""
        self.rows.append(
            {"epoch": epoch, **columns, **{f"loss_{k}": v for k, v in losses.items()}, **metrics}
        )

    def columns(self) -> list[str]:
        """The names of all columns, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def to_csv(self) -> str:
        """The table as text; a cell is empty if the epoch has no such value."""
        return csv_text(self.columns(), self.rows)

    def series(self, name: str, x: str = "epoch") -> tuple[list[float], list[float]]:
        """The epochs (or values of another column) that have a finite value of this one, and the values."""
        pairs = [(row.get(x, math.nan), row.get(name, math.nan)) for row in self.rows]
        pairs = [pair for pair in pairs if math.isfinite(pair[0]) and math.isfinite(pair[1])]
        return [place for place, _ in pairs], [value for _, value in pairs]

    def best(self, name: str, x: str = "epoch") -> tuple[float, float]:
        """The epoch in which a metric of `METRICS` was best, and its value; it needs a finite one."""
        return max(zip(*self.series(name, x), strict=True), key=lambda pair: METRICS[name].rank(pair[1]))

    def draw(self, folder: Path) -> list[Path]:
        """Write `loss.png`, `val_metrics.png` and the summary `output.png` to `folder`; returns the paths."""
        return save_figures(draw_runs({"": self}), folder)


class Baseline(NamedTuple):
    """A value of a metric that a run should beat, drawn as a horizontal line."""

    metric: str
    value: float
    label: str


class Style(NamedTuple):
    """Settings that all panels of a figure share; see `draw_runs`."""

    x: str
    smooth: float
    baselines: Sequence[Baseline]


def draw_runs(
    runs: dict[str, MetricsTracker],
    *,
    x: str = "epoch",
    smooth: float = SMOOTH,
    baselines: Sequence[Baseline] = (),
) -> "dict[str, Figure]":
    """Figures by file name: a panel for every loss, one for every metric, and a summary.

    Args:
        runs: by their names in the legend, or in the title if there is one.
        x: the column of the horizontal axis: epoch, step or images.
        smooth: standard deviation of the smoothing window, in percent of a curve's values; 0 for none.
    """
    columns = dict.fromkeys(name for run in runs.values() for name in run.columns())
    names = [name for name in columns if any(run.series(name, x)[0] for run in runs.values())]
    losses = [name for name in names if name.startswith("loss_")]
    summary = {title_of(name): [name] for name in ("loss_total", "psnr", "boundary_psnr", "ssim")}
    if len(runs) == 1:  # colours tell curves apart, not runs
        terms = [name for name in losses if name != "loss_total"]
        summary = {"total loss": ["loss_total"], "losses by term": terms}
        summary |= {"PSNR, dB": ["psnr", "boundary_psnr"], title_of("ssim"): ["ssim"]}
    metrics = {title_of(name): [name] for name in names if name in METRICS}
    style = Style(x, smooth, baselines)
    return {
        "loss.png": draw_panels("Training losses", {title_of(name): [name] for name in losses}, runs, style),
        "val_metrics.png": draw_panels("Validation metrics", metrics, runs, style),
        "output.png": draw_panels("Summary", summary, runs, style),
    }


def title_of(name: str) -> str:
    return METRICS[name].title if name in METRICS else f"{name.removeprefix('loss_')} loss"


def draw_panels(
    title: str, panels: dict[str, list[str]], runs: dict[str, MetricsTracker], style: Style
) -> "Figure":
    """Draw one small graph per panel, at most three side by side, over one range of x.

    Args:
        panels: the columns of each, by its title; several only if there is one run.
    """
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.lines import Line2D

    panels = panels or {"": []}
    across = min(3, len(panels)) if len(panels) != 4 else 2
    down = -(-len(panels) // across)
    width, height = max(4.2 * across, 6.0), 2.9 * down + 0.6
    names = [plain(name) for name in runs]
    legend_columns = max(1, int(width / (0.7 + 0.08 * max(map(len, names)))))
    if len(runs) > 1:
        height += 0.2 * -(-len(runs) // legend_columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")

    is_smoothed = False
    for axis, (heading, columns) in zip(axes.flat, panels.items(), strict=False):
        axis.set_title(heading, fontsize=10)
        is_smoothed |= draw_panel(axis, columns, list(runs.values()), style)

    note = f"faint: measured; bold: smoothed by a Gaussian window, σ = {style.smooth:g} % of a curve's values"
    if len(runs) > 1:
        handles = [Line2D([], [], **line_style(i)) for i in range(len(runs))]
        figure.legend(
            handles, names, loc="outside lower center", ncols=legend_columns, fontsize=9, frameon=False,
            title=note if is_smoothed else None, title_fontsize=8,
        )  # fmt: skip
    elif is_smoothed:
        figure.supxlabel(note, fontsize=8)
    figure.suptitle(title + (f": {names[0]}" if names[0] and len(runs) == 1 else ""))
    return figure


def draw_panel(axis: "Axes", columns: list[str], runs: list[MetricsTracker], style: Style) -> bool:
    """Draw columns of all runs, the best value of each metric, and its baselines.

    Returns:
        Whether a curve is smoothed.
    """
    curves = [
        (line_style(i if len(runs) > 1 else j), column, run)
        for j, column in enumerate(columns)
        for i, run in enumerate(runs)
        if run.series(column, style.x)[0]
    ]
    is_smoothed, values = False, []
    for line, column, run in curves:
        x, y = run.series(column, style.x)
        label = title_of(column).removesuffix(" loss") if len(columns) > 1 else None
        is_smoothed |= draw_curve(axis, x, y, style.smooth, label=label, **line)
        values += y
        if column in METRICS:
            place, best = run.best(column, style.x)
            label = f"best {best:.4g}" if len(runs) == len(columns) == 1 else None
            axis.plot(place, best, "o", markersize=7, fillstyle="none", color=line["color"], label=label)
    for j, column in enumerate(columns if curves else []):
        color = line_style(j)["color"] if len(columns) > 1 else "0.3"
        lines = [baseline for baseline in style.baselines if baseline.metric == column]
        for (_, value, name), dashes in zip(lines, BASELINE_DASHES * len(lines), strict=False):
            label = f"{plain(name)} {value:.4g}"
            axis.axhline(value, color=color, linestyle=dashes, linewidth=1.1, label=label)
    places = [row[style.x] for run in runs for row in run.rows if math.isfinite(row.get(style.x, math.nan))]
    is_loss = all(name.startswith("loss_") for name in columns)
    finish_axis(axis, style.x, places, values, may_be_log=is_loss)
    return is_smoothed


def save_figures(figures: "dict[str, Figure]", folder: Path) -> list[Path]:
    """Write figures, each whole or not at all; returns their paths."""
    for name, figure in figures.items():
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    return [folder / name for name in figures]


def find_table(run: str) -> Path:
    """The table of a run that is given by its folder, or by the table itself.

    Raises:
        UserError: if there is none.
    """
    path = Path(run)
    if path.is_dir() and not (path / "metrics.csv").is_file():
        raise UserError(f"RUN: no metrics.csv in {run}; it is written after the first epoch")
    if not path.exists():
        raise UserError(f"RUN: no such folder or file: {run}")
    return path / "metrics.csv" if path.is_dir() else path


def name_runs(tables: list[Path]) -> list[str]:
    """Names of the runs' folders, or of files not called metrics.csv, with parents as needed."""
    paths = [path.resolve() for path in tables]
    places = [path.parent if path.name == "metrics.csv" else path.with_suffix("") for path in paths]
    names = []
    for place, path in zip(places, paths, strict=True):
        tails = [place.parts[-n:] for n in range(1, len(place.parts))]
        unique = [tail for tail in tails if sum(p.parts[-len(tail) :] == tail for p in places) == 1]
        names.append("/".join(unique[0]) if unique else str(path))
    return names


def parse_baseline(text: str) -> Baseline:
    """`metric=value`, or `metric=value:label`."""
    metric, _, rest = text.partition("=")
    number, _, label = rest.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if metric not in METRICS or not math.isfinite(value):
        raise argparse.ArgumentTypeError(
            f"must be METRIC=VALUE:NAME with a metric of {', '.join(METRICS)}, got {text}"
        )
    return Baseline(metric, value, label or "baseline")


def read_baselines(path: Path) -> list[Baseline]:
    """The scores of the baselines in an evaluation's `report.json`.

    Raises:
        UserError: if there are none.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--baselines: cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"--baselines: {path} is not JSON") from None
    report = report if isinstance(report, dict) else {}
    methods = report.get("methods", report)  # older reports hold them at the top
    baselines = [
        Baseline(metric, float(value), BASELINE_LABELS.get(name, name.replace("_", " ")))
        for name, scores in (methods if isinstance(methods, dict) else {}).items()
        if isinstance(scores, dict) and name not in NOT_DRAWN
        for metric, value in scores.items()
        if metric in METRICS and isinstance(value, int | float) and math.isfinite(value)
    ]
    if not baselines:
        raise UserError(f"--baselines: {path} holds no scores of baselines")
    return baselines


X_LABELS = {"epoch": "epoch", "step": "optimizer steps", "images": "training images seen"}


# Okabe and Ito, "Color Universal Design", 2008, without the yellow, which is faint on white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


DASHES = ("-", "--", "-.", ":")  # for curves, one after the other when all colours are used


MAX_MARKERS = 40  # values of a curve, above which they get no markers


MAX_POINTS = 400  # drawn points per curve: a panel is about as many pixels wide


MAX_NAME = 60  # letters in a legend's entry


LOG_RATIO = 10  # ratio of largest to smallest loss, above which a panel's axis is logarithmic


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of a curve by its number."""
    dashes = DASHES[number // len(COLORS) % len(DASHES)]
    return {"color": COLORS[number % len(COLORS)], "linestyle": dashes}


def draw_curve(
    axis: "Axes", x: list[float], y: list[float], smooth: float, label: str | None, **line: Any
) -> bool:
    """Draw the values faintly and a smoothed curve boldly, or one bold curve if the two are equal.

    Returns:
        Whether smoothing changed anything.
    """
    smoothed = smooth_values(y, smooth / 100 * len(y))
    changed = smoothed != y
    marker = "o" if len(y) <= MAX_MARKERS else ""
    if changed:
        axis.plot(*thin(x, y), marker=marker, markersize=2.5, color=line["color"], linewidth=0.7, alpha=0.35)
    marker = "" if changed else marker
    axis.plot(*thin(x, smoothed), marker=marker, markersize=3.5, linewidth=1.6, label=label, **line)
    return changed


def smooth_values(values: list[float], sigma: float) -> list[float]:
    """Smooth by the mean of the values around each one, weighted by a Gaussian that is cut off at 3 σ.

        s_i = Σ_j w_(i-j) v_j / Σ_j w_(i-j),    w_k = exp(-k² / 2σ²) [|k| <= 3σ]

    Unlike a moving average over the past it does not lag behind. The window is cut off at the ends of the
    curve; if 3 σ reach no neighbour, the values are returned unchanged.

    Args:
        sigma: number of values; 0 for no smoothing.
    """
    reach = min(int(3 * sigma), len(values) - 1)
    if reach < 1:
        return values
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    sums, totals = (np.convolve(x, weights)[reach:-reach] for x in (values, np.ones(len(values))))
    return (sums / totals).tolist()


def thin(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """Keep at most `MAX_POINTS` points: lowest and highest of each stretch, so that no peak is lost."""
    if len(y) <= MAX_POINTS:
        return x, y
    stretches = np.array_split(np.arange(len(y)), MAX_POINTS // 2)
    kept = sorted({extreme(part, key=y.__getitem__) for part in stretches for extreme in (min, max)})
    return [x[i] for i in kept], [y[i] for i in kept]


def finish_axis(axis: "Axes", x: str, places: list[float], values: list[float], may_be_log: bool) -> None:
    """Set limits, ticks, grid and legend of a panel in which curves of these values are drawn."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if not values:
        axis.text(0.5, 0.5, "nothing measured yet", transform=axis.transAxes, ha="center", color="0.4")
        axis.set(xticks=[], yticks=[])
        return
    axis.set_xlabel(X_LABELS[x], fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    low, high = min(places), max(places)
    margin = 0.03 * (high - low) or abs(high) or 1.0  # a single point: in the middle
    axis.set_xlim(low - margin, high + margin)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if x != "epoch":
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if may_be_log and 0 < LOG_RATIO * min(values) < max(values):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        axis.ticklabel_format(axis="y", useOffset=False)
    if axis.get_legend_handles_labels()[0]:  # below, so as not to hide curves
        axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)


def plain(name: str) -> str:
    """A name as matplotlib's legend shows it: shortened, and not read as a formula or as hidden."""
    name = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME // 2]}…{name[-MAX_NAME // 2 + 1 :]}"
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: for a flag that is unknown or out of its range.
    """
    renamed = {"floor": "baseline", "floors": "baselines"}
    parser = OneLineParser(renamed, prog="metric_tracker.py", description="Draw the curves of runs.")
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run, or its metrics.csv")
    # fmt: off
    add("--save_dir", metavar="DIR",
        help="folder for loss.png, val_metrics.png and output.png (default, for one run: its visualizations)")
    add("--x", default="epoch", choices=X_LABELS, help="horizontal axis; images if batch sizes differ")
    add("--smooth", type=float, default=SMOOTH, metavar="PERCENT",
        help="standard deviation of the smoothing window, in percent of a curve's values; 0 for no smoothing")
    add("--baseline", type=parse_baseline, action="append", default=[], metavar="METRIC=VALUE:NAME",
        help="draw a horizontal line, such as psnr=19.66:Telea; may be repeated")
    add("--baselines", metavar="FILE", help="draw the scores of all baselines in this report.json of test.py")
    # fmt: on
    args = parser.parse_args(argv)
    if not 0 <= args.smooth <= 100:
        raise UserError(f"--smooth: must be between 0 and 100 percent, got {args.smooth:g}")
    return args


def draw_command(args: argparse.Namespace) -> None:
    """Draw the curves that the command line asks for, and print the best epoch of every run.

    Raises:
        UserError: if a run, a baseline or the folder cannot be used.
    """
    tables = list({path.resolve(): path for path in map(find_table, args.runs)}.values())
    if args.save_dir is None and (len(tables) > 1 or tables[0].name != "metrics.csv"):
        raise UserError("--save_dir: is required, unless one run's folder is drawn")
    folder = Path(args.save_dir) if args.save_dir else tables[0].parent / "visualizations"
    trackers = [MetricsTracker.from_csv(path) for path in tables]
    runs = dict(zip(name_runs(tables), trackers, strict=True))
    for name, run in runs.items():
        if args.x not in run.columns():
            raise UserError(f"--x: {name} has no column {args.x}")
    for baseline in args.baseline:
        if not any(run.series(baseline.metric)[0] for run in trackers):
            raise UserError(f"--baseline: no value of {baseline.metric} in {', '.join(runs)}")
    baselines = [*args.baseline, *(read_baselines(Path(args.baselines)) if args.baselines else ())]
    figures = draw_runs(runs, x=args.x, smooth=args.smooth, baselines=baselines)
    try:
        paths = save_figures(figures, folder)
    except OSError as error:
        raise UserError(f"--save_dir: cannot write to {folder}: {error.strerror}") from None
    for name, run in runs.items():
        best = "not validated"
        if run.series("psnr")[0]:
            epoch, psnr = run.best("psnr")
            best = f"best PSNR in the hole {psnr:.2f} dB, after epoch {epoch:g}"
        epochs = run.rows[-1]["epoch"]
        print(f"{name}: {epochs:g} epoch{'s' if epochs != 1 else ''}, {best}")
    print(f"{', '.join(path.name for path in paths)} in {folder}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status, 2 for a user error."""
    try:
        draw_command(parse_args(argv))
    except UserError as error:
        print(f"metric_tracker.py: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_program(main, "metric_tracker.py")
