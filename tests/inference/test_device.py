import pytest
import torch

from inference.device import seed_everything, select_device
from utils import UserError


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
