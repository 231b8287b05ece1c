"""Random masks have the mask ratio that is requested, and repeat with the generator."""

import numpy as np
import pytest

from imaging.random_masks import random_free_form_mask, random_mask, random_rectangular_mask

MASKS = [random_free_form_mask, random_rectangular_mask, random_mask]


@pytest.mark.parametrize("draw", MASKS)
def test_the_mask_ratio_is_the_requested_one(draw, generator: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    for _ in range(700):
        height, width = generator.integers(16, 96, 2)
        ratio = generator.uniform(0.01, 0.9)
        mask = draw(height, width, ratio, generator)
        assert mask.shape == (height, width)
        assert set(np.unique(mask)) <= {0, 1}
        assert abs(mask.mean() - ratio) <= 0.02


def test_the_mask_ratio_is_drawn_uniformly_from_a_range(generator: np.random.Generator) -> None:
    ratios = [random_mask(32, 32, (0.1, 0.4), generator).mean() for _ in range(2000)]
    assert min(ratios) >= 0.08 and max(ratios) <= 0.42
    counts, _ = np.histogram(ratios, bins=5, range=(0.1, 0.4))
    assert counts.min() > 300


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_extreme_mask_ratios_are_exact(ratio: float, expected: float, generator: np.random.Generator) -> None:
    for draw in MASKS:
        assert draw(9, 13, ratio, generator).mean() == expected


def test_an_impossible_mask_ratio_is_refused(generator: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="mask_ratio"):
        random_free_form_mask(8, 8, (0.5, 0.2), generator)


def test_masks_sometimes_touch_the_border_and_repeat_with_the_seed() -> None:
    masks = [random_mask(64, 64, 0.3, np.random.default_rng(i)) for i in range(40)]
    touching = [m[0].any() or m[-1].any() or m[:, 0].any() or m[:, -1].any() for m in masks]
    assert any(touching)
    assert np.array_equal(masks[5], random_mask(64, 64, 0.3, np.random.default_rng(5)))
    assert not np.array_equal(masks[5], masks[6])
