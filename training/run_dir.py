"""Directory of a training run: its lock, its checkpoints and its TensorBoard log."""

import contextlib
import dataclasses
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from config import Config
from inference.checkpoints import load_checkpoint, save_checkpoint
from utils import UserError, first_line, write_json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_BYTES = 2**20  # free disk space needed to start a new event file


def find_checkpoint(config: Config, folder: Path) -> tuple[dict[str, Any], Path] | None:
    """The checkpoint that `--resume` names, or with `auto` the newest intact one, and its path.

    Returns:
        None if `--resume` is not given, or `auto` finds no checkpoint in `folder`.

    Raises:
        UserError: if the named file is missing or damaged, or with `auto` if all files are damaged.
    """
    if not config.resume:
        return None
    if config.resume != "auto":
        path = Path(config.resume).resolve()
        return load_checkpoint(path, "--resume"), path
    candidates = [*folder.glob("checkpoints/last.pth"), *folder.glob("checkpoints/checkpoint_epoch_*.pth")]
    candidates.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for number, path in enumerate(candidates):
        try:
            return load_checkpoint(path, "--resume"), path
        except UserError as error:
            if number + 1 == len(candidates):
                raise
            print(f"warning: {error}; resuming from the one before", file=sys.stderr)
    return None


def changed_settings(saved: dict[str, Any], config: Config) -> list[str]:
    """Settings that differ from those saved in the checkpoint, as `lr 0.001 -> 0.002`."""
    ignored = {"resume", "save_dir", "dry_run"}
    return [
        f"{name} {saved[name]} -> {value}"
        for name, value in dataclasses.asdict(config).items()
        if name not in ignored and name in saved and saved[name] != value
    ]


def prepare_run_dir(folder: Path, config: Config, keep: bool, checkpoint_bytes: int) -> FileLock:
    """Create the run's folder, lock it, and write `config.json`; another run in it is moved aside.

    Args:
        keep: resume in the folder as it is.
        checkpoint_bytes: size of one checkpoint; there has to be room for three.

    Returns:
        The lock, which also ends with the process.

    Raises:
        UserError: if the folder cannot be written, is locked, or there is too little disk space.
    """
    try:
        lock = lock_run_dir(folder)
        if not keep and (folder / "config.json").exists():
            aside = next(
                p for n in range(1, 10_000) if not (p := folder.with_name(f"{folder.name}.old{n}")).exists()
            )
            folder.rename(aside)
            lock.release()
            lock = lock_run_dir(folder)
            print(f"{folder} held another run, which was moved to {aside}")
        for name in ("logs", "checkpoints", "visualizations"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for leftover in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:  # left by a killed run
            leftover.unlink()
        free = shutil.disk_usage(folder).free
        if free < 3 * checkpoint_bytes:
            lock.release()
            raise UserError(
                f"--save_dir: {free / 2**20:.0f} MiB are free in {folder}, "
                f"and checkpoints need {3 * checkpoint_bytes / 2**20:.0f} MiB"
            )
        write_json(dataclasses.asdict(config), folder / "config.json")
    except OSError as error:
        raise UserError(f"--save_dir: cannot write to {folder}: {error.strerror}") from None
    return lock


def lock_run_dir(folder: Path) -> FileLock:
    """Create the folder and lock it for this process until it ends.

    Raises:
        UserError: if another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"--save_dir: another run is writing to {folder}") from None
    return lock


def delete_old_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints named by epoch; 0 keeps all."""
    if keep:
        for path in sorted(folder.glob("checkpoints/checkpoint_epoch_*.pth"))[:-keep]:
            path.unlink()


@contextlib.contextmanager
def warn_on_os_error(path: Path) -> Iterator[None]:
    """Context that turns an error while writing `path`, such as a full disk, into a warning."""
    try:
        yield
    except OSError as error:
        print(f"warning: cannot write {path}: {error.strerror or error}; training continues", file=sys.stderr)


class EventLog:
    """TensorBoard log that survives a full disk: it warns once, and starts a new file when there is room.

    Until `close`, exceptions in TensorBoard's threads are not printed: the next call raises them again.

    Args:
        folder: folder of the event files.
        step: step from which the run continues; later steps of an earlier session are discarded.
        enabled: whether to write at all.
    """

    def __init__(self, folder: Path, step: int, enabled: bool = True) -> None:
        self.folder, self.step, self.enabled = folder, step, enabled
        self.writer: SummaryWriter | None = None
        self.previous_hook, threading.excepthook = threading.excepthook, self._print_exception
        self.flush()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.step = step
        self._call("add_scalar", name, value, step)

    def add_image(self, name: str, image: torch.Tensor, step: int) -> None:
        self._call("add_image", name, image, step)

    def flush(self) -> None:
        if self.enabled and self.writer is None and shutil.disk_usage(self.folder).free > LOG_BYTES:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            with contextlib.suppress(OSError):
                self.writer = SummaryWriter(str(self.folder), purge_step=self.step + 1 if self.step else None)
        self._call("flush")

    def close(self) -> None:
        self._call("close")
        threading.excepthook = self.previous_hook

    def _call(self, method: str, *arguments: object) -> None:
        if self.writer is not None:
            with warn_on_os_error(self.folder):
                getattr(self.writer, method)(*arguments)
                return
            self.writer = None

    def _print_exception(self, failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard"):
            self.previous_hook(failure)


def try_to_save(checkpoint: dict[str, Any], path: Path) -> bool:
    """Save a checkpoint and return True; if it cannot be written, warn, keep the one before, return False."""
    try:
        save_checkpoint(checkpoint, path)
    except (OSError, RuntimeError) as error:  # torch raises a RuntimeError on a full disk
        reason = first_line(error)
        print(f"warning: cannot save {path}: {reason}; training continues", file=sys.stderr)
        return False
    return True
