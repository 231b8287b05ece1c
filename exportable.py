"""The network in operations that one graph can hold for every height, width and batch.

`InpaintingNetwork` decides in Python, by the size of the image, how often to halve it, whether windows are
needed, and how many tokens make a key. A graph is recorded once for all sizes. So what depends on the size
within one completion is arithmetic on indices here, and the loop over the pyramid is left to the format.
"""

import copy
import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from models import GLOBAL, STRIDE, InpaintingNetwork, MaskQueryCrossAttention, beyond, cover, pool, pull

LARGEST_BLOCK = 256  # tokens a side of a key: images of up to 65,536 pixels a side


class SizeFreeAttention(MaskQueryCrossAttention):
    """The same attention without a decision by size.

    Windowed attention cuts small images into windows as well (what lies beyond the border is never heard).
    Global attention always has `max_keys` keys: the means of blocks of tokens come first, the rest has a
    bias of -∞.
    """

    def is_one_window(self, height: int, width: int) -> bool:
        return self.window == GLOBAL

    def pool_keys(self, x: torch.Tensor, factor: int) -> torch.Tensor:
        x = pool(x, factor)
        if self.window != GLOBAL:
            return x
        members = self.members(x.shape[-2], x.shape[-1]).to(x.dtype)
        share = members / members.sum(dim=1, keepdim=True).clamp_min(1)
        return (x.flatten(2) @ share.t())[:, :, None]  # (B, C, 1, keys)

    def bias(self, mask: torch.Tensor, structure: torch.Tensor | None) -> torch.Tensor:
        bias = super().bias(mask, structure)
        if self.window != GLOBAL:
            return bias
        side = self.scale * self.stride
        exists = self.members(cover(mask.shape[-2], side), cover(mask.shape[-1], side)).any(dim=1)
        return torch.where(exists, bias, -math.inf)

    def members(self, height: int, width: int) -> torch.Tensor:
        """Which tokens make which key, (keys, height·width) bool: blocks of `key_block` tokens a side."""
        blocks = torch.arange(1, LARGEST_BLOCK + 1)
        counts = (height + blocks - 1) // blocks * ((width + blocks - 1) // blocks)
        block = 1 + (counts > self.max_keys).sum()
        rows, columns = torch.arange(height) // block, torch.arange(width) // block
        key = rows[:, None] * ((width + block - 1) // block) + columns
        return torch.arange(self.max_keys)[:, None] == key.flatten()


class Level(nn.Module):
    """One completion of the pyramid: `complete_over` the enlarged completion of the next smaller copy.

    Args:
        half: compute in half precision; what goes in and out stays in single precision.

    Shapes:
        below (B, 3, h, w), of any size; image (B, 3, H, W), 0 under the hole; mask (B, 1, H, W), 1 = missing.
        Returns (B, 3, H, W), `image` where it is known.
    """

    def __init__(self, network: InpaintingNetwork, *, half: bool = False) -> None:
        super().__init__()
        self.kind = torch.float16 if half else torch.float32
        self.network = copy.deepcopy(network).to(self.kind).eval()
        for module in self.network.modules():
            if isinstance(module, MaskQueryCrossAttention):
                module.__class__ = SizeFreeAttention  # the same weights, other arithmetic

    def forward(self, below: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        border = (0, beyond(width, STRIDE), 0, beyond(height, STRIDE))
        prefill = F.pad(Enlarge()(below, image, mask), border, mode="replicate")
        padded, hole = F.pad(image, border), F.pad(mask, border, value=1)
        prefill, padded, hole = (each.to(self.kind) for each in (prefill, padded, hole))
        refined = self.network.complete_padded(prefill, padded, hole)["refined"].to(image.dtype)
        return torch.where(mask > 0, refined[..., :height, :width], image)


class Enlarge(nn.Module):
    """The prefill of a level: the hole filled from the next smaller copy; shapes as of `Level`.

    Bilinear, as `models.resize`; runtimes round the coordinates of their own resampling otherwise.
    """

    def forward(self, below: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for axis in (2, 3):
            length, side = below.shape[axis], image.shape[axis]
            source = ((torch.arange(side) + 0.5) * (length / side) - 0.5).clamp_min(0)
            first = source.floor().long()
            weight = (source - first)[:, None] if axis == 2 else source - first
            next_one = below.index_select(axis, (first + 1).clamp_max(length - 1))
            below = below.index_select(axis, first) * (1 - weight) + next_one * weight
        return torch.where(mask > 0, below, image)


class Pull(nn.Module):
    """`models.pull` as a module."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pull(image, mask)


def examples() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs of `Level` on which a graph is recorded; no two sides equal, none a multiple of another."""
    return torch.full((2, 3, 29, 37), 0.5), torch.zeros(2, 3, 58, 74), torch.ones(2, 1, 58, 74)


class Completion(nn.Module):
    """The whole network for TorchScript: image and mask in, the composited output out.

    The pyramid is walked as in `InpaintingNetwork.complete`, but all the way up to one pixel, so that the
    push-pull prefill and the completions are one pass down over the same levels.

    Shapes:
        image (B, 3, H, W) in [0, 1], any value under the hole; mask (B, 1, H, W), 1 = missing.
        Returns (B, 3, H, W).
    """

    def __init__(self, pull: nn.Module, enlarge: nn.Module, level: nn.Module, pyramid_base: int) -> None:
        super().__init__()
        self.pull, self.enlarge, self.level, self.pyramid_base = pull, enlarge, level, pyramid_base

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        images = [image.masked_fill(mask > 0, 0.0)]
        masks = [(mask > 0).to(image.dtype)]
        last = 0  # the smallest copy that is completed by the network
        side = max(image.shape[2], image.shape[3])
        while side > 1:
            last += int(side > self.pyramid_base)
            smaller, smaller_mask = self.pull(images[-1], masks[-1])
            images.append(smaller)
            masks.append(smaller_mask)
            side = max(smaller.shape[2], smaller.shape[3])
        filled = torch.full_like(images[-1], 0.5)
        for i in range(len(images)):
            k = len(images) - 1 - i
            if k > last:
                filled = self.enlarge(filled, images[k], masks[k])
            else:
                filled = self.level(filled, images[k], masks[k])
        return torch.where(mask > 0, filled.clamp(0.0, 1.0), image)


def to_torchscript(network: InpaintingNetwork, *, half: bool) -> torch.jit.ScriptModule:
    """The network as a TorchScript module of image and mask, for any batch and size."""
    below, image, mask = examples()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", category=FutureWarning)  # TorchScript is deprecated; asked for here
        pull = torch.jit.trace(Pull(), (image, mask))
        enlarge = torch.jit.trace(Enlarge(), (below, image, mask))
        level = torch.jit.trace(Level(network, half=half), (below, image, mask))
        return torch.jit.script(Completion(pull, enlarge, level, network.pyramid_base).eval())
