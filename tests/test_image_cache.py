"""Pictures of every kind are read right, decoded once, and shared by processes that may be killed."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY, photograph
from PIL import Image

import image_cache
from cli import UserError
from image_cache import PixelCache, UncachedPixels, open_pixels, read_image, read_mask, read_scaled


def test_pictures_of_every_mode_are_read_right(tmp_path: Path) -> None:
    rgb = photograph(20, 30)
    picture = Image.fromarray(rgb)
    picture.save(tmp_path / "rgb.png")
    assert np.array_equal(read_image(tmp_path / "rgb.png"), rgb)

    grey = np.asarray(picture.convert("L"))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[:, :, None], 3, axis=2))

    deep = grey.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert np.array_equal(read_image(tmp_path / "deep.png")[:, :, 0], grey)
    cv2.imwrite(str(tmp_path / "deep.tif"), deep)
    assert np.array_equal(read_image(tmp_path / "deep.tif")[:, :, 0], grey)
    cv2.imwrite(str(tmp_path / "deep_rgb.png"), rgb[:, :, ::-1].astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / "deep_rgb.png"), rgb)

    palette = picture.quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))

    alpha = np.zeros((20, 30), np.uint8)
    alpha[:, :15] = 255
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "alpha.png")
    read = read_image(tmp_path / "alpha.png")
    assert np.array_equal(read[:, :15], rgb[:, :15])
    assert (read[:, 15:] == 255).all()

    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - rgb).mean() < 6


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    rgb = photograph(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise to be upright
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(rgb, -1))


def test_masks_are_white_where_missing_unless_inverted(tmp_path: Path) -> None:
    grey = np.array([[0, 100, 128, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "mask.png")
    mask, share = read_mask(tmp_path / "mask.png")
    assert mask.tolist() == [[0, 0, 1, 1]]
    assert share == 0.5
    assert read_mask(tmp_path / "mask.png", invert=True)[0].tolist() == [[1, 1, 0, 0]]


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    Image.fromarray(photograph(64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    for name in ("text.png", "empty.jpg", "cut.png", "none.png"):
        with pytest.raises(UserError, match=name) as error:
            read_image(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        read_image(tmp_path)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(photograph(64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"large\.png"):
        read_image(tmp_path / "large.png")


def test_a_large_jpeg_is_decoded_at_a_smaller_size_and_looks_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.jpg"
    Image.fromarray(photograph(600, 900)).save(path, quality=95)
    assert read_image(path).shape == (600, 900, 3)
    assert read_image(path, least_side=150).shape == (150, 225, 3)
    assert read_image(path, least_side=151).shape == (300, 450, 3)
    assert read_image(path, least_side=900).shape == (600, 900, 3)
    reduced = read_scaled(path, 64, "white")
    monkeypatch.setattr(image_cache, "read_image", lambda path, background, _: read_image(path, background))
    assert np.abs(read_scaled(path, 64, "white").astype(int) - reduced).mean() < 2


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{i:02d}.png" for i in range(20)]
    for i, path in enumerate(paths):
        sides = generator.integers(20, 60, 2)
        Image.fromarray(np.roll(photograph(*sides), i, axis=1)).save(path)
    paths[7].write_text("text")
    return paths


def test_a_cache_holds_all_readable_pictures_in_order(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "BLOCK", 6)
    cache = PixelCache(paths, 16, "white", tmp_path / "cache", "pictures")
    assert cache.readable == [i for i in range(20) if i != 7] and len(cache) == 19
    assert len(cache.unreadable) == 1 and "07.png" in cache.unreadable[0]
    for i, k in enumerate(cache.readable):
        assert np.array_equal(cache[i], read_scaled(paths[k], 16, "white"))


def test_without_a_cache_the_pictures_are_the_same_and_nothing_is_written(
    paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    pixels = open_pixels(paths, 16, "white", None, "pictures")
    assert isinstance(pixels, UncachedPixels) and sorted(tmp_path.rglob("*")) == before
    assert pixels.readable == [i for i in range(20) if i != 7] and "07.png" in pixels.unreadable[0]
    for i, k in enumerate(pixels.readable):
        assert np.array_equal(pixels[i], read_scaled(paths[k], 16, "white"))
    paths[19].write_bytes(paths[19].read_bytes()[:200])
    for _ in range(3):
        assert np.array_equal(pixels[18], pixels[0])
    assert capsys.readouterr().err.count("the next image stands in for it") == 1
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image can be read any more"):
        pixels[3]


BUILD = """
import sys
from pathlib import Path
from image_cache import PixelCache
cache = PixelCache(sorted(Path(sys.argv[1]).glob("*.png")), 16, "white", Path(sys.argv[1]) / "cache", "x")
print(int(sum(int(image.sum()) for image in (cache[i] for i in range(len(cache))))))
"""


def test_processes_that_build_it_at_once_get_one_cache(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) for _ in range(3)]
    sums = {process.communicate()[0] for process in processes}
    assert len(sums) == 1 and sums != {b""} and all(process.returncode == 0 for process in processes)
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1


def test_what_a_killed_process_left_is_removed(paths: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    key = PixelCache(paths, 16, "white", folder, "pictures").file.stem
    (folder / f"{key}.json").unlink()
    leftover = folder / f".{key}.pixels.99.tmp"
    leftover.write_bytes(b"half")
    PixelCache(paths, 16, "white", folder, "pictures")
    assert not leftover.exists() and (folder / f"{key}.json").exists()
