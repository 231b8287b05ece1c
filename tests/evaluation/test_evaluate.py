"""Scoring completes every item alone, and draws and scores as much as a network returns."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomize_zero_init
from PIL import Image

from dataset import InpaintingDataset, Loader
from evaluation.evaluate import (
    ScoreSettings,
    before_compositing,
    complete,
    one_by_one,
    refuse_outputs,
    score_folder,
    to_bytes,
)
from models import InpaintingNetwork
from texture import add_texture
from utils import UserError

SETTINGS = ScoreSettings(("mean_fill", "telea", "navier_stokes"), save_attention=True, gallery=True)
PROTOCOL = {"checkpoint": "a.pth", "masks": "drawn"}


class WithoutAttention:
    """A network that returns its output alone, like one in an ONNX file."""

    device = torch.device("cpu")

    def __init__(self, network: InpaintingNetwork) -> None:
        self.network = network

    def __call__(self, image: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"output": self.network(image, mask)["output"]}


@pytest.fixture(scope="module")
def network() -> InpaintingNetwork:
    torch.manual_seed(0)
    return randomize_zero_init(InpaintingNetwork(base_channels=4, bottleneck_depth=1)).eval()  # type: ignore


@pytest.fixture
def dataset(folder: Path) -> InpaintingDataset:
    return InpaintingDataset(str(folder), 32, training=False, max_images=3)


def test_items_come_one_by_one_whatever_the_batches_and_workers(dataset: InpaintingDataset) -> None:
    expected = list(one_by_one(Loader(dataset), torch.device("cpu")))
    assert [item.name for item in expected] == dataset.names and len(expected) == 3
    assert all(len(item.image) == len(item.mask) == 1 for item in expected)
    for settings in ({"batch_size": 2}, {"batch_size": 3, "num_workers": 1}):
        for item, same in zip(
            one_by_one(Loader(dataset, **settings), torch.device("cpu")), expected, strict=True
        ):
            assert item.name == same.name and torch.equal(item.image, same.image)
            assert torch.equal(item.mask, same.mask)


def test_every_method_is_scored_and_every_hole_drawn(
    network: InpaintingNetwork, dataset: InpaintingDataset, tmp_path: Path
) -> None:
    report = score_folder(network, Loader(dataset), tmp_path, PROTOCOL, SETTINGS)
    assert list(report["methods"]) == ["output", "coarse", *SETTINGS.baselines]
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    for place in ("outputs", "attention"):
        assert {path.stem for path in (tmp_path / place).iterdir()} == set(dataset.names)
    page = (tmp_path / "gallery.html").read_text()
    assert all(f'"label": "{name}"' in page for name in ("coarse", "refined", "S", "stage 3", "telea"))
    item = next(one_by_one(Loader(dataset), network.device))
    with torch.no_grad():
        output = network(item.image, item.mask)["output"]
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "outputs" / f"{item.name}.png")), to_bytes(output)[0]
    )


def test_a_network_without_attention_is_scored_beside_one_with_it(
    network: InpaintingNetwork, dataset: InpaintingDataset, tmp_path: Path
) -> None:
    exported: Any = WithoutAttention(network)
    protocol = PROTOCOL | {"against": "b.pth"}
    report = score_folder(exported, Loader(dataset), tmp_path, protocol, SETTINGS, against=network)
    methods = report["methods"]
    assert "coarse" not in methods and methods["against"] == pytest.approx(methods["output"], abs=1e-5)
    assert abs(report["gain_against"]["mean"]) < 1e-5 and not (tmp_path / "attention").exists()
    item = next(one_by_one(Loader(dataset), exported.device))
    assert complete(exported, item, detail=0, with_heatmaps=True).heatmaps == {}
    with torch.no_grad():
        maps = complete(network, item, detail=0, with_heatmaps=True).heatmaps
        assert list(maps) == ["structure", "stage 1", "stage 2", "stage 3"]
        assert complete(network, item, detail=0, with_heatmaps=False).heatmaps == {}
    page = (tmp_path / "gallery.html").read_text()
    assert '"label": "stage 3"' in page and '"labels": ["a.pth", "b.pth"]' in page


@pytest.fixture
def textured(tmp_path: Path) -> InpaintingDataset:
    """Three images of noise, larger than the size below which nothing is copied."""
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (96, 96, 3), np.uint8)
        (tmp_path / "noise").mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "noise" / f"{i}.png")
    return InpaintingDataset(str(tmp_path / "noise"), 96, training=False)


def test_completions_with_detail_are_scored_beside_those_without(
    network: InpaintingNetwork, textured: InpaintingDataset, tmp_path: Path
) -> None:
    reports, protocol = [], PROTOCOL | {"against": "b.pth"}
    for detail in (0.0, 0.7):
        settings = replace(SETTINGS, detail=detail, paper=True, save_attention=False)
        folder = tmp_path / str(detail)
        reports.append(score_folder(network, Loader(textured), folder, protocol, settings, against=network))
    without, report = (each["methods"] for each in reports)
    assert list(without) == ["output", "coarse", "against", *SETTINGS.baselines]
    assert list(report) == ["output", "detail_0", "coarse", "against", *SETTINGS.baselines]
    assert report["detail_0"] == without["output"] and report["coarse"] == without["coarse"]
    assert report["against"] == report["output"]
    assert report["output"]["sharpness"] > 2 * report["detail_0"]["sharpness"]
    assert report["output"]["psnr_uncomposited"] != report["detail_0"]["psnr_uncomposited"]
    assert reports[0]["gain"]["over"] == reports[1]["gain"]["over"] == list(SETTINGS.baselines)
    pages = [(tmp_path / str(detail) / "gallery.html").read_text() for detail in (0.0, 0.7)]
    assert ['"label": "detail 0"' in page for page in pages] == [False, True]
    item = next(one_by_one(Loader(textured), network.device))
    with torch.no_grad():
        output = add_texture(network(item.image, item.mask)["output"], item.mask, 0.7)
    written = np.asarray(Image.open(tmp_path / "0.7" / "outputs" / f"{item.name}.png"))
    assert np.array_equal(written, to_bytes(output)[0])


def test_what_a_network_gives_outside_the_hole_is_scored_with_the_texture_inside(
    network: InpaintingNetwork, textured: InpaintingDataset
) -> None:
    item = next(one_by_one(Loader(textured), network.device))
    with torch.no_grad():
        completion = complete(network, item, detail=1.0, with_heatmaps=False)
        refined = network(item.image, item.mask)["refined"]
    pred = before_compositing(item, completion)
    assert pred is not None
    hole = (item.mask > 0).expand_as(pred)
    assert torch.equal(pred[~hole], refined[~hole])
    assert torch.equal(pred[hole], completion.outputs["output"][hole])


def test_a_network_that_returns_its_output_alone_gets_texture_too(
    network: InpaintingNetwork, textured: InpaintingDataset, tmp_path: Path
) -> None:
    exported: Any = WithoutAttention(network)
    settings = ScoreSettings(("telea",), detail=1.0)
    report = score_folder(exported, Loader(textured), tmp_path / "exported", PROTOCOL, settings)
    expected = score_folder(network, Loader(textured), tmp_path / "network", PROTOCOL, settings)
    assert list(report["methods"]) == ["output", "detail_0", "telea"]
    assert report["methods"]["output"] == expected["methods"]["output"]
    assert report["methods"]["output"]["sharpness"] > 2 * report["methods"]["detail_0"]["sharpness"]


def test_completions_are_not_written_among_the_images(folder: Path, tmp_path: Path) -> None:
    refuse_outputs(str(folder), tmp_path / "results")
    with pytest.raises(UserError, match="--save_dir: completions would be written among images"):
        refuse_outputs(str(folder), folder)
