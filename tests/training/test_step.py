"""One optimizer step: accumulation, mixed precision, and steps that are not finite."""

import copy
import dataclasses

import pytest
import torch
from runs import CPU, MUON, assert_same, make_nonfinite

from config import Config
from losses import InpaintingLoss
from training import state as state_module
from training.loaders import make_loaders
from training.state import TrainingState
from training.step import make_criterion, train_step


def test_two_small_batches_make_the_step_of_one_large(config: Config) -> None:
    images = torch.rand(4, 3, 32, 32)
    mask = torch.zeros(4, 1, 32, 32)
    mask[..., 8:20, 8:24] = 1
    norms, weights = [], []
    for size in (4, 2):
        torch.manual_seed(0)
        state = TrainingState(config, CPU)
        batches = [{"image": images[i : i + size], "mask": mask[i : i + size]} for i in range(0, 4, size)]
        for _ in range(2):
            means = train_step(state, state.model, InpaintingLoss(), batches, 0.5)
        norms.append(means["grad_norm"])
        weights.append(state.model.embed.weight.detach().clone())
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert torch.allclose(weights[0], weights[1], atol=1e-5)


def test_mixed_precision_on_a_cpu_trains_as_single_precision_does(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(state_module, "has_bfloat16", lambda _: False)
    assert TrainingState(dataclasses.replace(config, amp=True), CPU).amp_dtype is None
    assert "note: --amp: no bfloat16 arithmetic on this cpu; training in float32" in capsys.readouterr().err
    monkeypatch.setattr(state_module, "has_bfloat16", lambda _: True)
    losses = []
    for amp in (False, True):
        torch.manual_seed(0)
        state = TrainingState(dataclasses.replace(config, amp=amp, lr=1e-3), CPU)
        assert state.amp_dtype == (torch.bfloat16 if amp else None)
        loader, _ = make_loaders(state)
        criterion = InpaintingLoss()
        batches = list(loader)[:2]
        steps = [train_step(state, state.model, criterion, batches, 0.5) or {} for _ in range(8)]
        losses.append([step["total"] for step in steps])
        assert all(parameter.dtype == torch.float32 for parameter in state.model.parameters())
    assert losses[1][-1] < losses[1][0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]


def test_a_skipped_step_changes_nothing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    state = TrainingState(dataclasses.replace(config, **MUON), CPU)
    loader, _ = make_loaders(state)
    batches = list(loader)
    criterion = InpaintingLoss()
    assert train_step(state, state.model, criterion, [batches[0]], 0.5) is not None
    before = copy.deepcopy(state.state_dict())
    make_nonfinite(monkeypatch, {2})
    assert train_step(state, state.model, criterion, batches[:2], 0.5) is None  # one of two accumulated
    assert_same(state.state_dict(), before)
    assert train_step(state, state.model, criterion, [batches[0]], 0.5) is not None


def test_every_loss_setting_reaches_the_loss(config: Config) -> None:
    weights = {
        f"lambda_{name}": i + 2.0
        for i, name in enumerate(("coarse", "refine", "edge", "corner", "color", "smaller"))
    }
    criterion = make_criterion(dataclasses.replace(config, boundary_width=3, reconstruction="rms", **weights))
    assert criterion.weights(1.0) == {
        "coarse": 1.0,
        "refine": 3.0,
        "edge": 4.0,
        "corner": 5.0,
        "color": 6.0,
        "smaller": 7.0,
    }
    assert criterion.boundary_width == 3 and criterion.reconstruction.__name__ == "masked_rms"
