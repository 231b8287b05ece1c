"""Images and masks are decoded once, and shared by processes that may be killed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, photograph
from PIL import Image

import imaging.cache
import imaging.read
from imaging.cache import IMAGES, INVERTED_MASKS, MASKS, PixelCache, UncachedPixels, open_pixels
from imaging.read import read_scaled
from utils import UserError


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{i:02d}.png" for i in range(20)]
    for i, path in enumerate(paths):
        sides = generator.integers(20, 60, 2)
        Image.fromarray(np.roll(photograph(*sides), i, axis=1)).save(path)
    paths[7].write_text("text")
    return paths


def test_a_cache_holds_all_readable_images_in_order(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imaging.cache, "BLOCK", 6)
    cache = PixelCache(paths, 16, IMAGES, tmp_path / "cache", "images")
    assert cache.readable == [i for i in range(20) if i != 7] and len(cache) == 19
    assert len(cache.unreadable) == 1 and "07.png" in cache.unreadable[0]
    for i, k in enumerate(cache.readable):
        assert np.array_equal(cache[i], read_scaled(paths[k], 16))


def test_without_a_cache_the_images_are_the_same_and_nothing_is_written(
    paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    pixels = open_pixels(paths, 16, IMAGES, None, "images")
    assert isinstance(pixels, UncachedPixels) and sorted(tmp_path.rglob("*")) == before
    assert pixels.readable == [i for i in range(20) if i != 7] and "07.png" in pixels.unreadable[0]
    for i, k in enumerate(pixels.readable):
        assert np.array_equal(pixels[i], read_scaled(paths[k], 16))
    paths[19].write_bytes(paths[19].read_bytes()[:200])
    for _ in range(3):
        assert np.array_equal(pixels[18], pixels[0])
    assert capsys.readouterr().err.count("the next image is used instead") == 1
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image can be read any more"):
        pixels[3]


BUILD = """
import sys
from pathlib import Path
from imaging.cache import PixelCache
cache = PixelCache(sorted(Path(sys.argv[1]).glob("*.png")), 16, "images", Path(sys.argv[1]) / "cache", "x")
print(int(sum(int(image.sum()) for image in (cache[i] for i in range(len(cache))))))
"""


def test_masks_are_cached_apart_from_images_with_their_findings(tmp_path: Path) -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[:, :16] = 1
    line = np.zeros((40, 40), np.uint8)
    line[20] = 255
    erased = np.full((40, 40, 4), 90, np.uint8)
    erased[:, :, 3] = np.where(mask, 0, 255)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for path, pixels in zip(files, (mask, line, erased), strict=True):
        Image.fromarray(pixels).save(path)
    hole = np.zeros((10, 10), np.uint8)
    hole[:, :4] = 1
    folder = tmp_path / "cache"
    PixelCache(files, 10, IMAGES, folder, "x")
    for _ in range(2):  # built, and read again
        for pixels in (PixelCache(files, 10, MASKS, folder, "x"), UncachedPixels(files, 10, MASKS, "x")):
            assert np.array_equal(pixels[0], hole) and np.array_equal(pixels[2], hole)
            assert [set(found) for found in pixels.findings] == [{"0/1"}, {"empty"}, {"alpha"}]
            assert "too thin" in pixels.findings[1]["empty"] and not pixels[1].any()
    inverted = PixelCache(files, 10, INVERTED_MASKS, folder, "x")
    assert np.array_equal(inverted[0], 1 - hole) and "full" in inverted.findings[1]
    assert PixelCache(files, 10, IMAGES, folder, "x")[0].shape == (10, 10, 3)
    assert len(list(folder.glob("*.pixels"))) == 3


def test_processes_that_build_a_cache_at_once_share_one(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) for _ in range(3)]
    sums = {process.communicate()[0] for process in processes}
    assert len(sums) == 1 and sums != {b""} and all(process.returncode == 0 for process in processes)
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1


def test_files_left_by_a_killed_process_are_removed(paths: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    key = PixelCache(paths, 16, IMAGES, folder, "images").file.stem
    (folder / f"{key}.json").unlink()
    leftover = folder / f".{key}.pixels.99.tmp"
    leftover.write_bytes(b"half")
    PixelCache(paths, 16, IMAGES, folder, "images")
    assert not leftover.exists() and (folder / f"{key}.json").exists()
