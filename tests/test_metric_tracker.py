"""A run's history comes back from its table, and its curves show the values that it holds."""

import csv
import errno
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from PIL import Image

from metric_tracker import (
    COLORS,
    MAX_POINTS,
    Baseline,
    MetricsTracker,
    draw_runs,
    main,
    name_runs,
    parse_baseline,
    plain,
    smooth_values,
    thin,
)

FIRST, SECOND = (str(REPOSITORY / "docs" / "results" / f"{name}_run.csv") for name in ("first", "second"))


def history(epochs: int) -> MetricsTracker:
    tracker = MetricsTracker()
    for epoch in range(1, epochs + 1):
        losses = {"total": 1 / epoch, "coarse": 0.5 / epoch}
        metrics = {"psnr": 20 + epoch / 10, "ssim": 0.7, "boundary_psnr": 21.0} if epoch % 2 else {}
        tracker.add(epoch, losses, metrics, lr=1e-3, step=epoch * 10, images=epoch * 80)
    return tracker


def write_run(folder: Path, tracker: MetricsTracker) -> str:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(tracker.to_csv())
    return str(folder)


def panel(figure: Any, title: str) -> Any:
    return next(axis for axis in figure.axes if axis.get_title() == title)


def curves(axis: Any) -> list[Any]:
    """The bold lines of a panel: not the measured values, rings or baselines."""
    return [line for line in axis.lines if line.get_linewidth() == 1.6]


def test_the_table_has_a_row_an_epoch_and_empty_cells_where_nothing_was_measured() -> None:
    rows = list(csv.DictReader(io.StringIO(history(4).to_csv())))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0]["psnr"] == "20.1" and rows[1]["psnr"] == ""
    assert float(rows[3]["loss_total"]) == 0.25


def test_a_series_skips_epochs_without_a_value() -> None:
    tracker = history(5)
    assert tracker.series("psnr") == ([1, 3, 5], [20.1, 20.3, 20.5])
    assert tracker.series("psnr", "images") == ([80, 240, 400], [20.1, 20.3, 20.5])
    tracker.rows[2]["psnr"], tracker.rows[4]["psnr"] = math.nan, math.inf
    assert tracker.series("psnr") == ([1], [20.1])


def test_the_best_is_the_highest_of_psnr_and_the_lowest_of_l1() -> None:
    rows = [{"epoch": e, "psnr": p, "l1": v} for e, p, v in ((1, 20, 0.3), (2, 22, 0.1), (3, 21, 0.2))]
    tracker = MetricsTracker([{**row, "step": row["epoch"] * 5} for row in rows])
    assert tracker.best("psnr") == (2, 22) and tracker.best("l1") == (2, 0.1)
    assert tracker.best("psnr", "step") == (10, 22)


def test_the_best_seam_is_the_one_nearest_to_that_of_the_truth() -> None:
    for seams, best in (((0.0, -0.02, 0.01), (1, 0.0)), ((-0.02, 0.01, 0.03), (2, 0.01))):
        tracker = MetricsTracker([{"epoch": e, "seam_jump": v} for e, v in enumerate(seams, start=1)])
        assert tracker.best("seam_jump") == best


def test_the_best_sharpness_is_the_one_nearest_to_that_of_the_truth() -> None:
    tracker = MetricsTracker([{"epoch": e, "sharpness": v} for e, v in ((1, 0.5), (2, 1.2), (3, 1.6))])
    assert tracker.best("sharpness") == (2, 1.2)


def test_the_history_goes_on_from_earlier_rows() -> None:
    earlier = history(3)
    later = MetricsTracker(earlier.rows)
    later.add(4, {"total": 0.1}, {})
    assert len(later.rows) == 4 and len(earlier.rows) == 3


def test_three_figures_are_drawn_for_one_epoch_and_for_many(tmp_path: Path) -> None:
    for epochs in (1, 100):
        paths = history(epochs).draw(tmp_path / str(epochs))
        assert [path.name for path in paths] == ["loss.png", "val_metrics.png", "output.png"]
        assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(path.name for path in paths)
        for path in paths:
            assert Image.open(path).convert("L").getextrema() != (255, 255)


