import errno
import itertools
import os
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photograph
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import imaging.cache
import imaging.read
from dataset import EpochSampler, InpaintingDataset, get_dataloaders, validation_loader
from imaging.augment import Augmentation, Cut
from imaging.files import find_images, name_digest
from imaging.mask_file import read_hole
from imaging.random_masks import random_free_form_mask, random_mask, random_rectangular_mask
from imaging.read import read_image, resize_image
from utils import UserError, is_shards, one_line

MASKS = [random_free_form_mask, random_rectangular_mask, random_mask]


@pytest.mark.parametrize("draw", MASKS)
def test_coverage_is_what_was_asked(draw, generator: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    for _ in range(700):
        height, width = generator.integers(16, 96, 2)
        asked = generator.uniform(0.01, 0.9)
        mask = draw(height, width, asked, generator)
        assert mask.shape == (height, width)
        assert set(np.unique(mask)) <= {0, 1}
        assert abs(mask.mean() - asked) <= 0.02


def test_coverage_of_a_range_is_drawn_evenly(generator: np.random.Generator) -> None:
    shares = [random_mask(32, 32, (0.1, 0.4), generator).mean() for _ in range(2000)]
    assert min(shares) >= 0.08 and max(shares) <= 0.42
    counts, _ = np.histogram(shares, bins=5, range=(0.1, 0.4))
    assert counts.min() > 300


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_extreme_coverage_is_exact(share: float, expected: float, generator: np.random.Generator) -> None:
    for draw in MASKS:
        assert draw(9, 13, share, generator).mean() == expected


def test_impossible_coverage_is_refused(generator: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="mask_ratio"):
        random_free_form_mask(8, 8, (0.5, 0.2), generator)


def test_masks_touch_the_border_sometimes_and_repeat_with_the_seed() -> None:
    masks = [random_mask(64, 64, 0.3, np.random.default_rng(i)) for i in range(40)]
    touching = [m[0].any() or m[-1].any() or m[:, 0].any() or m[:, -1].any() for m in masks]
    assert any(touching)
    assert np.array_equal(masks[5], random_mask(64, 64, 0.3, np.random.default_rng(5)))
    assert not np.array_equal(masks[5], masks[6])


def test_folders_without_pictures_are_errors_that_say_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--val_root: no such folder"):
        InpaintingDataset(str(tmp_path / "none"), flag="--val_root")
    with pytest.raises(UserError, match="found nothing"):
        InpaintingDataset(str(tmp_path))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no images in .* \(found \.txt; looked for"):
        InpaintingDataset(str(tmp_path))


def test_one_bad_file_in_six_is_too_many_and_one_in_two_hundred_is_skipped(folder: Path) -> None:
    (folder / "bad.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"1 of 7 images .* more than 1% allowed.*bad\.png"):
        InpaintingDataset(str(folder), 32)
    tiny = Image.fromarray(photograph(8, 8))
    for i in range(200):
        tiny.save(folder / f"tiny{i}.png")
    data = InpaintingDataset(str(folder), 32)
    assert len(data) == 206
    assert len(data.unreadable) == 1 and "bad.png" in data.unreadable[0]
    again = InpaintingDataset(str(folder), 32)
    assert again.unreadable == data.unreadable  # also when it comes from the cache


def test_items_are_what_they_are_documented_to_be(folder: Path) -> None:
    data = InpaintingDataset(str(folder), 32)
    assert len(data) == 6
    for key in range(12):
        item = data[key]
        image, mask = item["image"], item["mask"]
        assert image.shape == (3, 32, 32) and image.dtype == torch.float32
        assert mask.shape == (1, 32, 32) and set(mask.unique().tolist()) <= {0.0, 1.0}
        assert image.min() >= 0 and image.max() <= 1
        assert 0.08 <= mask.mean() <= 0.42


def test_validation_shows_the_centre_and_masks_of_the_name_alone(folder: Path) -> None:
    data = InpaintingDataset(str(folder), 32, training=False)
    first = {item["name"]: item for item in (data[i] for i in range(6))}
    expected = resize_image(read_image(folder / "picture1.png"), 32)
    left = (expected.shape[1] - 32) // 2
    shown = (first["picture1"]["image"].permute(1, 2, 0).numpy() * 255).round()
    assert np.array_equal(shown, expected[:, left : left + 32])
    for name in ("picture0.png", "picture3.png"):
        (folder / name).unlink()
    fewer = InpaintingDataset(str(folder), 32, training=False)
    for i in range(4):
        item = fewer[i]
        assert torch.equal(item["mask"], first[item["name"]]["mask"])


def test_training_draws_anew_every_epoch_and_the_same_again(folder: Path) -> None:
    data = InpaintingDataset(str(folder), 32)
    again = InpaintingDataset(str(folder), 32)
    assert torch.equal(data[6 + 2]["mask"], again[6 + 2]["mask"])
    assert not torch.equal(data[2]["mask"], data[6 + 2]["mask"])
    other = InpaintingDataset(str(folder), 32, seed=1)
    assert not torch.equal(data[2]["mask"], other[2]["mask"])


def test_a_changed_file_is_decoded_again(folder: Path) -> None:
    before = InpaintingDataset(str(folder), 32, training=False)[0]["image"]
    Image.fromarray(255 - photograph(40, 40)).save(folder / "picture0.png")
    after = InpaintingDataset(str(folder), 32, training=False)[0]["image"]
    assert (before - after).abs().max() > 0.2


def test_the_second_use_decodes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    InpaintingDataset(str(folder), 32)
    monkeypatch.setattr(imaging.read, "read_image", None)
    assert len(InpaintingDataset(str(folder), 32)) == 6


def test_a_subset_depends_on_the_seed_alone(folder: Path) -> None:
    names = InpaintingDataset(str(folder), 32, max_images=3).names
    assert len(names) == 3
    assert InpaintingDataset(str(folder), 32, max_images=3).names == names


def test_stems_that_occur_twice_keep_their_extension(folder: Path) -> None:
    Image.fromarray(photograph(40, 40)).save(folder / "picture0.bmp")
    assert {"picture0.bmp", "picture0.png", "picture1"} <= set(InpaintingDataset(str(folder), 32).names)


def test_own_masks_are_cropped_like_the_image_and_others_are_drawn(folder: Path, tmp_path: Path) -> None:
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


def test_a_mask_file_is_the_same_hole_for_training_and_for_filling(folder: Path, tmp_path: Path) -> None:
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
        assert np.array_equal(read_hole(masks / "picture0.png", (40, 40)).missing, hole), name


def test_what_is_odd_about_masks_is_said_each_kind_once(
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


def test_hidden_and_system_folders_hold_no_pictures_and_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (".ipynb_checkpoints", "deep/.Trash-0", "deep/@eaDir", "__MACOSX/deep"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(photograph(40, 40)).save(folder / name / "copy.png")
    Image.fromarray(photograph(40, 40)).save(folder / "deep" / "own.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    paths = find_images(folder, "--train_root")
    assert [path.name for path in paths] == ["own.png", *(f"picture{i}.png" for i in range(6))]
    skipped = ".Trash-0, .ipynb_checkpoints, @eaDir, __MACOSX"
    expected = f"note: --train_root {folder}: hidden and system folders are skipped: {skipped}\n"
    assert capsys.readouterr().err == expected
    assert len(find_images(folder / "deep" / ".Trash-0", "--train_root")) == 1  # asked for by name
    assert capsys.readouterr().err == ""


def test_names_that_are_not_utf8_are_pictures_and_masks_like_others(folder: Path, tmp_path: Path) -> None:
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


def test_masks_of_validation_are_those_of_before(folder: Path) -> None:
    data = InpaintingDataset(str(folder), 32, training=False)
    generator = np.random.default_rng([42, zlib.crc32(b"picture2")])
    expected = random_mask(32, 32, (0.1, 0.4), generator)
    assert np.array_equal(data[2]["mask"][0].numpy(), expected)
    assert name_digest("größer") == zlib.crc32("größer".encode())


@pytest.mark.parametrize("name", [f"a{os.pathsep}b", "photographs.tar"])
def test_a_folder_that_exists_is_one_whatever_its_name(name: str, folder: Path) -> None:
    folder.rename(folder.with_name(name))
    root = str(folder.with_name(name))
    assert not is_shards(root) and len(InpaintingDataset(root, 32)) == 6
    assert is_shards(f"{root}.tar") and is_shards(os.pathsep.join(["elsewhere", "000.tar"]))


def test_loader_processes_without_room_for_semaphores_are_the_users_to_do_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = itertools.count()

    def semaphore(*_: object) -> None:
        if next(room) >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.multiprocessing, "Semaphore", semaphore)
    loader = validation_loader(str(folder), 2, 32, num_workers=1)
    with pytest.raises(UserError, match=r"--num_workers: 1 loader .*No space left.*: use --num_workers 0$"):
        iter(loader)
    assert len(list(validation_loader(str(folder), 2, 32, num_workers=0))) == 3


def test_crops_of_random_size_show_parts_at_full_detail(tmp_path: Path) -> None:
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
        item = data[epoch]
        row = item["image"][0, 16]
        spans.append((row[-1] - row[0]).abs().item())  # the share of the picture's width that is seen
        assert item["image"].shape == (3, 32, 32)
        assert (item["mask"][0, 16] == (row > 0.5).float()).float().mean() > 0.9  # the mask moves with it
    assert 0.45 < min(spans) < 0.6 and 0.88 < max(spans) <= 1
    validation = InpaintingDataset(
        str(tmp_path), 32, augmentation=Augmentation(min_crop=0.5), training=False, max_images=1
    )
    assert (validation[0]["image"][0, 16, -1] - validation[0]["image"][0, 16, 0]).abs() > 0.95


def test_turned_crops_show_the_picture_turned_and_its_mask_with_it(tmp_path: Path) -> None:
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
        item = data[epoch]
        assert ((item["image"][0] > 0.5) == (item["mask"][0] > 0)).float().mean() > 0.97
        width = item["mask"][0].sum(dim=1)  # of the light part, by row
        if width.min() > 4 and width.max() < 60:  # the edge leaves neither side
            share = (width[56] - width[8]).item() / 48
            angles.append(np.degrees(np.arctan(share)))
    assert len(angles) > 40 and max(map(abs, angles)) < 22
    assert min(angles) < -10 and max(angles) > 10


def test_a_cut_without_an_angle_is_what_the_warp_shows() -> None:
    image = photograph(80, 100)
    upright, turned = (Cut(10, 20, 64, angle).take(image, 64).astype(int) for angle in (0, 1e-9))
    np.testing.assert_allclose(turned, upright, atol=1)


def test_recoloured_pictures_keep_their_greys_grey_and_change_no_more_than_asked(
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


def test_pictures_too_small_for_the_size_are_left_out(tmp_path: Path) -> None:
    for side in (20, 40, 64):
        Image.fromarray(photograph(side, side + 8)).save(tmp_path / f"{side}.png")
    counts = [len(InpaintingDataset(str(tmp_path), 48, max_enlarge=limit)) for limit in (0, 3, 1.2, 1)]
    assert counts == [3, 3, 2, 1]
    assert len(InpaintingDataset(str(tmp_path), 48, max_enlarge=1, training=False)) == 3
    with pytest.raises(UserError, match="--max_enlarge"):
        InpaintingDataset(str(tmp_path), 128, max_enlarge=1.5)
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read"):  # not silently left out
        InpaintingDataset(str(tmp_path), 48, max_enlarge=1)


def test_the_sample_photographs_need_no_folder() -> None:
    train = InpaintingDataset("sample", 32, max_images=20)
    val = InpaintingDataset("sample", 32, training=False, max_images=20)
    assert len(train) == len(val) == 20
    assert not {n.split("-")[0] for n in train.names} & {n.split("-")[0] for n in val.names}
    assert not torch.equal(val[0]["image"], val[1]["image"])
    assert torch.equal(val[0]["image"], val[20]["image"])  # the same in every epoch


def test_several_roots_are_joined(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(photograph(40, 40)).save(other / "more.png")
    assert len(InpaintingDataset(f"{folder}:{other}", 32)) == 7


def test_the_sampler_covers_every_epoch_once_and_resumes_within_one() -> None:
    sampler = EpochSampler(10, seed=3)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == list(range(10)) and sorted(second) == list(range(10, 20))
    assert [i % 10 for i in first] != [i % 10 for i in second]
    sampler.epoch, sampler.start = 1, 4
    assert list(sampler) == second[4:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_do_not_depend_on_the_number_of_workers(folder: Path, num_workers: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process that has threads
        train, val = get_dataloaders(str(folder), str(folder), 4, 32, val_size=48, num_workers=num_workers)
        images = torch.cat([b["image"] for b in train])
        assert next(iter(val))["image"].shape == (4, 3, 48, 48)
    reference = InpaintingDataset(str(folder), 32)
    order = EpochSampler(6, seed=42)
    assert torch.equal(images, torch.stack([reference[key]["image"] for key in order]))


class Damaged(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise UserError("--train_root: damaged.jpg")


def test_workers_that_stay_follow_an_epoch_that_was_left_early(folder: Path) -> None:
    loaders = [get_dataloaders(str(folder), str(folder), 2, 32, num_workers=n)[0] for n in (0, 2)]
    for loader in loaders:
        next(iter(loader))
    for alone, shared in zip(*loaders, strict=True):
        assert alone["name"] == shared["name"] and torch.equal(alone["image"], shared["image"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_loader_process_is_one_line_too(num_workers: int) -> None:
    with pytest.raises(UserError) as error:
        next(iter(DataLoader(Damaged(), num_workers=num_workers)))
    assert one_line(error.value) == "--train_root: damaged.jpg"
