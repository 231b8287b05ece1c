"""Texture: known pixels stay, repeatable to the bit, sharp where the image is, and smooth where it is smooth."""

import numpy as np
import pytest
import torch
from skimage import data

from metrics import sharpness
from texture import (
    COMPONENTS,
    DEPTH,
    PATCH,
    SEARCHED,
    SMALLEST,
    STRIDE,
    Field,
    add_texture,
    check_detail,
    depth_of,
    gaussian,
    share_at_depth,
    sharpen,
)

BOX = np.s_[..., 40:75, 50:85]


def mask_of(height: int, width: int, hole: tuple = BOX) -> torch.Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[hole] = 1
    return mask


def textured(name: str = "brick", height: int = 128, width: int = 144, channels: int = 3) -> torch.Tensor:
    """A photograph of a material, (1, channels, height, width), its channels of different contrast."""
    gray = torch.from_numpy(getattr(data, name)()[:height, :width] / np.float32(255))
    return torch.stack([gray * (1 - 0.2 * i) for i in range(channels)])[None]


def blurred(image: torch.Tensor, mask: torch.Tensor, sigma: float = 3.0) -> torch.Tensor:
    """An image with its Gaussian blur in the hole, in the place of a network's completion."""
    return torch.where(mask > 0, gaussian(image, sigma), image)


def two_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Completions (2, 3, 97, 110) and masks with a different hole each."""
    mask = torch.cat([mask_of(97, 110, hole) for hole in (BOX, np.s_[..., :40, 60:])])
    image = torch.cat([textured(name, 97, 110) for name in ("brick", "gravel")])
    return torch.cat([blurred(*pair) for pair in zip(image.split(1), mask.split(1), strict=True)]), mask


def test_known_pixels_stay_and_the_hole_changes() -> None:
    completed, mask = two_images()
    before = completed.clone(), mask.clone()
    result = add_texture(completed, mask)
    assert torch.equal(completed, before[0]) and torch.equal(mask, before[1])  # inputs are not written to
    known = (mask == 0).expand_as(completed)
    assert torch.equal(result[known], completed[known])
    assert (result != completed)[~known].float().mean() > 0.9
    assert result.min() >= 0 and result.max() <= 1


def test_batches_memory_layout_and_inference_mode_change_no_bit() -> None:
    completed, mask = two_images()
    expected = add_texture(completed, mask)
    assert torch.equal(add_texture(completed, mask), expected)
    for i in range(2):
        assert torch.equal(add_texture(completed[i : i + 1], mask[i : i + 1])[0], expected[i])
    transposed = completed.transpose(2, 3).contiguous().transpose(2, 3)
    assert not transposed.is_contiguous()
    assert torch.equal(add_texture(transposed, mask), expected)
    channels_last = completed.contiguous(memory_format=torch.channels_last)
    assert torch.equal(add_texture(channels_last, mask.bool()), expected)
    with torch.inference_mode():
        made_inside = completed.clone()
        assert torch.equal(add_texture(made_inside, mask), expected)
    assert torch.equal(add_texture(made_inside, mask), expected)


def test_detail_is_the_share_of_what_is_added() -> None:
    completed, mask = two_images()
    completed = 0.25 + completed / 2  # so that nothing is clamped
    full = add_texture(completed, mask, 1.0)
    assert full.min() > 0 and full.max() < 1
    assert add_texture(completed, mask, 0) is completed
    for detail in (0.25, 0.7):
        expected = completed + detail * (full - completed)
        torch.testing.assert_close(add_texture(completed, mask, detail), expected, atol=1e-6, rtol=0)
    assert torch.equal(add_texture(completed, mask), full)


@pytest.mark.parametrize("detail", [-0.01, 1.01, float("nan"), float("inf"), -float("inf")])
def test_a_detail_that_is_no_share_is_refused(detail: float) -> None:
    for refuse in (check_detail, lambda detail: add_texture(torch.rand(1, 3, 9, 9), mask_of(9, 9), detail)):
        with pytest.raises(ValueError, match=r"detail must be in \[0, 1\], got "):
            refuse(detail)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 200), (3, 200), (64, 64), (65, 65), (2, 65), (97, 131), (130, 66)]
)
def test_any_size_and_any_hole(size: tuple[int, int], channels: int) -> None:
    height, width = size
    generator = torch.Generator().manual_seed(0)
    completed = torch.rand(1, channels, *size, generator=generator)
    holes = {
        "empty": mask_of(*size, np.s_[..., :0, :0]),
        "whole": torch.ones(1, 1, *size),
        "corner": mask_of(*size, np.s_[..., height // 2 :, width // 2 :]),
        "left border": mask_of(*size, np.s_[..., : 1 + width // 4]),
        "all but a pixel": 1 - mask_of(*size, np.s_[..., height // 2, width // 2]),
        "scattered": (torch.rand(1, 1, *size, generator=generator) < 0.002).float(),
    }
    for name, mask in holes.items():
        result = add_texture(completed, mask)
        assert result.shape == completed.shape and result.dtype == completed.dtype, name
        assert result.min() >= 0 and result.max() <= 1, name
        known = (mask == 0).expand_as(completed)
        assert torch.equal(result[known], completed[known]), name
        if name in ("empty", "whole", "all but a pixel") or max(size) <= SMALLEST:  # nothing to copy
            torch.testing.assert_close(result, completed, atol=1e-6, rtol=0, msg=name)


def test_too_few_known_patches_leave_the_completion() -> None:
    """A strip of one patch's height has as many known patches as its width leaves; half the size has none."""
    for known, is_changed in ((PATCH + 2 * COMPONENTS - 2, False), (PATCH + 2 * COMPONENTS - 1, True)):
        mask = torch.ones(1, 1, 80, 100)
        mask[..., :PATCH, :known] = 0
        completed = blurred(textured("gravel", 80, 100), mask)
        assert ((Field.of(mask > 0)) is not None) is is_changed
        assert ((add_texture(completed, mask) - completed).abs().max() > 1e-3) == is_changed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_keep_their_type_and_known_pixels(dtype: torch.dtype) -> None:
    completed, mask = two_images()
    completed = completed.to(dtype)
    result = add_texture(completed, mask)
    assert result.dtype == dtype
    known = (mask == 0).expand_as(completed)
    assert torch.equal(result[known], completed[known])
    expected = add_texture(completed.float(), mask)
    torch.testing.assert_close(result.float(), expected, atol=max(torch.finfo(dtype).eps, 1e-6), rtol=0)


