"""Items repeat with seed, epoch and index, and loaders show each once per epoch."""

import errno
import itertools
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
from imaging.files import name_digest
from imaging.random_masks import random_mask
from imaging.read import read_image, resize_image
from utils import UserError, one_line


def test_errors_for_folders_without_images_name_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--val_root: no such folder"):
        InpaintingDataset(str(tmp_path / "none"), flag="--val_root")
    with pytest.raises(UserError, match="found nothing"):
        InpaintingDataset(str(tmp_path))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no images in .* \(found \.txt; looked for"):
        InpaintingDataset(str(tmp_path))


def test_one_bad_file_in_six_is_too_many_and_one_in_two_hundred_is_skipped(folder: Path) -> None:
    (folder / "bad.png").write_text("not an image")
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


def test_items_have_the_documented_shapes_types_and_ranges(folder: Path) -> None:
    data = InpaintingDataset(str(folder), 32)
    assert len(data) == 6
    for key in itertools.product(range(2), range(6)):
        item = data[key]
        image, mask = item["image"], item["mask"]
        assert image.shape == (3, 32, 32) and image.dtype == torch.float32
        assert mask.shape == (1, 32, 32) and set(mask.unique().tolist()) <= {0.0, 1.0}
        assert image.min() >= 0 and image.max() <= 1
        assert 0.08 <= mask.mean() <= 0.42


def test_an_index_beyond_the_last_item_is_an_error(folder: Path) -> None:
    data = InpaintingDataset(str(folder), 32)
    assert torch.equal(data[5]["mask"], data[0, 5]["mask"]) and len(list(data)) == 6
    for key in (6, (1, 6)):
        with pytest.raises(IndexError):
            data[key]


def test_validation_crops_the_centre_and_masks_depend_on_the_name_alone(folder: Path) -> None:
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


def test_training_draws_anew_in_every_epoch_and_repeats_an_epoch(folder: Path) -> None:
    data = InpaintingDataset(str(folder), 32)
    again = InpaintingDataset(str(folder), 32)
    assert torch.equal(data[1, 2]["mask"], again[1, 2]["mask"])
    assert not torch.equal(data[2]["mask"], data[1, 2]["mask"])
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


def test_validation_masks_derive_from_the_crc32_of_the_name(folder: Path) -> None:
    data = InpaintingDataset(str(folder), 32, training=False)
    generator = np.random.default_rng([42, zlib.crc32(b"picture2")])
    expected = random_mask(32, 32, (0.1, 0.4), generator)
    assert np.array_equal(data[2]["mask"][0].numpy(), expected)
    assert name_digest("größer") == zlib.crc32("größer".encode())


def test_no_room_for_loader_processes_is_a_user_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = itertools.count()

    def semaphore(*_: object) -> None:
        if next(room) >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.multiprocessing, "Semaphore", semaphore)
    loader = validation_loader(str(folder), 2, 32, num_workers=1)
    with pytest.raises(UserError, match=r"--num_workers: 1 loader .*No space left.*: use --num_workers 0$"):
        iter(loader)
    assert len(list(validation_loader(str(folder), 2, 32, num_workers=0))) == 3


def test_images_too_small_for_the_size_are_left_out(tmp_path: Path) -> None:
    for side in (20, 40, 64):
        Image.fromarray(photograph(side, side + 8)).save(tmp_path / f"{side}.png")
    counts = [len(InpaintingDataset(str(tmp_path), 48, max_enlarge=limit)) for limit in (0, 3, 1.2, 1)]
    assert counts == [3, 3, 2, 1]
    assert len(InpaintingDataset(str(tmp_path), 48, max_enlarge=1, training=False)) == 3
    with pytest.raises(UserError, match="--max_enlarge"):
        InpaintingDataset(str(tmp_path), 128, max_enlarge=1.5)
    (tmp_path / "damaged.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read"):  # not silently left out
        InpaintingDataset(str(tmp_path), 48, max_enlarge=1)


def test_the_sample_photographs_need_no_folder() -> None:
    train = InpaintingDataset("sample", 32, max_images=20)
    val = InpaintingDataset("sample", 32, training=False, max_images=20)
    assert len(train) == len(val) == 20
    assert not {n.split("-")[0] for n in train.names} & {n.split("-")[0] for n in val.names}
    assert not torch.equal(val[0]["image"], val[1]["image"])
    assert torch.equal(val[0]["image"], val[1, 0]["image"])  # the same in every epoch


def test_the_sampler_covers_every_epoch_once_and_resumes_within_one() -> None:
    sampler = EpochSampler(10, seed=3)
    first, second = list(sampler), list(sampler)
    assert [sorted(epoch) for epoch in (first, second)] == [[(k, i) for i in range(10)] for k in range(2)]
    assert [i for _, i in first] != [i for _, i in second]
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


def test_persistent_workers_follow_an_epoch_that_was_left_early(folder: Path) -> None:
    loaders = [get_dataloaders(str(folder), str(folder), 2, 32, num_workers=n)[0] for n in (0, 2)]
    for loader in loaders:
        next(iter(loader))
    for alone, shared in zip(*loaders, strict=True):
        assert alone["name"] == shared["name"] and torch.equal(alone["image"], shared["image"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_loader_process_is_one_line(num_workers: int) -> None:
    with pytest.raises(UserError) as error:
        next(iter(DataLoader(Damaged(), num_workers=num_workers)))
    assert one_line(error.value) == "--train_root: damaged.jpg"


def test_fewer_images_than_processes_are_a_user_error(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--train_root: 6 images in .*, 7 processes"):
        get_dataloaders(str(folder), str(folder), image_size=16, num_workers=0, num_processes=7)
