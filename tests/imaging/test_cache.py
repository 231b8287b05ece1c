"""Pictures of every kind are read right, decoded once, and shared by processes that may be killed."""

import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import REPOSITORY, photograph
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

import imaging.cache
import imaging.read
from imaging import image_file
from imaging.cache import IMAGES, INVERTED_MASKS, MASKS, PixelCache, UncachedPixels, open_pixels
from imaging.files import EXTENSIONS
from imaging.read import read_image, read_scaled, short_side_of
from utils import UserError


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


def deep_tiffs() -> dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]]:
    """By name, what a TIFF stores and how, and the (H, W, 1 or 3) uint8 that it looks like."""
    rgb = photograph(20, 30)
    grey = rgb[:, :, :1]
    low, high = int(grey.min()), int(grey.max())
    stretched = np.rint((grey.astype(float) - low) / (high - low) * 255).astype(np.uint8)
    opacity = np.where(np.arange(30) < 15, 1.0, 0.25)[None, :, None]
    over_white = np.rint(255 - opacity * (255.0 - rgb)).astype(np.uint8)
    premultiplied = np.dstack([np.rint(rgb * 257.0 * opacity), np.full((20, 30), 65535) * opacity[:, :, 0]])
    ink = 255 - np.dstack([rgb, np.full((20, 30), 255, np.uint8)])
    finer = rgb.astype(np.uint16) * 257 + 120  # rounds down; cut to its upper byte, it is another
    finer[rgb == 255] = 65535
    return {
        "white is 0": (65535 - grey.astype(np.uint16) * 257, {"photometric": "miniswhite"}, grey),
        "white is 0, 8 bits": (255 - grey, {"photometric": "miniswhite"}, grey),
        "signed": (grey.astype(np.int16) * 100 - 9000, {}, stretched),
        "signed, 8 bits": ((grey.astype(int) - 128).astype(np.int8), {}, stretched),
        "float": (grey.astype(np.float32) / 255, {}, grey),
        "float of another range": (grey.astype(np.float32) * 30 - 1000, {}, stretched),
        "colour": (finer, {"photometric": "rgb"}, rgb),
        "colour, planar": (finer, {"photometric": "rgb", "planarconfig": "separate"}, rgb),
        "premultiplied": (
            premultiplied.astype(np.uint16),
            {"photometric": "rgb", "extrasamples": ["assocalpha"]},
            over_white,
        ),
        "cmyk": (ink.astype(np.uint16) * 257, {"photometric": "separated"}, rgb),
    }


@pytest.mark.parametrize("name", deep_tiffs())
def test_tiffs_of_any_depth_are_read_as_they_look(name: str, tmp_path: Path) -> None:
    samples, settings, expected = deep_tiffs()[name]
    settings = {"photometric": "minisblack"} | settings
    if settings.get("planarconfig") == "separate":
        samples = np.moveaxis(samples, 2, 0)
    elif samples.shape[2] == 1:
        samples = samples[:, :, 0]
    tifffile.imwrite(tmp_path / "deep.tif", samples, **settings)
    read = read_image(tmp_path / "deep.tif")
    assert read.shape == (20, 30, 3) and read.dtype == np.uint8
    tolerance = 1 if name in ("premultiplied", "cmyk") else 0
    assert np.abs(read.astype(int) - expected).max() <= tolerance
    assert np.array_equal(read_scaled(tmp_path / "deep.tif", 20), read)


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_every_kind_of_file_that_is_looked_for_can_be_read(extension: str, tmp_path: Path) -> None:
    imaging.read.formats()  # which makes Pillow write them, too
    rgb = photograph(40, 64)
    path = tmp_path / f"picture{extension}"
    Image.fromarray(rgb).save(path, quality=95)
    assert short_side_of(path) == 40 and UncachedPixels([path], 40, IMAGES, "x").readable == [0]
    assert np.abs(read_image(path).astype(int) - rgb).mean() < 6
    assert read_scaled(path, 20).shape == (20, 32, 3)


def test_half_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[:, :, 0], pixels[:, :, 3] = 100, 128
    Image.fromarray(pixels).save(tmp_path / "half.png")
    assert read_image(tmp_path / "half.png")[0, 0].tolist() == [177, 127, 127]


