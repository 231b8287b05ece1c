"""Every kind of picture file comes back with its known pixels, its mode and what it carries; bad files are refused."""

import io
import itertools
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import photograph
from PIL import Image, ImageCms, PngImagePlugin

from cli import UserError
from pictures import LOSSY, Picture, encode_png, nearest, read_chunks, stored, upright, write_chunks

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "BMP": ("1", "L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "TGA": ("L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "F"),
    "PCX": ("L", "P", "RGB"),
    "SGI": ("L", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
}
KINDS = [(form, mode) for form, modes in FORMATS.items() for mode in modes]


def make(mode: str, height: int = 9, width: int = 14) -> Image.Image:
    generator = np.random.default_rng(0)
    color = Image.fromarray(photograph(height, width))
    noise = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode in ("P", "PA"):
        return color.quantize(17).convert(mode)
    if mode == "LAB":
        profiles = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
        converted = ImageCms.profileToProfile(color, *profiles, outputMode="LAB")
        assert converted is not None
        return converted
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 65536, (height, width)).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(generator.integers(-70000, 70000, (height, width)).astype(np.int32))
    if mode == "F":
        return Image.fromarray(generator.normal(0, 5, (height, width)).astype(np.float32))
    if mode in ("RGBA", "LA"):
        return Image.fromarray(noise[:, :, : len(mode)])
    return color.convert(mode)


def reopen(path: Path) -> Image.Image:
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.load()
    return image


def fill_at_random(picture: Picture) -> np.ndarray:
    generator = np.random.default_rng(1)
    shape, kind = picture.colors.shape, picture.colors.dtype
    hole = generator.random(shape[:2]) < 0.3
    filled = generator.random(shape) * (np.iinfo(kind).max if kind.kind == "u" else 1)
    picture.fill(filled.astype(kind), hole)
    return hole


def pillow_reads(path: Path) -> bool:
    with Image.open(path) as image:
        try:
            image.load()
        except OSError:
            return False
        return True


