import copy
import csv
import dataclasses
import io
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, photograph
from PIL import Image

import train as train_module
from config import Config, get_config
from inference.checkpoints import load_checkpoint, save_checkpoint
from losses import InpaintingLoss
from train import main, train
from training import state as run_module
from training import step as step_module
from training.loaders import make_loaders
from training.optimizers import FINAL_LR, ema_update, lr_factor
from training.process import Interrupted
from training.state import TrainingState
from training.step import train_step
from utils import UserError

MUON = {"optimizer": "muon", "base_channels": 16}


@pytest.fixture
def drawn_config(folder: Path, tmp_path: Path) -> Config:
    return get_config(
        "debug",
        base_channels=4,
        bottleneck_depth=1,
        prior_rank=32,
        epochs=3,
        image_size=32,
        train_root=str(folder),
        val_root=str(folder),
        save_dir=str(tmp_path / "run"),
        val_subset=3,
        device="cpu",
    )


@pytest.fixture
def config(drawn_config: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The same without its curves, which take longer to draw than so short a run to train."""
    monkeypatch.setattr("metric_tracker.MetricsTracker.draw", lambda *_: None)
    return drawn_config


def state_of(folder: Path, name: str = "last.pth") -> dict[str, Any]:
    return load_checkpoint(folder / "checkpoints" / name, "--resume")


def assert_same(a: Any, b: Any, where: str = "", skipped: tuple[str, ...] = ()) -> None:
    """Equal to the bit, all the way down; times, and what depends on the folder, apart."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key not in ("elapsed_s", "seconds", "images_per_s", "config", *skipped):
                assert_same(a[key], b[key], f"{where}.{key}", skipped)
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]", skipped)
    else:
        assert a == b, where


def test_the_learning_rate_rises_then_falls_to_one_percent() -> None:
    assert 0 < lr_factor(0, 0.1, 1) < 0.02
    assert lr_factor(0.1, 0.1, 1) == pytest.approx(1)
    assert lr_factor(0.55, 0.1, 1) == pytest.approx((1 + FINAL_LR) / 2)
    assert lr_factor(1, 0.1, 1) == pytest.approx(FINAL_LR)
    assert lr_factor(0, 0, 1) == 1
    assert lr_factor(0.1, 0.1, 0.3) == lr_factor(0.7, 0.1, 0.3) == 1  # a trapezoid
    assert lr_factor(0.85, 0.1, 0.3) == pytest.approx((1 + FINAL_LR) / 2)
    assert lr_factor(1, 0.1, 0.3) == pytest.approx(FINAL_LR)


def test_the_average_forgets_its_first_steps() -> None:
    update = ema_update(0.9)
    averaged, current = [torch.zeros(2)], [torch.ones(2)]
    update(averaged, current, torch.tensor(0))
    assert averaged[0].tolist() == pytest.approx([0.9, 0.9])
    update([average := torch.zeros(1)], [torch.ones(1)], torch.tensor(10**6))
    assert average.item() == pytest.approx(0.1)


def test_a_run_leaves_what_the_readme_promises(
    drawn_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(drawn_config, checkpoint_interval=2, val_interval=2)
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
    state = state_of(folder)
    assert state["architecture"]["base_channels"] == 4
    assert state["counters"]["epoch"] == 3 and state["counters"]["step"] == 9
    assert "best PSNR in the hole" in capsys.readouterr().out


def test_tensorboard_gets_every_scalar_and_picture(config: Config) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(dataclasses.replace(config, epochs=1))
    events = EventAccumulator(str(Path(config.save_dir) / "logs"))
    events.Reload()
    terms = ("coarse", "refine", "edge", "corner", "color", "smaller")
    expected = {f"loss/{t}" for t in ("total", *terms)} | {f"weight/{t}" for t in terms}
    expected |= {f"train/{n}" for n in ("lr", "grad_norm", "images_per_s")}
    metrics = ("psnr", "ssim", "boundary_psnr", "seam_jump", "l1", "psnr_full", "ssim_full")
    expected |= {f"val/{name}" for name in metrics}
    assert set(events.Tags()["scalars"]) == expected
    assert set(events.Tags()["images"]) == {"val/comparison", "val/attention"}
    assert len(events.Scalars("loss/total")) == 3


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "progressive": "16:0.3"}, MUON, {"amp": True}])
def test_a_resumed_run_equals_the_uninterrupted_one(config: Config, changes: dict, tmp_path: Path) -> None:
    """Whatever the number of loader processes."""
    whole = dataclasses.replace(config, save_dir=str(tmp_path / "whole"), checkpoint_interval=1, **changes)
    train(whole)
    checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint_epoch_0001.pth"
    resumed = dataclasses.replace(whole, save_dir=str(tmp_path / "resumed"), resume=str(checkpoint))
    train(dataclasses.replace(resumed, num_workers=0 if changes else 2))
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "resumed"), skipped=("best_psnr",))


