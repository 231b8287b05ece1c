"""Masks of every convention give the hole that a person sees in them, and what looks wrong is said."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import UserError
from masks import alpha_hole, box_hole, doctor, feather, grow, painted_hole, read_hole
from pictures import Picture

HOLE = np.zeros((20, 30), bool)
HOLE[4:12, 10:25] = True
WHITE = HOLE.astype(np.uint8) * 255


def rgba(color: np.ndarray | int, alpha: np.ndarray) -> Image.Image:
    pixels = np.empty((*alpha.shape, 4), np.uint8)
    pixels[:, :, :3], pixels[:, :, 3] = color, alpha
    return Image.fromarray(pixels)


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
        "100% of the mask mask.png is grey",
    ),
    "twice the size": (Image.fromarray(WHITE).resize((60, 40), Image.Resampling.NEAREST), False, ""),
    "white strokes on nothing": (rgba(255, WHITE), False, "painted part"),
    "erased from a picture": (
        rgba(np.arange(600).reshape(20, 30, 1).astype(np.uint8), 255 - WHITE),
        False,
        "transparent part",
    ),
    "opaque": (rgba(WHITE[:, :, None], np.full((20, 30), 255)), False, ""),
}


@pytest.mark.parametrize("name", FILES)
def test_the_hole_of_a_file(name: str, tmp_path: Path) -> None:
    image, invert, note = FILES[name]
    image.save(tmp_path / "mask.png")
    hole = read_hole(tmp_path / "mask.png", (20, 30), invert)
    assert np.array_equal(hole.missing, HOLE)
    assert note in " ".join(hole.notes) and bool(note) == bool(hole.notes)
    assert np.array_equal(read_hole(tmp_path / "mask.png", (20, 30), not invert).missing, ~HOLE)


def test_a_mask_of_other_proportions_is_refused(tmp_path: Path) -> None:
    Image.fromarray(WHITE).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="mask is 30×20 pixels, but the image is 20×30"):
        read_hole(tmp_path / "mask.png", (30, 20))


def test_a_mask_is_turned_upright_like_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(WHITE)).save(tmp_path / "mask.jpg", exif=exif, quality=95)
    assert np.array_equal(read_hole(tmp_path / "mask.jpg", (20, 30)).missing, HOLE)


def test_the_pictures_own_transparency_is_a_hole(tmp_path: Path) -> None:
    rgba(90, 255 - WHITE).save(tmp_path / "picture.png")
    assert np.array_equal(alpha_hole(Picture(tmp_path / "picture.png")).missing, HOLE)
    Image.fromarray(WHITE).save(tmp_path / "opaque.png")
    with pytest.raises(UserError, match="no transparency"):
        alpha_hole(Picture(tmp_path / "opaque.png"))


def test_a_box_is_cut_at_the_border_and_refused_outside() -> None:
    assert np.array_equal(box_hole((10, 4, 15, 8), (20, 30)).missing, HOLE)
    assert box_hole((-5, -5, 10, 10), (20, 30)).missing.sum() == 25
    for box in ((30, 0, 5, 5), (0, 0, 0, 5), (-9, 0, 5, 5)):
        with pytest.raises(UserError, match="holds no pixel of 30×20"):
            box_hole(box, (20, 30))


def test_grow_is_a_disc() -> None:
    point = np.zeros((21, 21), bool)
    point[10, 10] = True
    rows, columns = np.nonzero(grow(point, 5))
    assert np.hypot(rows - 10, columns - 10).max() < 6.5
    assert grow(point, 5)[10, 5:16].all() and not grow(point, 5)[10, 4]
    assert np.array_equal(grow(point, 0), point)


def test_the_doctor_names_what_looks_wrong() -> None:
    inverted, large, wide = ~HOLE, np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    large[:, :22] = True
    wide[:, :15] = True
    cases = [
        (HOLE, None), (np.zeros_like(HOLE), "empty"), (np.ones_like(HOLE), "whole picture"),
        (inverted, "inverted"), (large, "guesswork"), (wide, "trained on up to 40%"),
    ]  # fmt: skip
    for missing, word in cases:
        notes = doctor(missing, (0.1, 0.4))
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
def test_what_was_painted_on_a_copy_of_any_size_is_the_hole(factor: float) -> None:
    """Of even sizes, so that every edge of the hole falls between pixels of the copy."""
    painted = np.kron(WHITE, np.ones((int(factor),) * 2, np.uint8)) if factor >= 1 else WHITE[::2, ::2]
    hole = painted_hole(painted, HOLE.shape)
    differing = hole.missing != HOLE
    assert not hole.notes and differing.sum() <= (0 if factor >= 1 else 15)


def test_a_pixel_is_missing_where_at_least_half_of_it_was_painted() -> None:
    strokes = np.zeros((2, 4), np.uint8)
    strokes[:, 0] = 255  # half of the first pixel
    strokes[0, 2] = 255  # a quarter of the second
    assert painted_hole(strokes, (1, 2)).missing.tolist() == [[True, False]]
