"""Exported files compute the same as the network at any size, and only such files are written."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, photograph, randomize_zero_init
from PIL import Image

import export
import test as evaluation
from exporters.traceable import Level
from inference.checkpoints import save_checkpoint, weights_digest
from inference.inpainter import Inpainter
from models import InpaintingNetwork
from texture import add_texture
from utils import UserError

onnx = pytest.importorskip("onnx", reason="exporting to ONNX needs onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="running ONNX files needs onnxruntime")

from inference.onnx_network import OnnxNetwork  # noqa: E402

ARCHITECTURE = {"base_channels": 8, "bottleneck_depth": 1, "prior_rank": 6}
SIZES = [(1, 1, 1), (2, 1, 7), (3, 64, 64), (1, 270, 300)]  # the last has more than 1,024 tokens


@pytest.fixture(scope="module", autouse=True)
def few_cases() -> Iterator[None]:
    """Verify files on small images, since the tests compare them again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "CASES", ((1, 1, 5), (3, 33, 50)))
        yield


@pytest.fixture(scope="module")
def network() -> InpaintingNetwork:
    torch.manual_seed(0)
    network = randomize_zero_init(InpaintingNetwork(**ARCHITECTURE)).eval()
    network.prior.fit(torch.rand(40, 3, 32, 32))  # type: ignore[union-attr]
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(network: InpaintingNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "best_model.pth"
    config = {"image_size": 32, "mask_ratio": (0.1, 0.4), "train_root": "/home/someone/pictures"}
    save_checkpoint({"architecture": ARCHITECTURE, "ema": network.state_dict(), "config": config}, path)
    return path


@pytest.fixture(scope="module")
def onnx_file(checkpoint: Path) -> Path:
    path = checkpoint.with_name("network.onnx")
    assert export.main(["--checkpoint", str(checkpoint), "--output", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    "size", [*SIZES, (1, 64, 64), (3, 257, 301), (1, 257, 301), (2, 384, 264), (1, 512, 384)]
)
def test_an_onnx_file_equals_the_network_at_any_size(
    network: InpaintingNetwork, onnx_file: Path, size: tuple[int, int, int]
) -> None:
    image, mask = export.make_case(*size)
    exported = OnnxNetwork(onnx_file)
    output = exported(image, mask)["output"]
    assert torch.allclose(output, network(image, mask)["output"], rtol=0, atol=1e-4)
    known = mask.expand_as(image) == 0
    assert torch.equal(output[known], image[known])
    assert torch.equal(exported(image.nan_to_num(1e9), mask)["output"], output)


def test_a_network_without_a_prior_is_exported_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    architecture = ARCHITECTURE | {"prior_rank": 0}
    network = randomize_zero_init(InpaintingNetwork(**architecture)).eval()
    config = {"image_size": 32, "mask_ratio": (0.1, 0.4)}
    path = tmp_path / "debug.pth"
    save_checkpoint({"architecture": architecture, "ema": network.state_dict(), "config": config}, path)
    for name in ("debug.onnx", "debug.pt"):
        kind = "onnx" if name.endswith("onnx") else "torchscript"
        argv = ["--checkpoint", str(path), "--format", kind, "--output", str(tmp_path / name)]
        assert export.main(argv) == 0 and (tmp_path / name).stat().st_size > 0


def test_onnxruntime_and_numpy_are_enough(onnx_file: Path, network: InpaintingNetwork) -> None:
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["image", "mask"]
    image, mask = export.make_case(2, 40, 56)
    (output,) = session.run(None, {"image": image.numpy(), "mask": mask.numpy()})
    assert np.allclose(output, network(image, mask)["output"].numpy(), rtol=0, atol=1e-4)


def test_an_onnx_file_carries_its_metadata(onnx_file: Path, network: InpaintingNetwork) -> None:
    metadata = OnnxNetwork(onnx_file).metadata
    assert metadata["weights_sha256"] == weights_digest(network.state_dict())
    assert metadata["precision"] == "float32" and metadata["preset"] == "none"
    assert "1 = missing" in metadata["mask"] and "[0, 1]" in metadata["image"]
    assert json.loads(metadata["architecture"]) == ARCHITECTURE
    assert json.loads(metadata["trained"]) == {"image_size": 32, "mask_ratio": [0.1, 0.4]}
    assert "someone" not in str(metadata)


def test_the_bundled_weights_name_their_presets() -> None:
    from inference.checkpoints import load_network

    network, state = load_network("default", torch.device("cpu"))
    assert export.describe(network, state, half=False)["preset"] == "default, high_quality"


def test_a_large_image_is_filled_in_tiles_by_an_onnx_file_too(
    network: InpaintingNetwork, onnx_file: Path
) -> None:
    pixels = photograph(150, 210)
    hole = np.zeros((150, 210), bool)
    hole[20:130, 30:190] = True
    results = []
    for completer in (network, OnnxNetwork(onnx_file)):
        inpainter = Inpainter(completer, max_memory=0, passes=2, detail=0)  # tiles of 128 pixels
        results.append(inpainter.fill_array(pixels, hole).astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1
    assert np.array_equal(results[1][~hole], pixels[~hole])


def test_an_onnx_file_gets_texture_too(onnx_file: Path) -> None:
    completer = OnnxNetwork(onnx_file)
    image, mask = torch.rand(1, 3, 90, 110), torch.zeros(1, 1, 90, 110)
    mask[..., 30:60, 40:80] = 1
    output = completer(image, mask)["output"]
    textured = Inpainter(completer)(image, mask)
    assert torch.equal(textured, add_texture(output, mask)) and not torch.equal(textured, output)


def test_torchscript_equals_the_network_at_any_size(network: InpaintingNetwork, checkpoint: Path) -> None:
    path = checkpoint.with_name("network.pt")
    argv = ["--checkpoint", str(checkpoint), "--format", "torchscript", "--output", str(path)]
    assert export.main(argv) == 0
    completer = export.read(path, "torchscript")
    for size in SIZES:
        image, mask = export.make_case(*size)
        assert torch.allclose(completer(image, mask), network(image, mask)["output"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_half_precision_halves_the_weights_and_stays_close(
    network: InpaintingNetwork, checkpoint: Path, onnx_file: Path, kind: str
) -> None:
    path = checkpoint.with_name(f"half{export.SUFFIXES[kind]}")
    argv = ["--checkpoint", str(checkpoint), "--format", kind, "--half", "--output", str(path)]
    assert export.main(argv) == 0
    image, mask = export.make_case(1, 57, 41)
    difference = (export.read(path, kind)(image, mask) - network(image, mask)["output"]).abs().max()
    assert 0 < difference < export.TOLERANCE["float16"]
    if kind == "onnx":
        assert OnnxNetwork(path).metadata["precision"] == "float16"


def test_one_level_equals_complete_from_prefill_where_keys_are_blocks_of_tokens(
    network: InpaintingNetwork,
) -> None:
    image, mask = export.make_case(1, 270, 300)  # 34 × 38 tokens, more than 1,024
    image = image.nan_to_num(0)
    guess = torch.where(mask > 0, torch.rand_like(image), image)
    expected = network.complete_from_prefill(guess, image, mask)["refined"]
    output = Level(network)(guess, image, mask)
    assert torch.allclose(output, torch.where(mask > 0, expected, image), atol=1e-5)


def damaged(network: InpaintingNetwork) -> InpaintingNetwork:
    """A copy of a network whose output differs by 0.001 at every pixel of the hole."""
    copy = InpaintingNetwork(**ARCHITECTURE).eval()
    copy.load_state_dict(network.state_dict())
    with torch.no_grad():
        copy.refinement_decoder.to_rgb.bias += 1e-3
    return copy


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_file_that_differs_is_refused_and_nothing_is_left(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    kind: str,
) -> None:
    write = export.write
    monkeypatch.setattr(export, "write", lambda network, *args, **kw: write(damaged(network), *args, **kw))
    path = tmp_path / f"wrong{export.SUFFIXES[kind]}"
    assert export.main(["--checkpoint", str(checkpoint), "--format", kind, "--output", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("export.py: error: --format: the file differs from the network by 0.00")
    assert message.count("\n") == 1 and not list(tmp_path.iterdir())


def answer_with(output: torch.Tensor) -> export.Completer:
    return lambda image, mask: output


def test_verification_sees_other_shapes_changed_pixels_and_nan(
    network: InpaintingNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "CASES", ((1, 16, 16),))
    image, mask = export.make_case(1, 16, 16)
    right = network(image, mask)["output"]
    assert export.verify(answer_with(right), network, 0) == 0
    known = (mask == 0).float()
    for wrong, message in (
        (right[:, :, 1:], "returns"),
        (right.double(), "returns"),
        (right + 1e-7 * known + 1e-6 * known, "known pixels"),
        (torch.where(mask > 0, torch.nan, right), "differs"),
        (right + 2e-4 * mask, "differs"),
    ):
        with pytest.raises(UserError, match=message):
            export.verify(answer_with(wrong), network, 1e-4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--checkpoint", "missing.pth"], "--checkpoint: no such file: missing.pth"),
        (["--output", "network.pt"], "--output: must end in .onnx with --format onnx, got network.pt"),
        (["--output", "no/such/network.onnx"], "--output: no such folder: no/such"),
        (["--format", "tensorrt"], "invalid choice"),
        (["--format", "torch_export"], "--format: torch_export was removed; use onnx or torchscript"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)
def test_user_errors_are_one_line(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert export.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("export.py: error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_onnxruntime_is_named(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert export.main(["--output", str(tmp_path / "network.onnx")]) == 2
    assert "pip install onnxruntime" in capsys.readouterr().err
    argv = ["--checkpoint", str(onnx_file), "--test_root=sample", "--save_dir", str(tmp_path / "results")]
    assert evaluation.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install onnxruntime" in error


@pytest.mark.parametrize("content", [b"nonsense", None])
def test_other_files_are_refused_in_one_line(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "network.onnx"
    if content:
        path.write_bytes(content)
    else:  # an ONNX file of another program
        text = '<ir_version: 8, opset_import: ["" : 18]> other (float[1] x) => (float[1] y) { y = Relu (x) }'
        onnx.save(onnx.parser.parse_model(text), path)
    argv = ["--checkpoint", str(path), "--test_root=sample", "--save_dir", str(tmp_path / "results")]
    assert evaluation.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("test.py: error: --checkpoint: not ") and error.count("\n") == 1


def test_test_py_scores_and_fills_with_an_onnx_file_as_with_its_checkpoint(
    checkpoint: Path, onnx_file: Path, folder: Path, tmp_path: Path
) -> None:
    mask = np.zeros((40, 56), np.uint8)
    mask[10:30, 20:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    summaries, filled = [], []
    for path in (checkpoint, onnx_file):
        results = tmp_path / path.suffix[1:]
        common = ["--checkpoint", str(path), "--device=cpu", "--save_dir", str(results)]
        assert evaluation.main([*common, "--test_root", str(folder), "--num_workers=0"]) == 0
        summaries.append(json.loads((results / "report.json").read_text()))
        image = str(folder / "picture1.png")
        single = ["--image_path", image, "--mask_path", str(tmp_path / "mask.png"), "--gt_path", image]
        assert evaluation.main([*common, *single]) == 0
        filled.append(np.asarray(Image.open(results / "picture1.png")).astype(int))
        assert "| all | 6 |" in (results / "report.md").read_text()
    assert summaries[0]["methods"]["output"] == pytest.approx(summaries[1]["methods"]["output"], abs=2e-3)
    digests = {summary["protocol"]["weights_sha256"] for summary in summaries}
    assert len(digests) == 1
    assert "coarse" in summaries[0]["methods"] and "coarse" not in summaries[1]["methods"]
    assert np.abs(filled[0] - filled[1]).max() <= 1


@pytest.mark.parametrize("flag", ["--save_attention", "--device=cuda"])
def test_flags_that_an_onnx_file_cannot_serve_are_refused_before_anything_is_written(
    flag: str, onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = [
        "--checkpoint",
        str(onnx_file),
        "--test_root=sample",
        "--save_dir",
        str(tmp_path / "results"),
        flag,
    ]
    assert evaluation.main(argv) == 2
    error = capsys.readouterr().err
    assert f"{flag.split('=')[0]}: an ONNX file gives the output alone" in error and error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_the_example_of_the_readme_runs(
    tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (REPOSITORY / "docs" / "EXPORT.md").read_text()
    code = text.split("import json\nimport numpy as np\nimport onnxruntime", 1)[1].split("```", 1)[0]
    (tmp_path / "default.onnx").write_bytes(onnx_file.read_bytes())
    for name in ("astronaut.png", "astronaut_mask.png"):
        (tmp_path / "examples").mkdir(exist_ok=True)
        (tmp_path / "examples" / name).write_bytes((REPOSITORY / "examples" / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(f"import json\nimport numpy as np\nimport onnxruntime{code}", "EXPORT.md", "exec"), {})
    image = np.asarray(Image.open("examples/astronaut.png"))
    missing = np.asarray(Image.open("examples/astronaut_mask.png").convert("L")) > 127
    filled = np.asarray(Image.open("filled.png"))
    assert np.array_equal(filled[~missing], image[~missing]) and not np.array_equal(filled, image)
