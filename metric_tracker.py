"""Remembers the numbers of runs, epoch by epoch, and draws them: one run, or several on one axis."""

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from utils import OneLineParser, UserError, atomic_path, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "psnr": "PSNR (hole), dB",
    "ssim": "SSIM (hole)",
    "boundary_psnr": "PSNR (boundary), dB",
    "seam_jump": "seam",
    "l1": "L1 (hole)",
    "lpips": "LPIPS",
    "psnr_full": "PSNR (image), dB",
    "ssim_full": "SSIM (image)",
}
HIGHER_IS_BETTER = ("psnr", "ssim", "boundary_psnr", "psnr_full", "ssim_full")
X_LABELS = {"epoch": "epoch", "step": "optimizer steps", "images": "training images seen"}
BASELINE_NAMES = {"telea": "Telea", "navier_stokes": "Navier-Stokes"}  # of an evaluation; others by their own
# of the network, what is no one method's, and what lies so low that it would flatten all curves
WITHOUT_BASELINES = ("output", "coarse", "against", "best_baseline", "mean_fill")

# Okabe and Ito, "Color Universal Design", 2008, without the yellow, which is faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")  # of curves, where the colours are used up
FLOOR_DASHES = ((0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (1, 4)))
SMOOTH = 1.0  # percent of a curve's values
MAX_MARKERS = 40  # values of a curve that get a marker each
MAX_POINTS = 400  # of a curve that are drawn: a panel is about as many pixels wide
MAX_NAME = 60  # letters of a legend's entry
LOG_RATIO = 10  # largest over smallest loss of a panel, from which on its axis is logarithmic


class MetricsTracker:
    """The history of a run: one row an epoch, with the losses and, where it was validated, the metrics.

    Args:
        rows: an earlier history to go on from, as `rows` holds it.

    Attributes:
        rows: dicts of column name to number; `epoch` is the number of epochs completed, losses are
            named `loss_<term>`.
    """

    def __init__(self, rows: list[dict[str, float]] | None = None) -> None:
        self.rows = list(rows or [])

    @classmethod
    def from_csv(cls, path: Path) -> "MetricsTracker":
        """Read what `to_csv` wrote; a last row that is cut off is left out, and that is said.

        Where epochs begin anew, the later rows replace the earlier ones: the run was resumed there.

        Raises:
            UserError: if the file cannot be read, is another table, or has no whole epoch.
        """
        try:
            text = path.read_text(encoding="utf-8-sig", errors="replace")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        *lines, rest = text.split("\n")
        header = lines[0].split(",") if lines else []
        if "epoch" not in header or not any(name.startswith("loss_") or name in LABELS for name in header):
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

    def add(self, epoch: int, losses: dict[str, float], metrics: dict[str, float], **other: float) -> None:
        """Remember one epoch; losses by term, metrics by name (none if it was not validated)."""
        self.rows.append({"epoch": epoch, **other, **{f"loss_{k}": v for k, v in losses.items()}, **metrics})

    def columns(self) -> list[str]:
        """The names of all columns, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def to_csv(self) -> str:
        """The table as text; a cell is empty where an epoch was not validated."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def series(self, name: str, x: str = "epoch") -> tuple[list[float], list[float]]:
        """The epochs (or places in another column) that have a finite value of this one, and the values."""
        pairs = [(row.get(x, math.nan), row.get(name, math.nan)) for row in self.rows]
        pairs = [(place, value) for place, value in pairs if math.isfinite(place) and math.isfinite(value)]
        return [place for place, _ in pairs], [value for _, value in pairs]

    def best(self, name: str, x: str = "epoch") -> tuple[float, float]:
        """Where a metric was best, and its value there; it has to have one."""
        better = max if name in HIGHER_IS_BETTER else min
        return better(zip(*self.series(name, x), strict=True), key=lambda pair: pair[1])

    def draw(self, folder: Path) -> list[Path]:
        """Write `loss.png`, `val_metrics.png` and the summary `output.png` to `folder`; returns the paths."""
        return save_pictures(draw_runs({"": self}), folder)


