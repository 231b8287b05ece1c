"""All that a training run is between two steps, and one step."""

import dataclasses
import math
import sys
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


class TrainingState:
    """All that a run is, between two steps: what a checkpoint holds and `resume` restores."""

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
                f"note: --amp: no bfloat16 arithmetic on this {device.type}; going on in float32",
                file=sys.stderr,
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype == torch.float16)
        self.tracker = MetricsTracker()
        self.epoch = 0  # epochs completed
        self.batch = 0  # batches of the next epoch completed
        self.step = 0  # optimizer steps
        self.images = 0  # images seen
        self.elapsed_s = 0.0  # of training, validating and writing, over all sittings
        self.size, self.batch_size = config.stage_at(0.0)  # pixels and images, of the epoch under way
        self.best_psnr = -math.inf  # dB
        self.sums: dict[str, float] = {}  # of the losses in the epoch under way
        self.num_nonfinite = 0  # steps without a finite loss, in a row

    COUNTERS = ("epoch", "batch", "step", "images", "elapsed_s", "size", "batch_size", "best_psnr", "sums")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only."""
        return {
            "architecture": self.config.architecture(),
            "config": dataclasses.asdict(self.config),
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "num_averaged": int(self.ema.n_averaged),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "history": self.tracker.rows,
            "counters": {name: getattr(self, name) for name in self.COUNTERS},
            "num_processes": self.num_processes,
        }

    def expect_architecture(self, saved: dict[str, Any], flag: str, path: str | Path) -> None:
        """Raises a `UserError` that names the differing fields, if `saved` is not the run's own."""
        differing = [
            f"{name} {saved.get(name)} there, {value} here"
            for name, value in self.config.architecture().items()
            if saved.get(name) != value
        ]
        if differing:
            raise UserError(f"{flag}: {path} holds another architecture: {'; '.join(differing)}")

    def init_from_checkpoint(self, checkpoint: str) -> None:
        """Begin with the averaged weights of a checkpoint, and with nothing else of it.

        Weights without a prior leave it unfitted.

        Raises:
            UserError: if it cannot be read, or holds another architecture.
        """
        network, state = load_network(checkpoint, self.device, "--init")
        architecture = dict(state["architecture"])
        if not architecture.get("prior_rank"):
            architecture["prior_rank"] = self.config.prior_rank
        self.expect_architecture(architecture, "--init", checkpoint)
        weights = self.model.state_dict() | network.state_dict()
        self.model.load_state_dict(weights)
        self.ema.module.load_state_dict(weights)

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            UserError: naming the differing fields, if it holds another architecture.
        """
        if "model" not in state:
            raise UserError(f"--resume: {path} holds weights alone; begin with them by --init")
        self.expect_architecture(state["architecture"], "--resume", path)
        if state["config"].get("optimizer", "adamw") != self.config.optimizer:
            saved = state["config"].get("optimizer", "adamw")
            raise UserError(
                f"--resume: {path} holds the state of --optimizer {saved}, not {self.config.optimizer}"
            )
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.ema.n_averaged.fill_(state["num_averaged"])
        for optimizer, saved_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        if state["scaler"]:  # empty if it was not float16 that was trained
            self.scaler.load_state_dict(state["scaler"])
        self.tracker = MetricsTracker(state["history"])
        for name in self.COUNTERS:
            setattr(self, name, state["counters"][name])
        # of another number of processes: the same place in the epoch, less at most one batch of each
        self.batch = self.batch * state.get("num_processes", 1) // self.num_processes

    def check_same_checkpoint_on_all_ranks(self) -> None:
        """Raises a `UserError` if the processes did not all begin at the same place."""
        if self.num_processes > 1:
            places: list[Any] = [None] * self.num_processes
            torch.distributed.all_gather_object(places, (self.epoch, self.batch, self.step))
            if len(set(places)) > 1:
                raise UserError(
                    f"--resume: the processes found different checkpoints: {places}; share --save_dir"
                )

    def any_process(self, condition: bool) -> bool:
        """Whether it holds in any of the processes."""
        if self.num_processes > 1:
            state = torch.tensor(float(condition), device=self.device)
            torch.distributed.all_reduce(state, torch.distributed.ReduceOp.MAX)
            return state.item() > 0
        return condition

    def average(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over all processes of each value; they have to have the same names."""
        if self.num_processes > 1:
            state = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
            torch.distributed.all_reduce(state)
            return dict(zip(values, (state / self.num_processes).tolist(), strict=True))
        return values

    def agree(self, received: int | None) -> int | None:
        """Give all processes the latest of their times, and any one's signal, which is returned."""
        if self.num_processes > 1:
            state = torch.tensor([self.elapsed_s, received or 0], dtype=torch.float64, device=self.device)
            torch.distributed.all_reduce(state, torch.distributed.ReduceOp.MAX)
            self.elapsed_s = state[0].item()
            return int(state[1].item()) or None
        return received

    def progress(self, batches: int) -> float:
        """The done share of the run, in [0, 1]: of its epochs (of `batches`) or of its time, if more."""
        by_epochs = (self.epoch + self.batch / batches) / self.config.epochs
        by_time = self.elapsed_s / (60 * self.config.max_minutes) if self.config.max_minutes else 0.0
        return min(1.0, max(by_epochs, by_time))
