"""Benchmarks that look at given weights: they measure what they say, and refuse in one line."""

import copy
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import attention, gallery, pyramid
from benchmarks import texture as texture_benchmark
from inference.checkpoints import save_checkpoint
from models import InpaintingNetwork

ARCHITECTURE = {"base_channels": 4, "bottleneck_depth": 1}


@pytest.fixture
def network() -> InpaintingNetwork:
    """Weights whose residuals are not zero, unlike a new network's, and too small to leave [0, 1]."""
    torch.manual_seed(0)
    network = InpaintingNetwork(**ARCHITECTURE)
    for layer in (network.coarse_decoder.to_rgb, network.refinement_decoder.to_rgb):
        torch.nn.init.normal_(layer.weight, std=0.01)
    return network.eval()


@pytest.fixture
def checkpoint(network: InpaintingNetwork, tmp_path: Path) -> str:
    config = {"mask_ratio": (0.1, 0.4), "image_size": 32}
    state = {"architecture": ARCHITECTURE, "config": config, "ema": network.state_dict()}
    path = tmp_path / "weights.pth"
    save_checkpoint(state, path)
    return str(path)


@pytest.mark.parametrize("benchmark", [attention, gallery, pyramid])
def test_a_missing_checkpoint_is_refused(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "absent.pth")
    argv = [str(tmp_path / "picture.png"), "--checkpoint", absent] if benchmark is gallery else [absent]
    assert benchmark.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{Path(str(benchmark.__file__)).name}: error: ") and "absent.pth" in line


def test_a_gallery_shows_the_best_the_median_and_the_worst(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gallery, "NAMES", gallery.NAMES[:3])
    assert gallery.main([str(tmp_path / "gallery.png"), "--checkpoint", checkpoint]) == 0
    *rows, summary = capsys.readouterr().out.splitlines()
    kinds, scores = zip(
        *((cells[1].strip(), float(cells[4])) for cells in (row.split("|") for row in rows)), strict=True
    )
    assert kinds == ("best",) * 3 + ("median",) * 3 + ("worst",) * 3
    assert list(scores) == sorted(scores, reverse=True)
    assert summary.startswith("9 holes; ")
    picture = cv2.imread(str(tmp_path / "gallery.png"))
    assert picture is not None and picture.shape == (784, 3156, 3)


@pytest.mark.parametrize("part", ["output", "choice", "structure"])
def test_a_silenced_part_is_not_heard(part: str, network: InpaintingNetwork) -> None:
    torch.manual_seed(1)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    x, context = torch.randn(1, 4, 32, 32), torch.randn(1, 4, 32, 32)
    stage = copy.deepcopy(network.refinement.structure_stage)
    attention.ablate(stage, part)

    def heard(structure: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return stage(x, context, mask, structure, return_attention=True)

    flat, varied = heard(torch.zeros(1, 1, 32, 32)), heard(torch.rand(1, 1, 32, 32))
    if part == "output":
        assert flat[0].std(dim=(2, 3)).max() < 1e-6
    elif part == "choice":
        assert flat[1].std(dim=-2).max() < 1e-6 < varied[1].std(dim=-1).max()  # the same for all queries
    else:
        assert torch.equal(flat[1], varied[1])


def test_attention_and_the_pyramid_score_the_same_completion(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--max_images=2", "--image_size=64", "--mask_ratio", "0.2", "0.4"]
    assert attention.main([checkpoint, *flags]) == 0
    (scored,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("PSNR in the hole"))
    assert pyramid.main([checkpoint, *flags]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| 64 ")]
    refined = float(rows[0][4])
    assert abs(float(scored.split()[4]) - refined) < 0.02


@pytest.fixture
def photographs(tmp_path: Path, generator: np.random.Generator) -> str:
    """A folder of two images of noise, of which a completion has less."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(generator.integers(64, 192, (160, 176, 3), dtype=np.uint8)).save(folder / name)
    return str(folder)


@pytest.mark.parametrize("flags", [["--size=160", "--mask_ratio", "0.1", "0.2"], ["--objects"]])
def test_only_the_texture_differs_between_its_variants(
    flags: list[str],
    checkpoint: str,
    photographs: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # without weights for LPIPS
    files = ["--test_root", photographs, "--checkpoint", checkpoint, "--save", str(tmp_path / "drawn")]
    variants = ["detail 0", "no coherence", "gain 0.8", "one octave", "search at every size"]
    assert texture_benchmark.main([*flags, *files, "--variants", ",".join(reversed(variants))]) == 0
    note, _, titles, _, *lines = capsys.readouterr().out.splitlines()
    assert note.startswith("LPIPS is left out: ") and "LPIPS" not in titles
    rows = {name: cells for name, *cells in ([x.strip() for x in line.split("|")[1:-1]] for line in lines)}
    assert list(rows) == [variants[0], "default", *variants[1:]]
    scores = {name: cells[:2] for name, cells in rows.items()}  # sharpness and PSNR
    assert float(scores["detail 0"][0]) < float(scores["gain 0.8"][0]) < float(scores["default"][0])
    assert scores["default"] != scores["one octave"]
    assert scores["default"] == scores["search at every size"]  # the images are smaller than `SEARCHED`
    assert {cells[-1] for cells in rows.values()} == {"2"}
    drawn = [cv2.imread(str(path)) for path in (tmp_path / "drawn").glob("*.png")]
    assert len(drawn) == 2 and all(image.shape[1] > 3 * 32 for image in drawn)


def test_a_blob_has_its_share_and_lies_inside_the_image(generator: np.random.Generator) -> None:
    for _ in range(20):
        mask = texture_benchmark.random_blob((300, 400), 0.08, generator)
        assert abs(mask.mean().item() - 0.08) < 0.002
        assert mask[..., 10:-10, 10:-10].sum() == mask.sum()
        assert cv2.connectedComponents(mask[0, 0].byte().numpy())[0] == 2  # the blob and the rest


@pytest.mark.parametrize(
    ("flags", "start"),
    [
        (["--variants", "patch 6"], "--variants: no variant 'patch 6'; choose from: detail 0, "),
        (
            ["--mask_ratio", "0.4", "0.1"],
            "--mask_ratio: must be two shares between 0 and 1, the lower first, ",
        ),
        (["--share=1"], "--share: must be between 0 and 1, got 1.0"),
        (["--limit=0"], "--limit: must be at least 1, got 0"),
        (["--test_root=absent"], "--test_root: "),
        (["--lpips_weights=absent", "--size=32"], "--lpips_weights: "),
    ],
)
def test_the_texture_benchmark_refuses_a_wrong_flag(
    flags: list[str], start: str, checkpoint: str, photographs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert texture_benchmark.main(["--test_root", photographs, "--checkpoint", checkpoint, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"texture.py: error: {start}")
