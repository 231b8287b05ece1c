import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import photograph
from PIL import Image

import dataset
from dataset import InpaintingDataset, get_dataloaders
from imaging import shards
from imaging.augment import Augmentation
from imaging.shards import ShardDataset, count_images, expand
from training.loaders import set_position, shard_loader
from utils import UserError, is_shards

webdataset = pytest.importorskip("webdataset", reason="shards need the optional webdataset library")

SIZES = [7, 4, 6, 6]  # images in each shard


def encode(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Four shards of 23 small images, each beside a label and an annotation that is an image too."""
    number = 0
    for i, size in enumerate(SIZES):
        with webdataset.TarWriter(str(tmp_path / f"{i:03d}.tar")) as writer:
            for _ in range(size):
                png = encode(photograph(20 + number, 36, seed=number))
                sample = {"__key__": f"picture{number:02d}", "cls": b"0", "PNG": png, "mask.png": b"none"}
                writer.write(sample)
                number += 1
    return str(tmp_path / "{000..003}.tar")


def names_of(loader: Any, epoch: int = 0, start: int = 0) -> list[str]:
    set_position(loader, epoch, start)
    return [name for batch in loader for name in batch["name"]]


def replace(shard: str, **changes: bytes) -> None:
    """Write the shard anew with other bytes for some images."""
    with tarfile.open(shard) as tar:
        files = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(shard, "w") as tar:
        for name, content in files:
            content = changes.get(name.removesuffix(".PNG"), content)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_roots_are_recognised_and_expanded(root: str, tmp_path: Path) -> None:
    assert is_shards(root) and is_shards(f"elsewhere{os.pathsep}{root}")
    assert not is_shards("sample") and not is_shards(str(tmp_path))
    last = str(tmp_path / "003.tar")
    parts = f"{tmp_path}/{{000..001}}.tar{os.pathsep}{last}"
    assert expand(parts) == [str(tmp_path / f"00{i}.tar") for i in (0, 1, 3)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{000..009}.tar", "no such shard: .*004.tar"),
        ("{000..003.tar", "not a range of shards"),
        ("000.tar:.", "shards and folders do not mix"),
    ],
)
def test_wrong_roots_are_refused_in_one_line(
    root: str, wrong: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--train_root: {message}") as error:
        ShardDataset(wrong.replace(":", os.pathsep))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["webdataset", "braceexpand"])
def test_a_missing_library_is_named(root: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"^--train_root: .*pip install webdataset$"):
        shard_loader(root)


def test_images_are_counted_by_headers_or_by_sizes_json(root: str, tmp_path: Path) -> None:
    paths = expand(root)
    assert count_images(paths) == SIZES
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps({"001.tar": 3}))
    assert count_images(paths) == [7, 3, 6, 6]
    assert len(set(names_of(shard_loader(root, 4, 32, num_workers=0)))) == 22
    sizes.write_text(json.dumps({"001.tar": 5}))
    with pytest.raises(UserError, match=r"only 4 images in .*001\.tar.*at least 5"):
        names_of(shard_loader(root, 4, 32, num_workers=0))
    for wrong in ("[1]", "{", '{"001.tar": "many"}'):
        sizes.write_text(wrong)
        with pytest.raises(UserError, match=r"--train_root: .*sizes\.json"):
            count_images(paths)


def test_a_damaged_shard_is_named(root: str, tmp_path: Path) -> None:
    whole = (tmp_path / "002.tar").read_bytes()
    good = ShardDataset(root, 32)
    (tmp_path / "002.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"--train_root: cannot read .*002\.tar: .*end of data"):
        ShardDataset(root, 32)
    with pytest.raises(UserError, match=r"--train_root: cannot read .*002\.tar: .*end of data") as error:
        list(good)
    assert "\n" not in str(error.value)


def headers(shard: Path) -> list[int]:
    with tarfile.open(shard) as tar:
        return [member.offset for member in tar]


@pytest.mark.parametrize("place", ["inside a header", "at a header", "before the end mark"])
def test_a_shard_that_was_cut_is_never_used_without_a_note(
    place: str, root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / "002.tar"
    whole = shard.read_bytes()
    starts = headers(shard)
    cut = {
        "inside a header": starts[9] + 100,
        "at a header": starts[9],
        "before the end mark": len(whole.rstrip(b"\0")) // 512 * 512 + 512,
    }
    shard.write_bytes(whole[: cut[place]])
    if place == "inside a header":
        with pytest.raises(UserError, match=r"--train_root: cannot read .*002\.tar: damaged or cut at byte"):
            ShardDataset(root, 32)
    else:
        count = 3 if place == "at a header" else 6
        assert ShardDataset(root, 32).counts[2] == count
        note = f"note: --train_root {shard}: no end mark: was it cut after its {count} images?\n"
        assert capsys.readouterr().err == note
    (tmp_path / "sizes.json").write_text(json.dumps({f"{i:03d}.tar": 3 for i in range(4)}))
    ShardDataset(root, 32)
    assert capsys.readouterr().err == f"note: --train_root {shard}: no end mark: was it cut?\n"


def test_a_damaged_header_is_not_the_end_of_a_shard(root: str, tmp_path: Path) -> None:
    shard = tmp_path / "002.tar"
    content = bytearray(shard.read_bytes())
    start = headers(shard)[9]
    content[start + 3] ^= 1
    shard.write_bytes(content)
    message = rf"cannot read .*002\.tar: damaged or cut at byte {start:,}, after 3 images"
    with pytest.raises(UserError, match=message):
        ShardDataset(root, 32)


def write_tar(path: Path, *names: str) -> str:
    with tarfile.open(path, "w") as tar:
        for i, name in enumerate(names):
            content = encode(photograph(20, 20, seed=i))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def test_a_dot_in_a_key_is_explained_where_it_loses_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = "a key ends at the first dot of a name, so d/img.001.png is no image but belongs to d/img"
    with pytest.raises(
        UserError, match=r"^--train_root: 0 images in .*\(a key ends at the first dot"
    ) as error:
        ShardDataset(write_tar(tmp_path / "none.tar", "d/img.001.png", "d/img.002.png"), 16)
    assert rule in str(error.value)
    capsys.readouterr()
    part = write_tar(
        tmp_path / "part.tar", "a.png", "a.mask.png", "d/img.001.png", "._x.001.png", "b.v2.json"
    )
    assert len(ShardDataset(part, 16)) == 1
    assert capsys.readouterr().err == f"note: --train_root {part}: 1 files are not used: {rule}\n"


def test_names_in_shards_need_not_be_utf8(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    path = write_tar(tmp_path / f"{odd}.tar", f"{odd}.png", "b.png")
    loader = shard_loader(path, 2, 16, num_workers=1)
    assert sorted(names_of(loader)) == ["b", odd]


def test_a_separator_in_the_path_of_shards_is_part_of_it(tmp_path: Path) -> None:
    folder = tmp_path / f"a{os.pathsep}b"
    folder.mkdir()
    paths = [write_tar(folder / f"{i}.tar", "a.png") for i in range(2)]
    assert is_shards(paths[0]) and expand(paths[0]) == paths[:1]
    assert expand(str(folder / "{0..1}.tar")) == paths
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(UserError, match=r"shards and folders do not mix: .*folder\.tar"):
        expand(f"{write_tar(tmp_path / '0.tar', 'a.png')}{os.pathsep}{tmp_path / 'folder.tar'}")


def test_shards_without_images_are_refused(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "labels.tar")) as writer:
        writer.write({"__key__": "a", "cls": b"0"})
    with pytest.raises(UserError, match="--train_root: 0 images"):
        ShardDataset(str(tmp_path / "labels.tar"))


def test_items_are_those_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images before any draw are bit-identical, and so are the settings of the draws."""
    folder, masks = tmp_path / "folder", tmp_path / "masks"
    for root in (folder, masks):
        root.mkdir()
    with webdataset.TarWriter(str(tmp_path / "all.tar")) as writer:
        for i, (height, width) in enumerate([(40, 50), (90, 700), (200, 60)]):
            image = Image.fromarray(photograph(height, width, seed=i))
            image.save(folder / f"{i}.jpg")
            Image.fromarray(photograph(height, width)[:, :, 0] // 128 * 255).save(masks / f"{i}.png")
            writer.write({"__key__": str(i), "jpg": (folder / f"{i}.jpg").read_bytes()})
    seen: list[tuple] = []

    def record(image: np.ndarray, name: str, generator: Any, **settings: Any) -> dict[str, Any]:
        settings = {"random_crop": True, "random_flip": True} | settings
        item = original(image, name, np.random.default_rng(1), **settings)
        seen.append((name, item, {key: settings[key] for key in settings if key != "masks"}))
        return item

    original = dataset.make_sample
    for module in (dataset, shards):
        monkeypatch.setattr(module, "make_sample", record)
    common: dict[str, Any] = {
        "augmentation": Augmentation(min_crop=0.5),
        "mask_ratio": (0.2, 0.3),
        "mask_root": str(masks),
    }
    assert len(list(InpaintingDataset(str(folder), 24, **common))) == 3
    assert len(list(ShardDataset(str(tmp_path / "all.tar"), 24, **common))) == 3
    expected, found = (sorted(part, key=lambda call: call[0]) for part in (seen[:3], seen[3:]))
    for (name, a, settings), (other_name, b, other_settings) in zip(expected, found, strict=True):
        assert name == other_name and settings == other_settings
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["mask"], b["mask"])
        assert a["image"].shape == (3, 24, 24) and 0 <= a["image"].min() < a["image"].max() <= 1


def test_draws_change_with_epoch_and_seed_and_repeat_with_them(root: str) -> None:
    def items(epoch: int, **settings: Any) -> dict[str, dict[str, Any]]:
        data = ShardDataset(root, 16, **settings)
        data.epoch = epoch
        return {item["name"]: item for item in data}

    first, again, later, other = items(0), items(0, buffer=2), items(1), items(0, seed=1)
    assert first.keys() == again.keys() and len(first) == sum(SIZES)
    for name, item in first.items():  # in whatever order they come
        assert torch.equal(item["image"], again[name]["image"])
        assert torch.equal(item["mask"], again[name]["mask"])
        assert not torch.equal(item["mask"], later[name]["mask"])
        assert not torch.equal(item["mask"], other[name]["mask"])
        assert set(item["mask"].unique().tolist()) <= {0.0, 1.0} and 0.08 <= item["mask"].mean() <= 0.42
    masks = {item["mask"].numpy().tobytes() for item in first.values()}
    assert len(masks) == len(first)


def test_every_epoch_has_each_image_once_in_an_order_of_its_own(root: str) -> None:
    loader = shard_loader(root, 4, 16, num_workers=0, buffer=5)
    assert len(loader) == 6
    orders = [names_of(loader, epoch) for epoch in range(3)]
    assert all(sorted(order) == [f"picture{i:02d}" for i in range(23)] for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert names_of(shard_loader(root, 4, 16, num_workers=0, buffer=5), 1) == orders[1]
    assert names_of(shard_loader(root, 4, 16, num_workers=0, buffer=5, seed=1), 1) != orders[1]


def test_each_block_of_a_buffer_is_shuffled_anew_in_every_epoch(root: str, tmp_path: Path) -> None:
    loader = shard_loader(str(tmp_path / "000.tar"), 4, 16, num_workers=0, buffer=2)
    patterns = set()
    for epoch in range(12):
        order = [int(name.removeprefix("picture")) for name in names_of(loader, epoch)]
        blocks = [order[:1], order[1:3], order[3:5], order[5:]]
        assert [sorted(block) for block in blocks] == [[0], [1, 2], [3, 4], [5, 6]]
        patterns.add(tuple(block == sorted(block) for block in blocks[1:]))
    assert len(patterns) > 2


@pytest.mark.parametrize("num_processes", [2, 3, 5])
def test_processes_share_the_images_equally_and_leave_out_the_remainder(
    root: str, num_processes: int
) -> None:
    left_out = set()
    for epoch in range(4):
        parts = []
        for rank in range(num_processes):
            loader = shard_loader(root, 4, 16, num_workers=0, rank=rank, num_processes=num_processes)
            parts.append(names_of(loader, epoch))
            assert len(parts[-1]) == 23 // num_processes and len(loader) == -(-len(parts[-1]) // 4)
        shown = {name for part in parts for name in part}
        assert len(shown) == 23 // num_processes * num_processes
        left_out |= {f"picture{i:02d}" for i in range(23)} - shown
    assert len(left_out) > 23 % num_processes  # not the same ones in every epoch


def test_a_subset_is_the_same_in_every_epoch(root: str) -> None:
    loader = shard_loader(root, 4, 16, num_workers=0, max_images=9)
    first = names_of(loader)
    assert len(first) == len(set(first)) == 9
    assert set(names_of(loader, 1)) == set(first)
    assert len(shard_loader(root, 4, 16, max_images=100).dataset) == 23  # type: ignore[arg-type]


@pytest.mark.parametrize("buffer", [3, 1000])
@pytest.mark.parametrize(("rank", "num_processes"), [(0, 1), (1, 2)])
def test_a_resumed_epoch_yields_exactly_the_remaining_images(
    root: str, rank: int, num_processes: int, buffer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"rank": rank, "num_processes": num_processes, "buffer": buffer}
    whole = names_of(shard_loader(root, 2, 16, num_workers=0, **settings), 1)
    decoded = []
    read = shards.read_scaled
    monkeypatch.setattr(shards, "read_scaled", lambda file, *rest: decoded.append(file) or read(file, *rest))
    for done in range(len(whole) + 1):
        decoded.clear()
        loader = shard_loader(root, 2, 16, num_workers=0, **settings)
        assert names_of(loader, 1, done * num_processes) == whole[done:]
        assert len(decoded) == len(whole) - done  # images that were seen are not decoded again


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # fewer processors
@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_yield_the_images_of_one_process_and_resume_in_the_same_batches(
    root: str, num_workers: int
) -> None:
    loader = shard_loader(root, 4, 16, num_workers=num_workers, buffer=3)
    set_position(loader, 1, 0)
    whole = list(loader)
    assert [len(batch["name"]) for batch in whole] == [4, 4, 4, 4, 4, 3] and len(loader) == 6
    names = [name for batch in whole for name in batch["name"]]
    single = names_of(shard_loader(root, 4, 16, num_workers=0, buffer=3), 1)
    assert sorted(names) == sorted(single) and names != single
    for done in (1, 3, 5):
        set_position(loader, 1, done * 4)
        for batch, expected in zip(loader, whole[done:], strict=True):
            assert batch["name"] == expected["name"]
            assert torch.equal(batch["image"], expected["image"])
            assert torch.equal(batch["mask"], expected["mask"])


def test_an_unreadable_image_is_replaced_by_the_next_one(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(str(tmp_path / "001.tar"), picture08=b"not an image")
    loader = shard_loader(root, 4, 16, num_workers=0)
    names = names_of(loader)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "picture08 in " in warning and "001.tar" in warning
    assert len(names) == 23 and len(set(names)) == 22 and "picture08" not in names
    assert names_of(loader, 0, 20) == names[20:]
    alone = shard_loader(str(tmp_path / "001.tar"), 4, 16, num_workers=0, buffer=3)  # two blocks of two
    assert all(len(names_of(alone, epoch)) == 4 for epoch in range(8))
    replace(str(tmp_path / "001.tar"), **{f"picture{i:02d}": b"" for i in range(7, 11)})
    with pytest.raises(UserError, match=r"--train_root: no image can be read any more in .*001\.tar"):
        names_of(shard_loader(str(tmp_path / "001.tar"), 4, 16, num_workers=0))


def test_the_same_key_in_two_shards_gets_two_masks(root: str, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "000.tar", tmp_path / "001.tar")
    masks = {item["mask"].numpy().tobytes() for item in ShardDataset(str(tmp_path / "{000..001}.tar"), 16)}
    assert len(masks) == 14


def test_a_repeated_key_is_one_image(tmp_path: Path) -> None:
    path = str(tmp_path / "twice.tar")
    with tarfile.open(path, "w") as tar:
        for name in ("./a.jpg", "./a.jpg", "./a.png", "__meta__/b.png", "._c.png", "./d/e.png"):
            content = encode(photograph(20, 20))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert count_images([path]) == [2]
    assert sorted(item["name"] for item in ShardDataset(path, 16)) == ["./a", "./d/e"]


def test_set_position_works_for_folders_too(folder: Path) -> None:
    loader, _ = get_dataloaders(str(folder), str(folder), 2, 16, num_workers=0)
    whole = names_of(loader, 3)
    assert names_of(loader, 3, 2) == whole[2:]