class Floor(NamedTuple):
    """A value of a metric that a run should beat, and whose it is."""

    metric: str
    value: float
    label: str


def draw_runs(
    runs: dict[str, MetricsTracker], *, x: str = "epoch", smooth: float = SMOOTH, floors: Sequence[Floor] = ()
) -> "dict[str, Figure]":
    """The pictures by file name: a panel for every loss, one for every metric, and a summary.

    Args:
        runs: by the name that the legend gives them, or that the title gives the only one.
        x: the column along which they are drawn: epoch, step or images.
        smooth: standard deviation of the smoothing window, in percent of a curve's values; 0 for none.
        floors: horizontal lines.
    """
    columns = dict.fromkeys(name for run in runs.values() for name in run.columns())
    names = [name for name in columns if any(run.series(name, x)[0] for run in runs.values())]
    losses = [name for name in names if name.startswith("loss_")]
    metrics = [name for name in names if name in LABELS]
    summary = {title_of(name): [name] for name in ("loss_total", "psnr", "boundary_psnr", "ssim")}
    if len(runs) == 1:  # one colour a curve, not one a run
        summary = {
            "total loss": ["loss_total"],
            "losses by term": [name for name in losses if name != "loss_total"],
            "PSNR, dB": ["psnr", "boundary_psnr"],
            "SSIM (hole)": ["ssim"],
        }
    panels = {
        "loss.png": ("Training losses", {title_of(name): [name] for name in losses}),
        "val_metrics.png": ("Validation metrics", {title_of(name): [name] for name in metrics}),
        "output.png": ("Summary", summary),
    }
    return {
        file: draw_panels(title, each, runs, x=x, smooth=smooth, floors=floors)
        for file, (title, each) in panels.items()
    }


def title_of(name: str) -> str:
    return LABELS.get(name, f"{name.removeprefix('loss_')} loss")


