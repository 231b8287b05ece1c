"""Mask files belong to their images, and are cropped with them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import InpaintingDataset
from imaging.mask_file import read_mask_for


def test_an_images_own_mask_is_cropped_like_it_and_other_images_get_random_files(
    folder: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    own = np.zeros((40, 56), np.uint8)
    own[:, 20:36] = 255
    Image.fromarray(own).save(masks / "picture1_mask.png")
    data = InpaintingDataset(str(folder), 40, training=False, mask_root=str(masks))
    item = next(data[i] for i in range(6) if data.names[i] == "picture1")
    columns = item["mask"][0].amax(dim=0).nonzero().flatten()
    assert columns.tolist() == list(range(12, 28))  # eight columns were cut off at the left
    assert all(data[i]["mask"].mean() > 0 for i in range(6))
    inverted = InpaintingDataset(str(folder), 40, training=False, mask_root=str(masks), invert_mask=True)
    item = next(inverted[i] for i in range(6) if inverted.names[i] == "picture1")
    assert item["mask"].mean() == pytest.approx(0.6)


def save_masks(root: Path, **masks: np.ndarray) -> Path:
    root.mkdir(exist_ok=True)
    for name, mask in masks.items():
        Image.fromarray(mask).save(root / f"{name}.png")
    return root


def test_a_mask_file_is_the_same_mask_for_training_and_for_filling(folder: Path, tmp_path: Path) -> None:
    hole = np.zeros((40, 40), np.uint8)
    hole[10:20, 10:20] = 1
    erased = np.full((40, 40, 4), 60, np.uint8)
    erased[:, :, 3] = np.where(hole, 0, 255)
    strokes = np.full((40, 40, 4), 255, np.uint8)
    strokes[:, :, 3] = hole * 255
    drawn = {
        "white": hole * 255,
        "ones": hole,
        "deep": hole.astype(np.uint16),
        "erased": erased,
        "strokes": strokes,
    }
    for name, mask in drawn.items():
        masks = save_masks(tmp_path / name, picture0=mask)
        for cache_dir in ("", None):
            data = InpaintingDataset(
                str(folder), 40, training=False, mask_root=str(masks), cache_dir=cache_dir
            )
            assert np.array_equal(data[0]["mask"][0].numpy(), hole), name
        assert np.array_equal(read_mask_for(masks / "picture0.png", (40, 40))[0], hole), name


def test_each_kind_of_finding_on_masks_is_printed_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hole = np.eye(40, dtype=np.uint8)
    masks = save_masks(
        tmp_path / "masks", a=hole, b=hole, c=np.zeros_like(hole), d=hole * 0 + 255, e=hole * 255
    )
    for cache_dir in (None, "", ""):  # decoded, written to the cache, read from it
        InpaintingDataset(str(folder), 40, mask_root=str(masks), cache_dir=cache_dir)
        assert capsys.readouterr().err.splitlines() == [
            f"note: --mask_root {masks}: {note}"
            for note in (
                "a.png holds only 0 and 1, which would be empty at 50 %: 1 was taken as missing (2 of 5 masks)",
                "c.png is empty: nothing is missing (1 of 5 masks)",
                "d.png is full: everything is missing (1 of 5 masks)",
            )
        ]
    save_masks(tmp_path / "grey", f=np.full((40, 40), 200, np.uint8), e_mask=hole * 255, e=hole * 255)
    InpaintingDataset(str(folder), 40, mask_root=str(tmp_path / "grey"))
    text = capsys.readouterr().err
    assert "f.png is grey in 100% of its pixels" in text and "(1 of 3 masks)" in text
    assert "e.png and e_mask.png are masks of one image" in text


def test_images_and_masks_may_have_names_that_are_not_utf8(folder: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    (folder / "picture0.png").rename(folder / f"{odd}.png")
    masks = save_masks(tmp_path / odd, picture1=np.eye(40, dtype=np.uint8))
    (masks / "picture1.png").rename(masks / f"{odd}_mask.png")
    for training in (True, False):
        data = InpaintingDataset(str(folder), 32, training=training)
        assert odd in data.names
        assert torch.equal(data[data.names.index(odd)]["mask"], data[data.names.index(odd)]["mask"])
    data = InpaintingDataset(str(folder), 40, training=False, mask_root=str(masks))
    own = data[data.names.index(odd)]
    assert np.array_equal(own["mask"][0].numpy(), np.eye(40)) and own["name"] == odd
