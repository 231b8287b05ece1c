"""Optimizers: Muon, learning rate schedule, and the exponential average of the weights."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: fast at 0, not exact at 1
NUM_ITERATIONS = 5
UPDATE_RMS = 0.2  # at learning rate 1, about AdamW's
MIN_MATRIX_SIDE = 16  # channels of the smallest matrices that Muon optimizes
FINAL_LR = 0.01  # share of the peak learning rate


class Muon(torch.optim.Optimizer):
    """Muon, momentum with orthogonalized updates: all their singular values are about the same.

        M ← μM + (1 - μ)G,    O = UVᵀ of ((1 - μ)G + μM) = UΣVᵀ,    W ← (1 - ηλ)W - η · 0.2 √max(m, n) · O

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, with the scale of Liu et
    al., "Muon is Scalable for LLM Training", 2025, eq. 4, so that AdamW's learning rates apply. The weight of
    a convolution (C_out, C_in, k, k) is the matrix (C_out, C_in·k²). Unlike `torch.optim.Muon`, this one
    takes convolutions, works in float32 on CPUs without bfloat16 arithmetic, and iterates on the smaller
    Gram matrices of all weights of one shape at once, with a tenth of the multiplications.

    Args:
        params: weights of two or more dimensions.
        lr: η.
        momentum: μ.
        weight_decay: λ.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim < 2:
                raise ValueError(f"Muon takes matrices and convolutions, got {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            shapes: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for parameter, update in zip(parameters, updates, strict=True):
                matrix = update.flatten(1).float()
                shapes.setdefault(matrix.shape, []).append((parameter, matrix))
            for shape, items in shapes.items():
                steps = orthogonalize(torch.stack([matrix for _, matrix in items]))
                changes = [
                    step.view(parameter.shape).to(parameter.dtype)
                    for (parameter, _), step in zip(items, steps, strict=True)
                ]
                scale = group["lr"] * UPDATE_RMS * math.sqrt(max(shape))
                torch._foreach_sub_([parameter for parameter, _ in items], changes, alpha=scale)
        return loss


def orthogonalize(x: torch.Tensor) -> torch.Tensor:
    """Approximate UVᵀ of every x = UΣVᵀ: all but tiny singular values end between 0.7 and 1.2.

    Newton-Schulz iteration, x ← (a + b·xxᵀ + c·(xxᵀ)²) x. Every iterate is p(xxᵀ) x with the first x, so that
    only the small symmetric matrices are multiplied, and x once, at the end.

    Shapes:
        (N, m, n) to the same.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonalize(x.mT).mT
    a, b, c = NEWTON_SCHULZ
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    gram = x @ x.mT
    product = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand_as(gram)
    for _ in range(NUM_ITERATIONS):
        polynomial = b * gram + c * (gram @ gram)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    return product @ x


def lr_factor(progress: float, warmup: float, decay: float) -> float:
    """Learning rate relative to its peak: linear warmup, constant, then a cosine decay to `FINAL_LR`.

    Args:
        progress: completed share of the run, in [0, 1].
        warmup, decay: shares of the run, at its start and at its end.
    """
    if progress < warmup:
        return (progress + 0.01 * warmup) / (1.01 * warmup)
    done = max(0.0, progress - max(warmup, 1 - decay)) / min(decay, 1 - warmup)
    return FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * done)) / 2


def make_optimizers(network: nn.Module, name: str, fused: bool) -> list[torch.optim.Optimizer]:
    """AdamW for all weights, or Muon for the matrices among them and AdamW for the rest.

    A matrix is a convolution whose smaller side is at least `MIN_MATRIX_SIDE`.
    """
    matrices = [
        parameter
        for parameter in network.parameters()
        if name == "muon" and parameter.ndim == 4 and min(parameter.flatten(1).shape) >= MIN_MATRIX_SIDE
    ]
    matrix_ids = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in matrix_ids]
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.99), fused=fused)
    return [Muon(matrices), adamw] if matrices else [adamw]


def ema_update(decay: float) -> Callable[[Any, Any, torch.Tensor | int], None]:
    """Exponential moving average of weights; the decay after n steps is min(`decay`, (1 + n) / (10 + n))."""

    @torch.no_grad()
    def update(
        averaged: list[torch.Tensor], current: list[torch.Tensor], num_averaged: torch.Tensor | int
    ) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update
