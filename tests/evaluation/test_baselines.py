"""Baselines fill the hole alone, from known pixels alone, as their methods define."""

import cv2
import numpy as np
import pytest
import torch

from evaluation.baselines import BASELINES
from prior import push_pull

Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_leave_known_pixels_and_never_read_the_hole(name: str, batch: Batch) -> None:
    image, mask = batch
    damaged = torch.where(mask > 0, torch.nan, image)
    filled = BASELINES[name].fill(damaged, mask)
    assert torch.equal(filled, BASELINES[name].fill(image, mask))
    assert torch.equal(torch.where(mask > 0, 0, filled), torch.where(mask > 0, 0, image))
    assert filled.isfinite().all() and filled.min() >= 0 and filled.max() <= 1
    assert not torch.equal(filled, image)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "biharmonic"])
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
