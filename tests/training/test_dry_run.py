"""Dry run: problems of the data are found, the cost of a run is predicted, and nothing is written."""

import dataclasses
import itertools
import mmap
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import Config, get_config
from dataset import InpaintingDataset
from imaging.scan import scan
from training import dry_run
from training.dry_run import measure, peak_memory, predict, print_report
from utils import UserError


def small_config(tmp_path: Path, **overrides: object) -> Config:
    settings = {
        "image_size": 32,
        "base_channels": 4,
        "bottleneck_depth": 1,
        "save_dir": str(tmp_path / "run"),
    }
    return get_config("debug", **settings | {"device": "cpu"} | overrides)


def listing(root: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in root.rglob("*"))


def test_cost_is_measured_at_every_stage(tmp_path: Path) -> None:
    cost = measure(small_config(tmp_path, progressive="16:0.5:3", prior_rank=0))
    larger = measure(small_config(tmp_path, image_size=64, prior_rank=0))
    assert list(cost.seconds) == [(16, 3), (32, 2)] and min(cost.seconds.values()) > 0
    assert cost.parameters == larger.parameters > 1000
    # an evaluation completes the smallest copy twice, and one of four times its area
    assert 2.5 * cost.macs < larger.macs < 3.5 * cost.macs
    assert cost.memory >= 0 and "resident" in cost.memory_kind


def test_the_time_of_a_step_is_divided_by_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = types.SimpleNamespace(perf_counter=itertools.count().__next__)  # every step takes a second
    monkeypatch.setattr(dry_run, "time", clock)
    cost = measure(small_config(tmp_path, progressive="16:0.5:3", accumulate=2))
    assert cost.seconds == {(16, 3): 1 / 6, (32, 2): 1 / 4}


def test_missing_loss_weights_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cost = measure(small_config(tmp_path, lambda_perceptual=0.1, compile=True))
    assert len(cost.notes) == 2 and listing(tmp_path) == []


def test_peak_memory_includes_freed_memory() -> None:
    dry_run.reset_peak_memory()
    before = peak_memory()
    pages = mmap.mmap(-1, 2**28)  # new pages: freed memory may be reused
    np.frombuffer(pages, np.uint8)[:] = 1
    assert peak_memory() - before >= 200 * 2**20


def test_predictions_follow_epochs_stages_and_time_limit(tmp_path: Path) -> None:
    config = small_config(tmp_path, epochs=10)
    seconds, counts = {(16, 3): 0.01, (32, 2): 0.1}, {(16, 3): 2000, (32, 2): 1000}

    def predicted(**changes: object) -> tuple[float, int]:
        return predict(dataclasses.replace(config, **changes), counts, seconds)

    assert predicted() == (pytest.approx(1000), 10)
    assert predicted(epochs=20) == (pytest.approx(2000), 20)
    assert predicted(progressive="16:0.4:3") == (pytest.approx(4 * 20 + 6 * 100), 10)
    assert predicted(max_minutes=5) == (300, 3)
    assert predicted(max_minutes=60) == (pytest.approx(1000), 10)


def test_images_that_a_stage_leaves_out_are_not_counted_in_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = os.pathsep.join([str(folder), str(folder)])
    config = small_config(tmp_path, train_root=root, image_size=48, progressive="32:0.5:2", max_enlarge=1.2)
    for size in (32, 48):
        dataset = InpaintingDataset(root, size, max_enlarge=1.2, cache_dir=None)
        assert scan(root, True, 48, "--train_root").count_at(size, 1.2) == len(dataset)
    print_report(config)
    text = capsys.readouterr().out
    assert "32 px, batches of 2: " in text and "of 12 images" in text and f"of {len(dataset)} images" in text
    with pytest.raises(UserError, match=r"--max_enlarge: every .* too small for 128 pixels"):
        print_report(dataclasses.replace(config, image_size=128, progressive=""))


def test_a_report_is_complete_and_writes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    config = small_config(tmp_path, train_root=str(folder), mask_root=str(folder), epochs=3)
    before = listing(tmp_path)
    print_report(config)
    assert listing(tmp_path) == before
    text = capsys.readouterr().out
    for part in (
        "* epochs = 3",
        "  lr = 0.0002",
        "GMAC",
        "parameters",
        "MiB",
        f"--train_root {folder}: 6 files, 0 unreadable, 0 smaller",
        "--val_root sample: 2 files (50 crops",
        "validation images in training: 0 exact and 0 near",
        "6 masks",
        "32 px, batches of 2: ",
        "3 of 3 epochs started",
    ):
        assert part in text, part


def test_a_report_of_names_that_are_not_utf8_and_of_odd_masks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = os.fsdecode(b"caf\xe9")
    shutil.copy(folder / "picture0.png", folder / f"{odd}.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(masks / f"{odd}.png")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]  # like `utils.run_program`
    print_report(small_config(tmp_path, train_root=str(folder), mask_root=str(masks)))
    text, notes = capsys.readouterr()
    assert r"caf\udce9.png = " in text and "1 masks" in text
    assert r"caf\udce9.png is empty: nothing is missing" in notes


def test_data_that_training_would_refuse_is_refused_after_the_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(7):
        (folder / f"broken{i}.png").write_bytes(b"not an image")
    with pytest.raises(
        UserError, match=r"--train_root: 7 of 13 images .* cannot be read, more than 1% allowed"
    ):
        print_report(small_config(tmp_path, train_root=str(folder)))
    text = capsys.readouterr().out
    assert text.count("unreadable: not a readable image") == 5 and "unreadable: and 2 more" in text
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--train_root: no images"):
        print_report(small_config(tmp_path, train_root=str(tmp_path / "empty")))
