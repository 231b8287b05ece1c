"""Files and folders are filled, each in its own format; one bad file does not stop the rest."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, photograph
from PIL import Image
from test_pictures import MALFORMED

import fill
from cli import UserError
from fill import FillSettings, fill_folder, fill_job, open_single, verify
from inference import Inpainter
from models import InpaintingNetwork
from pictures import Picture


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


def run(inpainter: Inpainter, **values: Any) -> list:
    settings = FillSettings(
        **{k: v if isinstance(v, tuple | bool | int) else str(v) for k, v in values.items()}
    )
    if Path(settings.image_path).is_dir():
        return list(fill_folder(inpainter, settings, (0.1, 0.6)))
    job = open_single(settings)
    return [] if job is None else [fill_job(inpainter, settings, (0.1, 0.6), job)]


def test_a_folder_keeps_its_tree_and_formats(
    inpainter: Inpainter, tree: Path, capsys: pytest.CaptureFixture
) -> None:
    done = run(inpainter, image_path=tree / "in", mask_path=tree / "masks", save_dir=tree / "out")
    assert {str(each.job.relative) for each in done} == {"a.png", "deep/b.jpg", "deep/c.bmp"}
    for each in done:
        before, after = Picture(tree / "in" / each.job.relative), Picture(tree / "out" / each.job.relative)
        assert before.format == after.format
        assert each.job.missing.sum() == 200
        if after.format != "JPEG":
            verify(tree / "in" / each.job.relative, tree / "out" / each.job.relative, each.job.missing)
    captured = capsys.readouterr()
    assert "3 of 3 images filled" in captured.out and "b.jpg: JPEG is written anew" in captured.err


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
    assert [str(each.job.relative) for each in done] == ["a.png"]
    assert Picture(tree / "out" / "deep" / "b.png").format == "PNG"


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
    sharp, grown, soft = (
        run(inpainter, **settings, **more)[0] for more in ({}, {"dilate": 2}, {"feather": 3})
    )
    assert sharp.job.missing.sum() == 100 < grown.job.missing.sum() < 200
    changes = [np.abs(each.after.astype(int) - each.before).sum() for each in (sharp, soft)]
    assert 0 < changes[1] < changes[0]


def test_the_pictures_own_alpha_is_filled_and_made_opaque(inpainter: Inpainter, tmp_path: Path) -> None:
    pixels = np.dstack([photograph(30, 40), np.full((30, 40), 255, np.uint8)])
    pixels[8:20, 8:20] = 0
    Image.fromarray(pixels).save(tmp_path / "in.png")
    (done,) = run(
        inpainter, image_path=tmp_path / "in.png", save_dir=tmp_path / "out", alpha_mask=True, verify=True
    )
    after = Picture(tmp_path / "out" / "in.png")
    assert after.alpha is not None and after.alpha.min() == 1 and done.job.missing.sum() == 144


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
rows = []
for argv in json.load(sys.stdin):
    errors, start = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stderr(errors):
        status = test.main(argv)
    rows.append([status, errors.getvalue(), time.perf_counter() - start])
status = pathlib.Path("/proc/self/status")  # of Linux
peak = 1024 * int(status.read_text().split("VmHWM:")[1].split()[0]) if status.exists() else 0
print(json.dumps({"rows": rows, "peak": peak, "torch": "torch" in sys.modules}))
"""


def test_bad_files_are_refused_in_one_line_at_once_and_before_torch_is_loaded(tmp_path: Path) -> None:
    bad = []
    for number, (_, content) in enumerate(MALFORMED.items()):
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
    assert report["peak"] < 500 * 2**20 and not report["torch"]


def test_the_flags_are_the_settings() -> None:
    import test as evaluation

    args = evaluation.parse_args(["--image_path=x.png", "--box=1,2,3,4"])
    assert args.box == (1, 2, 3, 4)
    assert set(fill.FillSettings.__dataclass_fields__) <= set(vars(args))
    with pytest.raises(UserError, match="--box: must be left,top,width,height in pixels, got 1,2"):
        evaluation.parse_args(["--image_path=x.png", "--box=1,2"])
