"""Remembers the numbers of a run, epoch by epoch, and draws them."""

import csv
import io
from pathlib import Path

from files import atomic_path

LABELS = {
    "psnr": "PSNR (hole), dB",
    "ssim": "SSIM (hole)",
    "boundary_psnr": "PSNR (boundary), dB",
    "l1": "L1 (hole)",
    "lpips": "LPIPS",
    "psnr_full": "PSNR (image), dB",
    "ssim_full": "SSIM (image)",
}
HIGHER_IS_BETTER = ("psnr", "ssim", "boundary_psnr", "psnr_full", "ssim_full")


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

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """The epochs that have a value of this column, and the values."""
        pairs = [(row["epoch"], row[name]) for row in self.rows if name in row]
        return [epoch for epoch, _ in pairs], [value for _, value in pairs]

    def draw(self, folder: Path) -> list[Path]:
        """Write `loss.png`, `val_metrics.png` and the summary `output.png` to `folder`; returns the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        losses = [name for name in self.columns() if name.startswith("loss_")]
        metrics = [name for name in self.columns() if name in LABELS]
        return [
            self._draw_panels(folder / "loss.png", "Training losses", [[name] for name in losses]),
            self._draw_panels(folder / "val_metrics.png", "Validation metrics", [[name] for name in metrics]),
            self._draw_panels(
                folder / "output.png",
                "Summary",
                [
                    ["loss_total"],
                    [name for name in losses if name != "loss_total"],
                    ["psnr", "boundary_psnr"],
                    ["ssim"],
                ],
            ),
        ]

    def _draw_panels(self, path: Path, title: str, panels: list[list[str]]) -> Path:
        """One small graph a panel, at most three beside each other; a panel may hold several curves."""
        import matplotlib  # slow to import

        matplotlib.use("Agg")
        from matplotlib import pyplot
        from matplotlib.ticker import MaxNLocator

        columns = min(3, max(1, len(panels))) if len(panels) != 4 else 2
        rows = max(1, -(-len(panels) // columns))
        figure, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 3.0 * rows), squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis, names in zip(axes.flat, panels, strict=False):
            for name in names:
                epochs, values = self.series(name)
                label = LABELS.get(name, name.removeprefix("loss_"))
                axis.plot(epochs, values, marker="o" if len(values) < 40 else "", markersize=3, label=label)
                if name in LABELS and values and len(names) == 1:
                    best = (max if name in HIGHER_IS_BETTER else min)(values)
                    axis.axhline(best, linewidth=0.8, linestyle=":", color="grey", label=f"best {best:.4g}")
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
        figure.suptitle(title)
        figure.tight_layout()
        try:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, dpi=110, format="png")
        finally:
            pyplot.close(figure)
        return path
