"""Muon against the singular value decomposition and torch's own Muon; schedule and averaging by hand."""

import dataclasses

import pytest
import torch
from runs import CPU, MUON
from torch import nn

from config import Config
from training.optimizers import FINAL_LR, Muon, ema_update, lr_factor, orthogonalize
from training.state import TrainingState


@pytest.mark.parametrize("shape", [(3, 24, 100), (2, 100, 24), (1, 32, 32)])
def test_orthogonalize_keeps_the_singular_vectors_and_levels_the_values(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, vt = torch.linalg.svd(x, full_matrices=False)
    rotated = u.mT @ orthogonalize(x) @ vt.mT  # diagonal if the singular vectors are the same
    levels = rotated.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(rotated, torch.diag_embed(levels), atol=1e-3, rtol=0)
    large = values > 0.05 * values.norm(dim=1, keepdim=True)
    assert levels[large].min() > 0.6 and levels[large].max() < 1.3


def test_orthogonalize_of_nothing_is_nothing() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 8)), torch.zeros(1, 4, 8))


def test_steps_agree_with_torchs_own_muon_on_matrices() -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(20, 30, generator=generator)
    ours, reference = (nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = [
        Muon([ours], **settings),
        torch.optim.Muon([reference], adjust_lr_fn="match_rms_adamw", **settings),
    ]
    for _ in range(4):
        gradient = torch.randn(20, 30, generator=generator)
        for parameter, optimizer in zip((ours, reference), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert (ours - start).norm() > 0.1
    # the reference multiplies in bfloat16
    torch.testing.assert_close(ours - start, reference - start, atol=2e-3, rtol=0.05)


def test_a_convolution_is_the_matrix_of_its_filters() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    convolution, matrix = nn.Parameter(weight.clone()), nn.Parameter(weight.flatten(1).clone())
    convolution.grad, matrix.grad = weight.cos(), weight.flatten(1).cos()
    for parameter in (convolution, matrix):
        Muon([parameter], lr=0.1).step()
    torch.testing.assert_close(convolution.flatten(1), matrix)
    channels_last = nn.Parameter(weight.clone().to(memory_format=torch.channels_last))
    channels_last.grad = weight.cos()
    Muon([channels_last], lr=0.1).step()
    torch.testing.assert_close(channels_last, convolution)


def test_weights_of_one_shape_do_not_see_each_other() -> None:
    generator = torch.Generator().manual_seed(3)
    weights, gradients = torch.randn(2, 3, 8, 12, generator=generator).unbind()
    together = [nn.Parameter(weight.clone()) for weight in weights]
    for parameter, gradient in zip(together, gradients, strict=True):
        parameter.grad = gradient
    Muon(together, lr=0.1).step()
    for parameter, weight, gradient in zip(together, weights, gradients, strict=True):
        alone = nn.Parameter(weight.clone())
        alone.grad = gradient
        Muon([alone], lr=0.1).step()
        torch.testing.assert_close(alone, parameter)


def test_it_solves_a_linear_regression() -> None:
    generator = torch.Generator().manual_seed(4)
    x, target = torch.randn(256, 12, generator=generator), torch.randn(8, 12, generator=generator)
    parameter = nn.Parameter(torch.zeros(8, 12))
    optimizer = Muon([parameter], lr=0.1)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        (x @ (parameter - target).T).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), target, atol=0.02, rtol=0)


def test_biases_are_refused() -> None:
    with pytest.raises(ValueError, match=r"matrices and convolutions, got \(5,\)"):
        Muon([nn.Parameter(torch.zeros(5))])


def test_the_learning_rate_rises_then_falls_to_one_percent() -> None:
    assert 0 < lr_factor(0, 0.1, 1) < 0.02
    assert lr_factor(0.1, 0.1, 1) == pytest.approx(1)
    assert lr_factor(0.55, 0.1, 1) == pytest.approx((1 + FINAL_LR) / 2)
    assert lr_factor(1, 0.1, 1) == pytest.approx(FINAL_LR)
    assert lr_factor(0, 0, 1) == 1
    assert lr_factor(0.1, 0.1, 0.3) == lr_factor(0.7, 0.1, 0.3) == 1  # warmup, stable, decay
    assert lr_factor(0.85, 0.1, 0.3) == pytest.approx((1 + FINAL_LR) / 2)
    assert lr_factor(1, 0.1, 0.3) == pytest.approx(FINAL_LR)


def test_the_average_forgets_its_first_steps() -> None:
    update = ema_update(0.9)
    averaged, current = [torch.zeros(2)], [torch.ones(2)]
    update(averaged, current, torch.tensor(0))
    assert averaged[0].tolist() == pytest.approx([0.9, 0.9])
    update([average := torch.zeros(1)], [torch.ones(1)], torch.tensor(10**6))
    assert average.item() == pytest.approx(0.1)


def test_muon_takes_the_matrices_and_adamw_the_rest(config: Config) -> None:
    state = TrainingState(dataclasses.replace(config, **MUON), CPU)
    muon, adamw = ([p for g in o.param_groups for p in g["params"]] for o in state.optimizers)
    assert {id(p) for p in state.model.parameters()} == {id(p) for p in (*muon, *adamw)}
    assert len(muon) + len(adamw) == len(list(state.model.parameters()))
    names = {id(p): name for name, p in state.model.named_parameters()}
    assert "coarse_decoder.bottleneck.1.conv1.weight" in {names[id(p)] for p in muon}
    assert "refinement_decoder.to_rgb.weight" in {names[id(p)] for p in adamw}  # three channels
    (alone,) = TrainingState(config, CPU).optimizers
    assert type(alone) is torch.optim.AdamW
