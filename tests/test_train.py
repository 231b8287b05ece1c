import csv
import dataclasses
import io
import math
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, photograph
from PIL import Image
from runs import CPU, MUON, assert_same, make_nonfinite, read_checkpoint, small_config

import train as train_module
from config import Config
from inference.checkpoints import load_checkpoint, save_checkpoint
from train import main, train
from training.process import Interrupted
from training.state import TrainingState
from training.step import train_step
from utils import UserError


def test_a_run_leaves_what_the_readme_promises(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(folder, tmp_path / "run", checkpoint_interval=2, val_interval=2)
    best = train(config)
    folder = Path(config.save_dir)
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    expected = {"config.json", "metrics.csv", ".lock"}
    expected |= {f"checkpoints/{n}.pth" for n in ("best_model", "last", "checkpoint_epoch_0002")}
    expected |= {f"visualizations/{n}.png" for n in ("loss", "val_metrics", "output")}
    expected |= {f"visualizations/epoch_000{e}_{n}.png" for e in (2, 3) for n in ("comparison", "attention")}
    events = {name for name in names if name.startswith("logs/")}
    assert names - events == expected and len(events) == 1
    assert best == folder / "checkpoints" / "best_model.pth"
    rows = list(csv.DictReader(io.StringIO((folder / "metrics.csv").read_text())))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["psnr"]) for row in rows] == [False, True, True]  # the last is always validated
    state = read_checkpoint(folder)
    assert state["architecture"]["base_channels"] == 4
    assert state["counters"]["epoch"] == 3 and state["counters"]["step"] == 9
    assert "best PSNR in the hole" in capsys.readouterr().out


def test_tensorboard_gets_every_scalar_and_image_grid(finished: Config) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(finished.save_dir) / "logs"))
    events.Reload()
    terms = ("coarse", "refine", "edge", "corner", "color", "smaller")
    expected = {f"loss/{t}" for t in ("total", *terms)} | {f"weight/{t}" for t in terms}
    expected |= {f"train/{n}" for n in ("lr", "grad_norm", "images_per_s")}
    metrics = ("psnr", "ssim", "boundary_psnr", "seam_jump", "sharpness", "l1", "psnr_full", "ssim_full")
    expected |= {f"val/{name}" for name in metrics}
    assert set(events.Tags()["scalars"]) == expected
    assert set(events.Tags()["images"]) == {"val/comparison", "val/attention"}
    assert len(events.Scalars("loss/total")) == 9


def resume(config: Config, path: Path, **changes: Any) -> None:
    """Resume a finished run of several epochs from the checkpoint of its first epoch, and compare their ends."""
    checkpoint = f"{config.save_dir}/checkpoints/checkpoint_epoch_0001.pth"
    train(dataclasses.replace(config, save_dir=str(path), resume=checkpoint, **changes))
    assert_same(read_checkpoint(config.save_dir), read_checkpoint(path), skipped=("best_psnr",))


def test_a_resumed_run_equals_the_uninterrupted_one_whatever_the_number_of_loader_processes(
    config: Config, finished: Config, tmp_path: Path
) -> None:
    resume(finished, tmp_path / "resumed", num_workers=2)


@pytest.mark.parametrize("changes", [{"accumulate": 2, "progressive": "16:0.3"}, MUON, {"amp": True}])
def test_a_resumed_run_equals_the_uninterrupted_one(config: Config, changes: dict, tmp_path: Path) -> None:
    whole = dataclasses.replace(config, checkpoint_interval=1, **changes)
    train(whole)
    resume(whole, tmp_path / "resumed")


