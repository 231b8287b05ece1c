"""Images of every format are decoded as they look, and other files are refused in one line."""

import math
import os
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import photograph
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

import imaging.cache
import imaging.read
from imaging import image_file
from imaging.cache import IMAGES, MASKS, PixelCache, UncachedPixels
from imaging.files import EXTENSIONS
from imaging.read import read_image, read_scaled, short_side_of
from utils import UserError


def test_images_of_every_mode_are_decoded_right(tmp_path: Path) -> None:
    rgb = photograph(20, 30)
    image = Image.fromarray(rgb)
    image.save(tmp_path / "rgb.png")
    assert np.array_equal(read_image(tmp_path / "rgb.png"), rgb)

    grey = np.asarray(image.convert("L"))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[:, :, None], 3, axis=2))

    deep = grey.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert np.array_equal(read_image(tmp_path / "deep.png")[:, :, 0], grey)
    cv2.imwrite(str(tmp_path / "deep.tif"), deep)
    assert np.array_equal(read_image(tmp_path / "deep.tif")[:, :, 0], grey)
    cv2.imwrite(str(tmp_path / "deep_rgb.png"), rgb[:, :, ::-1].astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / "deep_rgb.png"), rgb)

    palette = image.quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))

    alpha = np.zeros((20, 30), np.uint8)
    alpha[:, :15] = 255
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "alpha.png")
    read = read_image(tmp_path / "alpha.png")
    assert np.array_equal(read[:, :15], rgb[:, :15])
    assert (read[:, 15:] == 255).all()

    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - rgb).mean() < 6


def deep_tiffs() -> dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]]:
    """By name, the samples and settings of a TIFF, and the (H, W, 1 or 3) uint8 that it shows."""
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
def test_tiffs_of_any_depth_are_decoded_as_they_look(name: str, tmp_path: Path) -> None:
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
def test_files_of_every_extension_can_be_read(extension: str, tmp_path: Path) -> None:
    imaging.read.formats()  # registers HEIF, for writing too
    rgb = photograph(40, 64)
    path = tmp_path / f"image{extension}"
    Image.fromarray(rgb).save(path, quality=95)
    assert short_side_of(path) == 40 and UncachedPixels([path], 40, IMAGES, "x").readable == [0]
    assert np.abs(read_image(path).astype(int) - rgb).mean() < 6
    assert read_scaled(path, 20).shape == (20, 32, 3)


def test_half_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[:, :, 0], pixels[:, :, 3] = 100, 128
    Image.fromarray(pixels).save(tmp_path / "half.png")
    assert read_image(tmp_path / "half.png")[0, 0].tolist() == [177, 127, 127]


def test_formats_of_other_documents_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def run(*_: object) -> None:
        raise AssertionError("Ghostscript was run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    Image.fromarray(photograph(20, 30)).save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "page.png")
    tag = (50706, 1, 4, bytes([1, 4, 0, 0]), True)
    tifffile.imwrite(tmp_path / "raw.tif", photograph(20, 30), photometric="rgb", extratags=[tag])
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (("page.png", ""), ("raw.tif", "raw file"), ("pipe.png", "")):
        path = tmp_path / name
        with pytest.raises(UserError, match=rf"{name}|{reason}") as error:
            read_image(path)
        assert reason in str(error.value)
        assert PixelCache([path], 16, IMAGES, tmp_path / "cache", "x").readable == []
    for name in ("page.png", "pipe.png"):
        assert short_side_of(tmp_path / name) == math.inf
        assert UncachedPixels([tmp_path / name], 16, IMAGES, "x").readable == []


@pytest.mark.parametrize("error", [struct.error, TypeError, IndexError, NotImplementedError, RuntimeError])
def test_any_error_of_a_decoder_is_an_unreadable_file(
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
def test_the_first_of_several_pages_is_decoded_like_a_single_one(kind: str, tmp_path: Path) -> None:
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


def test_the_first_of_several_frames_is_read(tmp_path: Path) -> None:
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


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    Image.fromarray(photograph(64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    for name in ("text.png", "empty.jpg", "cut.png", "none.png"):
        with pytest.raises(UserError, match=name) as error:
            read_image(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        read_image(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert read_image(path, min_side=150).shape == (150, 225, 3)
    assert read_image(path, min_side=151).shape == (300, 450, 3)
    assert read_image(path, min_side=900).shape == (600, 900, 3)
    reduced = read_scaled(path, 64)
    monkeypatch.setattr(imaging.read, "read_image", lambda path, _: read_image(path))
    assert np.abs(read_scaled(path, 64).astype(int) - reduced).mean() < 2