@pytest.mark.parametrize("stop_at", [2, 3, 5, 9])
def test_a_stopped_run_saves_and_goes_on_as_if_nothing_had_been(
    config: Config, stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = dataclasses.replace(config, save_dir=str(tmp_path / "whole"))
    train(whole)
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
    assert state_of(tmp_path / "stopped")["counters"]["step"] == stop_at
    train(stopped)
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "stopped"))
    assert (tmp_path / "stopped" / "checkpoints" / "best_model.pth").exists()


def test_a_plan_in_time_changes_size_and_batch_within_an_epoch(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(
        config, epochs=100, max_minutes=1.0, progressive="16:0.5:3", batch_size=2, optimizer="muon"
    )
    seen = []

    def step(
        run: TrainingState, network: Any, criterion: Any, batches: list, progress: float
    ) -> dict[str, float]:
        image = batches[0]["image"]
        seen.append((progress, image.shape[-1], len(image)))
        run.elapsed_s += 12.5  # a step takes 12.5 s: the third is the first of the second half
        return dict.fromkeys(("total", "coarse", "refine", "edge", "corner", "color", "grad_norm"), 0.1)

    monkeypatch.setattr(train_module, "train_step", step)
    train(config)
    assert [each[1:] for each in seen] == [(16, 3)] * 2 + [(16, 3)] * (len(seen) - 4) + [(32, 2)] * 2
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


def test_muon_takes_the_matrices_and_adamw_the_rest(config: Config) -> None:
    run = TrainingState(dataclasses.replace(config, **MUON), torch.device("cpu"))
    muon, adamw = ([p for g in o.param_groups for p in g["params"]] for o in run.optimizers)
    assert {id(p) for p in run.model.parameters()} == {id(p) for p in (*muon, *adamw)}
    assert len(muon) + len(adamw) == len(list(run.model.parameters()))
    names = {id(p): name for name, p in run.model.named_parameters()}
    assert "coarse_decoder.bottleneck.1.conv1.weight" in {names[id(p)] for p in muon}
    assert "refinement_decoder.to_rgb.weight" in {names[id(p)] for p in adamw}  # three channels
    (alone,) = TrainingState(config, torch.device("cpu")).optimizers
    assert type(alone) is torch.optim.AdamW


def test_two_small_batches_make_the_step_of_one_large(config: Config, folder: Path) -> None:
    images = torch.rand(4, 3, 32, 32)
    mask = torch.zeros(4, 1, 32, 32)
    mask[..., 8:20, 8:24] = 1
    norms, weights = [], []
    for size in (4, 2):
        torch.manual_seed(0)
        run = TrainingState(config, torch.device("cpu"))
        batches = [{"image": images[i : i + size], "mask": mask[i : i + size]} for i in range(0, 4, size)]
        for _ in range(2):
            means = train_step(run, run.model, InpaintingLoss(), batches, 0.5)
        norms.append(means["grad_norm"])
        weights.append(run.model.embed.weight.detach().clone())
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert torch.allclose(weights[0], weights[1], atol=1e-5)


def test_time_bounds_the_run_and_its_schedule(config: Config) -> None:
    run = TrainingState(dataclasses.replace(config, epochs=100, max_minutes=10), torch.device("cpu"))
    run.elapsed_s = 300
    assert run.progress(5) == pytest.approx(0.5)
    run.epoch = 80
    assert run.progress(5) == pytest.approx(0.8)
    train(dataclasses.replace(config, epochs=10_000, max_minutes=0.05))
    counters = state_of(Path(config.save_dir))["counters"]
    assert 3 <= counters["elapsed_s"] < 30 and counters["epoch"] < 10_000


def test_another_architecture_is_refused_with_the_differing_fields(config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(config, epochs=1)
    train(config)
    other = dataclasses.replace(
        config,
        base_channels=8,
        resume=f"{config.save_dir}/checkpoints/last.pth",
        save_dir=str(tmp_path / "x"),
    )
    with pytest.raises(UserError, match="another architecture: base_channels 4 there, 8 here"):
        train(other)
    assert not (tmp_path / "x").exists()


def test_a_run_begins_with_the_weights_of_another(config: Config, tmp_path: Path) -> None:
    trained = load_checkpoint(train(dataclasses.replace(config, epochs=1)), "--init")
    path = tmp_path / "weights.pth"
    save_checkpoint(trained, path)
    run = TrainingState(config, torch.device("cpu"))
    assert not torch.equal(run.model.embed.weight, trained["ema"]["embed.weight"])
    run.init_from_checkpoint(str(path))
    assert_same(run.model.state_dict(), trained["ema"])
    assert_same(run.ema.module.state_dict(), trained["ema"])
    begun = dataclasses.replace(config, init=str(path), lr=1e-12, epochs=1, save_dir=str(tmp_path / "begun"))
    train(begun)
    weights = state_of(tmp_path / "begun")["ema"]["embed.weight"]
    assert torch.allclose(weights, trained["ema"]["embed.weight"], atol=1e-6)
    with pytest.raises(UserError, match=r"--init: .* holds another architecture: base_channels 4 there, 6"):
        train(dataclasses.replace(begun, base_channels=6))
    with pytest.raises(UserError, match="--init: no such file"):
        train(dataclasses.replace(begun, init="none.pth"))


def test_mixed_precision_on_a_cpu_trains_as_single_precision_does(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "has_bfloat16", lambda _: False)
    assert TrainingState(dataclasses.replace(config, amp=True), torch.device("cpu")).amp_dtype is None
    assert "note: --amp: no bfloat16 arithmetic on this cpu; going on in float32" in capsys.readouterr().err
    monkeypatch.setattr(run_module, "has_bfloat16", lambda _: True)
    losses = []
    for amp in (False, True):
        torch.manual_seed(0)
        run = TrainingState(dataclasses.replace(config, amp=amp, lr=1e-3), torch.device("cpu"))
        assert run.amp_dtype == (torch.bfloat16 if amp else None)
        loader, _ = make_loaders(run)
        criterion = InpaintingLoss()
        batches = list(loader)[:2]
        steps = [train_step(run, run.model, criterion, batches, 0.5) or {} for _ in range(12)]
        losses.append([step["total"] for step in steps])
        assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    assert losses[1][-1] < losses[1][0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]


def test_a_signal_while_processes_agree_is_not_lost(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def agree(self: TrainingState, received: int | None) -> int | None:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return received  # as it was before

    monkeypatch.setattr(TrainingState, "agree", agree)
    with pytest.raises(Interrupted):
        train(config)
    assert calls == 3


def test_weights_alone_and_another_optimizer_are_refused(config: Config, tmp_path: Path) -> None:
    state = load_checkpoint(train(dataclasses.replace(config, epochs=1)), "")
    run = TrainingState(dataclasses.replace(config, optimizer="muon"), torch.device("cpu"))
    with pytest.raises(UserError, match="holds the state of --optimizer adamw, not muon"):
        run.load_state_dict(state, tmp_path / "last.pth")
    del state["model"]
    with pytest.raises(UserError, match="holds weights alone; begin with them by --init"):
        run.load_state_dict(state, tmp_path / "last.pth")


def test_a_best_that_could_not_be_saved_is_not_the_best(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = train_module.try_to_save
    monkeypatch.setattr(
        train_module, "try_to_save", lambda state, path: path.name != "best_model.pth" and save(state, path)
    )
    train(dataclasses.replace(config, epochs=1))
    assert state_of(Path(config.save_dir))["counters"]["best_psnr"] == -math.inf


@pytest.mark.parametrize(("before", "after", "batch"), [(1, 2, 3), (2, 1, 14), (4, 3, 9)])
def test_another_number_of_processes_goes_on_from_the_same_image(
    config: Config, before: int, after: int, batch: int, tmp_path: Path
) -> None:
    run = TrainingState(config, torch.device("cpu"), num_processes=before)
    run.batch = 7  # of each process
    resumed = TrainingState(config, torch.device("cpu"), num_processes=after)
    resumed.load_state_dict(copy.deepcopy(run.state_dict()), tmp_path / "last.pth")
    assert resumed.batch == batch and resumed.batch * after <= 7 * before


def test_a_second_run_moves_the_first_aside(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(config, epochs=1)
    train(config)
    first = state_of(Path(config.save_dir))
    train(dataclasses.replace(config, seed=1))
    assert "held another run; moved to" in capsys.readouterr().out
    assert_same(state_of(Path(f"{config.save_dir}.old1")), first)


def test_a_finished_run_stays_as_it_is(config: Config) -> None:
    config = dataclasses.replace(config, epochs=1)
    train(config)
    first = state_of(Path(config.save_dir))
    train(dataclasses.replace(config, resume="auto"))
    assert_same(state_of(Path(config.save_dir)), first)


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the images of these steps NaN on their way to the network."""
    to_device, count = step_module.to_device, 0

    def spoiled(batch: dict[str, Any], run: TrainingState) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal count
        count += torch.is_grad_enabled()  # not in validation
        image, mask = to_device(batch, run)
        if not torch.is_grad_enabled():
            return image, mask
        return (image * float("nan") if count in steps else image), mask

    monkeypatch.setattr(step_module, "to_device", spoiled)


@pytest.mark.parametrize("changes", [{}, {"amp": True}])
def test_a_spoilt_step_is_skipped_and_its_batch_kept(
    config: Config, changes: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, {2})
    train(dataclasses.replace(config, epochs=1, **changes))
    assert "step 2 was not finite and is skipped" in capsys.readouterr().err
    folder = Path(config.save_dir)
    (dumped,) = (folder / "nonfinite").iterdir()
    content = load_checkpoint(dumped, "")
    assert content["batch"] == 2 and content["seed"] == 42 and len(content["batches"][0]["name"]) == 2
    state = state_of(folder)
    assert all(value.isfinite().all() for name in ("model", "ema") for value in state[name].values())
    (row,) = csv.DictReader(io.StringIO((folder / "metrics.csv").read_text()))
    assert float(row["loss_total"]) > 0 and float(row["psnr"]) > 0


def test_a_skipped_step_changes_nothing(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainingState(dataclasses.replace(config, **MUON), torch.device("cpu"))
    loader, _ = train_module.make_loaders(run)
    batches = list(loader)
    criterion = InpaintingLoss()
    assert train_step(run, run.model, criterion, [batches[0]], 0.5) is not None
    before = copy.deepcopy(run.state_dict())
    spoil(monkeypatch, {2})
    assert train_step(run, run.model, criterion, batches[:2], 0.5) is None  # one of two accumulated
    assert_same(run.state_dict(), before)
    assert train_step(run, run.model, criterion, [batches[0]], 0.5) is not None


def test_three_spoilt_steps_in_a_row_end_the_run_in_one_line(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [f"--{n}={getattr(config, n)}" for n in ("train_root", "val_root", "save_dir", "base_channels")]
    argv += ["--image_size=32", "--epochs=5", "--num_workers=0", "--device=cpu", "--batch_size=2"]
    spoil(monkeypatch, {1, 2, 4, 5, 6, 7})
    assert main(argv) == 2
    assert "train.py: error: 3 steps running, up to step 6" in capsys.readouterr().err.splitlines()[-1]
    state = state_of(Path(config.save_dir))
    assert state["counters"]["step"] == 6 and state["model"]["embed.weight"].isfinite().all()
    monkeypatch.undo()
    assert main([*argv, "--resume=auto", "--lr=1e-4"]) == 0
    assert "resumed with other settings: lr 0.0002 -> 0.0001" in capsys.readouterr().out


def test_a_full_disk_later_costs_no_earlier_checkpoint(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, count = torch.save, 0

    def scarce(state: Any, path: Path) -> None:
        nonlocal count
        count += 1
        if count > 3:  # the first epoch's best and last are whole
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", scarce)
    with pytest.raises(UserError, match="the end of the run could not be saved"):
        train(config)
    assert "warning: cannot save" in (text := capsys.readouterr().err) and "training goes on" in text
    assert state_of(Path(config.save_dir))["counters"]["epoch"] == 1
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
    (folder / "bad.png").write_text("not a picture")
    train(dataclasses.replace(config, epochs=1, train_subset=0, max_minutes=0.001))
    assert "skipped: not a readable image" in capsys.readouterr().err


def test_signals_are_left_alone_outside_the_main_thread(config: Config) -> None:
    thread = threading.Thread(target=train, args=[dataclasses.replace(config, epochs=1)])
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert (Path(config.save_dir) / "checkpoints" / "last.pth").exists()


def test_the_seeds_training_script_runs_as_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "docs" / "TRAINING.md").read_text()
    script = text.split("## Custom Training Script")[1].split("```python")[1].split("```")[0]
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
    assert len(seen) == 1  # six images, batches of eight


def test_the_prior_is_fitted_once_and_stays(config: Config, tmp_path: Path) -> None:
    train(dataclasses.replace(config, epochs=1))
    fitted = state_of(Path(config.save_dir))
    basis = fitted["model"]["prior.basis"]
    assert basis.any() and torch.equal(basis, fitted["ema"]["prior.basis"])
    train(dataclasses.replace(config, epochs=2, resume="auto", seed=7))
    assert torch.equal(state_of(Path(config.save_dir))["ema"]["prior.basis"], basis)
    again = dataclasses.replace(config, epochs=1, save_dir=str(tmp_path / "again"))
    train(dataclasses.replace(again, init=str(Path(config.save_dir) / "checkpoints" / "last.pth"), seed=7))
    assert torch.equal(state_of(tmp_path / "again")["ema"]["prior.basis"], basis)


def test_a_prior_that_guesses_worse_than_push_pull_is_left_out(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for i in range(8):  # smooth, where the training images are not
        ramp = np.linspace(10 * i, 255 - 10 * i, 64).astype(np.uint8)
        picture = np.stack(
            [np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 99)], 2
        )
        Image.fromarray(picture.astype(np.uint8)).save(others / f"{i}.png")
    checkpoint = train(dataclasses.replace(config, epochs=1, val_root=str(others)))
    assert "worse than push-pull" in capsys.readouterr().err
    state = load_checkpoint(checkpoint, "")
    assert not state["model"]["prior.basis"].any() and not state["ema"]["prior.basis"].any()
    train(dataclasses.replace(config, epochs=2, resume="auto"))  # not fitted in the middle of a run
    assert not state_of(Path(config.save_dir))["model"]["prior.basis"].any()


def test_weights_without_a_prior_are_given_one(config: Config, tmp_path: Path) -> None:
    without = dataclasses.replace(config, epochs=1, prior_rank=0, save_dir=str(tmp_path / "without"))
    weights = train(without)
    assert "prior.basis" not in state_of(tmp_path / "without")["model"]
    train(dataclasses.replace(config, epochs=1, lr=1e-12, init=str(weights)))
    state = state_of(Path(config.save_dir))
    assert state["architecture"]["prior_rank"] == config.prior_rank and state["ema"]["prior.basis"].any()
    kept = load_checkpoint(weights, "--init")["ema"]["embed.weight"]
    assert torch.allclose(state["ema"]["embed.weight"], kept, atol=1e-6)
    with pytest.raises(UserError, match=r"--init: .* another architecture: prior_rank 32 there, 8 here"):
        path = Path(config.save_dir) / "checkpoints" / "last.pth"
        again = tmp_path / "again"
        train(dataclasses.replace(config, prior_rank=8, init=str(path), save_dir=str(again)))
