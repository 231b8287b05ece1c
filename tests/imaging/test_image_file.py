"""Files of every format keep their known pixels, mode and metadata; bad files are refused."""

import io
import itertools
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import malformed, photograph
from PIL import Image, ImageCms, PngImagePlugin

from imaging.formats.png import read_chunks, write_chunks
from imaging.image_file import ImageFile
from imaging.raster import WHOLE, nearest, stored, upright
from utils import UserError

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


def fill_at_random(image_file: ImageFile) -> np.ndarray:
    generator = np.random.default_rng(1)
    shape, kind = image_file.colors().shape, image_file.colors().dtype
    hole = generator.random(shape[:2]) < 0.3
    filled = generator.random(shape) * (np.iinfo(kind).max if kind.kind == "u" else 1)
    image_file.put(WHOLE, filled.astype(kind), hole)
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
    image_file = ImageFile(path)
    hole = fill_at_random(image_file)
    image_file.save(target, hole)
    before, after = reopen(path), reopen(target)
    assert before.mode == after.mode and before.format == after.format and before.size == after.size
    # Pillow turns a TIFF upright as it loads it
    known = ~(hole if form == "TIFF" else stored(hole, before.getexif().get(274, 1)))
    pixels = np.asarray(before), np.asarray(after)
    assert not np.array_equal(*pixels)
    if form != "JPEG":
        assert np.array_equal(pixels[0][known], pixels[1][known])
    assert before.info.get("icc_profile") == after.info.get("icc_profile")
    tags = [Image.open(io.BytesIO(each.read_bytes())).getexif() for each in (path, target)]
    assert [tags[0].get(t) for t in (271, 274)] == [tags[1].get(t) for t in (271, 274)]
    assert dict(tags[0].get_ifd(34665)) == dict(tags[1].get_ifd(34665))
    if form in ("PNG", "TIFF", "WEBP", "JPEG"):
        assert tags[1][274] == 6 and tags[1].get_ifd(34665)[33434] == pytest.approx(0.01)
        assert "icc_profile" in after.info
    assert np.array_equal(ImageFile(target).colors().shape, image_file.colors().shape)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_hole_is_upright_in_every_orientation(form: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"in.{form}"
    Image.fromarray(np.full((40, 64, 3), 200, np.uint8)).save(path, form, exif=exif)
    image_file = ImageFile(path)
    hole = np.zeros(image_file.colors().shape[:2], bool)
    hole[:8, :16] = True  # the upper left corner, upright
    image_file.put(WHOLE, np.zeros_like(image_file.colors()), hole)
    image_file.save(path, hole)
    seen = ImageFile(path)
    assert (seen.colors().max(axis=2) < 100).nonzero()[0].max() == 7
    assert np.array_equal(seen.colors().max(axis=2) < 100, hole)
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
        chunks, _ = read_chunks(path.read_bytes())
        chunks.insert(1, (b"gAMA", struct.pack(">I", 45455)))
        chunks.insert(-1, (b"tEXt", b"Title\0deep"))
        path.write_bytes(write_chunks(chunks))
    image_file = ImageFile(path)
    assert image_file.colors().dtype == np.uint16
    hole = fill_at_random(image_file)
    image_file.save(tmp_path / f"out.{form}", hole)
    after = cv2.imread(str(tmp_path / f"out.{form}"), cv2.IMREAD_UNCHANGED)  # another library
    assert after is not None and after.dtype == np.uint16
    assert np.array_equal(after[~hole], samples[~hole]) and not np.array_equal(after[hole], samples[hole])
    if channels == 4:
        assert np.array_equal(after[:, :, 3], samples[:, :, 3])
    if form == "png":
        kinds = [kind for kind, _ in read_chunks((tmp_path / "out.png").read_bytes())[0]]
        assert kinds.index(b"gAMA") < kinds.index(b"IDAT") < kinds.index(b"tEXt")


def test_png_keeps_its_metadata(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "somebody")
    make("RGB").save(tmp_path / "in.png", pnginfo=text, dpi=(300, 300), icc_profile=PROFILE)
    image_file = ImageFile(tmp_path / "in.png")
    hole = fill_at_random(image_file)
    image_file.save(tmp_path / "out.png", hole)
    after = reopen(tmp_path / "out.png")
    assert after.info["Author"] == "somebody" and after.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert after.info["icc_profile"] == PROFILE


def test_a_palette_is_kept_and_the_hole_gets_its_nearest_opaque_colours(tmp_path: Path) -> None:
    image = make("P")
    image.save(tmp_path / "in.png", transparency=3)
    image_file = ImageFile(tmp_path / "in.png")
    palette = reopen(tmp_path / "in.png").getpalette()
    target = np.array(palette[15:18], np.uint8)
    hole = np.zeros(image_file.colors().shape[:2], bool)
    hole[2:5, 3:9] = True
    image_file.put(WHOLE, np.broadcast_to(target, image_file.colors().shape), hole)
    image_file.save(tmp_path / "out.png", hole)
    after = reopen(tmp_path / "out.png")
    assert after.mode == "P" and after.getpalette() == palette and after.info["transparency"] == 3
    assert (np.asarray(after)[hole] == 5).all()
    table = np.column_stack([np.eye(3, dtype=int) * 255, [7, 8, 9]])
    assert nearest(np.array([[250, 9, 9], [1, 2, 200]], np.uint8), table).tolist() == [7, 9]


def test_alpha_stays_unless_the_hole_is_to_be_opaque(tmp_path: Path) -> None:
    make("RGBA").save(tmp_path / "in.png")
    alpha = np.asarray(reopen(tmp_path / "in.png"))[:, :, 3]
    for opaque in (False, True):
        image_file = ImageFile(tmp_path / "in.png")
        hole = np.zeros(alpha.shape, bool)
        hole[3:6] = True
        image_file.put(WHOLE, np.zeros_like(image_file.colors()), hole, opaque=opaque)
        image_file.save(tmp_path / "out.png", hole)
        after = np.asarray(reopen(tmp_path / "out.png"))[:, :, 3]
        assert np.array_equal(after, np.where(hole & opaque, 255, alpha))


def test_a_jpeg_becomes_a_png_on_request(tmp_path: Path) -> None:
    make("RGB").save(tmp_path / "in.jpg", icc_profile=PROFILE)
    image_file = ImageFile(tmp_path / "in.jpg")
    decoded, hole = image_file.colors().copy(), fill_at_random(image_file)
    image_file.save(tmp_path / "out.png", hole, lossless=True)
    after = reopen(tmp_path / "out.png")
    assert after.format == "PNG" and after.info["icc_profile"] == PROFILE
    assert np.array_equal(np.asarray(after)[~hole], decoded[~hole])
    image_file.save(tmp_path / "out.jpg", hole)
    assert reopen(tmp_path / "out.jpg").layer == reopen(tmp_path / "in.jpg").layer  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 1)])
