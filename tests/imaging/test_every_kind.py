"""One call fills a folder of files of every kind: each exactly, with a note, or refused in one line."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from conftest import REPOSITORY, randomize_zero_init
from kinds import BOX, Kind, all_kinds, pil, saved, write_kinds
from PIL import Image, ImageOps
from properties import around_blocks, as_bits, filled, hole_of, opened_or_none, readings

import test as evaluation
from config import Config
from inference.checkpoints import save_checkpoint
from models import InpaintingNetwork

EXIFTOOL = shutil.which("exiftool")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it prints warnings about unknown tags
TIMELESS = ("SourceFile", "System:", "Composite:", "ExifTool:ExifToolVersion")
STRUCTURE = re.compile(  # tags of offsets and sizes
    r"(Strip|Tile)(Offsets|ByteCounts)$|Thumbnail(Offset|Length)$|ThumbnailImage$|MediaData(Offset|Size)$|"
    r"^File:(.*:)?ImageLength$|^File:(.*:)?NumImportantColors$|^GIF:.*(GIFVersion|BitsPerPixel|HasColorMap)$"
)
NOTED = [  # pattern of exiftool's tags, and the words in a note if one differs
    (r"^PNG:.*Interlace", r"interlacing"),
    (r"^(IFD1|SubIFD):|^IFD0:.*Tile|^JFIF:.*Thumbnail", r"thumbnail|copies"),
    (r"^MP(F|Image)", r"after the first"),
    (r"^XMP-hdrgm", r"gain map"),
    (r"^IFD0:.*(Compression|Photometric|Preview|YCbCr|ReferenceBlackWhite|Predictor)", r"written as deflate"),
    (r"^ICC|Jpeg2000:.*Color|Profile", r"colour profile"),
    (r"Jpeg2000:.*Resolution", r"resolution"),
    (r"^XMP", r"XMP"),
    (r"^XML", r"XML"),
    (r"PixelAspectRatio", r"aspect"),
    (r"^File:.*Comment", r"comment"),
    (r"^File:.*(MaxVal)", r"levels|bits"),
    (r"^File:.*(BitDepth|Compression)", r"bits per pixel|run-length"),
    (r"^File:.*ByteOrder", r"byte order|byteorder"),
    (r"^(QuickTime|Adobe|File):", r"re-encoded"),
    (r"^IFD0:.*Orientation", r"HEIF is re-encoded"),  # upright
    (r"^RIFF:|FileType", r"lossy WebP"),
]


def report(problems: list[str]) -> None:
    """Fail with all problems, one per line."""
    if problems:
        pytest.fail(f"{len(problems)} problems:\n" + "\n".join(problems), pytrace=False)


@dataclass(frozen=True)
class Call:
    """The output of one call of test.py, and the folders that it read and wrote."""

    status: int
    out: str
    err: str
    source: Path
    results: Path

    def notes(self, name: str) -> str:
        start = f"note: {self.source / name}: "
        return "; ".join(line[len(start) :] for line in self.err.splitlines() if line.startswith(start))

    def not_filled(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("test.py: not filled: ")]


def arguments(checkpoint: Path, source: Path, results: Path, *flags: str) -> list[str]:
    return ["--checkpoint", str(checkpoint), "--image_path", str(source), *flags,
            "--box", ",".join(map(str, BOX)), "--save_dir", str(results)]  # fmt: skip


def fill_folder(checkpoint: Path, source: Path, results: Path, *flags: str) -> Call:
    """Call test.py in this process; what libraries print to file descriptor 2 counts as well."""
    out = io.StringIO()
    with open(source.parent / "stderr", "w+", errors="replace") as err, warnings.catch_warnings():
        warnings.simplefilter("default")  # like a separate process
        stderr = os.dup(2)
        os.dup2(err.fileno(), 2)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = evaluation.main(arguments(checkpoint, source, results, *flags))
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        err.seek(0)
        return Call(status, out.getvalue(), err.read(), source, results)


@pytest.fixture(scope="module")
def kinds() -> dict[str, Kind]:
    return all_kinds()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random network: any completion will do."""
    architecture = {
        "base_channels": 2, "use_structure_encoder": False, "bottleneck_depth": 1, "refinement_depth": 1,
        "pyramid_base": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    weights = randomize_zero_init(InpaintingNetwork(**architecture)).state_dict()
    path = tmp_path_factory.mktemp("checkpoint") / "small.pth"
    config = dataclasses.asdict(Config())
    save_checkpoint({"architecture": architecture, "ema": weights, "config": config}, path)
    return path


@pytest.fixture(scope="module")
def verified(kinds: dict[str, Kind], checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Every kind, filled with --verify."""
    root = tmp_path_factory.mktemp("verified")
    write_kinds(root / "in", kinds.values())
    return fill_folder(checkpoint, root / "in", root / "out", "--verify")


@pytest.fixture(scope="module")
def unverified(kinds: dict[str, Kind], checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """The kinds that --verify refuses, and those refused for their depth, filled without it."""
    root = tmp_path_factory.mktemp("unverified")
    deep = ("ppm", "pfm", "sgi", "jpeg2000", "jpeg-12bit")
    chosen = [
        kind
        for kind in kinds.values()
        if kind.outcome == "inexact" or (kind.outcome == "refused" and kind.name.startswith(deep))
    ]
    write_kinds(root / "in", chosen)
    return fill_folder(checkpoint, root / "in", root / "out")


# --- the tests ---------------------------------------------------------------------------------------


def test_one_call_goes_through_a_folder_of_every_kind(verified: Call, kinds: dict[str, Kind]) -> None:
    assert len(kinds) >= 140
    assert "Traceback" not in verified.err
    assert verified.status == 1  # some are refused
    assert f"of {len(kinds)} images filled" in verified.out.splitlines()[-1]


def test_nothing_but_notes_and_refusals_is_printed_as_an_error(verified: Call) -> None:
    known = ("note: ", "test.py: not filled: ", "filling")
    lines = [line for part in verified.err.split("\n") for line in part.split("\r") if line.strip()]
    report([line for line in lines if not line.startswith(known)])


def test_exactly_the_refused_kinds_are_refused_each_in_one_line(
    verified: Call, kinds: dict[str, Kind]
) -> None:
    lines = verified.not_filled()
    problems = []
    for kind in kinds.values():
        own = [line for line in lines if re.search(rf"{re.escape(kind.name)}(?![\w.-])", line)]
        written = (verified.results / kind.name).exists()
        if kind.outcome == "filled":
            problems += [f"refused: {line}" for line in own] + [f"not written: {kind.name}"] * (not written)
        elif len(own) != 1 or written:
            problems.append(f"{kind.name} is to be refused in one line: {own}, written: {written}")
        elif kind.reason not in own[0] or (kind.outcome == "inexact" and "--verify" not in own[0]):
            problems.append(f"refused for another reason than {kind.reason or '--verify'}: {own[0]}")
    refused = [kind for kind in kinds.values() if kind.outcome != "filled"]
    nameless = [line for line in lines if not any(name in line for name in kinds)]
    report(problems + nameless)
    assert len(lines) == len(refused)


def test_a_refusal_says_no_address_and_no_bare_error(verified: Call) -> None:
    ugly = re.compile(
        r"object at 0x|\('[A-Z]+'\)$|\b(Overflow|Attribute|Type|Key|Index|Assertion)Error\b|\.tmp\b"
    )
    report([line for line in verified.not_filled() if ugly.search(line)])


def test_other_libraries_read_the_same_pixels_outside_the_hole(
    verified: Call, kinds: dict[str, Kind]
) -> None:
    problems = []
    for kind in kinds.values():
        path = verified.results / kind.name
        if kind.outcome != "filled" or not path.exists():
            continue
        data, readers, changed = path.read_bytes(), 0, False
        for (name, before), (_, after) in zip(readings(kind, kind.data), readings(kind, data), strict=True):
            if before is None or (name == "gif" and "frame" in verified.notes(kind.name)):
                continue
            readers += 1
            if after is None or (before.shape, before.dtype) != (after.shape, after.dtype):
                got = None if after is None else (after.shape, after.dtype)
                problems.append(f"{kind.name}: {name} reads {got}, before {(before.shape, before.dtype)}")
                continue
            hole = hole_of(kind, before.shape[:2], name)
            may_change = around_blocks(hole, kind.data) if kind.data[:2] == b"\xff\xd8" else hole
            differs = as_bits(before) != as_bits(after)
            changed |= bool((differs & hole).any())
            if (differs & ~may_change).any():
                problems.append(
                    f"{kind.name}: {name} reads {(differs & ~may_change).sum()} other pixels outside the hole"
                )
        problems += [f"{kind.name}: no other library reads it"] * (readers == 0)
        problems += [f"{kind.name}: the hole was not filled"] * (readers > 0 and not changed)
    report(problems)


def test_the_mode_size_profile_and_orientation_stay(verified: Call, kinds: dict[str, Kind]) -> None:
    def facts(data: bytes) -> dict[str, object]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = Image.open(io.BytesIO(data))
            except OSError:
                return {}
            with image:
                info = image.info
                return {
                    "mode": image.mode, "size": image.size, "profile": info.get("icc_profile"),
                    "orientation": image.getexif().get(274, 1), "dpi": info.get("dpi"),
                    "transparency": info.get("transparency"), "comment": info.get("comment"), "xmp": info.get("xmp"),
                }  # fmt: skip

    problems = []
    for kind in kinds.values():
        path = verified.results / kind.name
        if kind.outcome == "filled" and path.exists():
            before, after, notes = facts(kind.data), facts(path.read_bytes()), verified.notes(kind.name)
            words = {"profile": "colour profile", "dpi": "resolution", "xmp": "XMP", "comment": "comment"}
            for name, value in before.items():
                if value is not None and after.get(name) != value and words.get(name, "!") not in notes:
                    problems.append(
                        f"{kind.name}: {name} was {str(value)[:60]}, is {str(after.get(name))[:60]}"
                    )
    report(problems)


def test_all_chunks_of_a_png_stay(verified: Call, kinds: dict[str, Kind]) -> None:
    problems = []
    for kind in kinds.values():
        path = verified.results / kind.name
        if kind.outcome == "filled" and kind.data.startswith(b"\x89PNG") and path.exists():
            before, after = chunks(kind.data), chunks(path.read_bytes())
            if before[0][1][:12] != after[0][1][:12] or before[1:] != after[1:]:
                problems.append(f"{kind.name}: {before} -> {after}")
    report(problems)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, with its pixel data as one, and without the content of EXIF."""
    found: list[tuple[bytes, bytes]] = []
    at = 8
    while at < len(data) and (not found or found[-1][0] != b"IEND"):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        if kind in (b"IDAT", b"eXIf"):
            content = b""
        if not (kind == b"IDAT" and found[-1][0] == b"IDAT"):
            found.append((kind, content))
        at += 12 + size
    return found


def test_all_segments_of_a_jpeg_stay(verified: Call, kinds: dict[str, Kind]) -> None:
    words = {0xE1: "gain map|EXIF|XMP", 0xE2: "after the first", 0xDD: "restart"}
    problems = []
    for kind in kinds.values():
        path = verified.results / kind.name
        if kind.outcome == "filled" and kind.data.startswith(b"\xff\xd8") and path.exists():
            before, after = segments(kind.data), segments(path.read_bytes())
            notes = verified.notes(kind.name)
            for lost in (segment for segment in before if segment not in after):
                if not re.search(words.get(lost[0], "!"), notes) and "thumbnail" not in kind.name:
                    problems.append(f"{kind.name}: segment {lost[0]:X}: {lost[1][:40]!r} ({notes})")
            problems += [
                f"{kind.name}: new {marker:X}: {content[:40]!r}"
                for marker, content in after
                if marker not in {x[0] for x in before}
            ]
    report(problems)


def segments(data: bytes) -> list[tuple[int, bytes]]:
    """Marker and content of a JPEG's APPn, COM, DQT and DRI segments before its first scan."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:
            at += 1
            continue
        (size,) = struct.unpack(">H", data[at + 2 : at + 4])
        if data[at + 1] in (0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)):
            found.append((data[at + 1], data[at + 4 : at + 2 + size]))
        at += 2 + size
    return found


def test_the_removed_bytes_are_nowhere_in_the_new_file(verified: Call, kinds: dict[str, Kind]) -> None:
    problems, looked_for = [], 0
    for kind in kinds.values():
        path = verified.results / kind.name
        if kind.outcome != "filled" or not path.exists():
            continue
        data = path.read_bytes()
        for name, pixels in readings(kind, kind.data):
            if pixels is None or pixels.dtype == bool:
                continue
            y, x = np.nonzero(hole_of(kind, pixels.shape[:2], name))
            for row in range(y.min(), y.max() + 1):
                removed = pixels[row, x.min() : x.max() + 1].tobytes()
                if len(removed) >= 7 and len(set(removed)) > 3 and removed in kind.data:
                    looked_for += 1
                    if removed in data:
                        problems.append(f"{kind.name}: row {row} as {name} reads it")
    assert looked_for > 100  # rows that are stored uncompressed
    report(problems)


def test_all_tags_of_a_tiff_stay(verified: Call, kinds: dict[str, Kind]) -> None:
    problems = []
    for kind in kinds.values():
        path = verified.results / kind.name
        if kind.outcome == "filled" and kind.name.startswith("tiff") and path.exists():
            before, after = tags(kind.data), tags(path.read_bytes())
            notes = verified.notes(kind.name)
            left_out = {330} if "copies" in notes else set()
            if "written as deflate" in notes:
                left_out = {50674, 259, 262, 317, 347, 513, 514, 529, 530, 531, 532, 292, 293}
            lost = [
                code
                for code in before.keys() | after.keys()
                if code not in left_out and before.get(code) != after.get(code)
            ]
            problems += [f"{kind.name}: tag {code}: {before.get(code)} -> {after.get(code)}" for code in lost]
    report(problems)


def tags(data: bytes) -> dict[int, object]:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return {
            tag.code: repr((tag.dtype, tag.value))
            for tag in file.pages[0].tags
            if tag.code not in (273, 279, 324, 325)
        }


def exif_differences(call: Call, outcomes: tuple[str, ...], kinds: dict[str, Kind]) -> list[str]:
    """Changes found by exiftool that no note names."""
    names = [path.name for path in call.results.iterdir() if path.name in kinds]
    names = [name for name in names if kinds[name].outcome in outcomes]
    files = "\n".join(str(folder / name) for name in names for folder in (call.source, call.results))
    command = [str(EXIFTOOL), "-j", "-a", "-G1:4", "-struct", "-@", "-"]
    done = subprocess.run(command, input=files.encode(), capture_output=True, timeout=120)
    found = {entry["SourceFile"]: entry for entry in json.loads(done.stdout)}
    problems = []
    for name in names:
        before, after = (found[str(folder / name)] for folder in (call.source, call.results))
        notes = call.notes(name)
        for tag in sorted(before.keys() | after.keys()):
            if tag.startswith(TIMELESS) or before.get(tag) == after.get(tag):
                continue
            if "Warning" in tag and (tag not in after or after[tag] in before.values()):
                continue  # about the original, and no longer true
            if STRUCTURE.search(tag) and (
                (tag in before and tag in after) or "thumbnail" in notes or "deflate" in notes
            ):
                continue
            if any(re.search(pattern, tag) and re.search(words, notes) for pattern, words in NOTED):
                continue
            if "deflate" in notes and tag == "IFD0:StripOffsets":
                continue
            problems.append(
                f"{name}: {tag}: {str(before.get(tag))[:50]} -> {str(after.get(tag))[:50]} ({notes})"
            )
    return problems


@pytest.mark.skipif(EXIFTOOL is None, reason="needs exiftool")
def test_changes_that_exiftool_finds_are_noted(verified: Call, kinds: dict[str, Kind]) -> None:
    report(exif_differences(verified, ("filled",), kinds))


def test_files_that_cannot_be_exact_are_filled_with_a_note(unverified: Call, kinds: dict[str, Kind]) -> None:
    assert "Traceback" not in unverified.err
    problems = []
    for path in sorted(unverified.source.iterdir()):
        kind, result = kinds[path.name], unverified.results / path.name
        if kind.outcome == "refused":
            problems += [f"{kind.name}: not refused"] * result.exists()
        elif not result.exists() or "changes a little" not in unverified.notes(kind.name):
            problems.append(f"{kind.name}: written {result.exists()}, notes {unverified.notes(kind.name)}")
        else:
            problems += inexact_problems(kind, result.read_bytes(), unverified.notes(kind.name))
    report(problems)


def inexact_problems(kind: Kind, data: bytes, notes: str) -> list[str]:
    """Differences of a re-encoded file from the original that its quality does not explain."""
    problems, read = [], 0
    for (name, before), (_, after) in zip(readings(kind, kind.data), readings(kind, data), strict=True):
        if before is None:
            continue
        read += 1
        if after is not None and "with 8" in notes and (before.dtype, after.dtype) == (np.uint16, np.uint8):
            before = (before >> 2).astype(np.uint8)  # the note says so
        if after is None or (before.shape, before.dtype) != (after.shape, after.dtype):
            got = None if after is None else (after.shape, after.dtype)
            problems.append(f"{kind.name}: {name} reads {got}, before {(before.shape, before.dtype)}")
            continue
        hole = hole_of(kind, before.shape[:2], name)
        white = 255 if after.dtype == np.uint8 else max(int(before.max()), 1)
        away = np.abs(before.astype(float) - after.astype(float))[~hole].mean() / white
        if away > 0.03:
            problems.append(f"{kind.name}: {name}: {away:.1%} away outside the hole")
        if np.array_equal(before[hole], after[hole]):
            problems.append(f"{kind.name}: {name}: the hole was not filled")
    return problems + [f"{kind.name}: no other library reads it"] * (read == 0)


@pytest.mark.skipif(EXIFTOOL is None, reason="needs exiftool")
def test_changes_that_exiftool_finds_in_inexact_files_are_noted(
    unverified: Call, kinds: dict[str, Kind]
) -> None:
    report(exif_differences(unverified, ("inexact",), kinds))


def test_lossless_gives_the_decoded_pixels_upright(kinds: dict[str, Kind]) -> None:
    problems = []
    for kind in kinds.values():
        if kind.outcome == "refused" or not kind.name.startswith(("jpeg-", "avif", "heic")):
            continue
        result, notes = filled(kind, lossless=True)
        with opened_or_none(kind, kind.data) as first, Image.open(io.BytesIO(result.data)) as second:
            profiles = [image.info.get("icc_profile") for image in (first, second)]
            before, after = (
                np.asarray(ImageOps.exif_transpose(image).convert("RGBA")).astype(int)
                for image in (first, second)
            )
        if before.shape != after.shape:
            problems.append(f"{kind.name}: is not upright")
            continue
        away = np.abs(before - after).max(axis=2)
        away[BOX[1] : BOX[1] + BOX[3], BOX[0] : BOX[0] + BOX[2]] = 0
        if away.max() > (2 if kind.name == "heic-10bit.heic" else 0):  # Pillow rounds it to 8 bits
            problems.append(f"{kind.name}: pixels up to {away.max()} away")
        if profiles[0] != profiles[1] and "profile" not in notes:
            problems.append(f"{kind.name}: the colour profile is lost without a note ({notes})")
        if first.mode == "CMYK" and not re.search("CMYK.*RGB|RGB.*CMYK", notes):
            problems.append(f"{kind.name}: CMYK becomes RGB without a note ({notes})")
        if "re-encoded" in notes or "8×8" in notes:
            problems.append(f"{kind.name}: a note that does not apply to a PNG ({notes})")
    report(problems)


def test_names_that_are_not_utf8_are_filled_where_the_output_is_ascii(
    checkpoint: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in (
        b"caf\xe9.png",
        b"caf\xe9.jpg",
        b"\xff\xfe.tif",
        "日本.webp".encode(),
        b"a\nb.png",
        b"two words.bmp",
    ):
        form = {b"png": "PNG", b"jpg": "JPEG", b"tif": "TIFF", b"ebp": "WEBP", b"bmp": "BMP"}[name[-3:]]
        (source / os.fsdecode(name)).write_bytes(
            saved(pil(), form, **({"lossless": True} if form == "WEBP" else {}))
        )
    (source / os.fsdecode(b"broken\xe9.png")).write_bytes(b"no image")
    command = [sys.executable, "test.py", *arguments(checkpoint, source, tmp_path / "out", "--verify")]
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **ascii_only}, capture_output=True, timeout=600
    )
    err = ended.stderr.decode(errors="replace")
    done = Call(ended.returncode, "", err, source, tmp_path / "out")
    assert "Traceback" not in done.err, done.err
    assert "UnicodeEncodeError" not in done.err, done.err
    assert done.status == 1
    assert len(done.not_filled()) == 1
    assert "broken" in done.not_filled()[0]
    wanted = {os.fsencode(path.name) for path in source.iterdir()} - {b"broken\xe9.png"}
    assert {os.fsencode(path.name) for path in (tmp_path / "out").iterdir()} == wanted