def test_a_figure_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill_the_disk(figure: Any, path: Path, **kwargs: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "loss.png").write_bytes(b"whole")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fill_the_disk)
    assert main([FIRST, "--save_dir", str(tmp_path)]) == 2
    assert "cannot write to" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    tracker = history(7)
    tracker.rows[3]["grad_norm"] = math.nan
    path = Path(write_run(tmp_path / "run", tracker)) / "metrics.csv"
    read = MetricsTracker.from_csv(path)
    assert math.isnan(read.rows[3].pop("grad_norm")) and tracker.rows[3].pop("grad_norm")
    assert read.rows == tracker.rows


@pytest.mark.parametrize(
    "rest", ["3,0.2", "3,0.25,2", "3,0.25,22.5", "\0\0\0", "3,0.2\n", "3,,,\n", "x,1,2\n"]
)
def test_a_last_row_that_is_cut_off_is_left_out_and_told(
    rest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss_total,psnr\n1,0.5,\n2,0.4,21\n" + rest)
    assert MetricsTracker.from_csv(path).rows == [
        {"epoch": 1, "loss_total": 0.5},
        {"epoch": 2, "loss_total": 0.4, "psnr": 21},
    ]
    assert capsys.readouterr().err == f"warning: {path}: the last row is cut off; it is left out\n"


def test_rows_of_a_resumed_run_replace_those_it_went_back_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    header = "epoch,loss_total\n"
    path.write_text(header + "1,0.5\n2,0.4\n3,0.3\n" + header + "2,0.45\n3,0.35\n4,0.2\n")
    assert MetricsTracker.from_csv(path).series("loss_total") == ([1, 2, 3, 4], [0.5, 0.45, 0.35, 0.2])


def test_smoothing_is_a_gaussian_mean_over_the_neighbours_that_there_are() -> None:
    one, two = math.exp(-0.5 / 0.9**2), math.exp(-2 / 0.9**2)  # 3 σ = 2.7: two neighbours on each side
    values = [3.0, 5.0, 4.0, 8.0]
    expected = [
        (3 + one * 5 + two * 4) / (1 + one + two),
        (5 + one * (3 + 4) + two * 8) / (1 + 2 * one + two),
        (4 + one * (5 + 8) + two * 3) / (1 + 2 * one + two),
        (8 + one * 4 + two * 5) / (1 + one + two),
    ]
    assert smooth_values(values, 0.9) == pytest.approx(expected, rel=1e-12)
    assert smooth_values(values, 0) == values == smooth_values(values, 0.33)
    assert smooth_values([7.0], 100) == [7.0]
    assert smooth_values([2.0] * 9, 50) == pytest.approx([2.0] * 9)  # a window wider than the curve


def test_smoothing_does_not_lag_behind() -> None:
    line = [float(i) for i in range(100)]
    assert smooth_values(line, 5)[15:85] == pytest.approx(line[15:85])


def test_thinning_leaves_few_points_alone_and_keeps_the_peaks_of_many() -> None:
    x = list(range(10_000))
    y = [math.sin(i / 50) for i in x]
    y[1234], y[8765] = 9.0, -9.0
    places, values = thin(x, y)
    assert len(places) <= MAX_POINTS and places == sorted(places)
    assert (1234, 9.0) in zip(places, values, strict=True) and (8765, -9.0) in zip(
        places, values, strict=True
    )
    assert thin(x[:50], y[:50]) == (x[:50], y[:50])


def test_one_epoch_is_a_marker_in_the_middle() -> None:
    for figure in draw_runs({"": history(1)}).values():
        for axis in figure.axes:
            assert all(line.get_marker() == "o" for line in curves(axis)) and curves(axis)
            assert axis.get_xlim() == (0, 2)
            assert axis.get_ylim()[0] < curves(axis)[0].get_ydata()[0] < axis.get_ylim()[1]


def test_a_thousand_epochs_are_thinned_smoothed_and_without_markers() -> None:
    tracker = history(1000)
    for row in tracker.rows:
        row["loss_total"] = 0.5 + 0.1 * (-1) ** row["epoch"]
    axis = panel(draw_runs({"": tracker})["loss.png"], "total loss")
    raw, bold = axis.lines
    assert raw.get_alpha() == 0.35 and bold.get_alpha() is None
    assert raw.get_linewidth() < bold.get_linewidth() and raw.get_color() == bold.get_color()
    for line in (raw, bold):
        assert line.get_marker() in ("", "None") and len(line.get_xdata()) <= MAX_POINTS
    assert {*raw.get_ydata()} == {0.4, 0.6}
    assert list(bold.get_ydata())[5:-5] == pytest.approx([0.5] * (len(bold.get_ydata()) - 10), abs=1e-3)
    figure = draw_runs({"": tracker}, smooth=0)["loss.png"]
    assert [line.get_linewidth() for line in panel(figure, "total loss").lines] == [1.6]


def test_smoothing_is_named_on_the_figure_where_there_is_some() -> None:
    assert "σ = 2 %" in draw_runs({"": history(100)}, smooth=2)["loss.png"].get_supxlabel()
    assert draw_runs({"": history(5)}, smooth=2)["loss.png"].get_supxlabel() == ""
    legend = draw_runs({"a": history(100), "b": history(5)}, smooth=2)["loss.png"].legends[0]
    assert "σ = 2 %" in legend.get_title().get_text()


def test_baselines_are_lines_at_their_values_on_the_panels_of_their_metrics() -> None:
    baselines = [
        Baseline("psnr", 19.66, "Telea"),
        Baseline("psnr", 19.63, "Navier-Stokes"),
        Baseline("ssim", 0.65, "Telea"),
    ]
    figures = draw_runs({"": history(9)}, baselines=baselines)
    for name, title, labels in (
        ("val_metrics.png", "PSNR (hole), dB", {"Telea 19.66": 19.66, "Navier-Stokes 19.63": 19.63}),
        ("val_metrics.png", "SSIM (hole)", {"Telea 0.65": 0.65}),
        ("val_metrics.png", "PSNR (boundary), dB", {}),
        ("output.png", "PSNR, dB", {"Telea 19.66": 19.66, "Navier-Stokes 19.63": 19.63}),
    ):
        axis = panel(figures[name], title)
        lines = [line for line in axis.lines if line.get_linewidth() == 1.1]
        assert {line.get_label(): line.get_ydata()[0] for line in lines} == labels
        for line in lines:
            assert set(line.get_ydata()) == {line.get_ydata()[0]}
            assert axis.get_ylim()[0] < line.get_ydata()[0] < axis.get_ylim()[1]
        texts = [text.get_text() for text in axis.get_legend().get_texts()]
        assert set(labels) <= set(texts)
        assert len({str(line._unscaled_dash_pattern) for line in lines}) == len(lines)


def test_several_runs_share_panels_in_their_own_colours() -> None:
    short, other = history(3), MetricsTracker([{"epoch": 1, "loss_total": 0.3, "step": 5, "lpips": 0.2}])
    figures = draw_runs({"a": history(8), "b": short, "c": other}, x="step")
    lines = curves(panel(figures["loss.png"], "total loss"))
    assert [line.get_color() for line in lines] == list(COLORS[:3])
    assert [list(line.get_xdata()) for line in lines] == [list(range(10, 81, 10)), [10, 20, 30], [5]]
    assert list(lines[1].get_ydata()) == [1, 0.5, 1 / 3]
    assert [line.get_color() for line in curves(panel(figures["val_metrics.png"], "LPIPS"))] == [COLORS[2]]
    assert len({axis.get_xlim() for axis in figures["val_metrics.png"].axes if axis.get_title()}) == 1
    for figure in figures.values():
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
        colours = [line.get_color() for line in figure.legends[0].get_lines()]
        assert colours == list(COLORS[:3])


def test_the_best_value_is_ringed_and_named_if_there_is_one_run() -> None:
    axis = panel(draw_runs({"": history(9)})["val_metrics.png"], "PSNR (hole), dB")
    ring = next(line for line in axis.lines if line.get_fillstyle() == "none")
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([9], [20.9])
    assert ring.get_label() == "best 20.9"


def test_losses_far_apart_get_a_logarithmic_axis_and_metrics_never() -> None:
    tracker = MetricsTracker(
        [{"epoch": e, "loss_total": 1 / e, "loss_edge": 0.1, "psnr": e} for e in range(1, 30)]
    )
    figures = draw_runs({"": tracker})
    assert panel(figures["loss.png"], "total loss").get_yscale() == "log"
    assert panel(figures["loss.png"], "edge loss").get_yscale() == "linear"
    assert panel(figures["val_metrics.png"], "PSNR (hole), dB").get_yscale() == "linear"


def test_a_run_without_a_validation_is_drawn(tmp_path: Path) -> None:
    tracker = MetricsTracker([{"epoch": 1, "loss_total": 0.3}, {"epoch": 2, "loss_total": math.nan}])
    figure = draw_runs({"": tracker})["val_metrics.png"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["nothing measured yet"]
    assert len(tracker.draw(tmp_path)) == 3


def test_names_are_as_long_as_it_takes_to_tell_runs_apart(tmp_path: Path) -> None:
    tables = [
        tmp_path / place for place in ("a/x/metrics.csv", "b/x/metrics.csv", "b/y/metrics.csv", "b/z.csv")
    ]
    assert name_runs(tables) == ["a/x", "b/x", "y", "z"]
    same = [tmp_path / "run/metrics.csv", tmp_path / "run.csv"]
    assert name_runs(same) == [str(path) for path in same]
    assert name_runs([tmp_path / "run/metrics.csv"]) == ["run"]


def test_odd_names_stand_in_the_legend_as_they_are(tmp_path: Path) -> None:
    names = ["_hidden", "a$b$c", "x" * 300]
    runs = {name: history(2) for name in names}
    figure = draw_runs(runs)["loss.png"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [plain(name) for name in names]
    assert plain("a$b") == r"a\$b" and len(plain("x" * 300)) == 60
    figure.savefig(tmp_path / "figure.png")  # would raise at a formula or a glyph that is not there


def test_a_baseline_is_a_metric_a_value_and_a_name() -> None:
    assert parse_baseline("psnr=19.66:Telea") == ("psnr", 19.66, "Telea")
    assert parse_baseline("ssim=0.5") == ("ssim", 0.5, "baseline")
    assert parse_baseline("l1=1e-2:a:b=c") == ("l1", 0.01, "a:b=c")


@pytest.fixture
def fast_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, but not rendered, which takes seconds."""
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, path, **_: path.write_bytes(b"PNG")
    )


@pytest.mark.usefixtures("fast_saving")
def test_the_command_draws_into_the_run_and_says_its_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", history(9))
    assert main([run]) == 0
    folder = tmp_path / "run" / "visualizations"
    assert {path.name for path in folder.iterdir()} == {"loss.png", "val_metrics.png", "output.png"}
    out = capsys.readouterr().out
    assert "run: 9 epochs, best PSNR in the hole 20.90 dB, after epoch 9" in out and str(folder) in out


@pytest.mark.usefixtures("fast_saving")
def test_the_command_draws_what_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}

    def record(runs: dict[str, MetricsTracker], **kwargs: Any) -> dict[str, Any]:
        drawn.update(runs=runs, **kwargs)
        return draw_runs(runs, **kwargs)

    monkeypatch.setattr("metric_tracker.draw_runs", record)
    report = tmp_path / "metrics.json"
    scores = {"psnr": 18.5, "ssim": 0.6, "images": 7, "l1": math.nan}
    report.write_text(
        json.dumps({"images": 7, "methods": {"output": scores, "coarse": scores, "telea": scores}})
    )
    flags = [
        "--x",
        "images",
        "--smooth",
        "3",
        "--baseline",
        "psnr=19:A",
        "--floor",
        "psnr=20:B",
    ]  # its earlier name
    argv = [FIRST, SECOND, FIRST, "--save_dir", str(tmp_path / "out"), "--baselines", str(report), *flags]
    assert main(argv) == 0
    assert list(drawn["runs"]) == ["first_run", "second_run"] and len(drawn["runs"]["first_run"].rows) == 26
    assert (drawn["x"], drawn["smooth"]) == ("images", 3)
    assert drawn["baselines"] == [
        ("psnr", 19, "A"),
        ("psnr", 20, "B"),
        ("psnr", 18.5, "Telea"),
        ("ssim", 0.6, "Telea"),
    ]
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nowhere"], "RUN: no such folder or file: nowhere"),
        (["{tmp}/empty"], "RUN: no metrics.csv in {tmp}/empty; it is written after the first epoch"),
        (["{tmp}/scores.csv", "--save_dir", "x"], "{tmp}/scores.csv: not the history of a run (its first line names no epoch and losses)"),
        (["{tmp}/binary", "--save_dir", "x"], "{tmp}/binary: not the history of a run (its first line names no epoch and losses)"),
        (["{tmp}/header.csv", "--save_dir", "x"], "{tmp}/header.csv: holds no whole epoch"),
        (["{tmp}/damaged.csv", "--save_dir", "x"], "{tmp}/damaged.csv: line 2 is damaged: '1,oops'"),
        ([FIRST], "--save_dir: is required, unless one run's folder is drawn"),
        ([FIRST, SECOND], "--save_dir: is required, unless one run's folder is drawn"),
        ([FIRST, "--save_dir", "{tmp}/binary"], "--save_dir: cannot write to {tmp}/binary: File exists"),
        ([FIRST, "--smooth", "101"], "--smooth: must be between 0 and 100 percent, got 101"),
        ([FIRST, "--smooth", "nan"], "--smooth: must be between 0 and 100 percent, got nan"),
        ([FIRST, "--save_dir", "x", "--baseline", "lpips=0.1"], "--baseline: no value of lpips in first_run"),
        (["{tmp}/old.csv", "--save_dir", "x", "--x", "images"], "--x: old has no column images"),
        ([FIRST, "--save_dir", "x", "--baselines", "{tmp}/no.json"], "--baselines: cannot read {tmp}/no.json: No such file or directory"),
        ([FIRST, "--save_dir", "x", "--baselines", "{tmp}/binary"], "--baselines: {tmp}/binary is not JSON"),
        ([FIRST, "--save_dir", "x", "--floors", "{tmp}/list.json"], "--baselines: {tmp}/list.json holds no scores of baselines"),
        ([FIRST, "--save_dir", "x", "--baselines", "{tmp}/odd.json"], "--baselines: {tmp}/odd.json holds no scores of baselines"),
        ([FIRST, "--baseline", "psnr"], "argument --baseline: must be METRIC=VALUE:NAME with a metric of psnr, ssim, boundary_psnr, seam_jump, sharpness, l1, lpips, psnr_full, ssim_full, got psnr"),
        ([FIRST, "--baseline", "psnr=nan:x"], "argument --baseline: must be METRIC=VALUE:NAME with a metric of psnr, ssim, boundary_psnr, seam_jump, sharpness, l1, lpips, psnr_full, ssim_full, got psnr=nan:x"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_status_2(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "scores.csv").write_text("name,psnr\na,20\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "header.csv").write_text("epoch,loss_total\n")
    (tmp_path / "damaged.csv").write_text("epoch,loss_total\n1,oops\n2,0.3\n")
    (tmp_path / "old.csv").write_text("epoch,loss_total\n1,0.3\n")
    (tmp_path / "odd.json").write_text('{"methods": []}')
    (tmp_path / "list.json").write_text('[{"telea": {"psnr": 19}}]')
    before = sorted(tmp_path.iterdir())
    assert main([part.format(tmp=tmp_path) for part in argv]) == 2
    assert capsys.readouterr().err == f"metric_tracker.py: error: {message.format(tmp=tmp_path)}\n"
    assert sorted(tmp_path.iterdir()) == before