@pytest.mark.parametrize(("name", "low", "high"), [("brick", 0.5, 1.3), ("gravel", 0.25, 1.3)])
def test_a_blurred_hole_in_a_texture_becomes_sharp(name: str, low: float, high: float) -> None:
    image, mask = textured(name, 192, 208), mask_of(192, 208, np.s_[..., 70:120, 80:130])
    completed = blurred(image, mask)
    assert sharpness(completed, image, mask).item() < 0.2
    assert low < sharpness(add_texture(completed, mask), image, mask).item() < high


def test_a_periodic_pattern_comes_back_in_phase() -> None:
    """A pattern whose blur still tells the phase is continued right: the error becomes less."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(144.0), indexing="ij")
    image = (0.5 + 0.2 * torch.sin(x * 0.9) * torch.cos(y * 0.7)).expand(1, 3, -1, -1)
    mask = mask_of(128, 144)
    completed = blurred(image, mask, 1.5)
    before, after = (
        (each - image).square()[mask.expand_as(image) > 0].mean()
        for each in (completed, add_texture(completed, mask))
    )
    assert after < before / 2


def test_nothing_is_added_to_a_smooth_image() -> None:
    y, x = torch.meshgrid(torch.arange(150.0), torch.arange(170.0), indexing="ij")
    image = torch.stack([(x + y) / 400, x / 200, 1 - y / 200])[None]
    mask = mask_of(150, 170)
    assert (add_texture(image, mask) - image).abs().max() < 1e-5


def test_a_smooth_half_gets_less_texture_than_a_strong_one() -> None:
    image = textured("gravel", 128, 144)
    image[..., :72] = 0.5
    added = []
    for hole in (np.s_[..., 30:98, 15:50], np.s_[..., 30:98, 94:129]):
        mask = mask_of(128, 144, hole)
        completed = blurred(image, mask, 2.0)
        added.append((add_texture(completed, mask) - completed)[mask.expand_as(image) > 0].square().mean())
    assert added[0] < added[1] / 20


def test_the_content_of_the_hole_matters_and_the_mask_is_binary() -> None:
    completed, mask = two_images()
    expected = add_texture(completed, mask)
    assert torch.equal(add_texture(completed, 0.3 * mask), expected)
    darker = torch.where(mask > 0, completed / 2, completed)
    assert (add_texture(darker, mask) - expected).abs().max() > 0.1


def test_no_image_needs_a_gradient() -> None:
    completed, mask = two_images()
    assert not sharpen(completed[:1].requires_grad_(), mask[:1] > 0).requires_grad


# --- depth -----------------------------------------------------------------------------------------------


def test_depth_by_hand() -> None:
    hole = torch.ones(7, 9, dtype=torch.bool)
    hole[3, 4] = False  # octagons around one known pixel; the border of the image is not known
    assert depth_of(hole[None, None])[0, 0].int().tolist() == [
        [5, 4, 4, 3, 3, 3, 4, 4, 5],
        [4, 4, 3, 2, 2, 2, 3, 4, 4],
        [4, 3, 2, 2, 1, 2, 2, 3, 4],
        [4, 3, 2, 1, 0, 1, 2, 3, 4],
        [4, 3, 2, 2, 1, 2, 2, 3, 4],
        [4, 4, 3, 2, 2, 2, 3, 4, 4],
        [5, 4, 4, 3, 3, 3, 4, 4, 5],
    ]
    row = torch.tensor([0, 1, 1, 1, 1, 1, 0, 0, 1]).bool()[None, None, None]
    assert depth_of(row).flatten().tolist() == [0, 1, 2, 3, 2, 1, 0, 0, 1]
    assert (depth_of(torch.ones(1, 1, 20, 3, dtype=torch.bool)) == DEPTH).all()  # nothing is known
    assert not depth_of(torch.zeros(1, 1, 5, 4, dtype=torch.bool)).any()


def test_the_share_of_the_copied_band_grows_with_depth() -> None:
    depth = torch.arange(DEPTH + 1.0)
    narrow, wide = share_at_depth(depth, 4.0), share_at_depth(depth, 6.0)
    assert narrow[0] == 0 and (narrow.diff() > 0).all() and 0.99 < narrow[-1] < 1
    assert (wide[1:] < narrow[1:]).all()


def test_less_is_added_at_the_rim_than_inside() -> None:
    completed, mask = two_images()
    added = (add_texture(completed, mask) - completed)[:1].abs().mean(1, keepdim=True)
    depth = depth_of(mask[:1] > 0)
    assert added[depth == 1].mean() < added[depth > 3].mean() / 2


# --- fields ----------------------------------------------------------------------------------------------


def found_field() -> tuple[Field, torch.Tensor, torch.Tensor]:
    """A field of a hole, its image and its features, after a search without coherence."""
    image, hole = textured("gravel", 90, 100), mask_of(90, 100) > 0
    completed = blurred(image, hole)
    field = Field.of(hole)
    assert field is not None
    features = field.describe(completed)
    field.sources = field.nearest(features, field.patches)
    return field, completed, features


def test_patches_cover_the_hole_and_sources_are_known() -> None:
    for hole in (
        mask_of(90, 101),
        mask_of(83, 100, np.s_[..., 60:, 70:]),
        mask_of(80, 80, np.s_[..., :9, 33]),
    ):
        field = Field(hole > 0)
        covered = torch.zeros(hole.shape[-2:])
        for y, x in zip(field.y.tolist(), field.x.tolist(), strict=True):
            window = np.s_[
                max(0, y - PATCH // 2) : y + PATCH // 2 + 1, max(0, x - PATCH // 2) : x + PATCH // 2 + 1
            ]
            assert hole[0, 0][window].any()
            covered[window] = 1
        assert (covered >= hole[0, 0]).all()
        rows, columns = (
            field.valid.nonzero()[:, 0] // hole.shape[3],
            field.valid.nonzero()[:, 0] % hole.shape[3],
        )
        windows = hole[0, 0].unfold(0, PATCH, 1).unfold(1, PATCH, 1).amax((2, 3))
        assert len(rows) == (windows == 0).sum()
        assert not windows[rows - PATCH // 2, columns - PATCH // 2].any()


def test_a_patch_finds_the_source_of_least_distance() -> None:
    field, _, features = found_field()
    found = field.nearest(features, field.patches[::20])
    for patch, source in zip(field.patches[::20], found, strict=True):
        distances = (features[field.keys].double() - features[patch].double()).square().sum(1)
        chosen = (features[source].double() - features[patch].double()).square().sum()
        assert chosen <= distances.min() + 1e-4


def test_features_are_distances_of_patches() -> None:
    """Principal components keep nearly all of the distances between patches of a smooth image."""
    field, completed, _ = found_field()
    smooth = gaussian(completed, 3.0)
    features = field.describe(smooth)
    windows = smooth[0].unfold(1, PATCH, 1).unfold(2, PATCH, 1).permute(1, 2, 0, 3, 4).flatten(2)
    keys = field.keys[::100]
    patches = windows[keys // field.width - PATCH // 2, keys % field.width - PATCH // 2]
    torch.testing.assert_close(
        torch.cdist(features[keys], features[keys]), torch.cdist(patches, patches), atol=0.02, rtol=0.02
    )


def test_coherence_lowers_the_energy_and_keeps_sources_known() -> None:
    field, _, features = found_field()
    penalty = 0.05 * features[field.keys].var(0).sum()

    def energy(sources: torch.Tensor) -> float:
        place = {patch: i for i, patch in enumerate(zip(field.y.tolist(), field.x.tolist(), strict=True))}
        shift = list(
            zip(
                (sources // field.width - field.y).tolist(),
                (sources % field.width - field.x).tolist(),
                strict=True,
            )
        )
        pairs = [
            (i, place[y + dy, x + dx])
            for (y, x), i in place.items()
            for dy, dx in ((0, STRIDE), (STRIDE, -STRIDE), (STRIDE, 0), (STRIDE, STRIDE))
            if (y + dy, x + dx) in place
        ]
        disagreements = sum(shift[i] != shift[j] for i, j in pairs)
        return (field.cost(features, sources).double().sum() + penalty * disagreements).item()

    coherent = field.make_coherent(features, field.sources, penalty)
    assert field.is_source(coherent).all()
    assert energy(coherent) < 0.95 * energy(field.sources)
    without = field.make_coherent(features, field.sources, torch.zeros(()))
    assert field.cost(features, without).sum() <= field.cost(features, field.sources).sum() * (1 + 1e-6)


def test_sources_that_are_the_patches_themselves_give_the_band() -> None:
    hole = mask_of(90, 100, np.s_[..., 30:, 50:85])
    field = Field(hole > 0)
    assert torch.equal(field.sources, field.patches)
    band = torch.randn(1, 2, 90, 100)
    inside = hole.expand_as(band) > 0
    torch.testing.assert_close(field.copy(band)[inside], band[inside], atol=1e-5, rtol=0)


def test_a_displacement_moves_the_band() -> None:
    hole = mask_of(90, 100)
    field = Field(hole > 0)
    field.sources = field.patches - 20 * field.width + 7  # 20 rows above, 7 columns to the right
    band = torch.randn(1, 1, 90, 100)
    inside = hole > 0
    expected = band.roll((20, -7), (2, 3))
    torch.testing.assert_close(field.copy(band)[inside], expected[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(128, 144), (127, 141)])
def test_displacements_are_carried_at_twice_the_length(size: tuple[int, int]) -> None:
    hole = mask_of(*size) > 0
    fine = Field(hole)
    coarse = Field(torch.nn.functional.max_pool2d(hole.float(), 2, ceil_mode=True) > 0)
    coarse.sources = coarse.patches - 9 * coarse.width + 4
    carried = fine.carry(coarse)
    is_carried = carried >= 0
    assert is_carried.float().mean() > 0.9  # at the rim of the hole, the smaller size may have no patch
    assert torch.equal(carried[is_carried], (fine.patches - 18 * fine.width + 8)[is_carried])
    coarse.sources = coarse.patches - 40 * coarse.width
    assert (fine.carry(coarse) == -1).all()  # above the image


def test_a_size_without_a_search_starts_from_the_smaller_ones_sources() -> None:
    """Above `SEARCHED` pixels, a texture is as sharp as below."""
    side = SEARCHED + 20
    image, mask = textured("brick", side, side), mask_of(side, side, np.s_[..., 90:220, 100:210])
    completed = blurred(image, mask)
    assert 0.5 < sharpness(add_texture(completed, mask), image, mask).item() < 1.5
