"""All that a training run is between two steps, and one step."""

import ctypes
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from config import Config
from inference.device import has_bfloat16, seed_everything
from inference.inpainter import load_network
from losses import InpaintingLoss
from metric_tracker import MetricsTracker
from models import InpaintingNetwork
from training.optimizers import Muon
from utils import UserError

FINAL_LR = 0.01  # share of the peak learning rate left at the end
LEAST_MATRIX = 16  # channels


def lr_factor(progress: float, warmup: float, decay: float) -> float:
    """The learning rate's share of its peak: a linear rise, the peak, then a cosine down to `FINAL_LR`.

    Args:
        progress: the done share of the run, in [0, 1].
        warmup, decay: the shares of the run, at its start and at its end, of the rise and of the fall.
    """
    if progress < warmup:
        return (progress + 0.01 * warmup) / (1.01 * warmup)
    done = max(0.0, progress - max(warmup, 1 - decay)) / min(decay, 1 - warmup)
    return FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * done)) / 2


def make_optimizers(network: nn.Module, name: str, fused: bool) -> list[torch.optim.Optimizer]:
    """AdamW for all weights, or Muon for the matrices among them and AdamW for the rest.

    A matrix is a convolution of at least `LEAST_MATRIX` channels on its smaller side.
    """
    matrices = [
        parameter
        for parameter in network.parameters()
        if name == "muon" and parameter.ndim == 4 and min(parameter.flatten(1).shape) >= LEAST_MATRIX
    ]
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.99), fused=fused)
    return [Muon(matrices), adamw] if matrices else [adamw]


def ema_update(decay: float) -> Callable[[Any, Any, torch.Tensor | int], None]:
    """The averaging of weights; after n steps the decay is min(`decay`, (1 + n) / (10 + n))."""

    @torch.no_grad()
    def update(
        averaged: list[torch.Tensor], current: list[torch.Tensor], num_averaged: torch.Tensor | int
    ) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


class Run:
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
        self.num_spoilt = 0  # steps without a finite loss, in a row

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

    def begin_with(self, checkpoint: str) -> None:
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

    def expect_one_state(self) -> None:
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


def train_step(
    run: Run,
    network: nn.Module,
    criterion: InpaintingLoss,
    batches: list[dict[str, Any]],
    progress: float,
) -> dict[str, float] | None:
    """One optimizer step on the gradients of several batches, and one update of the averaged weights.

    Args:
        network: `run.model`, perhaps compiled.
        progress: the done share of the run, for the schedules.

    Returns:
        Every loss term, averaged over the images, and `grad_norm` before clipping; None if the loss or a
        gradient was not finite: then nothing has changed.
    """
    config = run.config
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * lr_factor(progress, config.warmup, config.decay)
            group["weight_decay"] = config.weight_decay
    num_images = sum(len(batch["image"]) for batch in batches)
    means: dict[str, float] = {}
    for batch in batches:
        image, mask = to_device(batch, run)
        with torch.autocast(run.device.type, dtype=run.amp_dtype, enabled=run.amp_dtype is not None):
            outputs = network(image, mask)
        losses = criterion(outputs, image, mask, progress, 1)
        share = len(image) / num_images
        run.scaler.scale(losses["total"] * share).backward()
        for name, loss in losses.items():
            means[name] = means.get(name, 0.0) + loss.item() * share
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), config.grad_clip)
    # half-precision gradients overflow now and then: the scaler skips those steps, and scales less
    finite = math.isfinite(means["total"]) and (run.scaler.is_enabled() or math.isfinite(norm.item()))
    if run.any_process(not finite):
        run.model.zero_grad(set_to_none=True)
        run.scaler.update()
        return None
    for optimizer in run.optimizers:
        run.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    run.scaler.update()
    run.ema.update_parameters(run.model)
    return run.average(means) | {"grad_norm": norm.item()}


def to_device(batch: dict[str, Any], run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (B, 3, H, W) and mask (B, 1, H, W) of a batch, where and as the network wants them."""
    memory_format = torch.channels_last if run.config.channels_last else torch.contiguous_format
    image = batch["image"].to(run.device, memory_format=memory_format, non_blocking=True)
    return image, batch["mask"].to(run.device, non_blocking=True)


def make_criterion(config: Config) -> InpaintingLoss:
    """The loss with the weights and settings of a configuration."""
    return InpaintingLoss(
        **{name: getattr(config, name) for name in vars(config) if name.startswith("lambda_")},
        boundary_width=config.boundary_width,
        vgg_weights=config.vgg_weights or None,
        reconstruction=config.reconstruction,
    )


def set_up_process(seed: int) -> None:
    """Seed every generator, and set what makes training fast: TF32, no denormal numbers, memory kept."""
    seed_everything(seed)
    torch.set_flush_denormal(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks for the next step instead of returning them to the system.

    Their pages would be cleared again at every step: a fifth of the time of one at 256 px.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            trim_threshold, mmap_threshold = -1, -3
            libc.mallopt(mmap_threshold, 2**30)
            libc.mallopt(trim_threshold, 2**31 - 1)
