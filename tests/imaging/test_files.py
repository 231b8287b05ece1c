"""Image files are found in folders, and named."""

import os
from pathlib import Path

import pytest
from conftest import photograph
from PIL import Image

from dataset import InpaintingDataset
from imaging.files import find_images
from utils import is_shards


def test_a_subset_depends_on_the_seed_alone(folder: Path) -> None:
    names = InpaintingDataset(str(folder), 32, max_images=3).names
    assert len(names) == 3
    assert InpaintingDataset(str(folder), 32, max_images=3).names == names


def test_files_with_the_same_stem_keep_their_extensions(folder: Path) -> None:
    Image.fromarray(photograph(40, 40)).save(folder / "picture0.bmp")
    assert {"picture0.bmp", "picture0.png", "picture1"} <= set(InpaintingDataset(str(folder), 32).names)


def test_hidden_and_system_folders_are_skipped_and_named(
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
    assert len(find_images(folder / "deep" / ".Trash-0", "--train_root")) == 1  # named as the root
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", [f"a{os.pathsep}b", "photographs.tar"])
def test_an_existing_folder_is_one_root_whatever_its_name(name: str, folder: Path) -> None:
    folder.rename(folder.with_name(name))
    root = str(folder.with_name(name))
    assert not is_shards(root) and len(InpaintingDataset(root, 32)) == 6
    assert is_shards(f"{root}.tar") and is_shards(os.pathsep.join(["elsewhere", "000.tar"]))


def test_several_roots_are_joined(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(photograph(40, 40)).save(other / "more.png")
    assert len(InpaintingDataset(f"{folder}:{other}", 32)) == 7