def draw_panels(
    title: str,
    panels: dict[str, list[str]],
    runs: dict[str, MetricsTracker],
    *,
    x: str,
    smooth: float,
    floors: Sequence[Floor],
) -> "Figure":
    """One small graph a panel, at most three beside each other, over one range of `x`.

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
    beside = max(1, int(width / (0.7 + 0.08 * max(map(len, names)))))  # legend entries in a line
    if len(runs) > 1:
        height += 0.2 * -(-len(runs) // beside)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")

    is_smoothed = False
    for axis, (heading, columns) in zip(axes.flat, panels.items(), strict=False):
        axis.set_title(heading, fontsize=10)
        is_smoothed |= draw_panel(axis, columns, list(runs.values()), x, smooth, floors)

    note = f"faint: as measured; bold: smoothed by a Gaussian window, σ = {smooth:g} % of a curve's values"
    if len(runs) > 1:
        handles = [Line2D([], [], **look(i)) for i in range(len(runs))]
        figure.legend(
            handles, names, loc="outside lower center", ncols=beside, fontsize=9, frameon=False,
            title=note if is_smoothed else None, title_fontsize=8,
        )  # fmt: skip
    elif is_smoothed:
        figure.supxlabel(note, fontsize=8)
    figure.suptitle(title + (f": {names[0]}" if names[0] and len(runs) == 1 else ""))
    return figure


def draw_panel(
    axis: "Axes",
    columns: list[str],
    runs: list[MetricsTracker],
    x: str,
    smooth: float,
    floors: Sequence[Floor],
) -> bool:
    """Draw the columns of all runs, the best of each metric, and its floors.

    Returns:
        whether a curve is smoothed.
    """
    curves = [
        (i if len(runs) > 1 else j, column, run)
        for j, column in enumerate(columns)
        for i, run in enumerate(runs)
        if run.series(column, x)[0]
    ]
    is_smoothed, values = False, []
    for number, column, run in curves:
        name = title_of(column).removesuffix(" loss") if len(columns) > 1 else None
        is_smoothed |= draw_curve(axis, *run.series(column, x), smooth, label=name, **look(number))
        values += run.series(column, x)[1]
        if column in LABELS:
            place, best = run.best(column, x)
            label = f"best {best:.4g}" if len(runs) == len(columns) == 1 else None
            axis.plot(
                place, best, "o", markersize=7, fillstyle="none", color=look(number)["color"], label=label
            )
    for j, column in enumerate(columns if curves else []):
        mine = [floor for floor in floors if floor.metric == column]
        for floor, dashes in zip(mine, FLOOR_DASHES * len(mine), strict=False):
            color = look(j)["color"] if len(columns) > 1 else "0.3"
            label = f"{plain(floor.label)} {floor.value:.4g}"
            axis.axhline(floor.value, color=color, linestyle=dashes, linewidth=1.1, label=label)
    places = [row[x] for run in runs for row in run.rows if math.isfinite(row.get(x, math.nan))]
    is_loss = all(name.startswith("loss_") for name in columns)
    finish_axis(axis, x, places, values, may_be_log=is_loss)
    return is_smoothed


def look(number: int) -> dict[str, Any]:
    """Colour and dashes of the curve of this number: other dashes where the colours are used up."""
    dashes = DASHES[number // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": dashes}


def draw_curve(
    axis: "Axes", x: list[float], y: list[float], smooth: float, label: str | None, **look: Any
) -> bool:
    """Draw the values faintly and their smoothed course boldly, or one bold line where the two are the same.

    Returns:
        whether smoothing changed anything.
    """
    smoothed = smooth_values(y, smooth / 100 * len(y))
    changed = smoothed != y
    marker = "o" if len(y) <= MAX_MARKERS else ""
    if changed:
        faint = {"color": look["color"], "linewidth": 0.7, "alpha": 0.35}
        axis.plot(*thin(x, y), marker=marker, markersize=2.5, **faint)
    marker = "" if changed else marker
    axis.plot(*thin(x, smoothed), marker=marker, markersize=3.5, linewidth=1.6, label=label, **look)
    return changed


def smooth_values(values: list[float], sigma: float) -> list[float]:
    """The mean of the values around each one, weighted by a Gaussian that is cut off at 3 σ.

        s_i = Σ_j w_(i-j) v_j / Σ_j w_(i-j),    w_k = exp(-k² / 2σ²) [|k| <= 3σ]

    Unlike a moving average over the past it does not lag behind; at the ends it averages over what there
    is, and where 3 σ reach no neighbour the values stay as they are.

    Args:
        sigma: in values; 0 for no smoothing.
    """
    reach = min(int(3 * sigma), len(values) - 1)
    if reach < 1:
        return values
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    sums, totals = (np.convolve(each, weights)[reach:-reach] for each in (values, np.ones(len(values))))
    return (sums / totals).tolist()


def thin(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """At most `MAX_POINTS` of the points: lowest and highest of each stretch, so that no peak is lost."""
    if len(y) <= MAX_POINTS:
        return x, y
    stretches = np.array_split(np.arange(len(y)), MAX_POINTS // 2)
    kept = sorted({extreme(each, key=y.__getitem__) for each in stretches for extreme in (min, max)})
    return [x[i] for i in kept], [y[i] for i in kept]


def finish_axis(axis: "Axes", x: str, places: list[float], values: list[float], may_be_log: bool) -> None:
    """Limits, ticks, grid and legend of a panel whose curves, with these values, are drawn."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if not values:
        axis.text(0.5, 0.5, "nothing measured yet", transform=axis.transAxes, ha="center", color="0.4")
        axis.set(xticks=[], yticks=[])
        return
    axis.set_xlabel(X_LABELS[x], fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    low, high = min(places), max(places)
    margin = 0.03 * (high - low) or abs(high) or 1.0  # a single place stands in the middle
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
    if axis.get_legend_handles_labels()[0]:  # below, where it hides nothing
        axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)


def plain(name: str) -> str:
    """A name as it fits into a legend, which else reads formulas and leaves out names that begin with _."""
    name = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME // 2]}…{name[-MAX_NAME // 2 + 1 :]}"
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")


