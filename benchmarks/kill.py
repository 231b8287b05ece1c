"""Check that a training run that is killed repeatedly ends like an undisturbed one, bit for bit.

One run is undisturbed. Another with the same settings is killed by SIGKILL at random moments, about half
of them while a checkpoint is being written, and resumed by `--resume auto` each time. Weights, averaged
weights, optimizer states and metrics have to be bit-identical, with no temporary file left.
"""

import csv
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from inference.checkpoints import load_checkpoint
from utils import OneLineParser

TIMES = {"seconds", "images_per_s", "elapsed_s"}  # differ from run to run


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """The paths at which two states differ, apart from times."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [where]
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        pairs = [(key, first[key], second[key]) for key in first if key not in TIMES]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(first, second, strict=True))]
    else:
        same = first == second or (first != first and second != second)  # NaN equals NaN here
        return [] if same else [where]
    return [path for key, x, y in pairs for path in differences(x, y, f"{where}.{key}")]


def temporaries(folder: Path) -> set[Path]:
    return set(folder.rglob(".*.tmp"))


def start(argv: list[str]) -> ForkProcess:
    """Start a run in a process of its own, which need not import anything again."""

    def run() -> None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
        sys.exit(train.main(argv))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def finish(process: ForkProcess) -> None:
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the run failed with status {process.exitcode}")


def kill_once(argv: list[str], folder: Path, generator: random.Random, at_writing: bool) -> bool:
    """Start or resume the run, let it save a few times, kill it; returns whether it was writing a checkpoint.

    Raises:
        RuntimeError: if the run ended before.
    """
    last_file = folder / "checkpoints" / "last.pth"
    process = start(argv)

    def wait_for(event: Callable[[], bool]) -> None:
        while not event():
            if not process.is_alive():
                raise RuntimeError("the run ended before it was killed")
            time.sleep(0.0005)

    def saved() -> int:
        return last_file.stat().st_mtime_ns if last_file.exists() else 0

    for _ in range(generator.randint(1, 4)):
        before = saved()
        wait_for(lambda before=before: saved() != before)  # type: ignore[misc]
    if at_writing:
        wait_for(lambda: bool(temporaries(folder / "checkpoints")))
        time.sleep(generator.uniform(0, 0.002))
    else:
        time.sleep(generator.uniform(0, 1))
    process.kill()
    process.join()
    return bool(temporaries(folder / "checkpoints"))


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if the runs differ."""
    parser = OneLineParser(prog="kill.py", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, metavar="N", help="number of kills")
    parser.add_argument("--epochs", type=int, default=40, metavar="N", help="epochs, each of 25 steps")
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="seed of the moments")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / "undisturbed", Path(name) / "killed"]
        common = [
            "--train_root=sample", "--val_root=sample", "--val_subset=4",
            "--train_subset=50", "--image_size=32", "--base_channels=16", "--bottleneck_depth=1",
            "--batch_size=2", "--num_workers=0", "--lr=1e-3", "--optimizer=muon", "--val_interval=4",
            "--checkpoint_interval=4", "--save_minutes=0.005", "--device=cpu", "--resume=auto",
            "--prior_rank=16", f"--epochs={args.epochs}", f"--cache_dir={name}/cache",
        ]  # fmt: skip
        undisturbed = start([*common, f"--save_dir={folders[0]}"])
        generator, writing = random.Random(args.seed), 0
        argv_killed = [*common, f"--save_dir={folders[1]}"]
        for number in range(args.kills):
            at_writing = number % 2 == 0  # not every one hits
            writing += kill_once(argv_killed, folders[1], generator, at_writing)
            print(f"killed {number + 1} times, {writing} of them while writing", flush=True)
        finish(start(argv_killed))
        finish(undisturbed)
        checkpoints = [load_checkpoint(folder / "checkpoints" / "last.pth", "--resume") for folder in folders]
        for checkpoint in checkpoints:
            del checkpoint["config"]
        differing = differences(checkpoints[0], checkpoints[1])
        tables = [
            [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(lines)]
            for lines in ((folder / "metrics.csv").read_text().splitlines() for folder in folders)
        ]
        left = sorted(str(path.relative_to(name)) for path in temporaries(Path(name)))
    differing += [] if tables[0] == tables[1] else ["metrics.csv"]
    report = {"kills": args.kills, "while writing": writing, "steps": checkpoints[0]["counters"]["step"]}
    print(json.dumps(report | {"differing": differing[:9], "left": left}))
    return int(bool(differing or left))


if __name__ == "__main__":
    sys.exit(main())
