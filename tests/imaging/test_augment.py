"""Crops and colours change as the ranges allow, and masks move with their images."""

from pathlib import Path

import numpy as np
from conftest import photograph
from PIL import Image

from dataset import InpaintingDataset
from imaging.augment import Augmentation, Crop


def test_crops_of_random_size_are_scaled_to_the_image_size(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 80)[None, :, None], (80, 80, 3)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray((ramp > 127).astype(np.uint8) * 255).save(tmp_path / "masks" / "ramp.png")
    data = InpaintingDataset(
        str(tmp_path),
        32,
        augmentation=Augmentation(min_crop=0.5),
        mask_root=str(tmp_path / "masks"),
        max_images=1,
    )
    spans = []
    for epoch in range(60):
        item = data[epoch, 0]
        row = item["image"][0, 16]
        spans.append((row[-1] - row[0]).abs().item())  # the share of the image's width in the crop
        assert item["image"].shape == (3, 32, 32)
        assert (item["mask"][0, 16] == (row > 0.5).float()).float().mean() > 0.9  # the mask moves with it
    assert 0.45 < min(spans) < 0.6 and 0.88 < max(spans) <= 1
    validation = InpaintingDataset(
        str(tmp_path), 32, augmentation=Augmentation(min_crop=0.5), training=False, max_images=1
    )
    assert (validation[0]["image"][0, 16, -1] - validation[0]["image"][0, 16, 0]).abs() > 0.95


def test_rotated_crops_rotate_the_image_and_its_mask(tmp_path: Path) -> None:
    light = np.zeros((96, 96, 3), np.uint8)
    light[:, 48:] = 255  # an upright edge through the middle
    Image.fromarray(light).save(tmp_path / "edge.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(light).save(tmp_path / "masks" / "edge.png")
    augmentation = Augmentation(min_crop=0.7, rotate=20)
    data = InpaintingDataset(
        str(tmp_path), 64, augmentation=augmentation, mask_root=str(tmp_path / "masks"), max_images=1
    )
    angles = []
    for epoch in range(80):
        item = data[epoch, 0]
        assert ((item["image"][0] > 0.5) == (item["mask"][0] > 0)).float().mean() > 0.97
        width = item["mask"][0].sum(dim=1)  # pixels of the light part in each row
        if width.min() > 4 and width.max() < 60:  # the edge leaves neither side
            share = (width[56] - width[8]).item() / 48
            angles.append(np.degrees(np.arctan(share)))
    assert len(angles) > 40 and max(map(abs, angles)) < 22
    assert min(angles) < -10 and max(angles) > 10


def test_an_upright_crop_equals_a_rotation_by_almost_nothing() -> None:
    image = photograph(80, 100)
    upright, rotated = (Crop(10, 20, 64, angle).apply(image, 64).astype(int) for angle in (0, 1e-9))
    np.testing.assert_allclose(rotated, upright, atol=1)


def test_recoloured_greys_stay_grey_and_change_no_more_than_allowed(
    generator: np.random.Generator,
) -> None:
    grey = np.repeat(np.linspace(0.3, 0.6, 64, dtype=np.float32).reshape(8, 8, 1), 3, axis=2)
    for _ in range(20):
        changed = Augmentation(color_jitter=0.2).recolor(grey, generator)
        np.testing.assert_allclose(changed[..., 0], changed[..., 2], atol=1e-5)
        assert 0.8 < changed.mean() / grey.mean() < 1.2
        assert 0.6 < np.ptp(changed) / np.ptp(grey) < 1.45  # brightness times contrast
    color = np.random.default_rng(0).random((8, 8, 3), np.float32) * 0.2 + 0.4
    spread = [
        Augmentation(color_jitter=0.2).recolor(color, generator).std(axis=2).mean() / color.std(axis=2).mean()
        for _ in range(40)
    ]
    assert min(spread) < 0.9 and max(spread) > 1.1
    assert Augmentation().recolor(color, generator) is color
    assert Augmentation(color_jitter=0.9).recolor(color * 2.4, generator).max() <= 1