def save_pictures(pictures: "dict[str, Figure]", folder: Path) -> list[Path]:
    """Write the pictures, each whole or not at all; returns their paths."""
    for name, figure in pictures.items():
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    return [folder / name for name in pictures]


def find_table(run: str) -> Path:
    """The table of a run that is named by its folder, or by the table itself.

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
    """The names of the runs' folders, or of files not called metrics.csv, with parents that part them."""
    paths = [path.resolve() for path in tables]
    places = [path.parent if path.name == "metrics.csv" else path.with_suffix("") for path in paths]
    names = []
    for place, path in zip(places, paths, strict=True):
        tails = [place.parts[-n:] for n in range(1, len(place.parts))]
        alone = [tail for tail in tails if sum(other.parts[-len(tail) :] == tail for other in places) == 1]
        names.append("/".join(alone[0]) if alone else str(path))
    return names


def parse_floor(text: str) -> Floor:
    """`metric=value`, or `metric=value:label`."""
    metric, _, rest = text.partition("=")
    number, _, label = rest.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if metric not in LABELS or not math.isfinite(value):
        raise argparse.ArgumentTypeError(
            f"must be METRIC=VALUE:NAME with a metric of {', '.join(LABELS)}, got {text}"
        )
    return Floor(metric, value, label or "floor")


def read_floors(path: Path) -> list[Floor]:
    """The scores of the classical methods in an evaluation's `report.json`.

    Raises:
        UserError: if it holds none.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--floors: cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"--floors: {path} is not JSON") from None
    methods = report.items() if isinstance(report, dict) else ()
    floors = [
        Floor(metric, float(value), BASELINE_NAMES.get(name, name.replace("_", " ")))
        for name, scores in methods
        if isinstance(scores, dict) and name not in WITHOUT_BASELINES
        for metric, value in scores.items()
        if metric in LABELS and isinstance(value, int | float) and math.isfinite(value)
    ]
    if not floors:
        raise UserError(f"--floors: {path} holds no scores of {' or '.join(BASELINE_NAMES)}")
    return floors


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: for a flag that is unknown or out of its range.
    """
    parser = OneLineParser(prog="metric_tracker.py", description="Draw the curves of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run, or its metrics.csv")
    parser.add_argument("--save_dir", metavar="DIR",
                        help="where loss.png, val_metrics.png and output.png are written; "
                             "of one run, its visualizations unless told otherwise")  # fmt: skip
    parser.add_argument("--x", default="epoch", choices=X_LABELS,
                        help="what to draw along; images is fair where batch sizes differ")  # fmt: skip
    parser.add_argument("--smooth", type=float, default=SMOOTH, metavar="PERCENT",
                        help="standard deviation of the Gaussian smoothing window, in percent "
                             "of a curve's values; 0: as measured")  # fmt: skip
    parser.add_argument("--floor", type=parse_floor, action="append", default=[], metavar="METRIC=VALUE:NAME",
                        help="a horizontal line, psnr=19.66:Telea; may be repeated")  # fmt: skip
    parser.add_argument("--floors", metavar="FILE", help="report.json of test.py: lines of what it lists")
    args = parser.parse_args(argv)
    if not 0 <= args.smooth <= 100:
        raise UserError(f"--smooth: must be between 0 and 100 percent, got {args.smooth:g}")
    return args


def draw_command(args: argparse.Namespace) -> None:
    """Draw what the command line asks for, and print the best of every run.

    Raises:
        UserError: if a run, a floor or the folder is not as it has to be.
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
    for floor in args.floor:
        if not any(run.series(floor.metric)[0] for run in trackers):
            raise UserError(f"--floor: no value of {floor.metric} in {', '.join(runs)}")
    floors = [*args.floor, *(read_floors(Path(args.floors)) if args.floors else ())]
    pictures = draw_runs(runs, x=args.x, smooth=args.smooth, floors=floors)
    try:
        paths = save_pictures(pictures, folder)
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
    """Draw as the command line says; returns the exit status, 2 for a user's mistake."""
    try:
        draw_command(parse_args(argv))
    except UserError as error:
        print(f"metric_tracker.py: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
