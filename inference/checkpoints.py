"""Reads and writes checkpoint files, and opens them as networks."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from config import with_current_names
from inference.onnx_network import OnnxNetwork
from models import InpaintingNetwork
from utils import UserError, atomic_path, first_line, load_tensors

WEIGHTS = Path(__file__).parents[1] / "weights"  # the bundled checkpoints
CHECKPOINT_FORMAT = "msse-inpainting-1"

Network = InpaintingNetwork | OnnxNetwork


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with what is known of its training.

    Attributes:
        settings: fields of `Config` by name; an ONNX file holds `image_size` and `mask_ratio` alone.
        weights_sha256: digest of the averaged weights in the checkpoint, which an ONNX file was made from.
    """

    network: Network
    settings: dict[str, Any]
    weights_sha256: str


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain Python values to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save({"format": CHECKPOINT_FORMAT, **state}, temporary)


def load_checkpoint(path: Path, flag: str) -> dict[str, Any]:
    """Read a checkpoint of this project on the CPU without running any code in it.

    Raises:
        UserError: naming `flag`, if the file is missing, damaged, or another program's.
    """
    state = load_tensors(path, flag, "checkpoint")
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"{flag}: not a checkpoint of this project: {path}")
    if isinstance(state.get("config"), dict):
        state["config"] = with_current_names(state["config"])
    return state


def weights_digest(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the names, types, shapes and values of tensors, in whatever order they are."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().numpy().tobytes())  # in C order, whatever the strides
    return digest.hexdigest()


def find_weights(name: str | Path | None) -> Path:
    """The file of a checkpoint, given its path or the name of a bundled one; None is `default`."""
    bundled = {path.stem: path for path in WEIGHTS.glob("*.pth")}
    path = Path(name) if name else Path("default")
    return path if path.is_file() else bundled.get(str(path), path)


def load_network(
    name: str | Path | None, device: torch.device, flag: str = "--checkpoint"
) -> tuple[InpaintingNetwork, dict[str, Any]]:
    """The network of a checkpoint, with its averaged weights, and the checkpoint's content.

    Args:
        name: see `find_weights`.

    Raises:
        UserError: naming `flag`, if the file is missing, damaged, or another program's.
    """
    path = find_weights(name)
    state = load_checkpoint(path, flag)
    return network_of(state, path, flag, device), state


def network_of(state: dict[str, Any], path: Path, flag: str, device: torch.device) -> InpaintingNetwork:
    """The network of a checkpoint's content, with its averaged weights, in evaluation mode.

    Raises:
        UserError: naming `flag` and `path`, if they are damaged, or of another version of this project.
    """
    missing = [key for key in ("architecture", "config", "ema") if key not in state]
    if missing:
        raise UserError(f"{flag}: damaged, without {', '.join(missing)}: {path}")
    if "sha256" in state and state["sha256"] != weights_digest(state["ema"]):
        raise UserError(f"{flag}: the weights in {path} are not what its SHA-256 says: fetch it again")
    try:
        network = InpaintingNetwork(**state["architecture"])
        network.load_state_dict(state["ema"])
        if not all(bool(torch.isfinite(value).all()) for value in state["ema"].values()):
            raise UserError(f"{flag}: damaged, some weights are no numbers: {path}")
    except (TypeError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(f"{flag}: made by another version of this project: {path} ({reason})") from None
    return network.to(device).to(memory_format=torch.channels_last).eval()


def open_network(name: str, device: torch.device, flag: str) -> TrainedNetwork:
    """Open a checkpoint or an ONNX file of `export.py`.

    Args:
        name: the path of an ONNX file, or a checkpoint (see `find_weights`).

    Raises:
        UserError: naming `flag`, if the file cannot be read.
    """
    if name.endswith(".onnx"):
        exported = OnnxNetwork(Path(name), flag)
        return TrainedNetwork(exported, exported.settings, exported.metadata["weights_sha256"])
    network, state = load_network(name, device, flag)
    return TrainedNetwork(network, state["config"], state.get("sha256") or weights_digest(state["ema"]))
