"""Training state: everything that a checkpoint holds and a resumed run restores."""

import dataclasses
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from config import Config
from inference.checkpoints import load_network
from inference.device import has_bfloat16
from metric_tracker import MetricsTracker
from models import InpaintingNetwork
from training.optimizers import ema_update, make_optimizers
from utils import UserError

COUNTERS = ("epoch", "batch", "step", "images", "elapsed_s", "size", "batch_size", "best_psnr", "sums")


class TrainingState:
    """Model, averaged weights, optimizers, history and counters of a run between two steps.

    Args:
        model: network to train instead of the configured one.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        rank: int = 0,
        num_processes: int = 1,
        model: InpaintingNetwork | None = None,
    ) -> None:
        self.config, self.device = config, device
        self.rank, self.num_processes = rank, num_processes
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model = model or InpaintingNetwork(**config.architecture())
        self.model = model.to(device).to(memory_format=memory_format)
        self.ema = AveragedModel(self.model, multi_avg_fn=ema_update(config.ema_decay))
        self.optimizers = make_optimizers(self.model, config.optimizer, fused=device.type == "cuda")
        self.amp_dtype = None
        if config.amp and has_bfloat16(device):
            self.amp_dtype = torch.bfloat16
        elif config.amp and device.type == "cuda":
            self.amp_dtype = torch.float16
        elif config.amp and rank == 0:
            print(
                f"note: --amp: no bfloat16 arithmetic on this {device.type}; training in float32",
                file=sys.stderr,
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype == torch.float16)
        self.tracker = MetricsTracker()
        self.epoch = 0  # completed epochs
        self.batch = 0  # completed batches of the current epoch
        self.step = 0  # optimizer steps, skipped ones included
        self.images = 0  # training images seen
        self.elapsed_s = 0.0  # training, validating and writing, across resumes
        self.size, self.batch_size = config.stage_at(0.0)  # pixels and images per batch, in this epoch
        self.best_psnr = -math.inf  # dB
        self.sums: dict[str, float] = {}  # losses, `images` and `seconds` of this epoch's finite steps
        self.num_nonfinite = 0  # consecutive steps without a finite loss

    def progress(self, num_batches: int) -> float:
        """Completed share of the run, in [0, 1]: of its epochs or of its time limit, whichever is larger.

        Args:
            num_batches: batches per epoch.
        """
        by_epochs = (self.epoch + self.batch / num_batches) / self.config.epochs
        by_time = self.elapsed_s / (60 * self.config.max_minutes) if self.config.max_minutes else 0.0
        return min(1.0, max(by_epochs, by_time))

    def count_step(
        self, losses: dict[str, float] | None, num_batches: int, num_images: int, elapsed_s: float
    ) -> None:
        """Count one optimizer step; None as `losses` means that the step was not finite and was skipped."""
        self.batch, self.step = self.batch + num_batches, self.step + 1
        self.images, self.elapsed_s = self.images + num_images, self.elapsed_s + elapsed_s
        self.num_nonfinite = self.num_nonfinite + 1 if losses is None else 0
        if losses is not None:
            self.sums["images"] = self.sums.get("images", 0.0) + num_images
            for name, value in (losses | {"seconds": elapsed_s / num_images}).items():
                self.sums[name] = self.sums.get(name, 0.0) + value * num_images

    def finish_epoch(self) -> dict[str, float]:
        """Move on to the next epoch; returns the means per image of the losses, `grad_norm` and `seconds`."""
        sums, self.sums = self.sums, {}
        self.epoch, self.batch = self.epoch + 1, 0
        num_images = sums.pop("images", math.nan)
        return {name: value / num_images for name, value in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint: tensors and plain Python values only."""
        return {
            "architecture": self.config.architecture(),
            "config": dataclasses.asdict(self.config),
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "num_averaged": int(self.ema.n_averaged),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "history": self.tracker.rows,
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "num_processes": self.num_processes,
        }

    def load_state_dict(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Resume from a checkpoint.

        Raises:
            UserError: naming the differing fields, if it holds another architecture.
        """
        if "model" not in checkpoint:
            raise UserError(f"--resume: {path} holds weights alone; start from them with --init")
        self.check_architecture(checkpoint["architecture"], "--resume", path)
        saved, current = checkpoint["config"].get("optimizer", "adamw"), self.config.optimizer
        if saved != current:
            raise UserError(f"--resume: {path} holds the state of --optimizer {saved}, not {current}")
        self.model.load_state_dict(checkpoint["model"])
        self.ema.module.load_state_dict(checkpoint["ema"])
        self.ema.n_averaged.fill_(checkpoint["num_averaged"])
        for optimizer, optimizer_state in zip(self.optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        if checkpoint["scaler"]:  # empty unless the run trained in float16
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.tracker = MetricsTracker(checkpoint["history"])
        for name in COUNTERS:
            setattr(self, name, checkpoint["counters"][name])
        # another number of processes resumes at the same image, or up to one batch per process earlier
        self.batch = self.batch * checkpoint.get("num_processes", 1) // self.num_processes

    def init_from_checkpoint(self, name: str) -> None:
        """Start from the averaged weights of a checkpoint, without the rest of its state.

        Weights without a prior leave the prior unfitted.

        Raises:
            UserError: if it cannot be read, or holds another architecture.
        """
        network, checkpoint = load_network(name, self.device, "--init")
        architecture = dict(checkpoint["architecture"])
        if not architecture.get("prior_rank"):
            architecture["prior_rank"] = self.config.prior_rank
        self.check_architecture(architecture, "--init", name)
        weights = self.model.state_dict() | network.state_dict()
        self.model.load_state_dict(weights)
        self.ema.module.load_state_dict(weights)

    def check_architecture(self, saved: dict[str, Any], flag: str, path: str | Path) -> None:
        """Raise a `UserError` that names the differing fields, unless `saved` is the run's architecture."""
        differing = [
            f"{name} {saved.get(name)} there, {value} here"
            for name, value in self.config.architecture().items()
            if saved.get(name) != value
        ]
        if differing:
            raise UserError(f"{flag}: {path} holds another architecture: {'; '.join(differing)}")

    def check_same_checkpoint_on_all_ranks(self) -> None:
        """Raise a `UserError` unless all processes start at the same step."""
        if self.num_processes > 1:
            steps: list[Any] = [None] * self.num_processes
            torch.distributed.all_gather_object(steps, (self.epoch, self.batch, self.step))
            if len(set(steps)) > 1:
                raise UserError(
                    f"--resume: the processes found different checkpoints: {steps}; share --save_dir"
                )

    def max_over_processes(self, *values: float) -> list[float]:
        """The maximum of each value over all processes."""
        return self._all_reduce(values, "MAX")

    def mean_over_processes(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each value over all processes, which have to pass the same names."""
        totals = self._all_reduce(values.values(), "SUM")
        return {name: total / self.num_processes for name, total in zip(values, totals, strict=True)}

    def _all_reduce(self, values: Iterable[float], operation: str) -> list[float]:
        if self.num_processes == 1:
            return list(values)
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor, getattr(torch.distributed.ReduceOp, operation))
        return tensor.tolist()