@pytest.mark.parametrize(("form", "mode"), KINDS)
def test_known_pixels_mode_profile_and_exif_survive(form: str, mode: str, tmp_path: Path) -> None:
    path, target = tmp_path / f"in.{form}", tmp_path / f"out.{form}"
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6
    exif.get_ifd(34665)[33434] = 0.01
    exif[34665] = 0
    make(mode).save(path, form, icc_profile=PROFILE, exif=exif if form == "TIFF" else exif.tobytes())
    if (form, mode) == ("TIFF", "YCbCr") and not pillow_reads(path):
        pytest.skip("this Pillow does not read the YCbCr TIFF that it writes (12.3 takes it for RGBX)")
    picture = Picture(path)
    hole = fill_at_random(picture)
    picture.save(target)
    before, after = reopen(path), reopen(target)
    assert before.mode == after.mode and before.format == after.format and before.size == after.size
    # Pillow turns a TIFF upright as it loads it
    known = ~(hole if form == "TIFF" else stored(hole, before.getexif().get(274, 1)))
    pixels = np.asarray(before), np.asarray(after)
    assert not np.array_equal(*pixels)
    if form not in LOSSY:
        assert np.array_equal(pixels[0][known], pixels[1][known])
    assert before.info.get("icc_profile") == after.info.get("icc_profile")
    tags = [Image.open(io.BytesIO(each.read_bytes())).getexif() for each in (path, target)]
    assert [tags[0].get(t) for t in (271, 274)] == [tags[1].get(t) for t in (271, 274)]
    assert dict(tags[0].get_ifd(34665)) == dict(tags[1].get_ifd(34665))
    if form in ("PNG", "TIFF", "WEBP", "JPEG"):
        assert tags[1][274] == 6 and tags[1].get_ifd(34665)[33434] == pytest.approx(0.01)
        assert "icc_profile" in after.info
    assert np.array_equal(Picture(target).colors.shape, picture.colors.shape)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_hole_is_where_it_is_seen_in_every_orientation(
    form: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"in.{form}"
    Image.fromarray(np.full((40, 64, 3), 200, np.uint8)).save(path, form, exif=exif)
    picture = Picture(path)
    hole = np.zeros(picture.colors.shape[:2], bool)
    hole[:8, :16] = True  # the upper left corner as it is seen
    picture.fill(np.zeros_like(picture.colors), hole)
    picture.save(path)
    seen = Picture(path)
    assert (seen.colors.max(axis=2) < 100).nonzero()[0].max() == 7
    assert np.array_equal(seen.colors.max(axis=2) < 100, hole)
    assert Image.open(io.BytesIO(path.read_bytes())).getexif()[274] == orientation


def test_upright_and_stored_are_inverse_and_agree_with_pillow() -> None:
    pixels = np.arange(12).reshape(3, 4)
    for orientation in range(1, 9):
        assert np.array_equal(stored(upright(pixels, orientation), orientation), pixels)
        assert np.array_equal(upright(stored(pixels, orientation), orientation), pixels)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("form", ["png", "tiff"])
def test_sixteen_bits_of_colour_survive(form: str, channels: int, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (7, 11, channels)).astype(np.uint16)
    path = tmp_path / f"deep.{form}"
    path.write_bytes(cv2.imencode(f".{form}", samples)[1].tobytes())
    if form == "png":
        chunks = read_chunks(path.read_bytes())
        chunks.insert(1, (b"gAMA", struct.pack(">I", 45455)))
        chunks.insert(-1, (b"tEXt", b"Title\0deep"))
        path.write_bytes(write_chunks(chunks))
    picture = Picture(path)
    assert picture.colors.dtype == np.uint16
    hole = fill_at_random(picture)
    picture.save(tmp_path / f"out.{form}")
    after = cv2.imread(str(tmp_path / f"out.{form}"), cv2.IMREAD_UNCHANGED)  # another library
    assert after is not None and after.dtype == np.uint16
    assert np.array_equal(after[~hole], samples[~hole]) and not np.array_equal(after[hole], samples[hole])
    if channels == 4:
        assert np.array_equal(after[:, :, 3], samples[:, :, 3])
    if form == "png":
        kinds = [kind for kind, _ in read_chunks((tmp_path / "out.png").read_bytes())]
        assert kinds.index(b"gAMA") < kinds.index(b"IDAT") < kinds.index(b"tEXt")


def test_png_keeps_what_it_says_about_itself(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "somebody")
    make("RGB").save(tmp_path / "in.png", pnginfo=text, dpi=(300, 300), icc_profile=PROFILE)
    picture = Picture(tmp_path / "in.png")
    fill_at_random(picture)
    picture.save(tmp_path / "out.png")
    after = reopen(tmp_path / "out.png")
    assert after.info["Author"] == "somebody" and after.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert after.info["icc_profile"] == PROFILE


def test_a_palette_is_kept_and_the_hole_gets_its_nearest_opaque_colours(tmp_path: Path) -> None:
    image = make("P")
    image.save(tmp_path / "in.png", transparency=3)
    picture = Picture(tmp_path / "in.png")
    palette = reopen(tmp_path / "in.png").getpalette()
    target = np.array(palette[15:18], np.uint8)
    hole = np.zeros(picture.colors.shape[:2], bool)
    hole[2:5, 3:9] = True
    picture.fill(np.broadcast_to(target, picture.colors.shape), hole)
    picture.save(tmp_path / "out.png")
    after = reopen(tmp_path / "out.png")
    assert after.mode == "P" and after.getpalette() == palette and after.info["transparency"] == 3
    assert (np.asarray(after)[hole] == 5).all()
    table = np.column_stack([np.eye(3, dtype=int) * 255, [7, 8, 9]])
    assert nearest(np.array([[250, 9, 9], [1, 2, 200]], np.uint8), table).tolist() == [7, 9]


def test_alpha_stays_unless_the_hole_is_to_be_opaque(tmp_path: Path) -> None:
    make("RGBA").save(tmp_path / "in.png")
    alpha = np.asarray(reopen(tmp_path / "in.png"))[:, :, 3]
    for opaque in (False, True):
        picture = Picture(tmp_path / "in.png")
        hole = np.zeros(alpha.shape, bool)
        hole[3:6] = True
        picture.fill(np.zeros_like(picture.colors), hole, opaque=opaque)
        picture.save(tmp_path / "out.png")
        after = np.asarray(reopen(tmp_path / "out.png"))[:, :, 3]
        assert np.array_equal(after, np.where(hole & opaque, 255, alpha))


def test_a_jpeg_becomes_a_png_on_request(tmp_path: Path) -> None:
    make("RGB").save(tmp_path / "in.jpg", icc_profile=PROFILE)
    picture = Picture(tmp_path / "in.jpg")
    decoded, hole = picture.colors, fill_at_random(picture)
    picture.save(tmp_path / "out.png", lossless=True)
    after = reopen(tmp_path / "out.png")
    assert after.format == "PNG" and after.info["icc_profile"] == PROFILE
    assert np.array_equal(np.asarray(after)[~hole], decoded[~hole])
    picture.save(tmp_path / "out.jpg")
    assert reopen(tmp_path / "out.jpg").layer[0][1:3] == (1, 1)  # type: ignore[attr-defined]  # 4:4:4


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 1)])
def test_extreme_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    for form, mode in itertools.product(("PNG", "TIFF", "BMP", "WEBP"), ("L", "RGB")):
        make(mode, *size).save(tmp_path / "in", form)
        picture = Picture(tmp_path / "in")
        before, hole = picture.colors, fill_at_random(picture)
        picture.save(tmp_path / "out")
        assert np.array_equal(Picture(tmp_path / "out").colors[~hole], before[~hole])


