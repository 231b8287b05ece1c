"""The folder of a run: who may write to it, what lies in it, and which checkpoint to go on from."""

import contextlib
import dataclasses
import json
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
from utils import UserError, atomic_path

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_BYTES = 2**20  # that have to be free for a new event file


def find_state(config: Config, folder: Path) -> tuple[dict[str, Any], Path] | None:
    """The checkpoint that `--resume` names, and its file; with `auto`, the newest whole one of the folder.

    Returns:
        None if none is named, or `auto` finds none.

    Raises:
        UserError: if the named file is missing or damaged, or with `auto`, every one of the folder is.
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
            print(f"warning: {error}; going on from the one before", file=sys.stderr)
    return None


def changed_settings(saved: dict[str, Any], config: Config) -> list[str]:
    """What a resumed run does otherwise than the checkpoint's did: `lr 0.001 -> 0.002`."""
    asked = dataclasses.asdict(config)
    ignored = {"resume", "save_dir", "dry_run"}
    return [
        f"{name} {saved[name]} -> {value}"
        for name, value in asked.items()
        if name not in ignored and name in saved and saved[name] != value
    ]


def prepare_run_dir(folder: Path, config: Config, keep: bool, checkpoint_bytes: int) -> FileLock:
    """Make the folder, claim it for this process, and write `config.json`; another run there is moved aside.

    Args:
        keep: go on in the folder as it is.
        checkpoint_bytes: size of one checkpoint, of which there has to be room for three.

    Returns:
        The claim: released by `release()` or by the end of the process, however it ends.

    Raises:
        UserError: if the folder cannot be written, is too full, or is another process's at the moment.
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
            print(f"{folder} held another run; moved to {aside}")
        for name in ("logs", "checkpoints", "visualizations"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for leftover in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:  # of a run that was killed
            leftover.unlink()
        free = shutil.disk_usage(folder).free
        if free < 3 * checkpoint_bytes:
            lock.release()
            raise UserError(
                f"--save_dir: {free / 2**20:.0f} MiB are free in {folder}, "
                f"and checkpoints need {3 * checkpoint_bytes / 2**20:.0f} MiB"
            )
        with atomic_path(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--save_dir: cannot write to {folder}: {error.strerror}") from None
    return lock


def lock_run_dir(folder: Path) -> FileLock:
    """Make the folder this process's own until the process ends.

    Raises:
        UserError: if it is another's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"--save_dir: another run is writing to {folder}") from None
    return lock


def keep_checkpoints(folder: Path, count: int) -> None:
    """Delete all but the newest `count` of the checkpoints that are kept by epoch; 0 keeps all."""
    if count:
        for path in sorted(folder.glob("checkpoints/checkpoint_epoch_*.pth"))[:-count]:
            path.unlink()


@contextlib.contextmanager
def warn_on_os_error(path: Path) -> Iterator[None]:
    """Around the writing of what a run can do without: a full disk is a warning."""
    try:
        yield
    except OSError as error:
        print(f"warning: cannot write {path}: {error.strerror or error}; training goes on", file=sys.stderr)


class EventLog:
    """TensorBoard's writer, which a full disk silences: it says so once, and begins anew at the next flush.

    Args:
        folder: of the event files.
        step: after which the run goes on; what an earlier sitting wrote of later steps is void.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step
        self.writer: SummaryWriter | None = None
        silence_tensorboard_threads()
        self.flush()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.step = step
        self._call("add_scalar", name, value, step)

    def add_image(self, name: str, picture: torch.Tensor, step: int) -> None:
        self._call("add_image", name, picture, step)

    def flush(self) -> None:
        if self.writer is None and shutil.disk_usage(self.folder).free > LOG_BYTES:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            with contextlib.suppress(OSError):
                self.writer = SummaryWriter(str(self.folder), purge_step=self.step + 1 if self.step else None)
        self._call("flush")

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: object) -> None:
        if self.writer is None:
            return
        try:
            getattr(self.writer, method)(*arguments)
        except OSError as error:
            print(
                f"warning: cannot write {self.folder}: {error.strerror or error}; training goes on",
                file=sys.stderr,
            )
            self.writer = None


def silence_tensorboard_threads() -> None:
    """Print nothing of what fails in the writing thread: the next call of the writer raises it."""
    others = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard"):
            others(failure)

    threading.excepthook = hook


def try_to_save(state: dict[str, Any], path: Path) -> bool:
    """Save a checkpoint; where the disk does not let us, say so and go on: the one before is whole."""
    try:
        save_checkpoint(state, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        print(f"warning: cannot save {path}: {reason}; training goes on", file=sys.stderr)
        return False
    return True
