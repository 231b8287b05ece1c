"""One optimizer step."""

import math
from typing import Any

import torch
from torch import nn

from config import Config
from losses import InpaintingLoss
from training.optimizers import lr_factor
from training.state import TrainingState


def train_step(
    run: TrainingState,
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


def to_device(batch: dict[str, Any], run: TrainingState) -> tuple[torch.Tensor, torch.Tensor]:
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
