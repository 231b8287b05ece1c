"""Checkpoint files: read, written, and opened as a network."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from config import with_current_names
from inference.onnx_network import OnnxNetwork
from models import InpaintingNetwork
from utils import UserError, atomic_path, load_tensors

CHECKPOINT_FORMAT = "msse-inpainting-1"


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
    """SHA-256 of names, types, shapes and values of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().numpy().tobytes())  # in C order, whatever the strides
    return digest.hexdigest()


WEIGHTS = Path(__file__).parents[1] / "weights"  # those that come with the project


Network = InpaintingNetwork | OnnxNetwork


def find_weights(name: str | Path | None) -> Path:
    """The file of a checkpoint: a path, or the name of one that comes with the project; None is `default`."""
    bundled = {path.stem: path for path in WEIGHTS.glob("*.pth")}
    path = Path(name) if name else Path("default")
    return path if path.is_file() else bundled.get(str(path), path)


def load_network(
    name: str | Path | None, device: torch.device, flag: str = "--checkpoint"
) -> tuple[InpaintingNetwork, dict[str, Any]]:
    """The averaged weights of a checkpoint, in the architecture that it names, and all that it holds.

    Args:
        name: as of `find_weights`.
        flag: what errors call it.

    Raises:
        UserError: if the file is missing, damaged, or another program's.
    """
    path = find_weights(name)
    state = load_checkpoint(path, flag)
    return network_of(state, path, flag, device), state


def network_of(state: dict[str, Any], path: Path, flag: str, device: torch.device) -> InpaintingNetwork:
    """The averaged weights of what a checkpoint holds, in its architecture, ready to complete.

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
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{flag}: made by another version of this project: {path} ({reason})") from None
    return network.to(device).to(memory_format=torch.channels_last).eval()


def open_network(name: str, device: torch.device, flag: str) -> tuple[Network, dict[str, Any], str]:
    """The network of a checkpoint or of an ONNX file, the settings that it was trained with, and its digest.

    The digest is the SHA-256 of the averaged weights as the checkpoint holds them, which an exported network
    was made from.

    Raises:
        UserError: naming `flag`, if the file cannot be read.
    """
    if name.endswith(".onnx"):
        exported = OnnxNetwork(Path(name), flag)
        return exported, exported.trained, exported.metadata["weights_sha256"]
    network, state = load_network(name, device, flag)
    return network, state["config"], state.get("sha256") or weights_digest(state["ema"])
