"""Benchmarks that look at given weights: they measure what they say, and refuse in one line."""

import copy
from pathlib import Path
from types import ModuleType

import cv2
import pytest
import torch

from benchmarks import attention, gallery, pyramid
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
