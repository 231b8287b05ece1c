"""JPEG files with a filled hole: kept, renewed and dropped parts."""

import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import cv2
import jpeglib
import kinds
import numpy as np
import pytest
from conftest import photograph
from kinds import segment, with_segments
from PIL import ExifTags, Image

import imaging.formats.jpeg
import imaging.formats.jpeg_codec
from imaging.formats.jpeg import JpegFile
from imaging.formats.jpeg_blocks import untouched_pixels
from imaging.formats.jpeg_segments import SOS, fit, read_frame, read_segments, renew_previews, write_segments
from imaging.formats.jpeg_splice import Scan, Unsuitable
from imaging.metadata import Exif, orientation_of

FILL = np.array([30, 200, 60], np.uint8)
XMP = b"http://ns.adobe.com/xap/1.0/\0"
FACTORS = {
    "4:4:4": (1, 1),
    "4:2:2": (1, 2),
    "4:2:0": (2, 2),
    "4:4:0": (2, 1),
    "4:1:1": (1, 4),
}  # down, across
saved = functools.partial(kinds.saved, form="JPEG")


def jpeg(
    image: np.ndarray, sampling: str = "4:2:0", quality: int = 90, progressive: bool = False, restart: int = 0
) -> bytes:
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    factors = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling.replace(':', '')}")
    settings += [cv2.IMWRITE_JPEG_RST_INTERVAL, restart, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factors]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]), settings)
    assert done
    return data.tobytes()


def walk(data: bytes) -> list[tuple[int, bytes]]:
    """The APPn and COM segments before the first scan, read without the code under test."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        assert data[at] == 0xFF
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        if 0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE:
            found.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + length
    return found


def exif(
    orientation: int | None = None,
    thumbnail: bytes = b"",
    order: str = "<",
    after: bytes = b"",
    raw: tuple[int, int] | None = None,
) -> bytes:
    """The content of an EXIF segment with a maker, an orientation and a thumbnail, uncompressed if `raw` is its size."""
    first = [struct.pack(order + "HHI", 271, 2, 8) + struct.pack(order + "I", 500)]
    if orientation is not None:
        first.append(struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0))
    start = 8 + 2 + 12 * len(first) + 4
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    block += (
        struct.pack(order + "H", len(first))
        + b"".join(first)
        + struct.pack(order + "I", start if thumbnail else 0)
    )
    if thumbnail:
        if raw:
            tags = [(256, raw[0]), (257, raw[1]), (259, 1), (262, 2), (273, 512), (279, len(thumbnail))]
        else:
            tags = [(259, 6), (513, 512), (514, len(thumbnail))]
        block += (
            struct.pack(order + "H", len(tags))
            + b"".join(struct.pack(order + "HHII", t, 4, 1, v) for t, v in tags)
            + bytes(4)
        )
    block = block.ljust(500, b"\0") + b"Maker\0\0\0".ljust(12, b"\0") + thumbnail + after
    return b"Exif\0\0" + block


def read_thumbnail(data: bytes) -> Image.Image:
    """The JPEG thumbnail of IFD1, read without the code under test."""
    block = next(c for m, c in walk(data) if m == 0xE1 and c.startswith(b"Exif"))[6:]
    order = "<" if block[:2] == b"II" else ">"
    first = struct.unpack_from(order + "I", block, 4)[0]
    second = struct.unpack_from(
        order + "I", block, first + 2 + 12 * struct.unpack_from(order + "H", block, first)[0]
    )[0]
    tags = {}
    for i in range(struct.unpack_from(order + "H", block, second)[0]):
        tag, _, _, value = struct.unpack_from(order + "HHII", block, second + 2 + 12 * i)
        tags[tag] = value
    return Image.open(io.BytesIO(block[tags[513] : tags[513] + tags[514]]))


def coefficients(data: bytes, folder: Path) -> list[np.ndarray]:
    """The coefficients (rows, columns, 8, 8) of each component, by jpeglib's own reader."""
    path = folder / f"{zlib.crc32(data)}.jpg"
    path.write_bytes(data)
    read = jpeglib.read_dct(str(path))
    return [x.copy() for x in (read.Y, read.Cb, read.Cr) if x is not None]