@pytest.mark.parametrize("stop_at", [2, 3, 5, 9])
def test_a_stopped_run_saves_and_resumes_as_if_never_stopped(
    config: Config, finished: Config, stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def step_and_signal(*args: Any) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(*args)

    monkeypatch.setattr(train_module, "train_step", step_and_signal)
    stopped = dataclasses.replace(config, save_dir=str(tmp_path / "stopped"), resume="auto")
    with pytest.raises(Interrupted):
        train(stopped)
    assert read_checkpoint(tmp_path / "stopped")["counters"]["step"] == stop_at
    train(stopped)
    assert_same(read_checkpoint(finished.save_dir), read_checkpoint(tmp_path / "stopped"))
    assert (tmp_path / "stopped" / "checkpoints" / "best_model.pth").exists()


def test_stages_of_a_time_limited_run_change_size_and_batch_within_an_epoch(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(
        config, epochs=100, max_minutes=1.0, progressive="16:0.5:3", batch_size=2, optimizer="muon"
    )
    seen = []

    def step(
        state: TrainingState, network: Any, criterion: Any, batches: list, progress: float
    ) -> dict[str, float]:
        image = batches[0]["image"]
        seen.append((progress, image.shape[-1], len(image)))
        state.elapsed_s += 12.5  # a step takes 12.5 s: the third is the first of the second half
        return dict.fromkeys(("total", "coarse", "refine", "edge", "corner", "color", "grad_norm"), 0.1)

    monkeypatch.setattr(train_module, "train_step", step)
    train(config)
    assert [stage for _, *stage in seen] == [[16, 3]] * (len(seen) - 2) + [[32, 2]] * 2
    assert all((progress < 0.5) == (size == 16) for progress, size, _ in seen)


def test_a_run_saves_between_the_ends_of_epochs(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    save = train_module.try_to_save

    def remember(state: dict[str, Any], path: Path) -> bool:
        if path.name == "last.pth":
            batches.append(state["counters"]["batch"])
        return save(state, path)

    monkeypatch.setattr(train_module, "try_to_save", remember)
    train(dataclasses.replace(config, epochs=1, save_minutes=1e-9))
    assert batches == [1, 2, 3, 0]  # the third before the validation, the last after it


def test_a_time_limit_ends_the_run(config: Config) -> None:
    train(dataclasses.replace(config, epochs=10_000, max_minutes=0.02))
    counters = read_checkpoint(config.save_dir)["counters"]
    assert 1.2 <= counters["elapsed_s"] < 30 and counters["epoch"] < 10_000


def test_another_architecture_is_refused_with_the_differing_fields(finished: Config, tmp_path: Path) -> None:
    other = dataclasses.replace(
        finished,
        base_channels=8,
        resume=f"{finished.save_dir}/checkpoints/last.pth",
        save_dir=str(tmp_path / "x"),
    )
    with pytest.raises(UserError, match="another architecture: base_channels 4 there, 8 here"):
        train(other)
    assert not (tmp_path / "x").exists()


def test_a_run_starts_from_the_weights_of_another(config: Config, finished: Config, tmp_path: Path) -> None:
    trained = read_checkpoint(finished.save_dir)
    path = tmp_path / "weights.pth"
    save_checkpoint(trained, path)
    state = TrainingState(config, CPU)
    assert not torch.equal(state.model.embed.weight, trained["ema"]["embed.weight"])
    state.init_from_checkpoint(str(path))
    assert_same(state.model.state_dict(), trained["ema"])
    assert_same(state.ema.module.state_dict(), trained["ema"])
    started = dataclasses.replace(
        config, init=str(path), lr=1e-12, epochs=1, save_dir=str(tmp_path / "started")
    )
    train(started)
    weights = read_checkpoint(tmp_path / "started")["ema"]["embed.weight"]
    assert torch.allclose(weights, trained["ema"]["embed.weight"], atol=1e-6)
    with pytest.raises(UserError, match=r"--init: .* holds another architecture: base_channels 4 there, 6"):
        train(dataclasses.replace(started, base_channels=6))
    with pytest.raises(UserError, match="--init: no such file"):
        train(dataclasses.replace(started, init="none.pth"))


def test_a_signal_while_processes_synchronize_is_not_lost(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def max_over_processes(self: TrainingState, *values: float) -> list[float]:
        nonlocal calls
        if len(values) == 2:  # time and signal
            calls += 1
            if calls == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return list(values)

    monkeypatch.setattr(TrainingState, "max_over_processes", max_over_processes)
    with pytest.raises(Interrupted):
        train(config)
    assert calls == 3


def test_a_best_that_could_not_be_saved_is_not_the_best(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = train_module.try_to_save
    monkeypatch.setattr(
        train_module, "try_to_save", lambda state, path: path.name != "best_model.pth" and save(state, path)
    )
    train(dataclasses.replace(config, epochs=1))
    assert read_checkpoint(config.save_dir)["counters"]["best_psnr"] == -math.inf


@pytest.fixture
def copied(config: Config, finished: Config) -> Config:
    """A copy of the finished run, to be changed."""
    shutil.copytree(finished.save_dir, config.save_dir)
    return dataclasses.replace(finished, save_dir=config.save_dir)


def test_a_second_run_moves_the_first_aside(copied: Config, capsys: pytest.CaptureFixture[str]) -> None:
    first = read_checkpoint(copied.save_dir)
    train(dataclasses.replace(copied, seed=1, epochs=1))
    assert "held another run, which was moved to" in capsys.readouterr().out
    assert_same(read_checkpoint(f"{copied.save_dir}.old1"), first)


def test_a_finished_run_stays_as_it_is(copied: Config) -> None:
    first = read_checkpoint(copied.save_dir)
    train(dataclasses.replace(copied, resume="auto"))
    assert_same(read_checkpoint(copied.save_dir), first)


@pytest.mark.parametrize("changes", [{}, {"amp": True}])
def test_a_nonfinite_step_is_skipped_and_its_batch_kept(
    config: Config, changes: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_nonfinite(monkeypatch, {2})
    train(dataclasses.replace(config, epochs=1, **changes))
    assert "step 2 was not finite and is skipped" in capsys.readouterr().err
    folder = Path(config.save_dir)
    (dumped,) = (folder / "nonfinite").iterdir()
    content = load_checkpoint(dumped, "")
    assert content["batch"] == 2 and content["seed"] == 42 and len(content["batches"][0]["name"]) == 2
    state = read_checkpoint(folder)
    assert all(value.isfinite().all() for name in ("model", "ema") for value in state[name].values())
    (row,) = csv.DictReader(io.StringIO((folder / "metrics.csv").read_text()))
    assert float(row["loss_total"]) > 0 and float(row["psnr"]) > 0


def test_three_consecutive_nonfinite_steps_end_the_run_in_one_line(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [f"--{n}={getattr(config, n)}" for n in ("train_root", "val_root", "save_dir", "base_channels")]
    argv += [
        "--image_size=32",
        "--epochs=3",
        "--prior_rank=8",
        "--num_workers=0",
        "--device=cpu",
        "--batch_size=2",
    ]
    steps = {1, 2, 4, 5, 6, 7}
    make_nonfinite(monkeypatch, steps)
    assert main(argv) == 2
    assert "train.py: error: 3 consecutive steps, up to step 6" in capsys.readouterr().err.splitlines()[-1]
    state = read_checkpoint(config.save_dir)
    assert state["counters"]["step"] == 6 and state["model"]["embed.weight"].isfinite().all()
    steps.clear()
    assert main([*argv, "--resume=auto", "--lr=1e-4"]) == 0
    assert "resumed with other settings: lr 0.0002 -> 0.0001" in capsys.readouterr().out


def test_a_full_disk_later_costs_no_earlier_checkpoint(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, count = torch.save, 0

    def save_three_times(checkpoint: Any, path: Path) -> None:
        nonlocal count
        count += 1
        if count > 3:  # best and last of the first epoch are intact
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(checkpoint, path)

    monkeypatch.setattr(torch, "save", save_three_times)
    with pytest.raises(UserError, match="the end of the run could not be saved"):
        train(config)
    assert "warning: cannot save" in (text := capsys.readouterr().err) and "training continues" in text
    assert read_checkpoint(config.save_dir)["counters"]["epoch"] == 1
    assert not list(Path(config.save_dir).rglob("*.tmp"))


def test_an_end_that_cannot_be_saved_is_an_error(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "try_to_save", lambda *_: False)
    with pytest.raises(UserError, match=r"--save_dir: the end of the run could not be saved to .*last\.pth"):
        train(dataclasses.replace(config, epochs=1))


def test_a_folder_that_cannot_be_written_is_found_before_training(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--save_dir: cannot write"):
        train(dataclasses.replace(config, save_dir=str(tmp_path / "file" / "run")))


def test_skipped_images_are_named(config: Config, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = Image.fromarray(photograph(8, 8))
    for i in range(200):
        tiny.save(folder / f"tiny{i}.png")
    (folder / "bad.png").write_text("not an image")
    train(dataclasses.replace(config, epochs=1, train_subset=0, max_minutes=0.001))
    assert "skipped: not a readable image" in capsys.readouterr().err


def test_signals_are_left_alone_outside_the_main_thread(config: Config) -> None:
    thread = threading.Thread(target=train, args=[dataclasses.replace(config, epochs=1)])
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert (Path(config.save_dir) / "checkpoints" / "last.pth").exists()


def test_the_documented_training_script_runs_as_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (REPOSITORY / "docs" / "TRAINING.md").read_text()
    script = text.split("## Custom Training Script")[1].split("```python")[1].split("```")[0]
    for path in sorted(folder.iterdir())[2:]:
        path.unlink()
    data = folder.parent / "data"
    data.mkdir()
    for name in ("train", "val"):
        (data / name).symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    seen: list[float] = []

    class Optimizer(torch.optim.SGD):
        def step(self, *_: Any) -> None:
            seen.append(1.0)

    from models import InpaintingNetwork

    placeholders = {"epochs": 1, "total_epochs": 1, "device": "cpu"}
    optimizer = Optimizer(InpaintingNetwork(4).parameters(), lr=0.1)
    exec(script, {**placeholders, "optimizer": optimizer})
    assert len(seen) == 1  # two images, batches of eight
