"""Curves of a panel: smoothed, thinned, styled, on axes with limits, ticks and a legend."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
