import csv
import io
from pathlib import Path

from PIL import Image

from metric_tracker import MetricsTracker


def history(epochs: int) -> MetricsTracker:
    tracker = MetricsTracker()
    for epoch in range(1, epochs + 1):
        losses = {"total": 1 / epoch, "coarse": 0.5 / epoch}
        metrics = {"psnr": 20 + epoch / 10, "ssim": 0.7, "boundary_psnr": 21.0} if epoch % 2 else {}
        tracker.add(epoch, losses, metrics, lr=1e-3)
    return tracker


def test_the_table_has_a_row_an_epoch_and_empty_cells_where_nothing_was_measured() -> None:
    rows = list(csv.DictReader(io.StringIO(history(4).to_csv())))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0]["psnr"] == "20.1" and rows[1]["psnr"] == ""
    assert float(rows[3]["loss_total"]) == 0.25


def test_a_series_skips_epochs_without_a_value() -> None:
    assert history(5).series("psnr") == ([1, 3, 5], [20.1, 20.3, 20.5])


def test_the_history_goes_on_from_earlier_rows() -> None:
    earlier = history(3)
    later = MetricsTracker(earlier.rows)
    later.add(4, {"total": 0.1}, {})
    assert len(later.rows) == 4 and len(earlier.rows) == 3


def test_three_pictures_are_drawn_for_one_epoch_and_for_many(tmp_path: Path) -> None:
    for epochs in (1, 100):
        paths = history(epochs).draw(tmp_path / str(epochs))
        assert [path.name for path in paths] == ["loss.png", "val_metrics.png", "output.png"]
        for path in paths:
            assert Image.open(path).convert("L").getextrema() != (255, 255)
