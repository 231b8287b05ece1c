"""Images, masks and stand-ins for pretrained weights that several tests share."""

import io
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: more threads would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image
from runs import small_config
from torch import nn
from web_server import server  # noqa: F401 (a fixture)

import metrics
from config import Config
from imaging.formats.png import write_chunks
from train import train

os.environ.setdefault("MPLBACKEND", "Agg")
# outside the cache of a session, or every session lists all fonts anew
os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / "matplotlib"))

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache out of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session", autouse=True)
def denormals() -> None:
    torch.set_flush_denormal(True)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random image with edges, (H, W, 3) uint8."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(generator.uniform(3, 12) * x + generator.uniform(3, 12) * y) for _ in range(3)]
    image = np.stack(waves, axis=2) * 70 + 128
    image[height // 4 : height // 2, width // 3 : width // 2] = generator.integers(0, 255, 3)
    return image.astype(np.uint8)


def malformed() -> dict[str, bytes]:
    """Contents of files that are not an image, or only a part of one."""
    files: dict[str, bytes] = {"empty": b"", "text": b"not a picture" * 9}
    for form in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"):
        content = io.BytesIO()
        Image.fromarray(photograph(60, 80)).save(content, form)
        for tenth in range(1, 9):
            files[f"{form} cut at {tenth}0 %"] = content.getvalue()[: len(content.getvalue()) * tenth // 10]
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    files["bomb"] = write_chunks([(b"IHDR", header), (b"IDAT", b"\0" * 9), (b"IEND", b"")])
    frames = io.BytesIO()
    still = Image.fromarray(photograph(9, 14))
    still.save(frames, "GIF", save_all=True, append_images=[still.rotate(90)])
    files["animation"] = frames.getvalue()
    return files


def randomize_zero_init(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give random values to parameters that start at zero, so that every part changes the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(0, 0.05, generator=generator)
    return network


@pytest.fixture
def vgg16_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights of a VGG16 with 1/16 of its channels, which takes the place of torchvision's."""
    import torchvision  # slow to import

    widths = [c if c == "M" else c // 16 for c in torchvision.models.vgg.cfgs["D"]]
    torch.manual_seed(0)
    model = nn.ModuleDict({"features": torchvision.models.vgg.make_layers(widths)})
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)  # deep features as strong as shallow ones
    torch.save(model.state_dict(), tmp_path / "vgg16.pth")
    standin = SimpleNamespace(features=torchvision.models.vgg.make_layers(widths))
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: standin)
    return tmp_path / "vgg16.pth"


@pytest.fixture
def alexnet_file(tmp_path: Path) -> Path:
    """Weights of AlexNet: the file that ALEXNET_WEIGHTS names, else random ones in torchvision's layout."""
    import torchvision  # slow to import

    if "ALEXNET_WEIGHTS" in os.environ:
        return Path(os.environ["ALEXNET_WEIGHTS"])
    torch.manual_seed(0)
    state = torchvision.models.alexnet().state_dict()
    torch.save({name: x for name, x in state.items() if "features" in name}, tmp_path / "alexnet.pth")
    return tmp_path / "alexnet.pth"


@pytest.fixture
def torch_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in the place of torch's downloaded checkpoints; nothing can be downloaded."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    metrics._lpips_network.cache_clear()
    yield checkpoints
    metrics._lpips_network.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of six small pictures of different shapes."""
    return write_photographs(tmp_path / "images")


def write_photographs(root: Path) -> Path:
    root.mkdir()
    for i, (height, width) in enumerate([(40, 40), (40, 56), (64, 40), (33, 47), (80, 80), (48, 36)]):
        Image.fromarray(photograph(height, width, seed=i)).save(root / f"picture{i}.png")
    return root


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images (2, 3, 37, 51) and masks with a different hole each."""
    images = np.stack([photograph(37, 51, seed=i) for i in range(2)])
    mask = torch.zeros(2, 1, 37, 51)
    mask[0, :, 8:25, 10:30] = 1
    mask[1, :, :20, 25:] = 1
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255), mask


@pytest.fixture
def config(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A small training run without its curves, which take longer to draw than the run to train."""
    monkeypatch.setattr("metric_tracker.MetricsTracker.draw", lambda *_: None)
    return small_config(folder, tmp_path / "run")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The same run, finished, with a checkpoint of every epoch; tests only read its folder."""
    root = tmp_path_factory.mktemp("finished")
    config = small_config(
        write_photographs(root / "images"), root / "run", checkpoint_interval=1, cache=False
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metric_tracker.MetricsTracker.draw", lambda *_: None)
        train(config)
    return config
