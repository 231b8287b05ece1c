"""One optimizer step, and the loss that it minimizes."""

import math
from typing import Any

import torch
from torch import nn

from config import Config
from losses import InpaintingLoss
from training.optimizers import lr_factor
from training.state import TrainingState


def make_criterion(config: Config) -> InpaintingLoss:
    """The loss with the weights and settings of a configuration."""
    return InpaintingLoss(
        **{name: getattr(config, name) for name in vars(config) if name.startswith("lambda_")},
        boundary_width=config.boundary_width,
        vgg_weights=config.vgg_weights or None,
        reconstruction=config.reconstruction,
    )


def train_step(
    state: TrainingState,
    network: nn.Module,
    criterion: InpaintingLoss,
    batches: list[dict[str, Any]],
    progress: float,
) -> dict[str, float] | None:
    """Take one optimizer step on the accumulated gradients of `batches`, and update the averaged weights.

    Args:
        network: `state.model`, possibly compiled or distributed.
        progress: completed share of the run, in [0, 1], for the schedules.

    Returns:
        Every loss term, averaged over the images, and `grad_norm` before clipping; None if the loss or a
        gradient was not finite, in which case nothing has changed.
    """
    config = state.config
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * lr_factor(progress, config.warmup, config.decay)
            group["weight_decay"] = config.weight_decay
    num_images = sum(len(batch["image"]) for batch in batches)
    means: dict[str, float] = {}
    for batch in batches:
        image, mask = to_device(batch, state)
        with torch.autocast(state.device.type, dtype=state.amp_dtype, enabled=state.amp_dtype is not None):
            outputs = network(image, mask)
        losses = criterion(outputs, image, mask, epoch=progress, total_epochs=1)  # only their ratio counts
        share = len(image) / num_images
        state.scaler.scale(losses["total"] * share).backward()
        for name, loss in losses.items():
            means[name] = means.get(name, 0.0) + loss.item() * share
    for optimizer in state.optimizers:
        state.scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip)
    # float16 gradients overflow now and then: the scaler skips those steps and lowers its scale
    finite = math.isfinite(means["total"]) and (state.scaler.is_enabled() or math.isfinite(norm.item()))
    (any_nonfinite,) = state.max_over_processes(not finite)
    if any_nonfinite:
        state.model.zero_grad(set_to_none=True)
        state.scaler.update()
        return None
    for optimizer in state.optimizers:
        state.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    state.scaler.update()
    state.ema.update_parameters(state.model)
    return state.mean_over_processes(means) | {"grad_norm": norm.item()}


def to_device(batch: dict[str, Any], state: TrainingState) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (B, 3, H, W) and mask (B, 1, H, W) of a batch, on the device of the run."""
    memory_format = torch.channels_last if state.config.channels_last else torch.contiguous_format
    image = batch["image"].to(state.device, memory_format=memory_format, non_blocking=True)
    return image, batch["mask"].to(state.device, non_blocking=True)
