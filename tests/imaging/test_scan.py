"""Problems of the data are found: unreadable, small and duplicate images, and overlap."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import photograph
from PIL import Image

import imaging.scan
from imaging.scan import Scan, find_overlap, scan


def scan_root(root: Path | str, training: bool = True, size: int = 32) -> Scan:
    return scan(str(root), training, size, "--train_root")


def names(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(Path(a).name, Path(b).name) for a, b in pairs]


def test_images_are_counted_and_unrelated_ones_are_no_duplicates(folder: Path) -> None:
    for i in range(6, 60):
        Image.fromarray(photograph(64, 64, seed=i)).save(folder / f"picture{i}.png")
    found = scan_root(folder)
    assert (found.count, found.files, found.unreadable, found.exact, found.near) == (60, 60, [], [], [])


def test_unreadable_and_too_small_images_are_named(folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no image")
    found = scan_root(folder, size=40)
    assert (found.count, found.files) == (6, 7)
    assert len(found.unreadable) == 1 and "broken.jpg" in found.unreadable[0]
    assert [Path(name).name for name in found.short_sides] == ["picture3.png", "picture5.png"]


def test_only_the_chosen_images_are_scanned(folder: Path) -> None:
    found = scan(str(folder), True, 32, "--train_root", max_images=2, seed=1)
    order = np.sort(np.random.default_rng(1).permutation(6)[:2])
    assert found.count == 2
    assert [Path(image.name).name for image in found.fingerprints] == [f"picture{i}.png" for i in order]


def test_exact_recompressed_and_scaled_copies_are_found(folder: Path) -> None:
    image = Image.fromarray(photograph(200, 240, seed=99))
    image.save(folder / "a.png")
    shutil.copy(folder / "a.png", folder / "b.png")
    image.save(folder / "c.jpg", quality=40)
    image.resize((96, 80)).save(folder / "d.png")
    found = scan_root(folder)
    assert [[Path(name).name for name in group] for group in found.exact] == [["a.png", "b.png"]]
    assert [pair[0] for pair in names(found.near)] == ["c.jpg", "d.png"]
    assert {pair[1] for pair in names(found.near)} <= {"a.png", "c.jpg"}


def test_images_without_structure_are_no_duplicates(tmp_path: Path) -> None:
    for level in range(0, 250, 50):
        faint = level + photograph(40, 40) // 100  # a few grey levels, the same in all
        Image.fromarray(faint.astype(np.uint8)).save(tmp_path / f"faint{level}.png")
        Image.new("RGB", (40, 40), (level, level, level)).save(tmp_path / f"blank{level}.png")
    assert scan_root(tmp_path).near == []


def test_overlap_of_training_and_validation_is_found(folder: Path, tmp_path: Path) -> None:
    val = tmp_path / "val"
    val.mkdir()
    shutil.copy(folder / "picture0.png", val / "same.png")
    Image.open(folder / "picture4.png").resize((160, 160)).save(val / "alike.jpg", quality=60)
    Image.fromarray(photograph(64, 64, seed=50)).save(val / "other.png")
    exact, near = find_overlap(scan_root(folder).fingerprints, scan_root(val, training=False).fingerprints)
    assert names(exact) == [("same.png", "picture0.png")]
    assert names(near) == [("alike.jpg", "picture4.png")]


def test_every_block_is_compared_with_all_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.open(folder / "picture1.png").save(folder / "z.jpg", quality=80)
    whole = scan_root(folder).near
    monkeypatch.setattr(imaging.scan, "BLOCK", 2)
    assert scan_root(folder).near == whole and names(whole) == [("z.jpg", "picture1.png")]


def test_several_folders_and_the_sample_are_scanned_each_file_once(folder: Path, tmp_path: Path) -> None:
    both = scan_root(os.pathsep.join([str(folder), str(folder)]))
    assert (both.count, both.files, both.exact) == (12, 6, [])
    sample = scan_root("sample", training=False)
    assert (sample.count, sample.files, sample.exact, sample.near) == (100, 2, [], [])


def test_shards_are_scanned(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    shutil.copy(folder / "picture0.png", folder / "picture6.png")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    found = scan_root(tmp_path / "0.tar")
    assert (found.count, found.near) == (7, [])
    assert found.exact == [[f"picture{i} in {tmp_path}/0.tar" for i in (0, 6)]]