def hole_of(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    hole = np.zeros((height, width), bool)
    hole[box[0] : box[1], box[2] : box[3]] = True
    return hole


def fill(file: JpegFile, hole: np.ndarray, color: np.ndarray = FILL) -> bytes:
    file.raster.samples[hole] = color[: file.raster.samples.shape[2]]
    target = io.BytesIO()
    file.write(target, hole)
    return target.getvalue()


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def expected_touched(hole: np.ndarray, down: int, across: int, shape: tuple[int, ...]) -> np.ndarray:
    """The blocks of a component that a hole touches, found pixel by pixel."""
    touched = np.zeros(shape[:2], bool)
    for y, x in np.argwhere(hole):
        touched[y // (8 * down), x // (8 * across)] = True
    return touched


COMBINATIONS = [
    pytest.param(sampling, progressive, quality, orientation, size, id=f"{sampling}-{'progressive' if progressive else 'baseline'}-{quality}-{orientation}-{size[0]}x{size[1]}")
    for (sampling, progressive), (quality, orientation, size) in zip(
        itertools.product(list(FACTORS) * 3, (False, True)),
        itertools.cycle([(95, 1, (80, 96)), (75, 6, (61, 83)), (50, 3, (97, 50)), (88, 8, (33, 129)), (99, 5, (70, 71)), (30, 2, (17, 15)), (92, 7, (64, 65))]),
        strict=False,
    )
]  # fmt: skip


@pytest.mark.parametrize(("sampling", "progressive", "quality", "orientation", "size"), COMBINATIONS)
def test_only_the_touched_blocks_change(
    sampling: str, progressive: bool, quality: int, orientation: int, size: tuple[int, int], tmp_path: Path
) -> None:
    height, width = size
    data = with_segments(
        jpeg(photograph(height, width, 1), sampling, quality, progressive), segment(0xE1, exif(orientation))
    )
    file = JpegFile(data)
    before = file.raster.samples.copy()
    assert file.exact
    assert file.raster.orientation == orientation
    hole = hole_of(height, width, (height // 3, height // 3 + 9, width // 2, width))  # up to the edge
    out = fill(file, hole)

    assert walk(out) == walk(data)
    assert bool(Image.open(io.BytesIO(out)).info.get("progressive")) == progressive
    down, across = FACTORS[sampling]
    for i, (old, new) in enumerate(
        zip(coefficients(data, tmp_path), coefficients(out, tmp_path), strict=True)
    ):
        touched = expected_touched(hole, *((down, across) if i else (1, 1)), old.shape)
        assert np.array_equal(old[~touched], new[~touched])
        assert (old[touched] != new[touched]).any()
    after = decode(out)
    kept = file.kept(hole)
    assert np.array_equal(before[kept], after[kept])
    near = ~kept & ~hole
    tolerance = {95: 5, 99: 3, 92: 8, 88: 9, 75: 14, 50: 20, 30: 26}[quality]
    chroma = 1 if (down, across) == (1, 1) else 2.5  # the fill runs over by a sample
    assert np.abs(before[near].astype(int) - after[near]).mean() < tolerance * chroma
    inner = hole_of(height, width, (height // 3 + 2, height // 3 + 7, width // 2 + 4, width))
    assert np.abs(after[inner].astype(int) - FILL).mean() < tolerance
    assert file.notes == [] and file.encoding_note.startswith("JPEG: only the")


def test_the_same_pixels_are_kept_for_another_decoder(tmp_path: Path) -> None:
    for sampling in FACTORS:
        data = jpeg(photograph(90, 110, 2), sampling)
        file = JpegFile(data)
        hole = hole_of(90, 110, (30, 41, 50, 61))
        out = fill(file, hole)
        old, new = (cv2.imdecode(np.frombuffer(x, np.uint8), cv2.IMREAD_COLOR) for x in (data, out))
        kept = file.kept(hole)
        assert np.array_equal(old[kept], new[kept])
        assert 0.5 < kept.mean() < 1
        assert (old[~kept] != new[~kept]).any()


def test_kept_pixels_are_outside_the_blocks_and_one_sample_around_them() -> None:
    hole = hole_of(64, 80, (17, 18, 35, 36))
    assert np.array_equal(untouched_pixels(hole, [(1, 1)]), ~hole_of(64, 80, (16, 24, 32, 40)))
    assert np.array_equal(
        untouched_pixels(hole, [(1, 1), (2, 2), (2, 2)]), ~hole_of(64, 80, (14, 34, 30, 50))
    )
    assert np.array_equal(
        untouched_pixels(hole, [(1, 1), (1, 2), (1, 2)]), ~hole_of(64, 80, (16, 24, 30, 50))
    )


def test_known_pixels_of_a_touched_block_are_only_quantised_once_more(tmp_path: Path) -> None:
    data = jpeg(photograph(64, 64, 3), "4:4:4", 60)
    file = JpegFile(data)
    before = file.raster.samples.copy()
    hole = hole_of(64, 64, (20, 22, 20, 22))
    file.raster.samples[hole] = before[hole]  # the same colours
    target = io.BytesIO()
    file.write(target, hole)
    for old, new in zip(coefficients(data, tmp_path), coefficients(target.getvalue(), tmp_path), strict=True):
        assert np.array_equal(old, new)


def test_known_samples_come_from_the_coefficients_and_not_from_the_decoded_colours() -> None:
    noise = np.random.default_rng(3).integers(0, 255, (24, 24, 3)).astype(np.uint8)
    noise = noise.repeat(2, axis=0).repeat(2, axis=1)
    file = JpegFile(jpeg(noise, "4:2:0", 98))
    before = file.raster.samples.astype(int)
    out = fill(file, hole_of(48, 48, (16, 18, 16, 18)))
    away = hole_of(48, 48, (22, 32, 22, 32))  # shares blocks of chroma with the hole
    assert np.abs(decode(out)[away] - before[away]).mean() < 1.5


def test_samples_that_a_hole_covers_in_part_change_too() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    hole = hole_of(64, 64, (21, 42, 21, 42))  # odd: half of the samples of chroma at its edges
    image[hole] = [255, 0, 0]
    out = decode(fill(JpegFile(jpeg(image, "4:2:0", 97)), hole, np.array([128] * 3, np.uint8))).astype(int)
    red = out[:, :, 0] - out[:, :, 1]
    assert red[hole].max() < 60  # the known neighbours are reddish in the file


def test_a_hole_in_the_last_row_or_column_is_filled() -> None:
    for sampling, box in itertools.product(FACTORS, [(0, 21, 20, 21), (20, 21, 0, 21)]):
        file = JpegFile(jpeg(np.full((21, 21, 3), 255, np.uint8), sampling, 97))
        hole = hole_of(21, 21, box)
        assert decode(fill(file, hole, np.zeros(3, np.uint8)))[hole].max() < 12


def test_an_empty_hole_gives_the_bytes_of_the_file() -> None:
    for data in (jpeg(photograph(40, 50)) + b"more", saved(Image.new("CMYK", (20, 20)))):
        file = JpegFile(data)
        hole = np.zeros(file.raster.samples.shape[:2], bool)
        target = io.BytesIO()
        file.write(target, hole)
        assert target.getvalue() == data
        assert file.kept(hole).all()


@pytest.mark.parametrize("progressive", [False, True])
def test_ten_fills_change_only_their_own_blocks_and_equal_fills_one_by_one(
    progressive: bool, tmp_path: Path
) -> None:
    data = start = jpeg(photograph(170, 230, 4), "4:2:0", 85, progressive)
    original = JpegFile(start).raster.samples.copy()
    holes = [
        hole_of(170, 230, (5 + 32 * (i % 5), 12 + 32 * (i % 5), 8 + 96 * (i // 5), 20 + 96 * (i // 5)))
        for i in range(10)
    ]
    colors = np.random.default_rng(0).integers(0, 255, (10, 3)).astype(np.uint8)
    alone = []
    for hole, color in zip(holes, colors, strict=True):
        data = fill(JpegFile(data), hole, color)
        alone.append(coefficients(fill(JpegFile(start), hole, color), tmp_path))
    old, new = coefficients(start, tmp_path), coefficients(data, tmp_path)
    for component in range(3):
        wanted = old[component].copy()
        for hole, single in zip(holes, alone, strict=True):
            touched = expected_touched(hole, *((2, 2) if component else (1, 1)), wanted.shape)
            wanted[touched] = single[component][touched]
        assert np.array_equal(wanted, new[component])
    kept = untouched_pixels(np.logical_or.reduce(holes), [(1, 1), (2, 2), (2, 2)])
    assert np.array_equal(original[kept], decode(data)[kept])


@pytest.mark.parametrize("factor", [0x11, 0x22, 0x21])
@pytest.mark.parametrize("progressive", [False, True])
def test_grey_files_stay_grey_whatever_sampling_factor_they_state(
    factor: int, progressive: bool, tmp_path: Path
) -> None:
    data = bytearray(saved(Image.fromarray(photograph(45, 61)[:, :, 0]), quality=90, progressive=progressive))
    start = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[start + 11] = factor
    file = JpegFile(bytes(data))
    assert (file.raster.space, file.raster.samples.shape, file.exact) == ("grey", (45, 61, 1), True)
    before = file.raster.samples.copy()
    hole = hole_of(45, 61, (30, 45, 40, 61))
    out = fill(file, hole)
    assert file.exact
    assert np.array_equal(before[file.kept(hole)][:, 0], decode(out)[file.kept(hole)])
    assert np.abs(decode(out)[hole].astype(int) - int(FILL[0])).mean() < 4
    old, new = coefficients(bytes(data), tmp_path), coefficients(out, tmp_path)
    touched = expected_touched(hole, 1, 1, old[0].shape)
    assert np.array_equal(old[0][~touched], new[0][~touched])


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("marked", [True, False])
def test_rgb_files_stay_rgb(progressive: bool, marked: bool, tmp_path: Path) -> None:
    data = saved(Image.fromarray(photograph(50, 70)), quality=92, keep_rgb=True, progressive=progressive)
    assert [c[11] for m, c in walk(data) if m == 0xEE] == [0]
    if not marked:  # by the names of the components only
        start = data.index(b"\xff\xee")
        data = data[:start] + data[start + 16 :]
    file = JpegFile(data)
    before = file.raster.samples.copy()
    hole = hole_of(50, 70, (10, 20, 10, 33))
    out = fill(file, hole)
    assert file.exact
    assert walk(out) == walk(data)
    assert np.array_equal(before[file.kept(hole)], decode(out)[file.kept(hole)])
    assert np.abs(decode(out)[hole].astype(int) - FILL).mean() < 4


@pytest.mark.parametrize("jfif", [False, True])
def test_adobe_transform_one_is_ycbcr(jfif: bool) -> None:
    data = saved(Image.fromarray(photograph(50, 70)), quality=95, subsampling=0)
    length = struct.unpack(">H", data[4:6])[0]
    adobe = segment(
        0xEE, b"Adobe\0\x64\0\0\0\0" + (b"\0" if jfif else b"\1")
    )  # a JFIF header takes precedence
    data = data[:2] + (data[2 : 4 + length] if jfif else b"") + adobe + data[4 + length :]
    file = JpegFile(data)
    hole = hole_of(50, 70, (10, 20, 10, 33))
    out = fill(file, hole)
    assert file.exact
    assert np.abs(decode(out)[hole].astype(int) - FILL).mean() < 4


def test_restart_intervals_and_several_scans_are_read(tmp_path: Path) -> None:
    data = jpeg(photograph(80, 90), restart=2)
    assert b"\xff\xdd" in data
    hole = hole_of(80, 90, (20, 30, 20, 30))
    file = JpegFile(data)
    before = file.raster.samples.copy()
    out = fill(file, hole)
    assert file.exact
    assert np.array_equal(before[file.kept(hole)], decode(out)[file.kept(hole)])
    for i, (old, new) in enumerate(
        zip(coefficients(data, tmp_path), coefficients(out, tmp_path), strict=True)
    ):
        touched = expected_touched(hole, *((2, 2) if i else (1, 1)), old.shape)
        assert np.array_equal(old[~touched], new[~touched])


def test_no_removed_content_stays_beyond_the_edge(tmp_path: Path) -> None:
    """The samples that pad the last block repeat the image's new edge."""
    image = np.full((20, 20, 3), 255, np.uint8)
    file = JpegFile(jpeg(image, "4:4:4", 95))
    out = fill(file, hole_of(20, 20, (0, 20, 0, 20)), np.zeros(3, np.uint8))
    luma = coefficients(out, tmp_path)[0]
    assert (luma[:, :, 0, 0] == luma[0, 0, 0, 0]).all()
    assert not luma.reshape(3, 3, 64)[:, :, 1:].any()


ICC = os.urandom(300)
IPTC = b"\x1c\x02\x78\x00\x07Caption"


def photoshop(*resources: tuple[int, bytes]) -> bytes:
    parts = [
        b"8BIM" + struct.pack(">HHI", number, 0, len(c)) + c + bytes(len(c) % 2) for number, c in resources
    ]
    return b"Photoshop 3.0\0" + b"".join(parts)


def described(progressive: bool = False, orientation: int = 6) -> bytes:
    """A file with segments of every kind."""
    data = jpeg(photograph(64, 96), progressive=progressive)
    main, extended = xmp()
    return with_segments(
        data,
        segment(0xE1, exif(orientation)),
        segment(0xE1, XMP + main),
        *extended,
        segment(0xE1, b"FLIR\0\x01\0\0" + bytes(50)),
        segment(0xE2, b"ICC_PROFILE\0\x01\x02" + ICC[:200]),
        segment(0xE2, b"ICC_PROFILE\0\x02\x02" + ICC[200:]),
        segment(0xE2, b"FPXR\0\0" + bytes(20)),
        segment(0xED, photoshop((0x0404, IPTC), (0x03ED, bytes(16)))),
        segment(0xEB, b"HDR_RI ver=11"),
        segment(0xE7, b"Camera" + bytes(9)),
        segment(0xFE, b"a comment"),
    )


def xmp(within: str = "") -> tuple[bytes, list[bytes]]:
    head = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    long = f'<rdf:Description rdf:about="" xmlns:ex="http://example.org/" ex:long="{"x" * 3000}">{within}</rdf:Description>'
    extended = (head + long + "</rdf:RDF></x:xmpmeta>").encode()
    name = hashlib.md5(extended).hexdigest().upper().encode()
    main = (
        head
        + '<rdf:Description rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmlns:dc="http://purl.org/dc/elements/1.1/"'
        + f' dc:format="image/jpeg" xmpNote:HasExtendedXMP="{name.decode()}"/></rdf:RDF></x:xmpmeta>'
    ).encode()
    pieces = [(i, extended[i : i + 1700]) for i in range(0, len(extended), 1700)]
    start = b"http://ns.adobe.com/xmp/extension/\0" + name + struct.pack(">I", len(extended))
    return main, [segment(0xE1, start + struct.pack(">I", at) + piece) for at, piece in pieces]


@pytest.mark.parametrize("progressive", [False, True])
def test_every_segment_comes_back_byte_for_byte_and_in_order(progressive: bool) -> None:
    data = described(progressive)
    file = JpegFile(data)
    out = fill(file, hole_of(64, 96, (10, 20, 10, 20)))
    assert len(walk(data)) == 13
    assert walk(out) == walk(data)
    assert file.exact
    assert file.notes == ["the thermal image (FLIR) was kept, and may still show removed content"]


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool")
def test_exiftool_reads_the_same_tags(tmp_path: Path) -> None:
    thumbnail = saved(Image.fromarray(photograph(40, 60)), quality=95)
    data = with_segments(described(), segment(0xE1, exif(6, thumbnail)))
    (tmp_path / "old.jpg").write_bytes(data)
    (tmp_path / "new.jpg").write_bytes(fill(JpegFile(data), hole_of(64, 96, (10, 20, 10, 20))))
    command = ["exiftool", "-j", "-a", "-u", "-U", "-G1", "-b", "old.jpg", "new.jpg"]
    tags = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout)
    volatile = ("SourceFile", "System:", "ThumbnailImage", "ThumbnailLength")
    old, new = ({k: v for k, v in t.items() if not any(word in k for word in volatile)} for t in tags)
    assert len(old) > 30
    assert old == new


def red_corner() -> tuple[np.ndarray, np.ndarray]:
    """A grey image with a red square, and the square as a hole."""
    image = np.full((120, 160, 3), 128, np.uint8)
    hole = hole_of(120, 160, (40, 80, 40, 90))
    image[hole] = [255, 0, 0]
    return image, hole


def redness(image: Image.Image) -> int:
    pixels = np.asarray(image.convert("RGB")).astype(int)
    return int((pixels[:, :, 0] - pixels[:, :, 1:].max(axis=2)).max())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("quality", [95, 60, 2])
def test_the_exif_thumbnail_is_renewed(order: str, quality: int) -> None:
    image, hole = red_corner()
    small = Image.fromarray(image).resize((80, 60))
    old = saved(small, quality=quality)
    data = with_segments(jpeg(image), segment(0xE1, exif(3, old, order)))
    file = JpegFile(data)
    assert redness(read_thumbnail(data)) > 150
    out = fill(file, hole, np.array([128, 128, 128], np.uint8))
    thumbnail = read_thumbnail(out)
    assert thumbnail.size == (80, 60)
    assert thumbnail.fp.getvalue().endswith(b"\xff\xd9")  # the length is right
    assert redness(thumbnail) < 25
    assert old not in out
    assert JpegFile(out).raster.orientation == 3
    assert file.notes == [] and file.encoding_note.startswith("JPEG: only the")
    (before,), (after,) = ([c for m, c in walk(x) if m == 0xE1] for x in (data, out))
    assert before[:500] == after[:500] or quality == 2 or before[:500][:40] == after[:40]
    assert len(after) == len(before) or quality == 2


def test_a_thumbnail_without_room_moves_to_the_end_of_its_segment_or_is_dropped() -> None:
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    hole = hole_of(120, 160, (40, 80, 40, 90))
    tiny = saved(Image.new("RGB", (160, 120), (255, 0, 0)), quality=1, optimize=True)
    data = with_segments(jpeg(image), segment(0xE1, exif(1, tiny, after=b"behind")))
    file = JpegFile(data)
    out = fill(file, hole)
    assert read_thumbnail(out).size == (160, 120)
    assert tiny not in out
    (content,) = [c for m, c in walk(out) if m == 0xE1]
    assert content[6 + 512 + len(tiny) :].startswith(b"behind")
    assert file.notes == [] and file.encoding_note.startswith("JPEG: only the")

    data = with_segments(jpeg(image), segment(0xE1, exif(1, tiny, after=bytes(65533 - 6 - 512 - len(tiny)))))
    file = JpegFile(data)
    out = fill(file, hole)
    assert tiny not in out
    assert Image.open(io.BytesIO(out)).getexif().get_ifd(ExifTags.IFD.IFD1) == {}
    assert Image.open(io.BytesIO(out)).getexif()[271].startswith("Maker")
    assert any("thumbnail" in note for note in file.notes)


def test_an_uncompressed_thumbnail_is_left_out_with_a_note() -> None:
    image, hole = red_corner()
    raw = np.asarray(Image.fromarray(image).resize((40, 30))).tobytes()
    file = JpegFile(with_segments(jpeg(image), segment(0xE1, exif(1, raw, raw=(40, 30)))))
    (content,) = [c for m, c in walk(fill(file, hole)) if m == 0xE1]
    assert not any(content[6 + 512 :])
    assert any("EXIF thumbnail" in note for note in file.notes)


def test_a_thumbnail_with_bars_keeps_them() -> None:
    image = np.full((100, 200, 3), 200, np.uint8)
    bars = Image.new("RGB", (160, 120))
    bars.paste(Image.fromarray(image).resize((160, 80)), (0, 20))
    data = with_segments(jpeg(image), segment(0xE1, exif(1, saved(bars, quality=95))))
    new = np.asarray(
        read_thumbnail(fill(JpegFile(data), hole_of(100, 200, (10, 20, 10, 20)))).convert("L")
    ).astype(int)
    assert new.shape == (120, 160)
    assert new[:15].max() < 20
    assert new[30:90, 40:].min() > 180


def test_other_previews_are_renewed_in_place() -> None:
    image, hole = red_corner()
    small = Image.fromarray(image).resize((80, 60))
    preview = saved(small, quality=92)
    swapped = saved(Image.merge("RGB", small.split()[::-1]), quality=92)
    header = struct.pack(">IIIIIIHH", 1, 80, 60, 240, 14400, len(preview), 24, 1)
    data = jpeg(image)
    length = struct.unpack(">H", data[4:6])[0]
    segments = [
        segment(0xE0, data[6:20]),
        segment(0xE0, b"JFXX\0\x10" + preview),
        segment(0xE1, exif(1, after=preview)),
        segment(0xED, photoshop((0x040C, header + preview), (0x0409, header + swapped))),
    ]
    data = data[:2] + b"".join(segments) + data[4 + length :]
    file = JpegFile(data)
    out = fill(file, hole, np.array([128] * 3, np.uint8))
    assert [(m, len(c)) for m, c in walk(out)] == [(m, len(c)) for m, c in walk(data)]
    assert file.notes == [] and file.encoding_note.startswith("JPEG: only the")
    found = []
    for marker, content in walk(out):
        at = 0
        while (at := content.find(b"\xff\xd8\xff", at)) >= 0:
            found.append((marker, redness(Image.open(io.BytesIO(content[at:])))))
            at += 3
    assert [marker for marker, _ in found] == [0xE0, 0xE1, 0xED, 0xED]
    assert max(red for _, red in found) < 25


def test_a_preview_in_several_segments_is_dropped_with_a_note() -> None:
    image, hole = red_corner()
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    preview = saved(Image.fromarray(noise), quality=95)
    parts = [
        segment(0xE4, b"PART" + preview[start : start + 60_000]) for start in range(0, len(preview), 60_000)
    ]
    data = jpeg(image)
    data = data[:2] + segment(0xE5, b"other") + b"".join(parts) + data[2:]
    assert len(parts) > 1
    file = JpegFile(data)
    out = fill(file, hole, np.array([128] * 3, np.uint8))
    assert [m for m, _ in walk(out)].count(0xE4) == 0 and (0xE5, b"other") in walk(out)
    assert file.notes == ["a preview in several segments was not kept, because it shows removed content"]


def test_a_thermal_image_is_kept_with_a_note() -> None:
    image, hole = red_corner()
    data = jpeg(image)
    data = data[:2] + segment(0xE1, b"FLIR\0\1\0\0thermal") + data[2:]
    file = JpegFile(data)
    assert b"thermal" in fill(file, hole) and "thermal image (FLIR)" in file.notes[0]


def test_old_photoshop_thumbnails_hold_blue_first() -> None:
    old = saved(Image.new("RGB", (32, 24)), quality=95)
    image = Image.new("RGB", (64, 48), (200, 20, 10))
    for number, wanted in ((0x0409, [10, 20, 200]), (0x040C, [200, 20, 10])):
        renewed, dropped = renew_previews(photoshop((number, bytes(28) + old)), lambda: image)
        assert dropped == 0
        pixels = decode(renewed[renewed.index(b"\xff\xd8\xff") :]).reshape(-1, 3)
        assert np.abs(pixels.mean(axis=0) - wanted).max() < 6


def test_a_preview_without_room_is_blanked_with_a_note() -> None:
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    tiny = saved(Image.new("RGB", (160, 120), (255, 0, 0)), quality=1, optimize=True)
    file = JpegFile(with_segments(jpeg(image), segment(0xE7, b"Maker" + tiny)))
    out = fill(file, hole_of(120, 160, (40, 80, 40, 90)))
    assert walk(out)[1] == (0xE7, b"Maker" + bytes(len(tiny)))
    assert any("preview" in note for note in file.notes)


def test_proportions_that_differ_by_rounding_give_no_bars() -> None:
    white = Image.new("RGB", (200, 150), (255, 255, 255))
    assert np.asarray(fit(white, (80, 61))).min() == 255
    assert np.asarray(fit(white, (80, 70))).min() == 0


def test_uncompressed_jfif_thumbnails_are_left_out_with_a_note() -> None:
    data, raw = jpeg(photograph(40, 40)), os.urandom(240)
    for kind in (b"\x11\x02\x02" + bytes(772), b"\x13\x0a\x08" + raw):
        thumbnails = segment(0xE0, data[6:18] + b"\x0a\x08" + raw), segment(0xE0, b"JFXX\0" + kind)
        file = JpegFile(data[:2] + b"".join(thumbnails) + data[20:])
        out = fill(file, hole_of(40, 40, (10, 20, 10, 20)))
        assert walk(out) == [(0xE0, data[6:18] + b"\0\0")]
        assert any("JFIF thumbnail" in note for note in file.notes)


def test_further_images_and_references_to_them_are_left_out() -> None:
    gain_map = jpeg(photograph(30, 40))
    main = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d hdrgm:Version="1.0" GCamera:MotionPhoto="1"/></x:xmpmeta>'
    data = with_segments(
        jpeg(photograph(60, 80)),
        segment(0xE1, XMP + main),
        segment(0xE2, b"MPF\0II*\0" + bytes(40)),
        segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0"),
    )
    data += gain_map + jpeg(photograph(8, 8)) + b"\0\0\0\x18ftypmp42" + bytes(99)
    file = JpegFile(data)
    out = fill(file, hole_of(60, 80, (10, 20, 10, 20)))
    assert out.endswith(b"\xff\xd9")
    assert read_segments(out)[1] == len(out)
    assert gain_map not in out
    assert [m for m, _ in walk(out)] == [0xE0, 0xE1]
    (content,) = [c for m, c in walk(out) if m == 0xE1]
    assert len(content) == len(XMP + main)
    assert b"hdrgm:Version" not in content
    assert b'MotionPhoto="0"' in content
    assert len(file.notes) == 1
    assert "2 images and a video" in file.notes[0]
    assert "gain map" in file.notes[0]


def test_pillow_multi_image_files_keep_the_first_image() -> None:
    target = io.BytesIO()
    first, second = (Image.fromarray(photograph(60, 80, seed)) for seed in (0, 5))
    first.save(target, "MPO", save_all=True, append_images=[second])
    file = JpegFile(target.getvalue())
    before = file.raster.samples.copy()
    hole = hole_of(60, 80, (10, 20, 10, 20))
    out = fill(file, hole)
    assert Image.open(io.BytesIO(out)).format == "JPEG"
    assert np.array_equal(before[file.kept(hole)], decode(out)[file.kept(hole)])
    assert any("an image after the first" in note for note in file.notes)


def test_bytes_after_the_end_that_are_no_image_are_counted() -> None:
    file = JpegFile(jpeg(photograph(40, 40)) + b"trailer")
    out = fill(file, hole_of(40, 40, (10, 20, 10, 20)))
    assert out.endswith(b"\xff\xd9")
    assert "7 bytes after the end of the JPEG were not kept" in file.notes


def test_images_within_xmp_are_blanked_and_its_checksum_follows() -> None:
    main, extended = xmp(
        "<ex:a><xmpGImg:image xmlns:xmpGImg='http://ns.adobe.com/xap/1.0/g/img/'>"
        + "QUJD" * 300
        + "</xmpGImg:image></ex:a>"
    )
    data = with_segments(jpeg(photograph(40, 40)), segment(0xE1, XMP + main), *extended)
    file = JpegFile(data)
    out = fill(file, hole_of(40, 40, (10, 20, 10, 20)))
    assert [(m, len(c)) for m, c in walk(out)] == [(m, len(c)) for m, c in walk(data)]
    assert b"QUJD" not in out
    chunks = [c[35:] for m, c in walk(out) if c.startswith(b"http://ns.adobe.com/xmp/extension/")]
    joined = b"".join(c[40:] for c in chunks)
    name = hashlib.md5(joined).hexdigest().upper().encode()
    assert {c[:32] for c in chunks} == {name}
    assert b'HasExtendedXMP="' + name in out
    assert any("XMP" in note for note in file.notes)


def test_content_credentials_are_left_out_with_one_note() -> None:
    data = with_segments(
        jpeg(photograph(40, 40)), *(segment(0xEB, b"JP" + bytes([0, 1, 0, 0, 0, i])) for i in (1, 2))
    )
    file = JpegFile(data)
    assert not any(m == 0xEB for m, _ in walk(fill(file, hole_of(40, 40, (10, 20, 10, 20)))))
    assert file.notes == ["Content Credentials were not kept, because they vouch for the unedited image"]
    assert file.metadata().lost == ["Content Credentials (APP11)"]


def cmyk(height: int = 60, width: int = 80) -> bytes:
    return saved(
        Image.fromarray(photograph(height, width)).convert("CMYK"), quality=95, comment=b"hello", xmp=b"<x/>"
    )


def test_cmyk_is_re_encoded_with_a_note() -> None:
    data = cmyk()
    file = JpegFile(data)
    assert (file.raster.space, file.raster.inverted, file.exact) == ("cmyk", False, False)
    assert (
        file.encoding_note == "CMYK JPEG is re-encoded at quality 95 and changes a little (--lossless: PNG)"
    )
    before = file.raster.samples.copy()
    hole = hole_of(60, 80, (16, 32, 16, 32))
    out = fill(file, hole, np.array([0, 200, 30, 10], np.uint8))
    after = decode(out)
    assert np.abs(after[18:30, 18:30].astype(int) - [0, 200, 30, 10]).mean() < 4
    assert np.abs(after[~hole].astype(int) - before[~hole]).mean() < 4
    assert not file.kept(hole).any()
    assert [(m, c) for m, c in walk(out) if m != 0xEE] == [(m, c) for m, c in walk(data) if m != 0xEE]
    assert len([m for m, _ in walk(out) if m == 0xEE]) == 1


def test_a_jfif_header_stays_once_and_never_beside_cmyk() -> None:
    jfif = segment(0xE0, b"JFIF\0\x01\x02\x01\x01\x2c\x01\x2c\0\0")  # 300 dots per inch
    hole = hole_of(60, 80, (16, 32, 16, 32))
    file = JpegFile(with_segments(cmyk(), jfif))
    assert not any(m == 0xE0 for m, _ in walk(fill(file, hole, np.array([0, 200, 30, 10], np.uint8))))
    data = jpeg(photograph(60, 80))
    file = JpegFile(data[:2] + jfif + data[4 + struct.unpack(">H", data[4:6])[0] :])
    assert file.metadata().dpi == (300, 300)
    file.exact = False
    assert [(m, c) for m, c in walk(fill(file, hole)) if m == 0xE0] == [(0xE0, jfif[4:])]
    for bare in (
        data[:2] + data[4 + struct.unpack(">H", data[4:6])[0] :],
        saved(Image.fromarray(photograph(60, 80)), keep_rgb=True),
    ):
        file = JpegFile(bare)
        file.exact = False
        out = fill(file, hole)
        assert [m for m, _ in walk(out)] == [0xE0]
        assert np.abs(decode(out)[20:28, 20:28].astype(int) - FILL).mean() < 4


def test_files_whose_tables_change_between_scans_are_re_encoded() -> None:
    data = described(progressive=True)
    start = data.index(b"\xff\xdb")
    size = 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]
    second = data.index(b"\xff\xc4", data.index(b"\xff\xda"))
    data = data[:second] + data[start : start + size] + data[second:]
    file = JpegFile(data)
    assert not file.exact
    out = fill(file, hole_of(64, 96, (10, 20, 10, 20)))
    assert walk(out) == walk(data)
    assert Image.open(io.BytesIO(out)).info.get("progressive")


@pytest.mark.parametrize("process", [b"\xff\xc9", b"\xff\xca"])
def test_arithmetic_coding_is_named_if_pillow_decodes_it(process: bytes) -> None:
    file = JpegFile(jpeg(photograph(40, 40)))
    file.frame.process = process[1]
    assert file._rare_kind() == "arithmetic-coded JPEG"


def test_a_result_that_decodes_differently_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    original = imaging.formats.jpeg.read_coefficients

    def corrupted(*arguments: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
        planes, steps = original(*arguments)
        planes[0][0, 0, 0] += 9
        return planes, steps

    monkeypatch.setattr(imaging.formats.jpeg, "read_coefficients", corrupted)
    file = JpegFile(jpeg(photograph(60, 60)))
    assert file.exact
    before = file.raster.samples.copy()
    hole = hole_of(60, 60, (30, 40, 30, 40))
    out = fill(file, hole)
    assert not file.exact
    assert file.encoding_note == (
        "JPEG of this rare kind is re-encoded at quality 95 and changes a little (--lossless: PNG)"
    )
    assert np.abs(decode(out)[~hole].astype(int) - before[~hole]).mean() < 3


def test_a_refusal_of_libjpeg_does_not_end_the_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = imaging.formats.jpeg.read_coefficients

    def corrupted(*arguments: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
        planes, steps = original(*arguments)
        planes[0][:, :, 5] = 32000  # no Huffman code holds it
        return planes, steps

    monkeypatch.setattr(imaging.formats.jpeg, "read_coefficients", corrupted)
    for progressive in (False, True):
        file = JpegFile(jpeg(photograph(60, 60), progressive=progressive))
        out = fill(file, hole_of(60, 60, (30, 40, 30, 40)))
        assert not file.exact
        assert decode(out).shape == (60, 60, 3)
    assert capfd.readouterr() == ("", "")


def test_damaged_scans_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for progressive in (False, True):
        data = bytearray(jpeg(photograph(120, 160), progressive=progressive))
        middle = len(data) // 2
        data[middle : middle + 8] = b"\x12\x34\x56\x78\xff\x00\x9a\xbc"
        file = JpegFile(bytes(data))
        out = fill(file, hole_of(120, 160, (10, 20, 10, 20)))
        assert decode(out).shape == (120, 160, 3)
    assert capfd.readouterr() == ("", "")


def test_files_that_pillow_refuses_raise() -> None:
    data = jpeg(photograph(60, 60))
    for bad in (data[: len(data) // 2], data[:60], b"", b"\xff\xd8\xff\xd9"):
        with pytest.raises((OSError, SyntaxError, ValueError)):
            JpegFile(bad)


def test_no_temporary_files_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for progressive in (False, True):
        fill(JpegFile(jpeg(photograph(60, 60), progressive=progressive)), hole_of(60, 60, (30, 40, 30, 40)))
    assert list(tmp_path.iterdir()) == []


def test_orientation_comes_from_xmp_where_exif_has_none() -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
    for segments in ([], [segment(0xE1, exif(None))]):
        file = JpegFile(with_segments(jpeg(photograph(40, 60)), *segments, segment(0xE1, XMP + packet)))
        assert file.raster.orientation == 6
        found = file.metadata()
        assert orientation_of(found.exif, found.xmp) == 6


def test_damaged_exif_is_kept() -> None:
    for block in (
        b"",
        b"II",
        b"II*\0\xff\xff\0\0",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"II*\0\x08\0\0\0\x01\0" + b"\x00" * 12 + b"\x0e\0\0\0",
    ):
        data = with_segments(jpeg(photograph(40, 40)), segment(0xE1, b"Exif\0\0" + block))
        file = JpegFile(data)
        assert walk(fill(file, hole_of(40, 40, (10, 20, 10, 20)))) == walk(data)
        file.metadata()


def test_metadata_for_a_png_names_the_items_that_it_cannot_hold() -> None:
    image, _ = red_corner()
    thumbnail = saved(Image.fromarray(image).resize((80, 60)), quality=95)
    data = with_segments(described(orientation=8), segment(0xE0, b"JFXX\0\x13\x01\x01abc"))
    data = data.replace(segment(0xE1, exif(8)), segment(0xE1, exif(8, thumbnail)))
    file = JpegFile(data)
    found = file.metadata()
    assert file.notes == ["the EXIF thumbnail, which shows removed content, was not kept"]
    assert found.icc == ICC
    assert found.comment == b"a comment"
    assert found.iptc == IPTC
    assert found.dpi is None or len(found.dpi) == 2
    assert thumbnail not in found.exif
    read = Image.Exif()
    read.load(b"Exif\0\0" + found.exif)
    assert (read[274], read.get_ifd(ExifTags.IFD.IFD1)) == (8, {})
    assert b"dc:format" in found.xmp
    assert found.lost == [
        "extended XMP (APP1)",
        "FLIR data (APP1)",
        "FlashPix data (APP2)",
        "APP11 (HDR_RI ver=11)",
        "APP7 (Camera)",
        "IPTC",
        "Photoshop data (APP13)",
    ]
    plain = JpegFile(jpeg(photograph(40, 40))).metadata()
    assert [plain.exif, plain.xmp, plain.icc, plain.comment, plain.iptc, plain.lost] == [None] * 5 + [[]]


def test_no_exif_block_is_no_tiff() -> None:
    with pytest.raises(ValueError, match="no EXIF block"):
        Exif(b"PK\3\4aaaaaaaa")


def entropy_coded(data: bytes) -> np.ndarray:
    """The bits of the first scan, one per byte."""
    scan = next(s.scan for s in read_segments(data)[0] if s.marker == SOS)
    return np.unpackbits(np.frombuffer(scan.replace(b"\xff\0", b"\xff"), np.uint8))


def indexed(data: bytes) -> Scan:
    file = JpegFile(data)
    return imaging.formats.jpeg.CodedData(data, file.segments, file.frame).scan


@pytest.mark.parametrize("sampling", FACTORS)
@pytest.mark.parametrize("optimize", [False, True])
def test_a_baseline_file_keeps_its_bits_outside_the_touched_units(sampling: str, optimize: bool) -> None:
    image = photograph(101, 133, 6)
    data = jpeg(image, sampling) if not optimize else saved(Image.fromarray(image), quality=60, optimize=True)
    hole = hole_of(101, 133, (50, 60, 60, 75))
    file = JpegFile(data, for_writing=True)
    file.raster.samples[hole] = file.raster.samples[hole] // 8 * 8  # this needs no new codes
    target = io.BytesIO()
    file.write(target, hole)
    out = target.getvalue()
    assert file.exact
    tables = [[s.content for s in read_segments(x)[0] if s.marker == 0xC4] for x in (data, out)]
    assert tables[0] == tables[1]
    scans, starts = [entropy_coded(x) for x in (data, out)], [indexed(x).starts for x in (data, out)]
    down, across = (8 * factor for factor in (FACTORS[sampling] if not optimize else (2, 2)))
    columns = -(-133 // across)
    touched = {y // down * columns + x // across for y, x in np.argwhere(hole)}
    same = [i for i in range(len(starts[0]) - 1) if not {i, i - 1} & touched]
    assert 0 < len(same) < len(starts[0]) - 1
    for i in same:
        old, new = (bits[at[i] : at[i + 1]] for bits, at in zip(scans, starts, strict=True))
        assert np.array_equal(old, new)


def test_blocks_beyond_the_edge_that_are_no_copies_are_read_as_well(tmp_path: Path) -> None:
    """Cameras store pixels of the sensor there; the header states a smaller size than the blocks hold."""
    data = bytearray(jpeg(photograph(96, 96, 3), "4:2:0"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", 83, 82)  # one row and column of luma blocks less
    data = bytes(data)
    scan = indexed(data)
    assert scan.size == (96, 96)
    file = JpegFile(data)
    before = file.raster.samples.copy()
    hole = hole_of(83, 82, (70, 83, 70, 82))
    out = fill(file, hole)
    assert np.array_equal(before[file.kept(hole)], decode(out)[file.kept(hole)])
    same = slice(0, scan.starts[len(scan.starts) - 9])
    assert np.array_equal(entropy_coded(data)[same], entropy_coded(out)[same])
    whole = bytearray(out)
    whole[start + 5 : start + 9] = struct.pack(">HH", 96, 96)
    # the means of the fill, and not the old pixels
    assert decode(bytes(whole))[84:, 84:].std(axis=(0, 1)).max() < 6


def test_a_scan_of_another_kind_is_coded_whole() -> None:
    image = photograph(80, 90)
    for data in (jpeg(image, progressive=True), jpeg(image, restart=2)):
        segments, _ = read_segments(data)
        with pytest.raises(Unsuitable):
            Scan(segments, read_frame(segments))
    segments, _ = read_segments(jpeg(image))
    segments[-1].scan += b"\0\0"  # more bits than the blocks have
    assert indexed(write_segments(segments)) is None
    segments[-1].content = bytes([3, 2, 17, 1, 0, *segments[-1].content[5:]])  # another order of components
    with pytest.raises(Unsuitable):
        Scan(segments, read_frame(segments))


def test_a_code_that_the_tables_lack_has_the_scan_coded_whole() -> None:
    data = saved(Image.new("RGB", (64, 64), (90, 90, 90)), quality=90, optimize=True)
    file = JpegFile(data)
    hole = hole_of(64, 64, (20, 30, 20, 30))
    out = fill(file, hole)
    assert file.exact
    assert np.abs(decode(out)[hole].astype(int) - FILL).mean() < 14
    assert np.array_equal(decode(out)[file.kept(hole)], decode(data)[file.kept(hole)])


def test_huffman_codes_are_those_of_the_standard() -> None:
    """T.81, table K.5: the AC coefficients of luma."""
    (_, ac), *_ = indexed(jpeg(photograph(40, 40), quality=50)).tables
    wanted = {0x00: "1010", 0x01: "00", 0x02: "01", 0x11: "1100"}
    wanted |= {0xF0: "11111111001", 0xFA: "1111111111111110"}
    assert {s: f"{ac.codes[s]:0{ac.lengths[s]}b}" for s in wanted} == wanted


def test_a_large_file_is_checked_at_a_smaller_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imaging.formats.jpeg, "LARGE", 1000)
    hole = hole_of(200, 300, (80, 120, 100, 150))
    for sampling in FACTORS:
        data = jpeg(photograph(200, 300, 7), sampling)
        file = JpegFile(data, for_writing=True)
        before = file.raster.samples.copy()
        out = fill(file, hole)
        assert file.exact, sampling
        assert np.array_equal(before[file.kept(hole)], decode(out)[file.kept(hole)])
        coarse = imaging.formats.jpeg.decode_coarsely(data, file.frame)
        assert coarse.shape == (25, 38, 3)
        assert file._agrees(out, hole, coarse)
        places = range(len(out) // 2, len(out) - 200, 99)
        found = [not file._agrees(out[:place] + out[place + 1 :], hole, coarse) for place in places]
        assert len(found) > 20
        assert np.mean(found) > 0.5, sampling  # decoders find their step again, most with other means
        assert not file._agrees(out[: places[-1]], hole, coarse)


@pytest.mark.parametrize("progressive", [False, True])
def test_reading_in_the_background_changes_nothing(progressive: bool) -> None:
    data = jpeg(photograph(120, 160, 8), progressive=progressive)
    hole = hole_of(120, 160, (10, 20, 10, 20))
    outs = {fill(JpegFile(data, for_writing=ahead), hole) for ahead in (False, True)}
    assert len(outs) == 1
    file = JpegFile(data, for_writing=True)
    assert [fill(file, hole), fill(file, hole)] == [*outs, *outs]


def test_another_jpeglib_is_never_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imaging.formats.jpeg_codec, "installed", lambda name: "2.0.0")
    file = JpegFile(jpeg(photograph(60, 80)), for_writing=True)
    assert not file.exact
    assert file.encoding_note == (
        "JPEG, without jpeglib 1.0.2, is re-encoded at quality 95 and changes a little (--lossless: PNG)"
    )
    hole = hole_of(60, 80, (20, 30, 20, 30))
    assert np.abs(decode(fill(file, hole))[hole].astype(int) - FILL).mean() < 4
    imaging.formats.jpeg_codec.library.cache_clear()
    with pytest.raises(OSError, match=r"jpeglib 1\.0\.2"):
        imaging.formats.jpeg_codec.library("turbo210")


def test_the_profile_is_joined() -> None:
    assert JpegFile(described()).icc == ICC
    assert JpegFile(jpeg(photograph(20, 20))).icc is None