def test_extreme_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    for form, mode in itertools.product(("PNG", "TIFF", "BMP", "WEBP"), ("L", "RGB")):
        make(mode, *size).save(tmp_path / "in", form)
        image_file = ImageFile(tmp_path / "in")
        before, hole = image_file.colors().copy(), fill_at_random(image_file)
        image_file.save(tmp_path / "out", hole)
        assert np.array_equal(ImageFile(tmp_path / "out").colors()[~hole], before[~hole])


MALFORMED = malformed()


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(MALFORMED[name])
    with pytest.raises(UserError) as error:
        ImageFile(path)
    assert "\n" not in str(error.value) and "bad.png" in str(error.value)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    make("RGB").save(tmp_path / "in.png")
    image_file = ImageFile(tmp_path / "in.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        image_file.save(tmp_path / "file" / "out.png", np.ones(image_file.shape, bool))


@pytest.mark.skipif(not hasattr(cv2, "imreadWithMetadata"), reason="OpenCV before 4.12 reads no metadata")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_opencv_finds_profile_exif_and_alpha(form: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 8
    path, target = tmp_path / f"in.{form.lower()}", tmp_path / f"out.{form.lower()}"
    make("RGB" if form == "JPEG" else "RGBA").save(path, form, icc_profile=PROFILE, exif=exif, lossless=True)
    image_file = ImageFile(path)
    hole = fill_at_random(image_file)
    image_file.save(target, hole)
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
    image_file = ImageFile(tmp_path / "in.tif")
    hole = fill_at_random(image_file)
    image_file.save(tmp_path / "out.tif", hole)
    pages = [tifffile.TiffFile(tmp_path / name).pages[0] for name in ("in.tif", "out.tif")]
    tags: Any = [page.tags for page in pages]  # type: ignore[union-attr]
    assert tags[0][34675].value == tags[1][34675].value == PROFILE
    assert tags[1][271].value == "Maker" and tags[1][274].value == 8
    assert tags[0][34665].value == tags[1][34665].value and tags[1][34665].value["ExposureTime"]
    assert np.array_equal(pages[0].asarray()[:, :, 3], pages[1].asarray()[:, :, 3])
    for page in pages:
        page.parent.close()  # type: ignore[union-attr]


# --- metadata ----------------------------------------------------------------------------------------------


def insert_chunks(path: Path, place: int, *added: tuple[bytes, bytes]) -> None:
    """Insert chunks into a PNG file, at an index in the list of its chunks."""
    chunks, _ = read_chunks(path.read_bytes())
    path.write_bytes(write_chunks([*chunks[:place], *added, *chunks[place:]]))


def refill(path: Path, target: Path) -> tuple[ImageFile, bytes]:
    """The opened file and the bytes of its copy with a filled hole."""
    image_file = ImageFile(path)
    image_file.save(target, fill_at_random(image_file))
    return image_file, target.read_bytes()


def test_data_after_the_end_of_a_png_is_dropped_with_a_note(tmp_path: Path) -> None:
    make("RGB").save(tmp_path / "in.png")
    with open(tmp_path / "in.png", "ab") as file:
        file.write(b"PK\3\4 another file")
    image_file, written = refill(tmp_path / "in.png", tmp_path / "out.png")
    assert written.endswith(b"IEND\xaeB`\x82") and "17 bytes after the end" in " ".join(image_file.notes)
    assert cv2.imread(str(tmp_path / "out.png")) is not None


def test_an_animated_png_is_refused(tmp_path: Path) -> None:
    make("RGB").save(tmp_path / "in.png")
    insert_chunks(tmp_path / "in.png", -1, (b"fdAT", bytes(9)))
    with pytest.raises(UserError, match="holds 2 images"):
        ImageFile(tmp_path / "in.png")


def test_private_chunks_stay_unless_they_depend_on_the_pixels(tmp_path: Path) -> None:
    make("RGB").save(tmp_path / "in.png")
    insert_chunks(tmp_path / "in.png", 1, (b"prVt", b"kept"), (b"iDOT", bytes(28)))
    image_file, written = refill(tmp_path / "in.png", tmp_path / "out.png")
    assert (b"prVt", b"kept") in read_chunks(written)[0] and b"iDOT" not in written
    assert "chunk iDOT" in " ".join(image_file.notes)


def test_interlacing_of_a_png_is_lost_with_a_note(tmp_path: Path) -> None:
    samples = (
        np.random.default_rng(0).integers(0, 256, (5, 1, 1)).astype(np.uint8)
    )  # one column: one row per pass
    made = io.BytesIO()
    Image.fromarray(samples[:, :, 0]).save(made, "PNG")
    chunks, _ = read_chunks(made.getvalue())
    rows = [b"\0" + samples[i].tobytes() for i in (0, 4, 2, 1, 3)]  # the order of Adam7
    header = chunks[0][1][:12] + b"\1"
    (tmp_path / "in.png").write_bytes(
        write_chunks([(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")])
    )
    image_file, written = refill(tmp_path / "in.png", tmp_path / "out.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "in.png")), samples[:, :, 0])
    assert written[28] == 0 and "interlacing" in " ".join(image_file.notes)


@pytest.mark.parametrize("form", ["PNG", "compressed PNG", "WEBP"])
def test_previews_in_xmp_are_blanked(form: str, tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><xmpGImg:image>/9j/secret</xmpGImg:image> tail</x:xmpmeta>'
    path = tmp_path / "in"
    if form == "WEBP":
        make("RGB").save(path, "WEBP", lossless=True, xmp=xmp)
    else:
        make("RGB").save(path, "PNG")
        text = b"\1\0\0\0" + zlib.compress(xmp) if form == "compressed PNG" else b"\0\0\0\0" + xmp
        insert_chunks(path, 1, (b"iTXt", b"XML:com.adobe.xmp\0" + text))
    image_file, _ = refill(path, tmp_path / "out")
    after = reopen(tmp_path / "out").info["xmp"]
    assert after == xmp.replace(b"/9j/secret", b" " * 10) and "previews in the XMP" in " ".join(
        image_file.notes
    )


def thumbnailed(orientation: int) -> bytes:
    """An EXIF block with an orientation and a thumbnail, whose bytes are `b"removed"`."""
    main = struct.pack("<HHHII", 1, 274, 3, 1, orientation) + struct.pack("<I", 26)
    second = struct.pack("<HHHIIHHII", 2, 513, 4, 1, 56, 514, 4, 1, 7) + bytes(4)
    return b"II*\0\x08\0\0\0" + main + second + b"removed"


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF in hexadecimal"])
def test_the_thumbnail_goes_and_the_orientation_stays(form: str, tmp_path: Path) -> None:
    block, path = thumbnailed(6), tmp_path / "in"
    if form == "TIFF in hexadecimal":  # ImageMagick's form in PNG files
        make("RGB").save(path, "PNG")
        text = f"\nexif\n{len(block):8d}\n{block.hex()}\n".encode()
        insert_chunks(path, 1, (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)))
    else:
        make("RGB").save(path, form, exif=b"Exif\0\0" + block)
    image_file, written = refill(path, tmp_path / "out")
    assert image_file.shape == (14, 9) and ImageFile(tmp_path / "out").shape == (14, 9)
    assert b"removed" not in written and b"removed".hex().encode() not in written
    assert "EXIF thumbnail" in " ".join(image_file.notes)


def test_a_tiff_with_an_orientation_in_xmp_only_is_turned_upright(tmp_path: Path) -> None:
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    tifffile.imwrite(
        tmp_path / "in.tif", np.zeros((9, 14, 3), np.uint8), photometric="rgb", metadata=None,
        extratags=[(700, 1, len(xmp), xmp, True)],
    )  # fmt: skip
    assert ImageFile(tmp_path / "in.tif").shape == (14, 9)


def test_alpha_of_a_webp_stays_where_all_of_it_is_opaque(tmp_path: Path) -> None:
    pixels = np.array(make("RGBA"))
    pixels[:, :, 3] = 255
    pixels[2:5, 3:6, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "in.webp", lossless=True, exact=True)
    image_file = ImageFile(tmp_path / "in.webp")
    hole = image_file.alpha == 0
    image_file.put(WHOLE, image_file.colors(), hole, opaque=True)
    image_file.save(tmp_path / "out.webp", hole)
    after = cv2.imread(str(tmp_path / "out.webp"), cv2.IMREAD_UNCHANGED)
    assert after is not None and after.shape[2] == 4 and (after[:, :, 3] == 255).all()


def test_a_filled_pixel_does_not_turn_out_transparent(tmp_path: Path) -> None:
    make("RGB").save(tmp_path / "in.png", transparency=(9, 0, 0))
    image_file = ImageFile(tmp_path / "in.png")
    hole = np.zeros(image_file.shape, bool)
    hole[2:4, 2:4] = True
    image_file.put(WHOLE, np.broadcast_to(np.array([9, 0, 0], np.uint8), (*image_file.shape, 3)), hole)
    image_file.save(tmp_path / "out.png", hole)
    assert ImageFile(tmp_path / "out.png").alpha[hole].all()


def test_formats_that_cannot_be_written_back_are_named_and_not_opened(tmp_path: Path) -> None:
    for start, form in ((b"%!PS-Adobe", "EPS"), (b"8BPS\0\1", "Photoshop"), (b"\0\0\1\0\1\0", "ICO")):
        (tmp_path / "in.png").write_bytes(start + bytes(99))
        with pytest.raises(UserError, match=f"{form} files cannot be written back"):
            ImageFile(tmp_path / "in.png")
    (tmp_path / "in.png").write_bytes(b"FUJIFILMCCD-RAW " + bytes(99))
    with pytest.raises(UserError, match="a raw file"):
        ImageFile(tmp_path / "in.png")


@pytest.mark.parametrize("highest", [255, 1023, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_portable_pixmaps_keep_their_depth(kind: str, highest: int, tmp_path: Path) -> None:
    channels = 3 if kind in ("P3", "P6") else 1
    samples = np.random.default_rng(0).integers(0, highest + 1, (5, 7, channels))
    header = f"{kind}\n# a comment\n7 5\n{highest}\n".encode()
    if kind in ("P2", "P3"):
        body = " ".join(map(str, samples.ravel())).encode() + b"\n"
    else:
        body = samples.astype(">u2" if highest > 255 else np.uint8).tobytes()
    (tmp_path / "in.ppm").write_bytes(header + body)
    image_file = ImageFile(tmp_path / "in.ppm")
    hole = fill_at_random(image_file)
    image_file.save(tmp_path / "out.ppm", hole)
    written = (tmp_path / "out.ppm").read_bytes()
    assert written.startswith(header)
    if kind in ("P2", "P3"):
        after = np.array(written[len(header) :].split(), int).reshape(samples.shape)
    else:
        after = np.frombuffer(written[len(header) :], ">u2" if highest > 255 else np.uint8).reshape(
            samples.shape
        )
    assert np.array_equal(after[~hole], samples[~hole]) and not np.array_equal(after, samples)


@pytest.mark.parametrize("highest", [255, 65535])
def test_two_pixmaps_in_one_file_are_refused(highest: int, tmp_path: Path) -> None:
    one = f"P5\n4 3\n{highest}\n".encode() + bytes(12 * (1 + (highest > 255)))
    (tmp_path / "in.pgm").write_bytes(one + one)
    with pytest.raises(UserError, match="holds several images"):
        ImageFile(tmp_path / "in.pgm")
    (tmp_path / "in.pgm").write_bytes(one)
    assert ImageFile(tmp_path / "in.pgm").shape == (3, 4)


def test_heic_keeps_its_metadata_and_is_re_encoded(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6
    image = Image.fromarray(photograph(48, 64))
    made = pillow_heif.from_pillow(image)
    made.save(tmp_path / "in.heic", quality=95, exif=exif.tobytes(), icc_profile=PROFILE)
    image_file = ImageFile(tmp_path / "in.heic")
    assert not image_file.exact(False) and "re-encoded" in image_file.encoding_notes(False)[0]
    before, hole = image_file.colors().copy(), np.zeros(image_file.shape, bool)
    hole[10:20, 10:20] = True
    image_file.put(WHOLE, np.full_like(before, 200), hole)
    image_file.save(tmp_path / "out.heic", hole)
    after = ImageFile(tmp_path / "out.heic")
    assert after.shape == before.shape[:2] and after.icc == PROFILE
    assert np.abs(after.colors().astype(int) - before)[~hole].mean() < 4
    assert np.abs(after.colors()[12:18, 12:18].astype(int) - 200).mean() < 4
    assert pillow_heif.open_heif(tmp_path / "out.heic").info["exif"].find(b"Maker") > 0
    image_file = ImageFile(tmp_path / "in.heic")
    hole = fill_at_random(image_file)
    image_file.save(tmp_path / "out.png", hole, lossless=True)
    assert np.array_equal(ImageFile(tmp_path / "out.png").colors()[~hole], before[~hole])


def test_heic_without_its_library_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError, match="pip install pillow-heif"):
        ImageFile(tmp_path / "in.heic")


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.uint32])
def test_a_limit_of_pixels_reads_the_size_of_any_tiff(kind: type, tmp_path: Path) -> None:
    samples = np.linspace(0, 1, 20 * 30 * 3).reshape(20, 30, 3).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb")
    assert ImageFile(tmp_path / "a.tif", max_megapixels=1).shape == (20, 30)
    with pytest.raises(UserError, match=r"more than the limit of 0\.0001"):
        ImageFile(tmp_path / "a.tif", max_megapixels=0.0001)
