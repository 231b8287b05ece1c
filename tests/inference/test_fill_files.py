"""Files and folders are filled, each in its own format; one bad file does not stop the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, malformed, photograph
from PIL import Image, ImageCms

from imaging.formats.jpeg import JpegFile
from imaging.image_file import ImageFile
from imaging.verify import verify
from inference import fill_files
from inference.fill_files import FillSettings, Job, fill_file, fill_folder
from inference.inpainter import Inpainter
from models import InpaintingNetwork
from utils import UserError


@pytest.fixture(scope="module")
def inpainter() -> Inpainter:
    torch.manual_seed(0)
    return Inpainter(InpaintingNetwork(4, bottleneck_depth=1).eval())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "masks" / "deep").mkdir(parents=True)
    hole = np.zeros((30, 40), np.uint8)
    hole[5:15, 10:30] = 255
    for name, mask in (("a.png", "a.png"), ("deep/b.jpg", "deep/b_mask.png"), ("deep/c.bmp", "c.png")):
        Image.fromarray(photograph(30, 40)).save(tmp_path / "in" / name)
        Image.fromarray(hole).save(tmp_path / "masks" / mask)
    Image.fromarray(hole).save(tmp_path / "mask.png")
    return tmp_path


def run(inpainter: Inpainter, **values: Any) -> list[Job | None]:
    settings = FillSettings(
        **{k: v if isinstance(v, tuple | bool | int | float) else str(v) for k, v in values.items()}
    )
    fill = fill_folder if Path(settings.image_path).is_dir() else fill_file
    return list(fill(inpainter, settings, (0.1, 0.6)))


def test_a_folder_keeps_its_tree_and_formats(
    inpainter: Inpainter, tree: Path, capsys: pytest.CaptureFixture
) -> None:
    done = run(inpainter, image_path=tree / "in", mask_path=tree / "masks", save_dir=tree / "out")
    assert {str(each.source.relative) for each in done} == {"a.png", "deep/b.jpg", "deep/c.bmp"}
    for each in done:
        before, after = (
            ImageFile(tree / "in" / each.source.relative),
            ImageFile(tree / "out" / each.source.relative),
        )
        assert before.format == after.format
        assert each.mask.sum() == 200
        if after.format != "JPEG":
            verify(tree / "in" / each.source.relative, tree / "out" / each.source.relative, each.mask)
    captured = capsys.readouterr()
    assert "3 of 3 images filled" in captured.out and "b.jpg: JPEG: only the" in captured.err


def test_one_mask_serves_all_and_masks_may_lie_beside_the_images(inpainter: Inpainter, tree: Path) -> None:
    done = run(inpainter, image_path=tree / "in", mask_path=tree / "mask.png", save_dir=tree / "one")
    assert len(done) == 3 and None not in done
    for path in (tree / "in").rglob("*.*"):
        (path.parent / f"{path.stem}_mask.png").write_bytes((tree / "mask.png").read_bytes())
    done = run(inpainter, image_path=tree / "in", mask_path=tree / "in", save_dir=tree / "two")
    assert len(done) == 3 and None not in done


def test_bad_files_are_reported_at_the_end_and_the_rest_is_done(
    inpainter: Inpainter, tree: Path, capsys: pytest.CaptureFixture
) -> None:
    (tree / "in" / "bad.png").write_text("text")
    (tree / "masks" / "bad.png").write_bytes((tree / "mask.png").read_bytes())
    Image.fromarray(photograph(30, 40)).save(tree / "in" / "lonely.png")
    done = run(inpainter, image_path=tree / "in", mask_path=tree / "masks", save_dir=tree / "out")
    assert done.count(None) == 2 and len(done) == 5
    captured = capsys.readouterr()
    assert "3 of 5 images filled" in captured.out
    assert "not filled: --image_path: not a readable image" in captured.err
    assert "not filled: --mask_path: no mask for" in captured.err


def test_what_is_there_is_left_on_request(inpainter: Inpainter, tree: Path) -> None:
    settings = {"image_path": tree / "in", "mask_path": tree / "masks", "save_dir": tree / "out"}
    run(inpainter, **settings, lossless=True)
    (tree / "out" / "a.png").unlink()
    done = run(inpainter, **settings, lossless=True, skip_existing=True)
    assert [str(each.source.relative) for each in done] == ["a.png"]
    assert ImageFile(tree / "out" / "deep" / "b.png").format == "PNG"


def test_an_input_is_overwritten_only_on_request(inpainter: Inpainter, tree: Path) -> None:
    settings = {"image_path": tree / "in" / "a.png", "mask_path": tree / "mask.png", "save_dir": tree / "in"}
    before = (tree / "in" / "a.png").read_bytes()
    with pytest.raises(UserError, match="would overwrite an input"):
        run(inpainter, **settings)
    assert (tree / "in" / "a.png").read_bytes() == before
    run(inpainter, **settings, overwrite=True)
    assert (tree / "in" / "a.png").read_bytes() != before


def test_boxes_growth_and_feather_reach_the_file(inpainter: Inpainter, tree: Path) -> None:
    settings = {"image_path": tree / "in" / "a.png", "save_dir": tree / "out", "box": (4, 4, 10, 10)}
    results = []
    for more in ({}, {"feather": 3}):
        (done,) = run(inpainter, **settings, **more)
        results.append(ImageFile(done.target_path).colors())
        assert done.mask.sum() == 100
    (grown,) = run(inpainter, **settings, dilate=2)
    assert 100 < grown.mask.sum() < 200
    before = photograph(30, 40).astype(int)
    changes = [np.abs(each - before).sum() for each in results]
    assert 0 < changes[1] < changes[0]


def test_the_pictures_own_alpha_is_filled_and_made_opaque(inpainter: Inpainter, tmp_path: Path) -> None:
    pixels = np.dstack([photograph(30, 40), np.full((30, 40), 255, np.uint8)])
    pixels[8:20, 8:20] = 0
    Image.fromarray(pixels).save(tmp_path / "in.png")
    (done,) = run(
        inpainter, image_path=tmp_path / "in.png", save_dir=tmp_path / "out", alpha_mask=True, verify=True
    )
    after = ImageFile(tmp_path / "out" / "in.png")
    assert after.alpha is not None and after.alpha.min() == 1 and done.mask.sum() == 144


def twins(folder: Path) -> Path:
    """Three images that differ in their extension alone."""
    folder.mkdir()
    for suffix in ("jpg", "png", "tif"):
        Image.fromarray(photograph(30, 40)).save(folder / f"a.{suffix}")
    return folder


def test_images_of_one_name_get_a_result_each(inpainter: Inpainter, tmp_path: Path) -> None:
    settings = {"image_path": twins(tmp_path / "in"), "box": (2, 2, 5, 5), "save_dir": tmp_path / "out"}
    done = run(inpainter, **settings, lossless=True)
    assert [each.target_path.name for each in done] == ["a.jpg.png", "a.png", "a.tif"]
    assert ImageFile(tmp_path / "out" / "a.png").format == "PNG"
    assert run(inpainter, **settings, lossless=True, skip_existing=True) == []


def test_a_result_of_another_format_does_not_stand_for_an_image(inpainter: Inpainter, tmp_path: Path) -> None:
    settings = {"image_path": twins(tmp_path / "in"), "box": (2, 2, 5, 5), "save_dir": tmp_path / "out"}
    done = run(inpainter, **settings, skip_existing=True)
    assert [each.target_path.name for each in done] == ["a.jpg", "a.png", "a.tif"]


def test_a_file_beside_an_input_is_overwritten_only_on_request(inpainter: Inpainter, tmp_path: Path) -> None:
    folder = twins(tmp_path / "in")
    settings = {"image_path": folder / "a.jpg", "box": (2, 2, 5, 5), "save_dir": folder, "lossless": True}
    before = (folder / "a.png").read_bytes()
    with pytest.raises(UserError, match="is there, among the images"):
        run(inpainter, **settings)
    assert (folder / "a.png").read_bytes() == before
    run(inpainter, **settings, overwrite=True)
    assert (folder / "a.png").read_bytes() != before


def test_no_result_is_written_over_another_input_even_on_request(
    inpainter: Inpainter, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = twins(tmp_path / "in")
    (folder / "a.jpg.png").write_bytes((folder / "a.png").read_bytes())
    before = (folder / "a.jpg.png").read_bytes()
    settings = {"image_path": folder, "box": (2, 2, 5, 5), "save_dir": folder}
    done = run(inpainter, **settings, lossless=True, overwrite=True)
    assert done.count(None) == 1 and "would overwrite an input" in capsys.readouterr().err
    changed = (folder / "a.jpg.png").read_bytes()
    assert (
        np.array_equal(ImageFile(folder / "a.jpg.png").colors()[10:], photograph(30, 40)[10:])
        and changed != before
    )  # filled itself


def test_images_where_results_go_are_neither_filled_nor_overwritten(
    inpainter: Inpainter, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = twins(tmp_path / "in")
    settings = {"image_path": folder, "box": (2, 2, 5, 5), "save_dir": folder / "out"}
    assert len(run(inpainter, **settings)) == 3
    before = (folder / "out" / "a.png").read_bytes()
    capsys.readouterr()
    assert run(inpainter, **settings) == [None] * 3
    errors = capsys.readouterr().err
    assert "3 images in" in errors and errors.count("is there, among the images (--overwrite)") == 3
    assert (folder / "out" / "a.png").read_bytes() == before
    assert run(inpainter, **settings, skip_existing=True) == []
    assert len(run(inpainter, **settings, overwrite=True)) == 3


def test_a_folder_inside_that_holds_masks_is_not_filled(inpainter: Inpainter, tree: Path) -> None:
    (tree / "masks").rename(tree / "in" / "masks")
    done = run(inpainter, image_path=tree / "in", mask_path=tree / "in" / "masks", save_dir=tree / "out")
    assert {str(each.source.relative) for each in done} == {"a.png", "deep/b.jpg", "deep/c.bmp"}


def test_a_mask_of_an_image_in_another_folder_is_not_borrowed(inpainter: Inpainter, tree: Path) -> None:
    (tree / "in" / "other").mkdir()
    (tree / "in" / "other" / "b.jpg").write_bytes((tree / "in" / "deep" / "b.jpg").read_bytes())
    done = run(inpainter, image_path=tree / "in", mask_path=tree / "masks", save_dir=tree / "out")
    assert done.count(None) == 1 and not (tree / "out" / "other").exists()


def test_a_private_image_has_a_private_result(inpainter: Inpainter, tree: Path) -> None:
    (tree / "in" / "a.png").chmod(0o600)
    run(inpainter, image_path=tree / "in" / "a.png", box=(2, 2, 5, 5), save_dir=tree / "out")
    assert (tree / "out" / "a.png").stat().st_mode & 0o777 == 0o600


def test_the_files_that_score_a_result_overwrite_no_image(inpainter: Inpainter, tree: Path) -> None:
    (tree / "out").mkdir()
    truth = (tree / "in" / "a.png").rename(tree / "out" / "test_results.png")
    (tree / "in" / "a.png").write_bytes(truth.read_bytes())
    with pytest.raises(UserError, match="would overwrite an input"):
        run(
            inpainter,
            image_path=tree / "in" / "a.png",
            box=(2, 2, 5, 5),
            save_dir=tree / "out",
            gt_path=truth,
        )


def test_an_error_of_any_kind_leaves_out_one_image_only(
    inpainter: Inpainter, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"image_path": twins(tmp_path / "in"), "box": (2, 2, 5, 5), "save_dir": tmp_path / "out"}
    save = ImageFile.save

    def fail(picture: ImageFile, path: Path, *more: Any) -> None:
        if path.suffix == ".png":
            raise TypeError("an odd file")
        save(picture, path, *more)

    monkeypatch.setattr(ImageFile, "save", fail)
    assert run(inpainter, **settings)[1] is None
    captured = capsys.readouterr()
    assert "a.png: TypeError: an odd file" in captured.err and "2 of 3 images filled" in captured.out


def test_names_of_any_bytes_and_any_length_are_filled(inpainter: Inpainter, tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"x" * 251 + b".png", "\u00d7 \N{SNOWMAN}.png".encode()):
        path = tmp_path / os.fsdecode(name)
        Image.fromarray(photograph(30, 40)).save(tmp_path / "plain.png")
        (tmp_path / "plain.png").rename(path)
        (done,) = run(inpainter, image_path=path, box=(2, 2, 5, 5), save_dir=tmp_path / "out", verify=True)
        assert done.target_path.exists() and done.target_path.name == path.name


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = {"pipe": tmp_path / "pipe.png", "device": Path("/dev/zero"), "folder": tmp_path / "a.png"}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(UserError, match="a folder" if kind == "folder" else "a pipe or a device"):
        ImageFile(path)


def test_a_limit_of_megapixels_is_checked_by_the_header(inpainter: Inpainter, tmp_path: Path) -> None:
    Image.new("1", (12000, 9000)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match="has 108 megapixels, more than the limit of 50"):
        ImageFile(tmp_path / "large.png", max_megapixels=50)
    (done,) = run(inpainter, image_path=tmp_path / "large.png", box=(9, 9, 5, 5), save_dir=tmp_path / "out")
    assert done.mask.shape == (9000, 12000)


def test_verify_refuses_what_cannot_be_exact_before_anything_is_written(
    inpainter: Inpainter, tmp_path: Path
) -> None:
    Image.fromarray(photograph(30, 40)).convert("CMYK").save(tmp_path / "a.jpg")
    settings = {"image_path": tmp_path / "a.jpg", "box": (2, 2, 5, 5), "save_dir": tmp_path / "out"}
    with pytest.raises(UserError, match="--verify: every pixel of such a JPEG changes a little"):
        run(inpainter, **settings, verify=True)
    assert not (tmp_path / "out").exists()
    assert ImageFile(run(inpainter, **settings, verify=True, lossless=True)[0].target_path).format == "PNG"


def test_verify_refuses_a_jpeg_whose_blocks_could_not_be_kept(
    inpainter: Inpainter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(photograph(30, 40)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(JpegFile, "_encode", lambda *_: None)  # the result fails its check
    settings = {"image_path": tmp_path / "a.jpg", "box": (2, 2, 5, 5), "save_dir": tmp_path / "out"}
    with pytest.raises(UserError, match="--verify: every pixel of such a JPEG changes a little"):
        run(inpainter, **settings, verify=True)
    assert not [*(tmp_path / "out").iterdir()]


def test_verify_finds_a_changed_property(tmp_path: Path) -> None:
    pixels, missing = photograph(30, 40), np.zeros((30, 40), bool)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = 1
    image.save(tmp_path / "a.png", exif=exif)
    exif[274] = 3
    image.save(tmp_path / "turned.png", exif=exif)
    image.save(
        tmp_path / "profile.png",
        exif=Image.Exif(),
        icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    )
    image.convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(pixels[:, :39]).save(tmp_path / "narrow.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    for name, what in (
        ("turned", "orientation"),
        ("profile", "profile"),
        ("alpha", "channels"),
        ("narrow", "size"),
        ("grey", "channels"),
    ):
        with pytest.raises(UserError, match=f"--verify: another .*{what}"):
            verify(tmp_path / "a.png", tmp_path / f"{name}.png", missing)


def test_verify_says_when_no_second_library_reads_a_file(
    inpainter: Inpainter, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(photograph(30, 40)).save(tmp_path / "a.sgi")
    run(inpainter, image_path=tmp_path / "a.sgi", box=(2, 2, 5, 5), save_dir=tmp_path / "out", verify=True)
    assert "the others not verified, as no second library reads" in capsys.readouterr().out


def test_a_file_that_fails_its_verification_is_not_written(
    inpainter: Inpainter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(photograph(30, 40)).save(tmp_path / "a.png")
    put = ImageFile.put

    def put_more(picture: ImageFile, *more: Any, **options: Any) -> None:
        put(picture, *more, **options)
        picture.raster.samples[-1, -1] ^= 1

    monkeypatch.setattr(ImageFile, "put", put_more)
    with pytest.raises(UserError, match="--verify: 1 pixels outside the hole differ"):
        run(
            inpainter, image_path=tmp_path / "a.png", box=(2, 2, 5, 5), save_dir=tmp_path / "out", verify=True
        )
    assert not [*(tmp_path / "out").iterdir()]


def test_an_empty_hole_gives_the_file_itself(inpainter: Inpainter, tmp_path: Path) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "mask.png")
    for suffix in ("png", "jpg", "tif", "webp", "gif", "bmp"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(photograph(30, 40)).save(path)
        run(inpainter, image_path=path, mask_path=tmp_path / "mask.png", save_dir=tmp_path / "out")
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_verify_finds_a_changed_pixel(inpainter: Inpainter, tree: Path) -> None:
    path, missing = tree / "in" / "a.png", np.zeros((30, 40), bool)
    pixels = photograph(30, 40)
    pixels[3, 3, 1] ^= 1
    Image.fromarray(pixels).save(tree / "changed.png")
    with pytest.raises(UserError, match="--verify: 1 pixels outside the hole differ"):
        verify(path, tree / "changed.png", missing)
    missing[3, 3] = True
    verify(path, tree / "changed.png", missing)


REFUSALS = """
import contextlib, io, json, pathlib, sys, time
import test
import evaluation.evaluate  # so that its time does not count
rows = []
for argv in json.load(sys.stdin):
    errors, start = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stderr(errors):
        status = test.main(argv)
    rows.append([status, errors.getvalue(), time.perf_counter() - start])
