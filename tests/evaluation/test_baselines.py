"""Baselines fill the hole alone, from known pixels alone, as their methods define."""

import importlib.util
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from evaluation.baselines import BASELINES
from prior import push_pull
from utils import UserError

Batch = tuple[torch.Tensor, torch.Tensor]
needs_patchmatch = pytest.mark.skipif(
    importlib.util.find_spec("patchmatch") is None, reason="pypatchmatch is optional"
)
needs_xphoto = pytest.mark.skipif(not hasattr(cv2, "xphoto"), reason="the installed OpenCV has no xphoto")
NEEDS = {"patchmatch": needs_patchmatch, "fsr": needs_xphoto}
NAMES = [pytest.param(name, marks=NEEDS.get(name, ())) for name in BASELINES]


@pytest.mark.parametrize("name", NAMES)
def test_baselines_leave_known_pixels_and_never_read_the_hole(name: str, batch: Batch) -> None:
    image, mask = batch
    damaged = torch.where(mask > 0, torch.nan, image)
    filled = BASELINES[name].fill(damaged, mask)
    assert torch.equal(filled, BASELINES[name].fill(image, mask))
    assert torch.equal(torch.where(mask > 0, 0, filled), torch.where(mask > 0, 0, image))
    assert filled.isfinite().all() and filled.min() >= 0 and filled.max() <= 1
    assert not torch.equal(filled, image)


@pytest.mark.parametrize("name", [param for param in NAMES if param.values != ("biharmonic",)])
def test_a_full_mask_is_filled_with_something(name: str) -> None:
    filled = BASELINES[name].fill(torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16))
    assert filled.isfinite().all()


def test_the_mean_is_that_of_the_known_pixels() -> None:
    image = torch.arange(12.0).reshape(1, 3, 2, 2) / 12
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    filled = BASELINES["mean_fill"].fill(image, mask)[0, :, 0, 0] * 12
    assert filled.tolist() == pytest.approx([2, 6, 10])


def test_the_other_methods_are_the_functions_that_they_are_named_after(batch: Batch) -> None:
    image, mask = batch
    known = image.masked_fill(mask > 0, 0)
    assert torch.equal(
        BASELINES["push_pull"].fill(image, mask), torch.where(mask > 0, push_pull(known, mask), image)
    )
    pixels = (known[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    hole = mask[0, 0].numpy().astype(np.uint8)
    for name, method in (("telea", cv2.INPAINT_TELEA), ("navier_stokes", cv2.INPAINT_NS)):
        expected = cv2.inpaint(pixels, hole, 3, method)[hole > 0]
        ours = BASELINES[name].fill(image, mask)[0].permute(1, 2, 0).numpy()[hole > 0]
        assert np.array_equal((ours * 255).round().astype(np.uint8), expected)


def test_biharmonic_continues_a_ramp() -> None:
    ramp = torch.linspace(0.2, 0.8, 24).expand(1, 3, 24, 24).contiguous()
    mask = torch.zeros(1, 1, 24, 24)
    mask[..., 9:15, 9:15] = 1
    assert torch.allclose(BASELINES["biharmonic"].fill(ramp, mask), ramp, atol=0.01)


@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDS[name]) for name in NEEDS])
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (11, 11)])
def test_small_images_do_not_stop_the_baselines_of_packages(name: str, size: tuple[int, int]) -> None:
    mask = torch.zeros(1, 1, *size)
    mask[..., size[0] // 2 :, size[1] // 2 :] = 1
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    filled = BASELINES[name].fill(image, mask)
    assert filled.isfinite().all() and torch.equal(
        filled[mask.expand_as(filled) == 0], image[mask.expand_as(image) == 0]
    )


@needs_patchmatch
def test_patchmatch_copies_a_pattern_and_repeats_itself() -> None:
    import patchmatch as package

    generator = torch.Generator().manual_seed(0)
    tile = torch.rand(1, 3, 8, 8, generator=generator)
    image = tile.repeat(1, 1, 8, 8)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 24:36, 24:36] = 1
    filled = BASELINES["patchmatch"].fill(image, mask)
    package.set_random_seed(7)
    assert torch.equal(filled, BASELINES["patchmatch"].fill(image, mask))
    assert (filled - image).abs().mean() / (mask.mean() * 0.33) < 0.25  # a mean colour is 1 away
    photo = torch.rand(1, 3, 64, 64, generator=generator)
    first = BASELINES["patchmatch"].fill(photo, mask)
    assert torch.equal(first, BASELINES["patchmatch"].fill(photo, mask)) and not torch.equal(first, photo)


@needs_xphoto
def test_fsr_continues_a_wave_in_the_colours_of_the_image() -> None:
    x = torch.arange(96.0)
    wave = 0.5 + 0.3 * torch.cos(2 * torch.pi * x / 8)
    image = torch.stack([wave, 0.5 * wave, 1 - wave])[None, :, None, :].expand(1, 3, 96, 96).contiguous()
    mask = torch.zeros(1, 1, 96, 96)
    mask[..., 40:56, 40:56] = 1
    hole = mask.expand_as(image) > 0
    errors = {
        name: (BASELINES[name].fill(image, mask) - image)[hole].abs().mean() for name in ("fsr", "telea")
    }
    assert errors["fsr"] < 0.05 < errors["telea"]


def test_a_baseline_that_is_not_installed_is_one_line_with_its_package(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(cv2, "xphoto", raising=False)
    with pytest.raises(UserError, match=r"--use_fsr: .* pip install opencv-contrib-python-headless"):
        BASELINES["fsr"].fill(*batch)
    monkeypatch.setitem(sys.modules, "patchmatch", None)
    with pytest.raises(UserError, match=r"--use_patchmatch: .* pip install pypatchmatch"):
        BASELINES["patchmatch"].fill(*batch)
    monkeypatch.setitem(sys.modules, "patchmatch", SimpleNamespace(patchmatch_available=False))
    with pytest.raises(UserError, match="has no library for this machine"):
        BASELINES["patchmatch"].fill(*batch)
