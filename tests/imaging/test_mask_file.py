"""Masks of every convention are read as a person sees them, and suspicious ones are reported."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from imaging.image_file import ImageFile
from imaging.mask_file import (
    alpha_mask,
    binarise,
    box_mask,
    dilate,
    extremes,
    feather,
    mask_warnings,
    masks_by_image,
    painted_mask,
    read_mask,
    read_mask_for,
    summarise,
)
from inference.inpainter import as_mask
from utils import UserError

HOLE = np.zeros((20, 30), bool)
HOLE[4:12, 10:25] = True
WHITE = HOLE.astype(np.uint8) * 255


def rgba(color: np.ndarray | int, alpha: np.ndarray) -> Image.Image:
    pixels = np.empty((*alpha.shape, 4), np.uint8)
    pixels[:, :, :3], pixels[:, :, 3] = color, alpha
    return Image.fromarray(pixels)


def transparent_palette(hidden: np.ndarray) -> Image.Image:
    """A palette image of two opaque greys whose third colour, fully transparent, covers `hidden`."""
    image = Image.fromarray(np.where(hidden, 2, np.arange(30) % 2).astype(np.uint8))
    image = image.convert("P")
    image.putpalette([60, 60, 60, 90, 90, 90, 60, 60, 60])
    image.info["transparency"] = bytes([255, 255, 0])
    return image


FILES = {
    "white on black": (Image.fromarray(WHITE), False, ""),
    "black on white": (Image.fromarray(255 - WHITE), True, ""),
    "one bit": (Image.fromarray(WHITE).convert("1"), False, ""),
    "colour": (Image.fromarray(WHITE).convert("RGB"), False, ""),
    "sixteen bits": (Image.fromarray(WHITE.astype(np.uint16) * 257), False, ""),
    "palette": (Image.fromarray(WHITE).convert("RGB").quantize(2), False, ""),
    "grey": (
        Image.fromarray(np.where(HOLE, 180, 60).astype(np.uint8)),
        False,
        "mask mask.png is grey in 100% of its pixels",
    ),
    "twice the size": (Image.fromarray(WHITE).resize((60, 40), Image.Resampling.NEAREST), False, ""),
    "white strokes on nothing": (rgba(255, WHITE), False, "painted part"),
    "erased from an image": (
        rgba(np.arange(600).reshape(20, 30, 1).astype(np.uint8), 255 - WHITE),
        False,
        "transparent part",
    ),
    "0 and 1": (Image.fromarray(HOLE.astype(np.uint8)), False, "holds only 0 and 1, which would be empty"),
    "0 and 1, colour": (
        Image.fromarray(np.repeat(HOLE[:, :, None], 3, axis=2).astype(np.uint8)),
        False,
        "1 was taken as missing",
    ),
    "0 and 1, sixteen bits": (Image.fromarray(HOLE.astype(np.uint16)), False, "1 was taken as missing"),
    "1 and 0, inverted": (
        Image.fromarray((~HOLE).astype(np.uint8)),
        True,
        "would be full at 50 %: 0 was taken as missing",
    ),
    "0 and 1, opaque": (rgba(HOLE[:, :, None], np.full((20, 30), 255)), False, "1 was taken as missing"),
    "grey with alpha": (
        Image.merge("LA", [Image.new("L", (30, 20), 90), Image.fromarray(255 - WHITE)]),
        False,
        "transparent part",
    ),
    "palette with a transparent colour": (transparent_palette(HOLE), False, "transparent part"),
    "colours without opacity": (rgba(WHITE[:, :, None], np.zeros((20, 30))), False, "the colours under it"),
    "opaque": (rgba(WHITE[:, :, None], np.full((20, 30), 255)), False, ""),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mask_file_is_read_as_it_looks(name: str, tmp_path: Path) -> None:
    image, invert, note = FILES[name]
    image.save(tmp_path / "mask.png")
    mask, notes = read_mask_for(tmp_path / "mask.png", (20, 30), invert)
    assert np.array_equal(mask, HOLE)
    assert note in " ".join(notes) and bool(note) == bool(notes)
    assert np.array_equal(read_mask_for(tmp_path / "mask.png", (20, 30), not invert)[0], ~HOLE)


@pytest.mark.parametrize("name", [name for name in FILES if name != "twice the size"])
def test_a_pil_mask_is_read_like_its_file(name: str) -> None:
    image, invert, _ = FILES[name]
    assert np.array_equal(as_mask(image), invert != HOLE)


def test_a_one_bit_tiff_of_either_polarity_is_the_hole_that_is_seen(tmp_path: Path) -> None:
    for photometric in ("minisblack", "miniswhite"):
        stored = HOLE if photometric == "minisblack" else ~HOLE
        tifffile.imwrite(tmp_path / "mask.tif", stored, photometric=photometric)
        assert np.array_equal(read_mask(tmp_path / "mask.tif")[0], HOLE), photometric


def test_blank_transparent_and_dark_masks_are_empty() -> None:
    nothing = np.zeros((4, 4), np.float32)
    missing, findings = binarise(np.full((4, 4, 3), 255, np.uint8), nothing)
    assert not missing.any() and "nothing is painted" in findings["alpha"]
    for level in (0, 2, 127):
        assert not binarise(np.full((4, 4, 1), level, np.uint8))[0].any()
    colored = np.zeros((4, 4, 3), np.uint8)
    colored[0, 0, 0] = 1  # a dark red is no 1
    assert not binarise(colored)[0].any()
    assert as_mask(Image.new("L", (0, 3))).shape == (3, 0)


def test_half_grey_is_missing_and_less_is_not() -> None:
    for dtype, below, half in ((np.uint8, 127, 128), (np.uint16, 32767, 32768), (np.float32, 0.499, 0.5)):
        missing, findings = binarise(np.array([[[below], [half]]], dtype))
        assert missing.tolist() == [[False, True]] and "grey in 100%" in findings["grey"]
        assert binarise(np.array([[[below], [half]]], dtype), invert=True)[0].tolist() == [[True, False]]


def test_findings_on_many_masks_are_summarised_by_kind() -> None:
    empty, full = extremes(np.zeros((2, 2), bool)), extremes(np.ones((2, 2), bool))
    masks = [
        ("a.png", {}),
        ("b.png", empty),
        ("c.png", empty),
        ("d.png", full | {"0/1": "holds only 0 and 1"}),
    ]
    assert summarise(masks) == [
        "b.png is empty: nothing is missing (2 of 4 masks)",
        "d.png is full: everything is missing (1 of 4 masks)",
        "d.png holds only 0 and 1 (1 of 4 masks)",
    ]
    assert extremes(np.eye(2, dtype=bool)) == {}


def test_masks_belong_to_images_by_path_or_unique_stem_and_two_of_one_image_are_named() -> None:
    root = Path("masks")
    files = [root / name for name in ("a.jpg", "a_mask.png", "b.png", "x/c.png", "y/c.png", "y/d_mask.png")]
    index, notes = masks_by_image(files, root)
    assert index == {
        "a": root / "a_mask.png", "b": root / "b.png", "x/c": root / "x/c.png", "y/c": root / "y/c.png",
        "d": root / "y/d_mask.png", "y/d": root / "y/d_mask.png",
    }  # fmt: skip
    assert notes == ["a.jpg and a_mask.png are masks of one image: the last was taken"]
    assert masks_by_image(files[2:], root)[1] == []
    assert masks_by_image([*files, root / "b.tif"], root)[1][0].endswith("(so for 2 images)")


def test_a_mask_of_another_aspect_ratio_is_refused(tmp_path: Path) -> None:
    Image.fromarray(WHITE).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="mask is 30×20 pixels, but the image is 20×30"):
        read_mask_for(tmp_path / "mask.png", (30, 20))


def test_a_mask_is_turned_upright_like_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(WHITE)).save(tmp_path / "mask.jpg", exif=exif, quality=95)
    assert np.array_equal(read_mask_for(tmp_path / "mask.jpg", (20, 30))[0], HOLE)


def test_transparency_of_an_image_is_a_mask(tmp_path: Path) -> None:
    rgba(90, 255 - WHITE).save(tmp_path / "image.png")
    assert np.array_equal(alpha_mask(ImageFile(tmp_path / "image.png")), HOLE)
    Image.fromarray(WHITE).save(tmp_path / "opaque.png")
    with pytest.raises(UserError, match="no transparency"):
        alpha_mask(ImageFile(tmp_path / "opaque.png"))


def test_a_box_is_cut_at_the_border_and_refused_outside() -> None:
    assert np.array_equal(box_mask((10, 4, 15, 8), (20, 30)), HOLE)
    assert box_mask((-5, -5, 10, 10), (20, 30)).sum() == 25
    for box in ((30, 0, 5, 5), (0, 0, 0, 5), (-9, 0, 5, 5)):
        with pytest.raises(UserError, match="holds no pixel of 30×20"):
            box_mask(box, (20, 30))


def test_masks_are_dilated_by_a_disc() -> None:
    point = np.zeros((21, 21), bool)
    point[10, 10] = True
    rows, columns = np.nonzero(dilate(point, 5))
    assert np.hypot(rows - 10, columns - 10).max() < 6.5
    assert dilate(point, 5)[10, 5:16].all() and not dilate(point, 5)[10, 4]
    assert np.array_equal(dilate(point, 0), point)
    assert dilate(point, 100_000).all() and not dilate(np.zeros_like(point), 9).any()


def test_suspicious_masks_are_warned_of() -> None:
    inverted, large, wide = ~HOLE, np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    large[:, :22] = True
    wide[:, :15] = True
    cases = [
        (HOLE, None), (np.zeros_like(HOLE), "empty"), (np.ones_like(HOLE), "whole image"),
        (inverted, "inverted"), (large, "unreliable"), (wide, "trained on up to 40%"),
    ]  # fmt: skip
    for missing, word in cases:
        notes = mask_warnings(missing, (0.1, 0.4))
        assert not notes if word is None else len(notes) == 1 and word in notes[0]


def test_feather_blends_inside_the_hole_only() -> None:
    before, filled = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 200, np.uint8)
    missing = np.zeros((40, 40), bool)
    missing[10:30, 10:30] = True
    blended = feather(np.where(missing[:, :, None], filled, before), before, missing, 4)
    assert (blended[~missing] == 0).all() and (blended[15:25, 15:25] == 200).all()
    edge = blended[20, 10:16, 0].astype(int)
    assert (np.diff(edge)[:4] > 0).all() and 0 < edge[0] < 80


@pytest.mark.parametrize("factor", [1, 4, 0.5])
def test_strokes_on_a_copy_of_any_size_are_the_mask(factor: float) -> None:
    """All sizes are even, so that every edge of the hole falls between pixels of the copy."""
    painted = np.kron(WHITE, np.ones((int(factor),) * 2, np.uint8)) if factor >= 1 else WHITE[::2, ::2]
    differing = painted_mask(painted, HOLE.shape) != HOLE
    assert differing.sum() <= (0 if factor >= 1 else 15)


def test_a_pixel_is_missing_where_at_least_half_of_it_was_painted() -> None:
    strokes = np.zeros((2, 4), np.uint8)
    strokes[:, 0] = 255  # half of the first pixel
    strokes[0, 2] = 255  # a quarter of the second
    assert painted_mask(strokes, (1, 2)).tolist() == [[True, False]]
