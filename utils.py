"""What several modules share: the user's errors, seeds, devices, the rim of a hole, grids, checkpoints."""

import contextlib
import datetime
import hashlib
import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F

from cli import UserError
from files import atomic_path

PATIENCE = datetime.timedelta(hours=6)  # of processes that wait for the first to validate or to decode
CHECKPOINT_FORMAT = "msse-inpainting-1"
# what torch.load raises on a file that is damaged, or that is not its own
READ_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    OSError,
)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and make cuDNN choose deterministic algorithms."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True


def select_device(name: str) -> torch.device:
    """`auto` is CUDA, else MPS, else CPU; any other name is taken at its word, or refused if it is absent."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, available in present.items() if available))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: no such device: {name} (auto, cuda, cuda:1, mps or cpu)") from None
    if not present.get(device.type, False) or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise UserError(f"--device: {name} is not available on this machine")
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16; of others, torch computes as if, and slowly."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of torch 2.11 and later
    return device.type == "cpu" and any(capabilities.get(f"{kind}bf16") for kind in ("avx512_", "amx_", ""))


@contextlib.contextmanager
def process_group(device: str = "auto") -> Iterator[tuple[int, int]]:
    """Join the processes that `torchrun` started: (rank, number of processes); (0, 1) without it.

    Args:
        device: as of `select_device`; processes with CUDA devices talk through nccl, others through gloo.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes == 1:
        yield 0, 1
        return
    cuda = torch.cuda.is_available() and device.partition(":")[0] in ("auto", "cuda")
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield torch.distributed.get_rank(), num_processes
    finally:
        torch.distributed.destroy_process_group()


def dilate(mask: torch.Tensor, width: int) -> torch.Tensor:
    """Grow the ones of a (B, 1, H, W) mask by `width` pixels in every direction (a square)."""
    rows = F.max_pool2d(mask, (2 * width + 1, 1), stride=1, padding=(width, 0))
    return F.max_pool2d(rows, (1, 2 * width + 1), stride=1, padding=(0, width))


def boundary_band(mask: torch.Tensor, width: int) -> torch.Tensor:
    """The rim of the hole: pixels of either side within `width` pixels of the other, (B, 1, H, W) in {0, 1}.

    Empty where the hole is empty or covers the whole image. Its missing half is `band * mask`.
    """
    return dilate(mask, width) * dilate(1 - mask, width)


def comparison_grid(
    image: torch.Tensor, mask: torch.Tensor, outputs: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Six columns, one row an image: Ground Truth | Mask | Masked Input | Coarse | Refined | Final Output.

    An exported network gives the last of them alone: four columns.

    Shapes:
        image (B, 3, H, W) in [0, 1], mask (B, 1, H, W), outputs of the network.
        Returns (3, B·(H+2)+2, 6·(W+2)+2).
    """
    from torchvision.utils import make_grid  # slow to import, needed only for pictures

    columns = [image, mask.expand_as(image), image * (1 - mask) + mask]
    columns += [outputs[name] for name in ("coarse", "refined", "output") if name in outputs]
    cells = torch.stack([column.detach().float().nan_to_num().clamp(0, 1).cpu() for column in columns], dim=1)
    return make_grid(cells.flatten(0, 1), nrow=len(columns), padding=2, pad_value=1.0)


def heatmap_grid(image: torch.Tensor, mask: torch.Tensor, heatmaps: dict[str, torch.Tensor]) -> torch.Tensor:
    """One row an image: Masked Input | one column a heat map, from dark (0) to bright (1).

    Shapes:
        image (B, 3, H, W) in [0, 1], mask and each heat map (B, 1, H, W) in [0, 1]; returns (3, H', W').
    """
    from torchvision.utils import make_grid  # slow to import, needed only for pictures

    columns = [(image * (1 - mask) + mask).clamp(0, 1).cpu()]
    for heat in heatmaps.values():
        values = (heat.detach().float().nan_to_num().clamp(0, 1).cpu().numpy() * 255).astype(np.uint8)
        colored = np.stack([cv2.applyColorMap(each[0], cv2.COLORMAP_VIRIDIS)[:, :, ::-1] for each in values])
        columns.append(torch.from_numpy(colored.transpose(0, 3, 1, 2) / np.float32(255)))
    return make_grid(torch.stack(columns, dim=1).flatten(0, 1), nrow=len(columns), padding=2, pad_value=1.0)


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain Python values to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save({"format": CHECKPOINT_FORMAT, **state}, temporary)


def load_checkpoint(path: Path, flag: str) -> dict[str, Any]:
    """Read a checkpoint of this project on the CPU without running any code in it.

    Raises:
        UserError: naming `flag`, if the file is missing, damaged, or another program's.
    """
    state = _load_tensors(path, flag, "checkpoint")
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"{flag}: not a checkpoint of this project: {path}")
    return state


def weights_digest(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().numpy().tobytes())  # in C order, whatever the strides
    return digest.hexdigest()


def _load_tensors(path: Path, flag: str, kind: str) -> Any:
    """What `torch.load` finds in a file of tensors and plain values, on the CPU, running no code in it."""
    if not path.is_file():
        raise UserError(f"{flag}: no such file: {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other programs: they are refused in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"{flag}: not a readable {kind}: {path} ({reason})") from None


def load_trunk(name: str, weights: str | None, flag: str) -> torch.nn.Sequential:
    """The convolutional layers of torchvision's `alexnet` or `vgg16`, trained on ImageNet.

    Args:
        weights: file whose `features.*` are read; None for torchvision's download cache.
        flag: what errors call that file.

    Raises:
        UserError: saying which file to put where, if there are no weights.
    """
    import torchvision.models  # slow to import, needed only here

    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    place = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not weights and not place.exists():
        try:
            torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False)
        except (OSError, RuntimeError):  # no network, or a download that is not what it should be
            raise UserError(
                f"{flag}: cannot download the weights of {name}; put {place.name} into {place.parent}, "
                f"or name a file with its features.* layers by {flag}"
            ) from None
    state = _load_tensors(Path(weights) if weights else place, flag, "weights file")
    trunk = torchvision.models.get_model(name, weights=None).features
    prefix = "features."
    try:
        trunk.load_state_dict(
            {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
        )
    except (AttributeError, TypeError, IndexError, RuntimeError):
        raise UserError(
            f"{flag}: does not hold the features.* layers of {name}: {weights or place}"
        ) from None
    return trunk
