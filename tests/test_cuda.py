"""Results on a CUDA device against those on the CPU, and training on it."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomize_zero_init

from config import get_config
from inference.checkpoints import load_checkpoint
from models import InpaintingNetwork
from texture import add_texture, gaussian
from train import train

DEVICE = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Arithmetic without TF32, which keeps three decimal digits."""
    modules: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [module.allow_tf32 for module in modules]
    for module in modules:
        module.allow_tf32 = False
    yield
    for module, allowed in zip(modules, before, strict=True):
        module.allow_tf32 = allowed


def make_network() -> InpaintingNetwork:
    torch.manual_seed(0)
    network = randomize_zero_init(InpaintingNetwork(8, prior_rank=4))
    network.prior.fit(torch.rand(16, 3, 32, 32))  # type: ignore[union-attr]
    return network


@pytest.mark.parametrize("size", [(64, 64), (37, 150)])
def test_completions_equal_those_of_the_cpu(size: tuple[int, int], full_precision: None) -> None:
    network, image = make_network().eval(), torch.rand(2, 3, *size)
    mask = torch.zeros(2, 1, *size)
    mask[..., 5:30, 9:35] = 1
    on_device = copy.deepcopy(network).to(DEVICE)
    with torch.no_grad():
        expected, found = network(image, mask), on_device(image.to(DEVICE), mask.to(DEVICE))
    for name in ("coarse", "refined", "output", "structure"):
        torch.testing.assert_close(found[name].cpu(), expected[name], atol=1e-4, rtol=0)
    known = 1 - mask
    assert torch.equal(found["output"].cpu() * known, image * known)


def test_texture_is_that_of_the_cpu(full_precision: None) -> None:
    """Rounding changes the source of a patch where two are nearly equal, so that few pixels differ."""
    generator = torch.Generator().manual_seed(0)
    image = gaussian(torch.rand(1, 3, 340, 400, generator=generator), 1.0)
    image = image.expand(2, -1, -1, -1).clone()
    mask = torch.zeros(2, 1, 340, 400)
    mask[0, ..., 100:200, 150:260], mask[1, ..., :80, 300:] = 1, 1
    blurred = torch.cat([gaussian(each, 3.0) for each in image.split(1)])
    completed = torch.where(mask > 0, blurred, image)
    expected, found = add_texture(completed, mask), add_texture(completed.to(DEVICE), mask.to(DEVICE))
    assert found.device.type == DEVICE.type
    assert torch.equal(found, add_texture(completed.to(DEVICE), mask.to(DEVICE)))  # repeatable
    known = (mask == 0).expand_as(image)
    assert torch.equal(found.cpu()[known], completed[known])
    difference = (found.cpu() - expected)[~known].abs()
    assert (difference < 1 / 255).float().mean() > 0.9
    assert (expected - completed)[~known].abs().mean() > 10 * difference.mean()


def test_gradients_equal_those_of_the_cpu(full_precision: None) -> None:
    network, image = make_network(), torch.rand(2, 3, 64, 64)
    mask = torch.zeros(2, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    on_device = copy.deepcopy(network).to(DEVICE)
    for module, device in ((network, torch.device("cpu")), (on_device, DEVICE)):
        module(image.to(device), mask.to(device))["refined"].square().mean().backward()
    for (name, expected), found in zip(network.named_parameters(), on_device.parameters(), strict=True):
        assert (expected.grad is None) == (found.grad is None), name
        if expected.grad is not None and found.grad is not None:
            scale = expected.grad.abs().max().item()
            torch.testing.assert_close(
                found.grad.cpu(), expected.grad, atol=1e-3 * scale + 1e-7, rtol=0, msg=name
            )


@pytest.mark.parametrize("amp", [False, True])
def test_a_run_trains_saves_and_resumes(amp: bool, folder: Path, tmp_path: Path) -> None:
    settings = {
        "train_root": str(folder), "val_root": str(folder), "image_size": 32, "base_channels": 4,
        "save_dir": str(tmp_path / "run"), "device": DEVICE.type, "amp": amp, "resume": "auto",
    }  # fmt: skip
    for epochs in (1, 2):
        train(get_config("debug", **settings, epochs=epochs))
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pth", "--resume")
    assert checkpoint["counters"]["epoch"] == 2
    assert all(value.isfinite().all() for value in checkpoint["ema"].values())
