"""An ablation trains each row with each seed once, scores all on the same holes, and resumes."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ablation
from utils import UserError

SMALL = ["--config=debug", "--base_channels=4", "--bottleneck_depth=1", "--image_size=32", "--num_workers=0"]
SMALL += ["--device=cpu", "--epochs=1", "--train_subset=2", "--val_subset=2"]


def test_help_lists_its_own_flags_and_the_training_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        ablation.parse_args(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith("usage: ablation.py")
    assert all(f"\n  {flag}" in text for flag in ("--num_seeds", "--vary", "--lambda_corner", "--config"))
    assert "(default: )" not in text and "--val_subset) (default" not in text


def test_rows_are_the_readmes_or_every_combination() -> None:
    _, _, rows = ablation.parse_args(SMALL)
    assert list(rows) == ["baseline", "msse", "corner", "full"]
    _, config, rows = ablation.parse_args(
        [*SMALL, "--vary=lr=1e-3,2e-3", "--vary=use_structure_encoder=true,false"]
    )
    assert rows == {
        "lr=0.001,use_structure_encoder=True": {"lr": 0.001, "use_structure_encoder": True},
        "lr=0.001,use_structure_encoder=False": {"lr": 0.001, "use_structure_encoder": False},
        "lr=0.002,use_structure_encoder=True": {"lr": 0.002, "use_structure_encoder": True},
        "lr=0.002,use_structure_encoder=False": {"lr": 0.002, "use_structure_encoder": False},
    }  # fmt: skip
    assert config.base_channels == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vary=lr"], "--vary: must be a setting and its values"),
        (["--vary=lr=,"], "--vary: must be a setting and its values"),
        (["--vary=rate=1,2"], "--vary: no such setting"),
        (["--vary=lr=a,b"], "--vary: lr: must be float, got a"),
        (["--vary=amp=yes,no"], "--vary: amp: must be true or false, got yes"),
        (["--vary=seed=1,2"], "--vary: seed does not change the network"),
        (["--num_seeds=0"], "--num_seeds: must be at least 1"),
        (["--resume=auto"], "--resume and --dry_run: not supported here"),
        (["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
        (["--vary=lr=-1,1"], "--lr: must be above 0"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablation.main([*SMALL, f"--save_dir={tmp_path / 'a'}", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ablation.py: error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_every_run_is_made_once_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*SMALL, f"--save_dir={tmp_path}", "--num_seeds=2", "--vary=use_structure_encoder=false,true"]
    train, trained = ablation.train, []

    def train_and_count(config: Any) -> Path:
        trained.append((config.use_structure_encoder, config.seed))
        return train(config)

    monkeypatch.setattr(ablation, "train", train_and_count)
    monkeypatch.setattr("metric_tracker.MetricsTracker.draw", lambda *_: None)  # slow
    assert ablation.main(argv) == 0
    assert trained == [(False, 42), (True, 42), (False, 43), (True, 43)]
    table = (tmp_path / "ablation.md").read_text()
    assert table in capsys.readouterr().out
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("result.json"))]
    assert len(results) == 4 and len({each["weights_sha256"] for each in results}) == 4
    assert all(hole["corner_loss"] > 0 for each in results for hole in each["holes"])
    holes = {tuple((hole["name"], hole["mask_ratio"]) for hole in each["holes"]) for each in results}
    assert len(holes) == 1  # the same holes for all rows and seeds
    assert not any("root" in name for each in results for name in each["settings"])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "ablation.csv").read_text())))
    means = [np.mean([hole["psnr"] for hole in each["holes"]]) for each in results]
    assert sorted(float(row["psnr"]) for row in rows) == pytest.approx(sorted(means))
    assert (tmp_path / "ablation.png").stat().st_size > 5000
    assert len(list((tmp_path / "logs").iterdir())) >= 4

    assert ablation.main(argv) == 0 and len(trained) == 4
    assert (tmp_path / "ablation.md").read_text() == table
    (tmp_path / "use_structure_encoder=True" / "seed_43" / "result.json").unlink()
    assert ablation.main(argv) == 0 and trained[4:] == [(True, 43)]  # its training was done: scored again
    assert (tmp_path / "ablation.md").read_text().split("minutes")[1:] == table.split("minutes")[1:]
    capsys.readouterr()
    assert ablation.main([*argv, "--lr=1e-3"]) == 2
    assert "holds a run of other settings: lr 0.0002, not 0.001" in capsys.readouterr().err
    assert ablation.main([*argv, "--init=default"]) == 2
    assert "holds a run of other settings: init '', not 'default'" in capsys.readouterr().err
    assert ablation.main([*argv, "--test_root=sample"]) == 2
    assert "holds a run that was scored on other images: " in capsys.readouterr().err


def test_runs_are_scored_by_lpips_if_it_is_at_hand(
    tmp_path: Path,
    alexnet_file: Path,
    torch_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lpips")
    monkeypatch.setattr("metric_tracker.MetricsTracker.draw", lambda *_: None)  # slow
    argv = [*SMALL, f"--save_dir={tmp_path / 'a'}", "--num_seeds=1", "--vary=use_structure_encoder=false"]
    assert ablation.main(argv) == 0
    assert "LPIPS left out: no weights at hand" in capsys.readouterr().out
    alexnet_file.rename(torch_cache / "alexnet-owt-7be5be79.pth")
    result = next((tmp_path / "a").rglob("result.json"))
    result.unlink()
    assert ablation.main(argv) == 0
    assert all(hole["lpips"] > 0 for hole in json.loads(result.read_text())["holes"])
    assert "LPIPS" in (tmp_path / "a" / "ablation.md").read_text().splitlines()[0]
    assert "left out" not in capsys.readouterr().out


def test_a_result_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    _, config, _ = ablation.parse_args(SMALL)
    with pytest.raises(UserError, match="not a result of this project"):
        ablation.finished(tmp_path, config, [])
    assert ablation.finished(tmp_path / "none", config, []) is None