def test_other_formats_than_those_of_pictures_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import EpsImagePlugin

    def run(*_: object) -> None:
        raise AssertionError("Ghostscript was run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    Image.fromarray(photograph(20, 30)).save(tmp_path / "inference.web.page.eps")
    (tmp_path / "inference.web.page.eps").rename(tmp_path / "inference.web.page.png")
    tag = (50706, 1, 4, bytes([1, 4, 0, 0]), True)
    tifffile.imwrite(tmp_path / "raw.tif", photograph(20, 30), photometric="rgb", extratags=[tag])
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (("inference.web.page.png", ""), ("raw.tif", "raw file"), ("pipe.png", "")):
        path = tmp_path / name
        with pytest.raises(UserError, match=rf"{name}|{reason}") as error:
            read_image(path)
        assert reason in str(error.value)
        assert PixelCache([path], 16, IMAGES, tmp_path / "cache", "x").readable == []
    for name in ("inference.web.page.png", "pipe.png"):
        assert short_side_of(tmp_path / name) == math.inf
        assert UncachedPixels([tmp_path / name], 16, IMAGES, "x").readable == []


@pytest.mark.parametrize("error", [struct.error, TypeError, IndexError, NotImplementedError, RuntimeError])
def test_whatever_a_decoder_raises_is_an_unreadable_file(
    error: type[Exception], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("deep\ninside")

    files = sorted(folder.iterdir())
    photograph_file = tmp_path / "photograph.jpg"
    Image.fromarray(photograph(20, 30)).save(photograph_file)
    for decode in ("open_container", "_first_image"):
        monkeypatch.setattr(image_file, decode, fail)
    monkeypatch.setattr(JpegImageFile, "load", fail)
    for file in (files[0], photograph_file):
        with pytest.raises(UserError, match=rf"{file.name}") as raised:
            read_image(file)
        assert "deep" in str(raised.value) and "\n" not in str(raised.value)
    for kind in (IMAGES, MASKS):
        cache = PixelCache(files, 16, kind, tmp_path / "cache", "x")
        assert len(cache) == 0 and len(cache.unreadable) == 6
    assert len(UncachedPixels(files, 16, MASKS, "x").unreadable) == 6
    monkeypatch.setattr(Image, "open", fail)
    assert short_side_of(files[0]) == math.inf
    assert len(UncachedPixels(files, 16, IMAGES, "x").unreadable) == 6


@pytest.mark.parametrize("kind", ["uint16", "float32", "white is 0"])
def test_the_first_of_several_pages_is_read_as_a_single_one(kind: str, tmp_path: Path) -> None:
    grey = np.asarray(Image.fromarray(photograph(20, 30)).convert("L"))
    page = (grey / 255).astype(np.float32) if kind == "float32" else grey.astype(np.uint16) * 257
    photometric = "miniswhite" if kind == "white is 0" else "minisblack"
    page = 65535 - page if kind == "white is 0" else page
    for i in range(2):
        tifffile.imwrite(tmp_path / "pages.tif", page, photometric=photometric, append=i > 0, metadata=None)
    read = read_image(tmp_path / "pages.tif").astype(int)
    assert np.abs(read - grey[:, :, None]).max() <= 1


def test_a_channel_of_unknown_meaning_is_no_opacity(tmp_path: Path) -> None:
    rgb = photograph(20, 30)
    pixels = np.dstack([rgb, np.zeros((20, 30), np.uint8)])
    tifffile.imwrite(
        tmp_path / "infrared.tif", pixels, photometric="rgb", extrasamples=["unspecified"], metadata=None
    )
    assert np.array_equal(read_image(tmp_path / "infrared.tif"), rgb)


def test_of_several_pictures_the_first_is_read(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (20, 20), (0, 90, 200)), Image.new("RGB", (20, 20), (250, 0, 0))
    for name in ("film.webp", "film.tif", "film.gif"):
        first.save(tmp_path / name, save_all=True, append_images=[second], lossless=True)
        read = read_image(tmp_path / name).astype(int)
        assert np.abs(read - (0, 90, 200)).max() < 20, name


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    rgb = photograph(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise to be upright
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(rgb, -1))


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
    monkeypatch.setattr(imaging.read, "MAX_PIXELS", 1000)
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
    reduced = read_scaled(path, 64)
    monkeypatch.setattr(imaging.read, "read_image", lambda path, _: read_image(path))
    assert np.abs(read_scaled(path, 64).astype(int) - reduced).mean() < 2


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
    monkeypatch.setattr(imaging.cache, "BLOCK", 6)
    cache = PixelCache(paths, 16, IMAGES, tmp_path / "cache", "pictures")
    assert cache.readable == [i for i in range(20) if i != 7] and len(cache) == 19
    assert len(cache.unreadable) == 1 and "07.png" in cache.unreadable[0]
    for i, k in enumerate(cache.readable):
        assert np.array_equal(cache[i], read_scaled(paths[k], 16))


def test_without_a_cache_the_pictures_are_the_same_and_nothing_is_written(
    paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    pixels = open_pixels(paths, 16, IMAGES, None, "pictures")
    assert isinstance(pixels, UncachedPixels) and sorted(tmp_path.rglob("*")) == before
    assert pixels.readable == [i for i in range(20) if i != 7] and "07.png" in pixels.unreadable[0]
    for i, k in enumerate(pixels.readable):
        assert np.array_equal(pixels[i], read_scaled(paths[k], 16))
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
from imaging.cache import PixelCache
cache = PixelCache(sorted(Path(sys.argv[1]).glob("*.png")), 16, "images", Path(sys.argv[1]) / "cache", "x")
print(int(sum(int(image.sum()) for image in (cache[i] for i in range(len(cache))))))
"""


def test_masks_are_kept_binarised_apart_from_images_and_with_what_is_odd_about_them(tmp_path: Path) -> None:
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


def test_processes_that_build_it_at_once_get_one_cache(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) for _ in range(3)]
    sums = {process.communicate()[0] for process in processes}
    assert len(sums) == 1 and sums != {b""} and all(process.returncode == 0 for process in processes)
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1


def test_what_a_killed_process_left_is_removed(paths: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    key = PixelCache(paths, 16, IMAGES, folder, "pictures").file.stem
    (folder / f"{key}.json").unlink()
    leftover = folder / f".{key}.pixels.99.tmp"
    leftover.write_bytes(b"half")
    PixelCache(paths, 16, IMAGES, folder, "pictures")
    assert not leftover.exists() and (folder / f"{key}.json").exists()