def malformed() -> dict[str, bytes]:
    files: dict[str, bytes] = {"empty": b"", "text": b"not a picture" * 9}
    for form in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"):
        content = io.BytesIO()
        make("RGB", 60, 80).save(content, form)
        for tenth in range(1, 9):
            files[f"{form} cut at {tenth}0 %"] = content.getvalue()[: len(content.getvalue()) * tenth // 10]
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    files["bomb"] = write_chunks([(b"IHDR", header), (b"IDAT", b"\0" * 9), (b"IEND", b"")])
    frames = io.BytesIO()
    make("RGB").save(frames, "GIF", save_all=True, append_images=[make("RGB").rotate(90)])
    files["animation"] = frames.getvalue()
    return files


MALFORMED = malformed()


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(MALFORMED[name])
    with pytest.raises(UserError) as error:
        Picture(path)
    assert "\n" not in str(error.value) and "bad.png" in str(error.value)


def test_a_png_of_ours_is_read_by_others() -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (5, 6, 3)).astype(np.uint16)
    decoded: Any = cv2.imdecode(np.frombuffer(encode_png(samples, 2), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(decoded[:, :, ::-1], samples)


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    make("RGB").save(tmp_path / "in.png")
    picture = Picture(tmp_path / "in.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        picture.save(tmp_path / "file" / "out.png")


@pytest.mark.skipif(not hasattr(cv2, "imreadWithMetadata"), reason="OpenCV before 4.12 reads no metadata")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_opencv_finds_profile_exif_and_alpha(form: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 8
    path, target = tmp_path / f"in.{form.lower()}", tmp_path / f"out.{form.lower()}"
    make("RGB" if form == "JPEG" else "RGBA").save(path, form, icc_profile=PROFILE, exif=exif, lossless=True)
    picture = Picture(path)
    fill_at_random(picture)
    picture.save(target)
    flags = cv2.IMREAD_UNCHANGED
    before, after = (cv2.imreadWithMetadata(str(each), flags=flags) for each in (path, target))
    assert list(before[1]) == list(after[1]) == [cv2.IMAGE_METADATA_EXIF, cv2.IMAGE_METADATA_ICCP]
    assert [each.tobytes() for each in before[2]] == [each.tobytes() for each in after[2]]
    assert after[2][1].tobytes() == PROFILE and b"Maker" in after[2][0].tobytes()
    if form != "JPEG":
        assert np.array_equal(before[0][:, :, 3], after[0][:, :, 3]) and after[0][:, :, 3].min() < 255


def test_tifffile_finds_profile_exif_and_alpha(tmp_path: Path) -> None:
    import tifffile

    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 8
    exif.get_ifd(34665)[33434] = 0.01
    exif[34665] = 0
    make("RGBA").save(tmp_path / "in.tif", icc_profile=PROFILE, exif=exif)
    picture = Picture(tmp_path / "in.tif")
    fill_at_random(picture)
    picture.save(tmp_path / "out.tif")
    pages = [tifffile.TiffFile(tmp_path / name).pages[0] for name in ("in.tif", "out.tif")]
    tags: Any = [page.tags for page in pages]  # type: ignore[union-attr]
    assert tags[0][34675].value == tags[1][34675].value == PROFILE
    assert tags[1][271].value == "Maker" and tags[1][274].value == 8
    assert tags[0][34665].value == tags[1][34665].value and tags[1][34665].value["ExposureTime"]
    assert np.array_equal(pages[0].asarray()[:, :, 3], pages[1].asarray()[:, :, 3])
    for page in pages:
        page.parent.close()  # type: ignore[union-attr]
