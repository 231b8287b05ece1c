"""Crops and tiles cover every hole once, and blend without a seam."""

import numpy as np
import torch
from conftest import photograph

from inference.tiling import CELL, OVERLAP, crops, enlarge, halve, tiles
from layers import resize
from prior import pull


def test_crops_hold_every_hole_once_with_context(generator: np.random.Generator) -> None:
    for _ in range(30):
        hole = np.zeros(generator.integers(200, 1500, 2), bool)
        for _ in range(generator.integers(1, 6)):
            top, left = (generator.integers(0, side - 8) for side in hole.shape)
            hole[top : top + generator.integers(1, 200), left : left + generator.integers(1, 200)] = True
        times = np.zeros(hole.shape, int)
        for region in crops(hole, 256):
            times[region] += 1
        assert (times[hole] == 1).all()
    assert crops(np.zeros((900, 900), bool), 256) == []


def test_a_small_hole_in_a_large_picture_is_a_small_crop() -> None:
    hole = np.zeros((3000, 4000), bool)
    hole[1000:1100, 2000:2150] = hole[10:20, 3980:3990] = True
    sizes = sorted((r.stop - r.start, c.stop - c.start) for r, c in crops(hole, 512))
    assert sizes == [(256, 256), (480, 480)]
    for rows, columns in crops(hole, 512):
        assert rows.start % CELL == columns.start % CELL == 0


def test_halves_are_the_networks_own(generator: np.random.Generator) -> None:
    pixels, hole = photograph(1101, 75), generator.random((1101, 75)) < 0.4
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    mask = torch.from_numpy(hole)[None, None].float()
    expected, expected_mask = pull(image.masked_fill(mask > 0, 0), mask)
    half, half_hole = halve(pixels, hole)
    np.testing.assert_allclose(half, expected[0].permute(1, 2, 0).numpy(), atol=1e-6)
    assert np.array_equal(half_hole, expected_mask[0, 0].numpy() > 0)


def test_an_enlarged_region_is_cut_from_the_enlarged_whole(generator: np.random.Generator) -> None:
    pixels = generator.random((40, 50, 3)).astype(np.float32)
    whole = resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], like=torch.zeros(1, 3, 80, 100))
    for region in (np.s_[0:32, 0:32], np.s_[20:52, 64:96], np.s_[48:80, 68:100]):
        expected = whole[0].permute(1, 2, 0).numpy()[region]
        np.testing.assert_allclose(enlarge(pixels, region), expected, atol=1e-6)


def test_tiles_cover_what_is_needed_and_rise_without_a_step(generator: np.random.Generator) -> None:
    for _ in range(300):
        length, side = int(generator.integers(1, 1000)), int(generator.choice([128, 192, 256]))
        needed = np.zeros(length, bool)
        first = generator.integers(0, length)
        needed[first : generator.integers(first, length) + 1] = True
        blended, covered = np.zeros(length), np.zeros(length, bool)
        spans = tiles(needed, side)
        for number, (span, rise) in enumerate(spans):
            assert span.start % 2 == 0 and span.stop - span.start == len(rise) <= side
            blended[span] = rise * number + (1 - rise) * blended[span]
            covered[span] = True
        assert covered[needed].all()
        steps = np.abs(np.diff(blended[needed])).max(initial=0)
        assert steps < 4 / OVERLAP  # a cut would be 1
