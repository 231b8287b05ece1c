import pickle
from pathlib import Path

import pytest
import torch

from inference.checkpoints import load_checkpoint, save_checkpoint
from inference.device import seed_everything, select_device
from inference.visualize import comparison_grid
from metrics import boundary_band, dilate, load_trunk
from utils import UserError, atomic_path


def test_the_band_holds_both_sides_of_the_edge_and_nothing_else() -> None:
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 10:] = 1
    band = boundary_band(mask, 3)[0, 0]
    assert torch.equal(band[0].nonzero().flatten(), torch.arange(7, 13))
    assert torch.equal(dilate(mask, 3)[0, 0, 0].nonzero().flatten(), torch.arange(7, 20))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_empty_or_full_hole_has_no_band(value: float) -> None:
    assert boundary_band(torch.full((1, 1, 9, 9), value), 5).sum() == 0


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    save_checkpoint({"weights": torch.arange(3.0), "name": "x"}, tmp_path / "a" / "c.pth")
    state = load_checkpoint(tmp_path / "a" / "c.pth", "--resume")
    assert torch.equal(state["weights"], torch.arange(3.0))
    assert state["name"] == "x"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["c.pth"]


class Malicious:
    def __reduce__(self) -> tuple:
        return (Path("executed").write_text, ("x",))


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", pickle.dumps({"a": 1}), pickle.dumps(Malicious()), b"PK\x03\x04 cut"],
)
def test_a_bad_checkpoint_is_refused_in_one_line_and_not_executed(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"--resume: not a") as error:
        load_checkpoint(path, "--resume")
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()


def test_a_truncated_checkpoint_and_another_programs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    save_checkpoint({"weights": torch.rand(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(path, "--checkpoint")
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        load_checkpoint(path, "--checkpoint")
    with pytest.raises(UserError, match="--checkpoint: no such file"):
        load_checkpoint(tmp_path / "none.pth", "--checkpoint")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_seeding_repeats_torch() -> None:
    seed_everything(3)
    first = torch.rand(4)
    seed_everything(3)
    assert torch.equal(first, torch.rand(4))


def test_unknown_and_absent_devices_are_refused() -> None:
    assert select_device("cpu").type == "cpu"
    assert select_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="--device: no such device: gpu"):
        select_device("gpu")
    if not torch.backends.mps.is_available():
        with pytest.raises(UserError, match="not available"):
            select_device("mps")


def test_the_grid_has_six_columns(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, mask = batch
    outputs = {"coarse": image, "refined": image * 0, "output": image}
    grid = comparison_grid(image, mask, outputs)
    assert grid.shape == (3, 2 * (37 + 2) + 2, 6 * (51 + 2) + 2)
    column = grid[:, 2:39, 4 * 53 + 2 : 5 * 53]
    assert column.abs().max() == 0  # the fifth is `refined`


def test_a_trunk_is_refused_if_it_is_missing_or_of_another_network(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--vgg_weights: no such file"):
        load_trunk("vgg16", str(tmp_path / "none.pth"), "--vgg_weights")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"does not hold the features\.\* layers of vgg16"):
        load_trunk("vgg16", str(tmp_path / "other.pth"), "--vgg_weights")
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(UserError, match="not a readable weights file"):
        load_trunk("vgg16", str(tmp_path / "text.pth"), "--vgg_weights")


def test_without_a_network_the_error_says_which_file_to_put_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"put alexnet-owt-\w+\.pth into .*checkpoints, or name a file"):
        load_trunk("alexnet", None, "--lpips_weights")
