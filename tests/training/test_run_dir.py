"""Run directory: one writer at a time, disk space before training, the newest intact checkpoint to resume."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from conftest import REPOSITORY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config import Config, get_config
from inference.checkpoints import save_checkpoint
from training.run_dir import (
    EventLog,
    changed_settings,
    delete_old_checkpoints,
    find_checkpoint,
    lock_run_dir,
    prepare_run_dir,
    try_to_save,
    warn_on_os_error,
)
from utils import UserError


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return get_config("debug", save_dir=str(tmp_path), resume="auto")


def write(folder: Path, name: str, age: int, number: int) -> Path:
    path = folder / "checkpoints" / name
    save_checkpoint({"number": number}, path)
    os.utime(path, ns=(10**18 - age * 10**9,) * 2)
    return path


def test_auto_takes_the_newest_intact_checkpoint(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_checkpoint(config, tmp_path) is None
    old = write(tmp_path, "checkpoint_epoch_0001.pth", 3, 1)
    new = write(tmp_path, "checkpoint_epoch_0002.pth", 2, 2)
    last = write(tmp_path, "last.pth", 1, 3)
    found = find_checkpoint(config, tmp_path)
    assert found is not None and found[0]["number"] == 3 and found[1] == last
    last.write_bytes(last.read_bytes()[:-500])
    found = find_checkpoint(config, tmp_path)
    assert found is not None and found[0]["number"] == 2
    error = capsys.readouterr().err
    assert "warning: --resume: not a readable checkpoint" in error and "last.pth" in error
    for path in (last, new, old):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"not a readable checkpoint.*checkpoint_epoch_0001|last|0002"):
        find_checkpoint(config, tmp_path)


def test_a_named_checkpoint_has_to_be_there(config: Config, tmp_path: Path) -> None:
    write(tmp_path, "last.pth", 1, 3)
    with pytest.raises(UserError, match="--resume: no such file"):
        find_checkpoint(dataclasses.replace(config, resume=str(tmp_path / "none.pth")), tmp_path)
    assert find_checkpoint(dataclasses.replace(config, resume=""), tmp_path) is None


def test_changed_settings_are_listed(config: Config) -> None:
    saved = dataclasses.asdict(dataclasses.replace(config, lr=0.5, resume=""))
    assert changed_settings(saved, config) == [f"lr 0.5 -> {config.lr}"]


def test_two_runs_cannot_share_a_folder_and_a_crash_frees_it(config: Config, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    locked = fork.Event()

    def hold_lock() -> None:
        lock = lock_run_dir(tmp_path)
        locked.set()
        time.sleep(60)
        lock.release()

    process = fork.Process(target=hold_lock)
    process.start()
    assert locked.wait(60)
    with pytest.raises(UserError, match="--save_dir: another run is writing"):
        prepare_run_dir(tmp_path, config, keep=True, checkpoint_bytes=1)
    process.kill()
    process.join()
    prepare_run_dir(tmp_path, config, keep=True, checkpoint_bytes=1).release()


def test_another_run_is_moved_aside_and_the_new_folder_locked(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    prepare_run_dir(folder, config, keep=False, checkpoint_bytes=1).release()
    lock = prepare_run_dir(folder, config, keep=False, checkpoint_bytes=1)
    assert (tmp_path / "run.old1" / "config.json").exists() and (folder / "config.json").exists()
    with pytest.raises(UserError, match="another run"):
        lock_run_dir(folder)
    lock_run_dir(tmp_path / "run.old1").release()
    lock.release()


def test_temporary_files_of_a_killed_run_are_removed(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    leftovers = [folder / ".metrics.csv.77.tmp", folder / "checkpoints" / ".last.pth.77.tmp"]
    for path in leftovers:
        path.write_bytes(b"half")
    prepare_run_dir(folder, config, True, 0).release()
    assert not any(path.exists() for path in leftovers)


def test_disk_space_is_checked_before_training(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=5 * 2**20))
    with pytest.raises(UserError, match=r"5 MiB are free in .*, and checkpoints need 6 MiB"):
        prepare_run_dir(tmp_path, config, keep=False, checkpoint_bytes=2 * 2**20)
    lock_run_dir(tmp_path).release()  # not locked


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for epoch in (1, 2, 10, 9):
        write(tmp_path, f"checkpoint_epoch_{epoch:04d}.pth", 1, epoch)
    write(tmp_path, "best_model.pth", 9, 0)
    delete_old_checkpoints(tmp_path, 0)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 5
    delete_old_checkpoints(tmp_path, 2)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"best_model.pth", "checkpoint_epoch_0009.pth", "checkpoint_epoch_0010.pth"}


def test_a_checkpoint_that_cannot_be_saved_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert not try_to_save({}, tmp_path / "file" / "last.pth")
    assert "training continues" in capsys.readouterr().err


def test_an_event_log_pauses_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = threading.excepthook
    log = EventLog(tmp_path, 0)
    log.add_scalar("loss", 1.0, 1)
    log.flush()
    full = types.SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    thread = log.writer.file_writer.event_writer._async_writer._writer  # type: ignore[union-attr]
    monkeypatch.setattr(
        thread, "write", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    for step in range(2, 6):
        log.add_scalar("loss", 1.0, step)
        log.flush()
    errors = capsys.readouterr().err
    assert errors == f"warning: cannot write {tmp_path}: No space left on device; training continues\n"
    full.free = 2**30
    log.flush()
    log.add_scalar("loss", 1.0, 6)
    log.close()
    assert threading.excepthook is hook
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert sorted(event.step for event in events) == [1, 6]  # files of one second have no order


def test_an_error_while_writing_curves_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warn_on_os_error(tmp_path / "curve.png"):
        raise OSError(28, "No space left on device")
    assert "curve.png: No space left on device; training continues" in capsys.readouterr().err


def test_a_run_that_is_killed_repeatedly_ends_like_an_undisturbed_one() -> None:
    """A short form of the benchmark."""
    done = subprocess.run(
        [sys.executable, "benchmarks/kill.py", "--kills=2", "--epochs=5"],
        cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == report | {"kills": 2, "steps": 125, "differing": [], "left": []}
