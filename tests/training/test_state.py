"""Training state: its counters and progress, and what a checkpoint must hold to be resumed."""

import copy
import dataclasses
from pathlib import Path

import pytest
from runs import CPU, assert_same, read_checkpoint

from config import Config
from training.state import TrainingState
from utils import UserError


def test_progress_is_that_of_epochs_or_of_time_whichever_is_larger(config: Config) -> None:
    state = TrainingState(dataclasses.replace(config, epochs=100, max_minutes=10), CPU)
    state.elapsed_s = 300
    assert state.progress(5) == pytest.approx(0.5)
    state.epoch = 80
    assert state.progress(5) == pytest.approx(0.8)


def test_weights_alone_and_another_optimizer_are_refused(
    config: Config, finished: Config, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(finished.save_dir)
    state = TrainingState(dataclasses.replace(config, optimizer="muon"), CPU)
    with pytest.raises(UserError, match="holds the state of --optimizer adamw, not muon"):
        state.load_state_dict(checkpoint, tmp_path / "last.pth")
    del checkpoint["model"]
    with pytest.raises(UserError, match="holds weights alone; start from them with --init"):
        state.load_state_dict(checkpoint, tmp_path / "last.pth")


@pytest.mark.parametrize(("before", "after", "batch"), [(1, 2, 3), (2, 1, 14), (4, 3, 9)])
def test_another_number_of_processes_goes_on_from_the_same_image(
    config: Config, before: int, after: int, batch: int, tmp_path: Path
) -> None:
    state = TrainingState(config, CPU, num_processes=before)
    state.batch = 7  # in each process
    resumed = TrainingState(config, CPU, num_processes=after)
    resumed.load_state_dict(copy.deepcopy(state.state_dict()), tmp_path / "last.pth")
    assert resumed.batch == batch and resumed.batch * after <= 7 * before


def test_a_loaded_checkpoint_is_saved_unchanged(config: Config, finished: Config, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(finished.save_dir, "checkpoint_epoch_0001.pth")
    state = TrainingState(config, CPU)
    state.load_state_dict(checkpoint, tmp_path / "last.pth")
    del checkpoint["format"]
    assert_same(state.state_dict(), checkpoint)


def test_steps_are_averaged_over_the_images_of_an_epoch(config: Config) -> None:
    state = TrainingState(config, CPU)
    state.count_step({"total": 1.0}, num_batches=2, num_images=3, elapsed_s=6.0)
    state.count_step(None, num_batches=1, num_images=5, elapsed_s=1.0)  # skipped
    assert (state.batch, state.step, state.images, state.elapsed_s, state.num_nonfinite) == (3, 2, 8, 7.0, 1)
    state.count_step({"total": 2.0}, num_batches=1, num_images=1, elapsed_s=2.0)
    assert state.finish_epoch() == {"total": 1.25, "seconds": 2.0}
    assert (state.epoch, state.batch, state.sums, state.num_nonfinite) == (1, 0, {}, 0)
