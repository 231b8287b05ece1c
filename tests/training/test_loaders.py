"""Loaders of a run: sizes of both sets, and the position within an epoch."""

import dataclasses
import tarfile
from pathlib import Path

import pytest
from runs import CPU

from config import Config
from training.loaders import make_loaders, set_position
from training.state import TrainingState


@pytest.fixture(params=["folder", "shards"])
def root(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    if request.param == "folder":
        return folder
    pytest.importorskip("webdataset")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return tmp_path / "0.tar"


def test_training_images_have_the_stages_size_and_validation_images_the_runs(
    config: Config, root: Path
) -> None:
    config = dataclasses.replace(config, train_root=str(root), progressive="16:0.5:3")
    train_loader, val_loader = make_loaders(TrainingState(config, CPU))
    assert [batch["image"].shape for batch in train_loader] == [(3, 3, 16, 16)] * 2
    assert [batch["image"].shape for batch in val_loader] == [(3, 3, 32, 32)]


def test_a_pass_starts_where_the_position_says(config: Config, root: Path) -> None:
    loader, _ = make_loaders(TrainingState(dataclasses.replace(config, train_root=str(root)), CPU))
    set_position(loader, 1, 0)
    names = [name for batch in loader for name in batch["name"]]
    set_position(loader, 1, 4)
    assert [name for batch in loader for name in batch["name"]] == names[4:] and len(set(names)) == 6
