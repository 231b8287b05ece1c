"""TIFF files with a filled hole keep known pixels, tags and layout, and no removed content."""

import functools
import io
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import imagecodecs
import kinds
import numpy as np
import pytest
import tifffile
from conftest import photograph
from PIL import Image, TiffImagePlugin
from properties import with_cv2, with_pillow, with_tifffile

from imaging.formats import tiff_structure
from imaging.formats.tiff import TiffImage, without_thumbnails
from imaging.formats.tiff_segments import pack_rows
from imaging.formats.tiff_structure import erase, overlapping
from utils import UserError

H, W = 37, 53
HOLE = np.zeros((H, W), bool)
HOLE[5:12, 9:20] = True
PLACES = {273, 279, 324, 325}  # offsets and byte counts
EXIFTOOL = shutil.which("exiftool")
by_pillow = functools.partial(kinds.saved, form="TIFF")


def make_samples(channels: int = 3, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Samples (H, W, channels) over the range of a type; floats with NaN and infinity."""
    base = np.concatenate([photograph(H, W, seed), photograph(H, W, seed + 1)], axis=2)[:, :, :channels]
    noise = np.random.default_rng(seed).integers(0, 256, base.shape)
    if np.dtype(dtype).kind == "f":
        samples = (base / 100 - 1 + noise / 1e4).astype(dtype)
        samples[0, 0, 0], samples[1, 1, 0] = np.nan, np.inf
        return samples
    scale = 2.0 ** (8 * np.dtype(dtype).itemsize - 8)
    offset = np.iinfo(dtype).min
    return ((base * scale).astype(object) + (noise * (scale > 1)) + int(offset)).astype(dtype)


def saved(samples: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    options = {"metadata": None, "software": False, **options}
    if (
        options.get("photometric") in ("rgb", "separated", "cielab")
        and options.get("planarconfig") == "separate"
    ):
        samples = np.moveaxis(samples, 2, 0)
    elif samples.shape[2] == 1:
        samples = samples[:, :, 0]
    tifffile.imwrite(file, samples, **options)
    return file.getvalue()


def filled(data: bytes, hole: np.ndarray | None = None, seed: int = 9) -> tuple[bytes, np.ndarray, TiffImage]:
    """The file with noise in the hole, the samples it should have, and the container."""
    image = TiffImage(data)
    samples = image.raster.samples
    hole = HOLE[: samples.shape[0], : samples.shape[1]] if hole is None else hole
    noise = np.random.default_rng(seed).integers(0, 2**63, samples.shape, np.uint64)
    if samples.dtype.kind == "f":
        values = (noise / 2**63).astype(samples.dtype)
    else:
        values = (noise % 2 ** min(image.raster.bits, 63)).astype(samples.dtype)
    samples[hole] = values[hole]
    written = io.BytesIO()
    image.write(written, hole)
    return written.getvalue(), samples, image


def tags(data: bytes, but: set[int] = PLACES) -> dict[int, tuple]:
    """Type and value of all tags, by Pillow; by tifffile for big-endian BigTIFF, which Pillow does not read."""
    if data[:4] == b"MM\0+":
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return {tag.code: (tag.dtype, tag.value) for tag in file.pages[0].tags if tag.code not in but}
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    return {tag: (directory.tagtype[tag], directory[tag]) for tag in directory if tag not in but}


def bits_of(samples: np.ndarray) -> bytes:
    return np.ascontiguousarray(samples).tobytes()


def agree(data: bytes, new: bytes, expected: np.ndarray, hole: np.ndarray | None = None) -> None:
    """Check the tags, and the samples by tifffile, OpenCV (which mixes up planes) and Pillow."""
    hole = HOLE if hole is None else hole
    assert bits_of(with_tifffile(new)) == bits_of(expected.astype(with_tifffile(new).dtype))
    before, after = with_tifffile(data), with_tifffile(new)
    assert bits_of(before[~hole]) == bits_of(after[~hole])
    assert tags(data) == tags(new)
    turned = tags(data).get(274, (3, 1))[1] != 1  # these readers turn it upright
    old, now = with_cv2(data), with_cv2(new)
    assert (old is None) == (now is None)
    if old is not None and not turned and tags(data).get(284, (3, 1))[1] == 1 and old.shape[:2] == hole.shape:
        assert bits_of(old[~hole]) == bits_of(now[~hole])
        same_kind = now.dtype == expected.dtype and now.ndim == 3 and now.shape[2] == expected.shape[2] == 3
        if same_kind and tags(data)[262][1] == 2:
            assert bits_of(now[:, :, ::-1]) == bits_of(expected)
    old, now = with_pillow(data), with_pillow(new)
    assert (old is None) == (now is None)
    deep_planes = tags(data).get(284, (3, 1))[1] == 2 and expected.itemsize > 1  # Pillow mixes these up
    if old is not None and not turned and not deep_planes and old.shape[:2] == hole.shape:
        assert bits_of(old[~hole]) == bits_of(now[~hole])


def built(
    pages: list[dict[int, tuple[int, object]]], order: str = "<", big: bool = False, start: bytes = b""
) -> bytes:
    """A TIFF of directories given as tag: (type, values).

    A bytes value of an offset type is stored by itself and replaced by its offset; a list of them likewise.
    """
    types = {1: "B", 2: "s", 3: "H", 4: "I", 5: "I", 7: "s", 13: "I", 16: "Q"}
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 13: 4, 16: 8}
    word, room = ("Q", 8) if big else ("I", 4)
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHH" if big else "H"), *((43, 8, 0) if big else (42,))
    )
    data = bytearray(head + bytes(room) + start)
    link = len(head)
    for page in pages:
        entries = []
        for tag, (kind, value) in sorted(page.items()):
            if kind in (4, 13, 16) and isinstance(value, list) and isinstance(value[0], bytes):
                offsets = []
                for blob in value:
                    offsets.append(len(data))
                    data += blob + b"\0" * (len(blob) % 2)
                value = offsets
            if kind in (2, 7):
                content, count = value, len(value)
            else:
                content = struct.pack(order + types[kind] * len(value), *value)
                count = len(content) // sizes[kind]
            if len(content) > room:
                place = len(data)
                data += content + b"\0" * (len(content) % 2)
                content = struct.pack(order + word, place)
            entries.append(struct.pack(order + "HH" + word, tag, kind, count) + content.ljust(room, b"\0"))
        struct.pack_into(order + word, data, link, len(data))
        data += struct.pack(order + ("Q" if big else "H"), len(entries)) + b"".join(entries)
        link = len(data)
        data += bytes(room)
    return bytes(data)


def grey(samples: np.ndarray, rows: int = 0, **more: tuple[int, object]) -> dict[int, tuple[int, object]]:
    """The tags of an uncompressed grey image (H, W) uint8, and `more`, like t700=(type, values)."""
    height, width = samples.shape
    rows = rows or height
    strips = [samples[y : y + rows].tobytes() for y in range(0, height, rows)]
    found = {
        256: (3, [width]), 257: (3, [height]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1]), 273: (4, strips),
        277: (3, [1]), 278: (3, [rows]), 279: (4, [len(strip) for strip in strips]),
    }  # fmt: skip
    return {**found, **{int(name[1:]): value for name, value in more.items()}}


def refusal(data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        TiffImage(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- samples and layout ------------------------------------------------------------------------------------

LAYOUTS = {
    "strip": {},
    "strips": {"rowsperstrip": 4},
    "tiles": {"tile": (16, 32)},
    "big endian strips": {"byteorder": ">", "rowsperstrip": 5},
    "bigtiff tiles": {"bigtiff": True, "tile": (16, 16)},
    "big endian bigtiff": {"bigtiff": True, "byteorder": ">", "rowsperstrip": 3},
    "planar strips": {"planarconfig": "separate", "rowsperstrip": 7},
    "planar tiles, big endian": {"planarconfig": "separate", "tile": (32, 16), "byteorder": ">"},
}
CODECS = {
    "none": {},
    "lzw": {"compression": "lzw"},
    "lzw, predicted": {"compression": "lzw", "predictor": 2},
    "deflate": {"compression": "adobe_deflate"},
    "deflate, predicted": {"compression": "adobe_deflate", "predictor": 2},
    "old deflate": {"compression": "deflate"},
    "packbits": {"compression": "packbits"},
    "zstd, predicted": {"compression": "zstd", "predictor": 2},
    "lzma": {"compression": "lzma"},
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_pixels_and_tags_stay_in_every_layout_and_compression(layout: str, codec: str) -> None:
    kind = ["uint8", "uint16"][len(layout + codec) % 2]
    data = saved(make_samples(3, kind), photometric="rgb", **LAYOUTS[layout], **CODECS[codec])
    new, expected, image = filled(data)
    agree(data, new, expected)
    assert image.notes == []


@pytest.mark.parametrize(
    "kind", ["int8", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("layout", ["strips", "planar tiles, big endian"])
@pytest.mark.parametrize("codec", ["none", "deflate", "lzw, predicted"])
def test_every_type_of_sample_stays(kind: str, layout: str, codec: str) -> None:
    codec = (
        "lzw" if kind.startswith("float") and "predicted" in codec else codec
    )  # tifffile does not write it
    data = saved(make_samples(3, kind), photometric="rgb", **LAYOUTS[layout], **CODECS[codec])
    new, expected, image = filled(data)
    assert image.raster.samples.dtype == kind
    assert image.raster.samples.dtype.isnative
    assert image.raster.bits == 8 * np.dtype(kind).itemsize
    agree(data, new, expected)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["strips", "tiles", "big endian strips", "planar tiles, big endian"])
def test_the_predictor_of_floats_stays(kind: str, layout: str) -> None:
    data = saved(
        make_samples(3, kind), photometric="rgb", compression="adobe_deflate", predictor=3, **LAYOUTS[layout]
    )
    new, expected, _ = filled(data)
    agree(data, new, expected)
    assert tags(new)[317][1] == 3


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_predictor_of_integers_may_be_used_for_floats(order: str, size: int) -> None:
    samples = make_samples(1, f"f{size}")[:, :, 0]
    numbers = samples.view(f"u{size}")
    differences = np.concatenate([numbers[:, :1], numbers[:, 1:] - numbers[:, :-1]], axis=1)
    encoded = imagecodecs.deflate_encode(differences.astype(f"{order}u{size}").tobytes())
    tag = grey(make_samples(1)[:, :, 0], t259=(3, [8]), t317=(3, [2]), t339=(3, [3]))
    data = built([tag | {258: (3, [8 * size]), 273: (4, [encoded]), 279: (4, [len(encoded)])}], order)
    assert bits_of(TiffImage(data).raster.samples) == bits_of(samples)
    new, expected, _ = filled(data)
    agree(data, new, expected)
    if size > 2:
        assert bits_of(with_cv2(new)) == bits_of(expected)


def test_samples_are_the_stored_ones() -> None:
    samples = make_samples(3, "uint16")
    raster = TiffImage(saved(samples, photometric="rgb", byteorder=">")).raster
    assert np.array_equal(raster.samples, samples)
    assert (raster.space, raster.bits, raster.alpha, raster.inverted, raster.orientation) == (
        "rgb",
        16,
        None,
        False,
        1,
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_not_turned(orientation: int) -> None:
    samples = make_samples(3, "uint16")
    data = saved(samples, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    image = TiffImage(data)
    assert image.raster.orientation == orientation
    assert np.array_equal(image.raster.samples, samples)
    new, expected, _ = filled(data)
    agree(data, new, expected)
    assert tags(new)[274][1] == orientation


def test_an_orientation_that_does_not_exist_is_upright() -> None:
    assert (
        TiffImage(
            saved(make_samples(), photometric="rgb", extratags=[(274, 3, 1, 77, True)])
        ).raster.orientation
        == 1
    )


def test_a_file_without_changes_comes_back_byte_for_byte() -> None:
    pages = [grey(make_samples(1)[:, :, 0]), grey(make_samples(1)[:9, :9, 0], t254=(4, [1]))]
    image = TiffImage(built(pages))
    written = io.BytesIO()
    image.write(written, np.zeros((H, W), bool))
    assert written.getvalue() == built(pages)
    assert image.notes == []


def test_bytes_outside_the_hole_stay_in_an_uncompressed_file() -> None:
    data = saved(make_samples(), photometric="rgb", rowsperstrip=4)
    new, _, _ = filled(data)
    assert len(new) == len(data)
    start = TiffImage(data).page.dataoffsets[0]
    differs = np.frombuffer(data, np.uint8) != np.frombuffer(new, np.uint8)
    expected = np.zeros(len(data), bool)
    expected[start : start + H * W * 3] = np.repeat(HOLE, 3)
    assert differs.any()
    assert not differs[~expected].any()


def test_strips_that_the_hole_does_not_touch_stay() -> None:
    data = saved(make_samples(), photometric="rgb", rowsperstrip=4, compression="adobe_deflate")
    new, _, _ = filled(data)
    before, after = TiffImage(data).page, TiffImage(new).page
    for i, (start, count) in enumerate(zip(before.dataoffsets, before.databytecounts, strict=True)):
        untouched = not HOLE[4 * i : 4 * i + 4].any()
        assert untouched == (new[start : start + count] == data[start : start + count])
        assert not untouched or (after.dataoffsets[i], after.databytecounts[i]) == (start, count)


def test_writing_twice_gives_the_same() -> None:
    data = saved(make_samples(), photometric="rgb", compression="lzw")
    new, _, image = filled(data)
    again = io.BytesIO()
    image.write(again, HOLE)
    assert again.getvalue() == new


def test_a_hole_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="changed is"):
        TiffImage(saved(make_samples(), photometric="rgb")).write(io.BytesIO(), HOLE.T)


def test_a_file_that_would_not_read_back_is_refused() -> None:
    image = TiffImage(saved(make_samples(), photometric="rgb", rowsperstrip=1))
    image.raster.samples[30, 30] ^= 255  # not in the hole, so it is not written
    with pytest.raises(UserError, match="cannot be written back exactly"):
        image.write(io.BytesIO(), HOLE)


def packed(samples: np.ndarray, bits: int) -> bytes:
    """Rows (H, W) of samples in `bits` bits each, the highest first; each row is padded to whole bytes."""
    size = -(-W * bits // 8)
    rows = ("".join(f"{value:0{bits}b}" for value in row).ljust(size * 8, "0") for row in samples)
    return b"".join(int(row, 2).to_bytes(size, "big") for row in rows)


def test_packed_samples_of_12_bits_stay_12_bits() -> None:
    samples = (make_samples(1, "uint16")[:, :, 0] >> 4).astype(int)
    content = packed(samples, 12)
    tag = grey(make_samples(1)[:, :, 0])
    data = built([tag | {258: (3, [12]), 273: (4, [content]), 279: (4, [len(content)])}])
    image = TiffImage(data)
    assert image.raster.bits == 12
    assert np.array_equal(image.raster.samples[:, :, 0], samples)
    new, expected, _ = filled(data)
    assert len(new) == len(data)
    assert np.array_equal(with_tifffile(new), expected)
    assert np.array_equal(expected[~HOLE][:, 0], samples[~HOLE])
    assert expected[HOLE].max() > 2048


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 14])
@pytest.mark.parametrize("fill_order", [1, 2])
def test_other_packed_samples_stay(bits: int, fill_order: int) -> None:
    samples = np.random.default_rng(bits).integers(0, 2**bits, (H, W))
    content = packed(samples, bits)
    if fill_order == 2:
        content = bytes(int(f"{byte:08b}"[::-1], 2) for byte in content)
    tag = grey(make_samples(1)[:, :, 0], t266=(3, [fill_order]))
    data = built([tag | {258: (3, [bits]), 273: (4, [content]), 279: (4, [len(content)])}], order=">")
    image = TiffImage(data)
    assert (image.raster.bits, image.raster.samples.dtype.kind) == (bits, "u")
    assert np.array_equal(image.raster.samples[:, :, 0], samples)
    new, expected, _ = filled(data)
    agree(data, new, expected)


def test_a_predictor_without_compression_is_ignored_as_by_libtiff() -> None:
    samples = make_samples(1)
    data = built([grey(samples[:, :, 0], t317=(3, [2]))])
    assert np.array_equal(TiffImage(data).raster.samples, samples)
    new, expected, _ = filled(data)
    assert np.array_equal(with_cv2(new), expected[:, :, 0])


# --- colours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_min_is_white_stays_a_negative(kind: str) -> None:
    samples = make_samples(1, kind)
    data = saved(samples, photometric="miniswhite")
    raster = TiffImage(data).raster
    assert (raster.space, raster.inverted) == ("grey", True)
    assert np.array_equal(raster.samples, samples)
    new, expected, _ = filled(data)
    agree(data, new, expected)


@pytest.mark.parametrize(
    "kind, extra, alpha, premultiplied",
    [("rgb", "assocalpha", 3, True), ("rgb", "unassalpha", 3, False), ("rgb", "unspecified", None, False),
     ("minisblack", "assocalpha", 1, True), ("minisblack", "unspecified", None, False),
     ("separated", "unassalpha", 4, False), ("separated", "unspecified", None, False)],
)  # fmt: skip
def test_alpha_is_as_the_tag_says(kind: str, extra: str, alpha: int | None, premultiplied: bool) -> None:
    channels = {"rgb": 4, "minisblack": 2, "separated": 5}[kind]
    data = saved(
        make_samples(channels, "uint16"), photometric=kind, extrasamples=[extra], planarconfig="contig"
    )
    raster = TiffImage(data).raster
    assert (raster.alpha, raster.premultiplied) == (alpha, premultiplied)
    new, expected, _ = filled(data)
    agree(data, new, expected)


def test_packbits_with_a_predictor_is_refused_as_libraries_differ() -> None:
    data = saved(make_samples(3), photometric="rgb", compression="packbits", predictor=2)
    with pytest.raises(UserError, match="PackBits with a predictor"):
        TiffImage(data)


def test_further_channels_are_no_alpha_and_stay() -> None:
    data = saved(
        make_samples(5), photometric="rgb", extrasamples=["unspecified", "unspecified"], planarconfig="contig"
    )
    assert TiffImage(data).raster.alpha is None
    data = saved(
        make_samples(5), photometric="rgb", extrasamples=["unspecified", "unassalpha"], planarconfig="contig"
    )
    assert TiffImage(data).raster.alpha == 4
    new, expected, image = filled(data)
    assert image.raster.samples.shape == (H, W, 5)
    agree(data, new, expected)


@pytest.mark.parametrize("layout", ["strips", "planar strips"])
def test_cmyk_of_16_bits_stays(layout: str) -> None:
    data = saved(make_samples(4, "uint16"), photometric="separated", **LAYOUTS[layout])
    raster = TiffImage(data).raster
    assert (raster.space, raster.bits, raster.inverted, raster.alpha) == ("cmyk", 16, False, None)
    new, expected, _ = filled(data)
    agree(data, new, expected)


@pytest.mark.parametrize("scale", [257, 1])  # 1 for old files, with 8 bits
def test_palettes_are_read_as_8_bits_and_stay(scale: int) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (256, 3))
    data = built(
        [grey(make_samples(1)[:, :, 0], t262=(3, [3]), t320=(3, (colors.T * scale).ravel().tolist()))]
    )
    raster = TiffImage(data).raster
    assert raster.space == "palette"
    assert np.array_equal(raster.palette, colors)
    assert raster.palette.dtype == np.uint8
    new, expected, _ = filled(data)
    agree(data, new, expected)


def test_palette_with_16_colours_of_pillow_reads() -> None:
    image = Image.fromarray(photograph(H, W)).quantize(16)
    raster = TiffImage(by_pillow(image)).raster
    assert np.array_equal(raster.palette[raster.samples[:, :, 0]], np.array(image.convert("RGB")))


def test_lab_is_as_in_pillow() -> None:
    samples = make_samples(3)  # for numpy, a* and b* of a Pillow image are two's complement, as in TIFF
    data = by_pillow(Image.frombytes("LAB", (W, H), samples.tobytes()))
    raster = TiffImage(data).raster
    assert (raster.space, raster.samples.dtype) == ("lab", np.uint8)
    assert np.array_equal(raster.samples, samples)
    new, expected, _ = filled(data)
    with Image.open(io.BytesIO(new)) as image:
        assert image.mode == "LAB"
        assert np.array_equal(np.asarray(image), expected)
    assert not np.array_equal(expected, samples)
    assert tags(data) == tags(new)


def test_ycbcr_without_subsampling_stays() -> None:
    samples = make_samples(3)
    tag = grey(samples[:, :, 0], t530=(3, [1, 1]))
    tag |= {
        258: (3, [8] * 3),
        262: (3, [6]),
        273: (4, [samples.tobytes()]),
        277: (3, [3]),
        279: (4, [H * W * 3]),
    }
    data = built([tag])
    raster = TiffImage(data).raster
    assert raster.space == "ycbcr"
    assert np.array_equal(raster.samples, samples)
    new, expected, _ = filled(data)
    agree(data, new, expected)
    del tag[530]  # the default is two by two
    assert "subsampled YCbCr" in refusal(built([tag]))


# --- compressions that are replaced ------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["group3", "group4", "tiff_ccitt"])
def test_fax_becomes_deflate_of_one_bit(codec: str) -> None:
    image = Image.fromarray(photograph(H, W)).convert("1")
    data = by_pillow(image, compression=codec)
    new, expected, container = filled(data)
    assert container.raster.bits == 1
    assert container.notes == [
        "CCITT inside TIFF is written as deflate, which keeps every other pixel as it is decoded"
    ]
    with Image.open(io.BytesIO(new)) as written:
        assert (written.mode, written.info["compression"]) == ("1", "tiff_adobe_deflate")
        assert np.array_equal(
            np.array(written), np.array(image) ^ HOLE & (np.array(written) ^ np.array(image))
        )
    inverted = container.raster.inverted
    assert np.array_equal(with_pillow(new), (expected[:, :, 0] == 1) ^ inverted)
    assert {tag: value for tag, value in tags(data).items() if tag not in (259, 266, 292, 293)} == {
        tag: value for tag, value in tags(new).items() if tag != 259
    }


def test_fax_of_the_other_bit_order_becomes_deflate() -> None:
    data = by_pillow(Image.fromarray(photograph(H, W)).convert("1"), compression="group4")
    page = TiffImage(data).page
    assert len(page.dataoffsets) == 1
    strip = data[page.dataoffsets[0] : page.dataoffsets[0] + page.databytecounts[0]]
    reversed_bits = bytes(int(f"{byte:08b}"[::-1], 2) for byte in strip)
    tag = grey(make_samples(1)[:, :, 0], t259=(3, [4]), t262=(3, [int(page.photometric)]), t266=(3, [2]))
    new, expected, _ = filled(
        built([tag | {258: (3, [1]), 273: (4, [reversed_bits]), 279: (4, [len(strip)])}])
    )
    assert np.array_equal(with_tifffile(new)[~HOLE], with_tifffile(data)[~HOLE])
    assert np.array_equal(with_pillow(new), (expected[:, :, 0] == 1) ^ (page.photometric == 0))
    assert 266 not in tags(new)


@pytest.mark.parametrize("order, subsampling", [("contig", (1, 1)), ("contig", (2, 2)), ("separate", (1, 1))])
def test_jpeg_becomes_deflate_of_the_decoded_pixels(order: str, subsampling: tuple[int, int]) -> None:
    image = photograph(48, 64)
    data = saved(image, photometric="rgb", compression="jpeg", tile=(16, 32), subsampling=subsampling,
                 planarconfig=order, description="kept")  # fmt: skip
    hole = np.zeros((48, 64), bool)
    hole[3:8, 40:50] = True
    new, expected, container = filled(data, hole)
    assert container.raster.space == "rgb"
    assert "JPEG inside TIFF is written as deflate" in container.notes[0]
    page = TiffImage(new).page
    assert (page.compression, page.photometric, page.predictor) == (8, 2, 1)
    assert np.array_equal(with_tifffile(new)[~hole], with_tifffile(data)[~hole])
    assert np.array_equal(with_pillow(new), expected)
    assert not {347, 530, 531, 532, 529} & set(tags(new))
    assert tags(new)[270] == tags(data)[270]
    for start, count in zip(
        TiffImage(data).page.dataoffsets, TiffImage(data).page.databytecounts, strict=True
    ):
        assert data[start : start + count] not in new


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_of_12_bits_stays_at_12_bits(channels: int) -> None:
    kind = {1: "minisblack", 3: "rgb"}[channels]
    data = saved(
        make_samples(channels, "uint16") >> 4, photometric=kind, compression="jpeg", bitspersample=12
    )
    new, expected, container = filled(data)
    assert (container.raster.bits, expected.shape) == (12, (H, W, channels))
    assert np.array_equal(with_tifffile(new), expected)
    assert np.array_equal(with_tifffile(new)[~HOLE], with_tifffile(data)[~HOLE])
    assert set(np.ravel(tags(new)[258][1])) == {12}


def test_ycbcr_jpeg_of_pillow_becomes_rgb() -> None:
    data = by_pillow(Image.fromarray(photograph(H, W)).convert("YCbCr"), compression="jpeg")
    assert tags(data)[262][1] == 6
    new, expected, container = filled(data)
    assert container.raster.space == "rgb"
    assert tags(new)[262][1] == 2
    assert np.array_equal(with_pillow(new), expected)
    assert np.array_equal(with_cv2(new)[:, :, ::-1], expected)


@pytest.mark.parametrize(
    "codec, name", [("webp", "WebP"), ("jpeg2000", "JPEG 2000"), ("lerc", "LERC"), ("png", "PNG")]
)
def test_other_image_codecs_become_deflate(codec: str, name: str) -> None:
    samples = make_samples(3)
    data = saved(samples, photometric="rgb", compression=codec, tile=(16, 16))
    new, expected, container = filled(data)
    assert container.notes[0].startswith(f"{name} inside TIFF is written as deflate")
    assert np.array_equal(with_cv2(new)[:, :, ::-1], expected)
    assert np.array_equal(expected[~HOLE], with_tifffile(data)[~HOLE])


# --- removed content ---------------------------------------------------------------------------------------


def secret_samples() -> np.ndarray:
    samples = make_samples(1)[:, :, 0].copy()
    samples[5:12, 9:20] = np.frombuffer(b"SecretTower", np.uint8)
    return samples


def test_old_pixels_are_gone_from_an_uncompressed_file() -> None:
    data = built([grey(secret_samples(), rows=4)])
    assert b"SecretTower" in data
    assert b"SecretTower" not in filled(data)[0]


@pytest.mark.parametrize("codec", ["lzw", "deflate", "zstd, predicted", "packbits"])
def test_old_strips_are_gone_when_the_new_ones_do_not_fit(codec: str) -> None:
    flat = np.zeros((H, W, 1), np.uint8)
    flat[5:12, 9:20] = 200
    data = saved(flat, photometric="minisblack", rowsperstrip=10, **CODECS[codec])
    data += b"a tail that belongs to no tag"
    before = TiffImage(data).page
    new, expected, _ = filled(data)
    assert new[len(data) - 29 : len(data)] == b"a tail that belongs to no tag"
    agree(data, new, expected)
    for i in (0, 1):
        start, count = before.dataoffsets[i], before.databytecounts[i]
        assert TiffImage(new).page.dataoffsets[i] >= len(data)
        assert not any(new[start : start + count])


def test_the_rest_of_a_larger_old_strip_is_zero() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (H, W, 1), np.uint8)
    data = saved(noise, photometric="minisblack", compression="adobe_deflate")
    image = TiffImage(data)
    image.raster.samples[:] = 7
    written = io.BytesIO()
    image.write(written, np.ones((H, W), bool))
    new = written.getvalue()
    before, after = image.page, TiffImage(new).page
    assert after.dataoffsets == before.dataoffsets
    assert after.databytecounts[0] < before.databytecounts[0] // 10
    start = before.dataoffsets[0]
    assert not any(new[start + after.databytecounts[0] : start + before.databytecounts[0]])
    assert len(new) == len(data)


def test_a_last_strip_grows_in_its_place() -> None:
    encoded = imagecodecs.deflate_encode(np.zeros((H, W), np.uint8).tobytes())
    tag = grey(np.zeros((H, W), np.uint8), t259=(3, [8]))
    data = built([tag | {273: (4, [0]), 279: (4, [len(encoded)])}])
    data = (
        data.replace(struct.pack("<HHII", 273, 4, 1, 0), struct.pack("<HHII", 273, 4, 1, len(data))) + encoded
    )
    new, expected, _ = filled(data)
    assert TiffImage(new).page.dataoffsets == TiffImage(data).page.dataoffsets
    assert TiffImage(new).page.databytecounts[0] > len(encoded)
    agree(data, new, expected)


def shared_strips(encoded: bytes, compression: int, kind: int = 4) -> bytes:
    """A grey image (40, 40) of four strips at the same offset."""
    tag = grey(np.zeros((40, 40), np.uint8), rows=10, t259=(3, [compression]))
    data = built([tag | {273: (4, [0x7777] * 4), 279: (kind, [len(encoded)] * 4)}])
    if compression == 1:
        tag |= {279: (kind, [len(encoded)] * 4)}
    return data.replace(struct.pack("<4I", *[0x7777] * 4), struct.pack("<4I", *[len(data)] * 4)) + encoded


@pytest.mark.parametrize("compression", [1, 8])
def test_strips_that_share_their_bytes_are_parted(compression: int) -> None:
    rows = np.repeat(np.arange(10, dtype=np.uint8), 40).tobytes()
    data = shared_strips(rows if compression == 1 else imagecodecs.deflate_encode(rows), compression)
    hole = np.zeros((40, 40), bool)
    hole[12:15, 3:30] = True
    new, expected, _ = filled(data, hole)
    agree(data, new, expected, hole)
    before, after = TiffImage(data).page.dataoffsets, TiffImage(new).page.dataoffsets
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]


def test_all_sharers_touched_leave_nothing_of_the_old_strip() -> None:
    data = shared_strips(b"SecretTower" * 36 + b"Cats", 1)
    hole = np.ones((40, 40), bool)
    new, expected, _ = filled(data, hole)
    assert b"Secret" not in new
    assert np.array_equal(with_tifffile(new), expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_short_byte_counts_become_long_if_necessary(order: str, big: bool) -> None:
    samples = np.zeros((300, 300), np.uint8)
    strips = [
        imagecodecs.deflate_encode(samples[:250].tobytes()),
        imagecodecs.deflate_encode(samples[250:].tobytes()),
    ]
    tag = grey(samples, rows=250, t259=(3, [8]), t305=(2, b"writer of short counts\0"))
    data = built([tag | {273: (4, strips), 279: (3, [len(strip) for strip in strips])}], order, big)
    hole = np.ones((300, 300), bool)
    new, expected, _ = filled(data, hole)
    assert TiffImage(new).page.databytecounts[0] > 65535
    assert tags(new) == tags(data)
    assert np.array_equal(with_tifffile(new), expected)
    assert np.array_equal(with_cv2(new), expected[:, :, 0])


def test_sparse_tiles_are_written() -> None:
    tag = grey(np.zeros((H, W), np.uint8), t322=(3, [16]), t323=(3, [16]))
    for gone in (273, 278, 279):
        del tag[gone]
    data = built([tag | {324: (4, [0] * 12), 325: (4, [0] * 12)}])
    new, expected, _ = filled(data)
    assert np.array_equal(with_tifffile(new), expected)
    assert TiffImage(new).page.dataoffsets[-1] == 0


def test_a_strip_without_byte_count_is_written() -> None:
    tag = grey(secret_samples())
    del tag[279]
    new, expected, _ = filled(built([tag]))
    assert np.array_equal(with_tifffile(new), expected)
    assert b"SecretTower" not in new


def test_strips_without_byte_counts_are_read_wherever_they_are() -> None:
    samples = make_samples(1)[:, :, 0]
    tag = grey(samples, rows=10)
    tag[273] = (4, tag[273][1][::-1])
    del tag[279]
    data = built([tag])
    offsets = tags(data, set())[273][1]
    data = data.replace(struct.pack("<4I", *offsets), struct.pack("<4I", *offsets[::-1]))
    assert np.array_equal(TiffImage(data).raster.samples[:, :, 0], samples)
    new, expected, _ = filled(data)
    rows = [expected[y : y + 10].tobytes() for y in range(0, H, 10)]
    assert all(new[start : start + len(row)] == row for start, row in zip(offsets[::-1], rows, strict=True))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_missing_byte_counts_are_added_in_a_new_directory(order: str, big: bool) -> None:
    rows = np.tile(np.arange(40, dtype=np.uint8), (10, 1)).tobytes()
    tag = grey(np.zeros((40, 40), np.uint8), rows=10)
    tag[273] = (4, [0x7777] * 4)
    del tag[279]
    data = built([tag], order, big)
    data = (
        data.replace(struct.pack(order + "4I", *[0x7777] * 4), struct.pack(order + "4I", *[len(data)] * 4))
        + rows
    )
    hole = np.zeros((40, 40), bool)
    hole[12:15, 3:30] = True
    new, expected, _ = filled(data, hole)  # the strips share their bytes: one has to move
    assert np.array_equal(with_tifffile(new), expected)
    assert np.array_equal(with_cv2(new), expected[:, :, 0])
    assert tags(new, set())[279][1] == (400,) * 4


def test_a_thumbnail_on_a_second_page_is_unlinked_and_erased() -> None:
    data = built([grey(secret_samples()), grey(secret_samples()[5:12, 5:25], t254=(4, [1]))])
    new, expected, image = filled(data)
    assert image.notes == ["thumbnails, overviews or masks on further pages were not kept"]
    assert b"SecretTower" not in new
    agree(data, new, expected)
    with Image.open(io.BytesIO(new)) as written:
        assert written.n_frames == 1


@pytest.mark.parametrize(
    "flag", [{"t254": (4, [1])}, {"t254": (4, [5])}, {"t254": (4, [4])}, {"t255": (3, [2])}]
)
def test_overviews_and_masks_are_no_images_of_their_own(flag: dict) -> None:
    small = grey(np.zeros((9, 9), np.uint8), **flag)
    data = built([grey(secret_samples()), small, small], order=">", big=True)
    assert len(tifffile.TiffFile(io.BytesIO(data)).pages) == 3
    assert len(tifffile.TiffFile(io.BytesIO(filled(data)[0])).pages) == 1


def test_the_thumbnail_of_exif_is_erased() -> None:
    jpeg = [b"\xff\xd8SecretTower\xff\xd9"]
    data = built([grey(secret_samples()), {259: (3, [6]), 513: (4, jpeg), 514: (4, [len(jpeg[0])])}])
    new, expected, image = filled(data)
    assert image.notes
    assert b"SecretTower" not in new
    agree(data, new, expected)


def test_a_thumbnail_of_exif_may_have_a_size() -> None:
    jpeg = [b"\xff\xd8SecretTower\xff\xd9"]
    size = {256: (3, [16]), 257: (3, [12])}
    data = built([grey(secret_samples()), size | {259: (3, [6]), 513: (4, jpeg), 514: (4, [len(jpeg[0])])}])
    assert b"SecretTower" not in filled(data)[0]


def test_a_value_that_two_tags_share_stays_for_the_other() -> None:
    samples = make_samples(1)[:, :, 0]
    strips = [imagecodecs.deflate_encode(samples[y : y + 10].tobytes()) for y in range(0, H, 10)]
    counts = (4, [len(strip) for strip in strips])
    data = built([grey(samples, rows=10, t259=(3, [8]), t65000=counts) | {273: (4, strips), 279: counts}])
    at = data.index(struct.pack("<HHI", 279, 4, 4))
    own = data.index(struct.pack("<HHI", 65000, 4, 4))
    data = data[: own + 8] + data[at + 8 : at + 12] + data[own + 12 :]
    new, expected, _ = filled(data)
    assert tags(new, set())[279] != tags(data, set())[279]
    agree(data, new, expected)


def test_a_thumbnail_in_the_first_directory_is_erased() -> None:
    jpeg = [b"\xff\xd8SecretTower\xff\xd9"]
    data = built([grey(make_samples(1)[:, :, 0], t513=(4, jpeg), t514=(4, [len(jpeg[0])]))])
    new, _, image = filled(data)
    assert image.notes == ["the thumbnail was not kept"]
    assert b"SecretTower" not in new
    assert not {513, 514} & set(tags(new))


def test_a_thumbnail_that_shares_the_strip_of_the_image_leaves_it() -> None:
    data = built([grey(secret_samples(), rows=10), grey(secret_samples()[20:30], t254=(4, [1]))])
    first, second = (list(page.dataoffsets) for page in tifffile.TiffFile(io.BytesIO(data)).pages)
    data = data.replace(struct.pack("<HHII", 273, 4, 1, second[0]), struct.pack("<HHII", 273, 4, 1, first[2]))
    new, expected, _ = filled(data)
    agree(data, new, expected)


def test_a_thumbnail_of_a_wrong_size_takes_nothing_of_the_image() -> None:
    small = grey(make_samples(1)[:9, :9, 0], t254=(4, [1])) | {273: (4, [0]), 279: (4, [10**6])}
    block = struct.pack("<H", 1) + struct.pack("<HHIHH", 34850, 3, 1, 2, 0) + bytes(4)
    data = built([grey(secret_samples(), rows=4, t305=(2, b"by somebody\0"), t34665=(4, [block])), small])
    new, expected, _ = filled(data)
    agree(data, new, expected)
    with Image.open(io.BytesIO(new)) as image:
        assert image.getexif().get_ifd(34665) == {34850: 2}


def with_inner(inner: bytes, **more: tuple[int, object]) -> bytes:
    """An image with a directory in SubIFDs."""
    place = [struct.pack("<H", 6) + inner + bytes(4)]
    return built([grey(secret_samples(), t330=(13, place), **more)], start=b"SecretTower" * 9)


def inner_directory(flag: int, width: int = 11, height: int = 9, photometric: int = 1) -> bytes:
    entries = [
        (254, 4, 1, flag),
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (262, 3, 1, photometric),
        (273, 4, 1, 8),
    ]
    return b"".join(struct.pack("<HHII", *entry) for entry in entries)


def test_a_reduced_copy_in_sub_directories_is_erased() -> None:
    data = with_inner(inner_directory(1))
    new, expected, image = filled(data)
    assert image.notes == ["reduced copies of the image in SubIFDs were not kept"]
    assert b"SecretTower" not in new
    assert np.array_equal(with_tifffile(new), expected)
    assert {tag: value for tag, value in tags(data).items() if tag != 330} == tags(new)


def test_a_reduced_copy_in_a_sub_directory_of_another_is_erased() -> None:
    secret = b"SecretTower" * 9 + b"\0"
    nested = struct.pack("<H", 6) + inner_directory(1) + bytes(4)
    outer = (
        struct.pack("<H", 2)
        + struct.pack("<HHII", 254, 4, 1, 1)
        + struct.pack("<HHII", 330, 4, 1, 8 + len(secret))
    )
    data = built([grey(secret_samples(), t330=(13, [outer + bytes(4)]))], start=secret + nested)
    assert b"SecretTower" not in filled(data)[0]


def photoshop_block(number: int, content: bytes, name: bytes = b"") -> bytes:
    named = bytes([len(name)]) + name + b"\0" * (1 - len(name) % 2)
    return (
        b"8BIM"
        + struct.pack(">H", number)
        + named
        + struct.pack(">I", len(content))
        + content
        + b"\0" * (len(content) % 2)
    )


def test_photoshop_thumbnails_go_and_its_other_resources_stay() -> None:
    kept = (
        photoshop_block(1005, bytes(16)),
        photoshop_block(1028, b"IPTC!", b"odd"),
        photoshop_block(1060, b"xmp"),
    )
    blocks = (
        kept[0]
        + photoshop_block(1036, b"SecretTower")
        + kept[1]
        + photoshop_block(1033, b"SecretTower")
        + kept[2]
    )
    assert without_thumbnails(blocks) == b"".join(kept)
    data = built([grey(make_samples(1)[:, :, 0], t34377=(7, blocks))])
    new, _, image = filled(data)
    assert image.notes == ["Photoshop's thumbnail was not kept"]
    assert b"SecretTower" not in new
    assert tags(new)[34377][1][0] == b"".join(kept)


def test_photoshop_resources_of_a_thumbnail_only_become_empty() -> None:
    data = built([grey(make_samples(1)[:, :, 0], t34377=(7, photoshop_block(1036, b"SecretTower")))])
    new, expected, _ = filled(data)
    assert b"SecretTower" not in new
    assert np.array_equal(with_pillow(new), expected[:, :, 0])


def test_photoshop_layers_are_erased() -> None:
    layers = b"Adobe Photoshop Document Data Block\0" + b"SecretTower" * 5
    data = built(
        [grey(make_samples(1)[:, :, 0], t37724=(7, layers), t34377=(7, photoshop_block(1005, bytes(16))))]
    )
    new, expected, image = filled(data)
    assert image.notes == ["Photoshop's layers, which show removed content, were not kept"]
    assert b"SecretTower" not in new
    assert np.array_equal(with_tifffile(new), expected)
    assert {tag: value for tag, value in tags(data).items() if tag != 37724} == tags(new)


def test_the_thumbnail_in_xmp_is_blanked() -> None:
    packet = b"<x:xmpmeta><xmpGImg:width>9</xmpGImg:width><xmpGImg:image>SecretTower&#xA;</xmpGImg:image></x:xmpmeta>"
    data = built([grey(make_samples(1)[:, :, 0], t700=(1, list(packet)))])
    new, _, image = filled(data)
    assert image.notes == ["previews in the XMP, which show removed content, were not kept"]
    assert packet.replace(b"SecretTower&#xA;", b" " * 16) in new


# --- tags --------------------------------------------------------------------------------------------------


def exif() -> Image.Exif:
    found = Image.Exif()
    found[271], found[272], found[305], found[33432] = "maker", "model", "software", "somebody"
    found.get_ifd(34665).update(
        {33434: TiffImagePlugin.IFDRational(1, 125), 36867: "2020:01:02 03:04:05", 37500: b"note" * 9}
    )
    found.get_ifd(34853).update({1: "N", 2: (52.0, 30.0, 1.5), 3: "E", 4: (13.0, 22.0, 2.5)})
    found[34665] = found[34853] = 0  # the offsets, set in writing
    return found


def check_by_exiftool(data: bytes, new: bytes, folder: Path) -> None:
    """Check that exiftool finds the same tags in two files."""
    paths = folder / "a.tif", folder / "b.tif"
    for path, content in zip(paths, (data, new), strict=True):
        path.write_bytes(content)
    command = [EXIFTOOL, "-j", "-a", "-u", "-G1", "-n", "-b", *paths]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    ignored = re.compile("System:|.*(StripOffsets|StripByteCounts|TileOffsets|TileByteCounts|SourceFile)$")
    before, after = ({name: tags[name] for name in tags if not ignored.match(name)} for tags in found)
    assert before == after != {}


def test_exif_place_profile_and_resolution_stay(tmp_path: Path) -> None:
    data = by_pillow(
        Image.fromarray(photograph(H, W)), exif=exif(), dpi=(300, 150), icc_profile=b"profile" * 30
    )
    new, expected, image = filled(data)
    assert image.notes == []
    agree(data, new, expected)
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(new)) as after:
        for block in (34665, 34853):
            assert before.getexif().get_ifd(block) == after.getexif().get_ifd(block) != {}
        assert after.info["dpi"] == (300, 150)
        assert after.info["icc_profile"] == b"profile" * 30
    if EXIFTOOL:
        check_by_exiftool(data, new, tmp_path)


@pytest.mark.parametrize("compression", [8, 7])
def test_exif_and_place_of_compressed_files_stay(compression: int) -> None:
    blocks = {34665: [(34850, 3, 1, 2), (40961, 3, 1, 1)], 34853: [(5, 1, 1, 1), (30, 3, 1, 1)]}
    tag = grey(make_samples(1)[:, :, 0], t259=(3, [compression]))
    for number, entries in blocks.items():
        packed = struct.pack(">H", 2) + b"".join(
            struct.pack(">HHI", number, kind, count) + (struct.pack(">HH", value, 0) if kind == 3 else bytes([value, 0, 0, 0]))
            for number, kind, count, value in entries
        )  # fmt: skip
        tag[number] = (4, [packed + bytes(4)])
    pixels = photograph(H, W)[:, :, 0]
    encoded = (
        imagecodecs.deflate_encode(pixels.tobytes())
        if compression == 8
        else imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels))
    )
    data = built([tag | {273: (4, [encoded]), 279: (4, [len(encoded)])}], ">")
    new, expected, _ = filled(data)
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(new)) as after:
        assert before.getexif().get_ifd(34665) == after.getexif().get_ifd(34665) == {34850: 2, 40961: 1}
        assert before.getexif().get_ifd(34853) == after.getexif().get_ifd(34853) != {}
        assert np.array_equal(np.array(after), expected[:, :, 0])


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"compression": "jpeg"}, {"bigtiff": True, "byteorder": ">"}]
)
def test_xmp_iptc_geography_and_private_tags_stay(options: dict, tmp_path: Path) -> None:
    extra = [
        (700, 1, 20, b"<x:xmpmeta/>        ", True), (33723, 7, 9, b"\x1c\x02\x05\0\4ABCD", True),
        (33550, 12, 3, (1.0, 1.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 1.5, 2.5, 0.0), True),
        (34735, 3, 4, (1, 1, 0, 0), True), (34737, 2, 7, "WGS 84|", True), (42113, 2, 6, "-9999", True),
        (65001, 4, 2, (123456, 654321), True), (316, 2, 5, "host", True),
    ]  # fmt: skip
    data = saved(make_samples(), photometric="rgb", resolution=(300, 300), resolutionunit=2, extratags=extra,
                 iccprofile=b"profile" * 20, **options)  # fmt: skip
    new, _, _ = filled(data)
    before, after = tags(data), tags(new)
    for tag in (700, 33723, 33550, 33922, 34735, 34737, 42113, 65001, 316, 282, 283, 296, 34675):
        assert before[tag] == after[tag]
    if EXIFTOOL and "compression" not in options:
        check_by_exiftool(data, new, tmp_path)


def test_a_cloud_optimized_geotiff_is_marked_as_edited() -> None:
    ghost = b"GDAL_STRUCTURAL_METADATA_SIZE=000140 bytes\nLAYOUT=IFDS_BEFORE_DATA\nBLOCK_LEADER=SIZE_AS_UINT4\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
    data = built([grey(secret_samples())], start=ghost)
    new, _, _ = filled(data)
    assert b"\nKNOWN_INCOMPATIBLE_EDITION=YES\n" in new
    assert len(new) == len(data)


# --- what is refused ---------------------------------------------------------------------------------------

RAW = "a raw file, which cannot be written back: develop it to TIFF or PNG first"


@pytest.mark.parametrize(
    "tag",
    [{"t50706": (1, [1, 4, 0, 0]), "t254": (4, [1])}, {"t262": (3, [32803])}, {"t262": (3, [34892])},
     {"t271": (2, b"NIKON\0"), "t259": (3, [34713])}],
)  # fmt: skip
def test_raw_files_are_refused(tag: dict) -> None:
    assert refusal(built([grey(make_samples(1)[:, :, 0], **tag)])) == RAW


def test_raw_files_with_the_raw_image_elsewhere_are_refused() -> None:
    assert refusal(with_inner(inner_directory(0, 60, 60), t254=(4, [1]), t271=(2, b"NIKON\0"))) == RAW
    assert refusal(with_inner(inner_directory(0, 60, 60, photometric=32803))) == RAW
    assert (
        refusal(built([grey(make_samples(1)[:, :, 0]), grey(make_samples(1)[:, :, 0], t262=(3, [32803]))]))
        == RAW
    )
    data = built([grey(make_samples(1)[:, :, 0]) | {273: (4, [8])}], start=b"CR\2\0\0\0\0\0")
    assert refusal(data) == RAW
    assert refusal(data[:8] + b"IIIITwaR" + data[16:]) == RAW
    assert refusal(b"IIRO" + data[4:]) == RAW
    assert refusal(b"IIU\0" + data[4:]) == RAW


def test_pixels_that_spell_the_name_of_a_raw_format_are_no_raw_file() -> None:
    for start in (b"CR\2\0", b"IIIIIIII"):
        samples = make_samples(1)[:, :, 0].copy()
        samples[0, : len(start)] = np.frombuffer(start, np.uint8)
        data = built([grey(samples)])
        assert data[8:].startswith(start)
        assert np.array_equal(TiffImage(data).raster.samples[:, :, 0], samples)


def test_several_images_are_refused() -> None:
    page = grey(make_samples(1)[:, :, 0])
    assert (
        refusal(built([page, page, page])) == "holds 3 images, and only files with a single one can be filled"
    )
    assert "holds 2 images" in refusal(built([page, grey(np.zeros((9, 9), np.uint8), t254=(4, [1])), page]))
    assert "holds 2 images" in refusal(with_inner(inner_directory(0, 100, 100)))
    assert "holds 50 images" in refusal(built([page | {270: (2, b"ImageJ=1.53\nimages=50\nslices=50\n\0")}]))


def test_other_kinds_that_cannot_be_written_back_are_refused() -> None:
    assert "complex" in refusal(
        saved(make_samples(1, "float32").astype(np.complex64), photometric="minisblack")
    )
    flat = make_samples(1)[:, :, 0]
    assert "volumes" in refusal(built([grey(flat, t32997=(3, [2]))]))
    assert "photometric interpretation 32845" in refusal(built([grey(flat, t262=(3, [32845]))]))
    assert "photometric interpretation 4" in refusal(built([grey(flat, t262=(3, [4]))]))
    assert "inks other than" in refusal(
        saved(make_samples(4), photometric="separated", extratags=[(332, 3, 1, 2, True)])
    )
    assert "rgb images of 1 channels" in refusal(built([grey(flat, t262=(3, [2]))]))
    assert "different types" in refusal(
        built([grey(flat, t277=(3, [3]), t258=(3, [5, 6, 5]), t262=(3, [2]))])
    )
    assert "24 bits" in refusal(built([grey(flat, t258=(3, [24]))]))
    assert "CIELab images of 16 bits" in refusal(
        saved(make_samples(3, "uint16"), photometric="cielab", planarconfig="contig")
    )
    assert "photometric interpretation 9" in refusal(
        saved(make_samples(3), photometric="icclab", planarconfig="contig")
    )
    assert "signed palette" in refusal(built([grey(flat, t262=(3, [3]), t339=(3, [2]))]))


# --- damage ------------------------------------------------------------------------------------------------


def test_a_second_page_without_size_is_no_image() -> None:
    page = grey(secret_samples())
    damaged = {tag: value for tag, value in page.items() if tag not in (256, 257)}
    data = built([page, damaged])
    new, expected, image = filled(data)
    assert np.array_equal(with_tifffile(new), expected)
    assert image.notes
    assert b"SecretTower" not in new


@pytest.mark.parametrize("place", [1, 9, 2**32 - 1])
def test_a_second_page_at_a_wrong_place_is_no_image(place: int) -> None:
    data = built([grey(make_samples(1)[:, :, 0])])
    new, expected, _ = filled(data[:-4] + struct.pack("<I", place))
    assert np.array_equal(with_tifffile(new), expected)


def test_inner_directories_without_end_end() -> None:
    data = with_inner(inner_directory(1))
    at = data.index(struct.pack("<H", 6) + inner_directory(1))
    new, expected, _ = filled(data[: at + 74] + struct.pack("<I", at) + data[at + 78 :])
    assert np.array_equal(with_tifffile(new), expected)


def test_more_directories_than_any_image_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiff_structure.MAX_DIRECTORIES == 4096
    monkeypatch.setattr(tiff_structure, "MAX_DIRECTORIES", 50)
    empty = b"".join(struct.pack("<HI", 0, at) for at in range(14, 14 + 6 * 60, 6))
    data = built([grey(make_samples(1)[:, :, 0])], start=empty)
    assert "more than 50" in refusal(data[:-4] + struct.pack("<I", 8))
    assert "more than 50" in refusal(built([grey(make_samples(1)[:, :, 0], t330=(4, list(range(1, 61))))]))


def test_pages_in_a_circle_end() -> None:
    data = built([grey(make_samples(1)[:, :, 0])])
    new, expected, _ = filled(data[:-4] + data[4:8])
    assert np.array_equal(with_tifffile(new), expected)


def test_damaged_files_raise_and_print_nothing(
    capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    data = saved(make_samples(), photometric="rgb", compression="adobe_deflate", rowsperstrip=4)
    for length in range(0, len(data) - 1, 97):
        with pytest.raises((ValueError, struct.error, TypeError, tifffile.TiffFileError, RuntimeError)):
            TiffImage(data[:length])
    generator = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        for at in generator.integers(0, 200, 3):
            damaged[at] = generator.integers(256)
        try:
            new, expected, _ = filled(bytes(damaged))
        except Exception:
            continue
        assert bits_of(with_tifffile(new)) == bits_of(expected)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []  # the logging module would print these


def test_too_few_strips_are_an_error() -> None:
    with pytest.raises(ValueError, match="strips or tiles"):
        filled(built([grey(make_samples(1)[:, :, 0]) | {278: (3, [4])}]))


# --- parts -------------------------------------------------------------------------------------------------


def test_overlapping_ranges_are_found() -> None:
    ranges = [(10, 20), (20, 30), (5, 11), (40, 50), (42, 43), (60, 60), (44, 46), (50, 60)]
    assert overlapping(ranges).tolist() == [True, False, True, True, True, False, True, False]


def test_erase_spares_what_is_kept() -> None:
    content = bytearray(b"x" * 20)
    erase(content, [(2, 8), (6, 15), (18, 99)], [(0, 3), (5, 7), (6, 7), (10, 11)])
    assert content == b"xxx\0\0xx\0\0\0x\0\0\0\0xxx\0\0"


def test_packed_rows_start_at_bytes() -> None:
    assert pack_rows(np.array([[1, 2, 3], [15, 0, 1]], np.uint8), 4) == bytes([0x12, 0x30, 0xF0, 0x10])