status = pathlib.Path("/proc/self/status")  # of Linux
peak = 1024 * int(status.read_text().split("VmHWM:")[1].split()[0]) if status.exists() else 0
print(json.dumps({"rows": rows, "peak": peak}))
"""


def test_bad_files_are_refused_in_one_line_at_once(tmp_path: Path) -> None:
    bad = []
    for number, (_, content) in enumerate(malformed().items()):
        bad.append(tmp_path / f"bad{number}.png")
        bad[-1].write_bytes(content)
    good, mask, narrow = (tmp_path / name for name in ("good.png", "mask.png", "narrow.png"))
    Image.fromarray(photograph(30, 40)).save(good)
    Image.fromarray(np.eye(40, dtype=np.uint8)[:30] * 255).save(mask)
    Image.fromarray(np.eye(40, dtype=np.uint8)[:10] * 255).save(narrow)
    pairs = [(path, mask) for path in [*bad, tmp_path / "none.png"]]
    pairs += [(good, path) for path in [*bad[::5], tmp_path / "none.png", narrow]]
    calls = [
        [f"--image_path={image}", f"--mask_path={hole}", f"--save_dir={tmp_path / 'out'}"]
        for image, hole in pairs
    ]
    calls += [
        [f"--image_path={good}", f"--save_dir={tmp_path / 'out'}", flag]
        for flag in ("--box=0,0,-1,4", "--box=99,0,4,4", "--alpha_mask")
    ]
    calls.append([f"--image_path={good}", f"--mask_path={mask}", f"--save_dir={tmp_path}"])  # over an input
    calls.append([*calls[-1][:2], f"--save_dir={tmp_path / 'out'}", f"--gt_path={narrow}"])
    done = subprocess.run(
        [sys.executable, "-c", REFUSALS], input=json.dumps(calls), capture_output=True, text=True,
        check=True, cwd=REPOSITORY,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert len(calls) >= 60 and not (tmp_path / "out").exists()
    for call, (status, errors, seconds) in zip(calls, report["rows"], strict=True):
        assert status == 2 and errors.count("\n") == 1 and seconds < 2, (call, errors, seconds)
    assert report["peak"] < 900 * 2**20


def test_the_flags_are_the_settings() -> None:
    import test as evaluation

    args = evaluation.parse_args(["--image_path=x.png", "--box=1,2,3,4"])
    assert args.box == (1, 2, 3, 4)
    assert set(fill_files.FillSettings.__dataclass_fields__) <= set(vars(args))
    with pytest.raises(UserError, match="--box: must be left,top,width,height in pixels, got 1,2"):
        evaluation.parse_args(["--image_path=x.png", "--box=1,2"])
