"""The network in operations that one recorded graph can hold for every height, width and batch size.

`InpaintingNetwork` decides in Python, by the size of the image, how often to halve it, whether it needs
windows, and how many tokens make one key. An exported graph is recorded once for all sizes: whatever depends
on the size within one pyramid level is index arithmetic here, and `Completion` is the loop over the levels.
"""

import copy
import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from layers import ceil_div, padding_to_multiple, pool
from models import (
    GLOBAL,
    InpaintingNetwork,
    MaskQueryCrossAttention,
    mean_with_mirror_image,
    padding_to_stride,
    with_mirror_image,
)
from prior import GaussianPrior

LARGEST_BLOCK = 256  # tokens per side of a key: images of up to 65,536 pixels per side


class ShapeAgnosticAttention(MaskQueryCrossAttention):
    """Cross-attention without control flow that depends on the size.

    Windowed attention cuts small images into windows as well (the bias beyond the border is -∞). Global
    attention always has `max_keys` keys: first the means of blocks of tokens, then unused keys with a bias
    of -∞. Products are summed in single precision, whatever the precision of the weights.
    """

    def is_one_window(self, height: int, width: int) -> bool:
        return self.window == GLOBAL

    def split(self, x: torch.Tensor, *, halo: int = 0, outside: float = 0.0) -> torch.Tensor:
        return super().split(x.float(), halo=halo, outside=outside)

    def windows(self, x: torch.Tensor, size: int) -> torch.Tensor:
        x = F.unfold(x, size, stride=self.window)  # ONNX has it; (B, C·size², windows)
        return x.transpose(1, 2).unflatten(2, (-1, size * size)).flatten(0, 1)

    def join(self, y: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return super().join(y, height, width).to(self.to_out.weight.dtype)

    def pool_keys(self, x: torch.Tensor, factor: int) -> torch.Tensor:
        x = pool(x, factor)
        if self.window != GLOBAL:
            return x
        members = self.members(x.shape[-2], x.shape[-1]).float()
        weights = members / members.sum(dim=1, keepdim=True).clamp_min(1)
        return (x.flatten(2).float() @ weights.t()).to(x.dtype)[:, :, None]  # (B, C, 1, keys)

    def bias(self, mask: torch.Tensor, structure: torch.Tensor | None) -> torch.Tensor:
        bias = super().bias(mask, structure)
        if self.window != GLOBAL:
            return bias
        side = self.scale * self.stride
        exists = self.members(ceil_div(mask.shape[-2], side), ceil_div(mask.shape[-1], side)).any(dim=1)
        return torch.where(exists, bias, -math.inf)

    def members(self, height: int, width: int) -> torch.Tensor:
        """Membership of tokens in keys, (keys, height·width) bool: blocks of `key_block` tokens per side."""
        blocks = torch.arange(1, LARGEST_BLOCK + 1)
        counts = (height + blocks - 1) // blocks * ((width + blocks - 1) // blocks)
        block = 1 + (counts > self.max_keys).sum()
        rows, columns = torch.arange(height) // block, torch.arange(width) // block
        key = rows[:, None] * ((width + block - 1) // block) + columns
        return torch.arange(self.max_keys)[:, None] == key.flatten()


class Pull(nn.Module):
    """`prior.pull` with odd sides padded by a missing row or column, which changes no mean."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        border = (0, padding_to_multiple(image.shape[3], 2), 0, padding_to_multiple(image.shape[2], 2))
        share = F.avg_pool2d(1 - F.pad(mask, border, value=1), 2)
        mean = F.avg_pool2d(F.pad(image, border), 2) / share.clamp_min(0.25)
        return mean, (share == 0).to(mask.dtype)


class Enlarge(nn.Module):
    """Prefill of a level: the hole takes the values of the next smaller copy, enlarged.

    Bilinear like `layers.resize`; the resampling operators of some runtimes round coordinates differently.

    Shapes:
        below (B, 3, h, w), any size; image (B, 3, H, W), 0 under the hole; mask (B, 1, H, W), 1 = missing.
        Returns (B, 3, H, W), equal to `image` where it is known.
    """

    def forward(self, below: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for axis in (2, 3):
            length, side = below.shape[axis], image.shape[axis]
            source = ((torch.arange(side) + 0.5) * (length / side) - 0.5).clamp_min(0)
            first = source.floor().long()
            weight = (source - first)[:, None] if axis == 2 else source - first
            second = (first + 1).clamp_max(length - 1)
            below = below.index_select(axis, first) * (1 - weight) + below.index_select(axis, second) * weight
        return torch.where(mask > 0, below, image)


class Level(nn.Module):
    """One completion of the pyramid, `complete_from_prefill` with the prefill that `Enlarge` gives.

    Args:
        half: compute in half precision; inputs and output stay in single precision.

    Shapes:
        Those of `Enlarge`.
    """

    def __init__(self, network: InpaintingNetwork, *, half: bool = False) -> None:
        super().__init__()
        self.precision = torch.float16 if half else torch.float32
        self.network = copy.deepcopy(network).to(self.precision).eval()
        self.network.prior = None  # it belongs to `FirstGuess`
        for module in self.network.modules():
            if isinstance(module, MaskQueryCrossAttention):
                module.__class__ = ShapeAgnosticAttention  # the same weights, other arithmetic

    def forward(self, below: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        border = padding_to_stride(image)
        prefill = F.pad(Enlarge()(below, image, mask), border, mode="replicate")
        padded, hole = F.pad(image, border), F.pad(mask, border, value=1)
        prefill, padded, hole = (x.to(self.precision) for x in (prefill, padded, hole))
        refined = self.network.run_stages(prefill, padded, hole)["refined"].to(image.dtype)
        return torch.where(mask > 0, refined[..., : image.shape[2], : image.shape[3]], image)


class ShapeAgnosticPrior(GaussianPrior):
    """A prior that resamples its components to every size, their own included."""

    def scaled_to(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        one = torch.ones(())
        return self.resampled(height, width, self.side / torch.maximum(one * height, one * width))

    def solve(self, matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.jit.script(eliminate)(torch.cat([matrix, right], dim=2))


def eliminate(equations: torch.Tensor) -> torch.Tensor:
    """Solution (B, n) of equations (B, n, n + 1), the right side last, by Gauss-Jordan elimination.

    Step k subtracts (column k - e_k) times (row k / pivot). Positive definite equations need no pivoting.
    ONNX cannot factorise a matrix. Scripting keeps the loop.
    """
    rank = equations.shape[1]
    for k in range(rank):
        row = equations[:, k : k + 1]
        unit = (torch.arange(rank) == k).to(equations.dtype)
        factor = equations[:, :, k : k + 1] - unit[:, None]
        equations = equations - factor @ (row / row[:, :, k : k + 1])
    return equations[:, :, rank]


class FirstGuess(nn.Module):
    """`InpaintingNetwork.first_guess`, given its push-pull prefill.

    Shapes:
        prefill and image (B, 3, H, W), no side longer than `pyramid_base`; mask (B, 1, H, W), 1 = missing.
        Returns (B, 3, H, W), equal to `image` where it is known.
    """

    def __init__(self, network: InpaintingNetwork) -> None:
        super().__init__()
        self.prior = copy.deepcopy(network.prior)
        if self.prior is not None:
            self.prior.__class__ = ShapeAgnosticPrior
        self.halvings = math.ceil(math.log2(network.pyramid_base))  # a single pixel stays one

    def forward(self, prefill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.prior is None:
            return torch.where(mask > 0, prefill, image)  # reads all inputs, which the exporter would drop
        expected = self.prior(image, mask)
        levels = [(expected * (1 - mask), mask)]
        for _ in range(self.halvings):
            levels.append(Pull()(*levels[-1]))
        filled = torch.full_like(levels[-1][0], 0.5)
        for level, hole in reversed(levels):
            filled = Enlarge()(filled, level, hole)
        return torch.where(mask > 0, prefill + expected - filled, image)


def examples() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs of `Level` on which a graph is recorded; no two sides equal, none a multiple of another."""
    return torch.full((2, 3, 29, 37), 0.5), torch.zeros(2, 3, 58, 74), torch.ones(2, 1, 58, 74)


class Completion(nn.Module):
    """The whole network for scripting: image and mask in, composited output out.

    It walks the pyramid of `InpaintingNetwork.complete_pyramid`, but all the way to one pixel, so that the
    push-pull prefill and the completions are one pass over the same levels.

    Shapes:
        image (B, 3, H, W) in [0, 1], any value under the hole; mask (B, 1, H, W), 1 = missing; prefill
        (B, 3, H, W) for a completion at the image's own size alone, or empty for the pyramid.
        Returns (B, 3, H, W).
    """

    def __init__(
        self, pull: nn.Module, enlarge: nn.Module, guess: nn.Module, level: nn.Module, pyramid_base: int
    ) -> None:
        super().__init__()
        self.pull = pull
        self.enlarge = enlarge
        self.guess = guess
        self.level = level
        self.pyramid_base = pyramid_base

    def forward(self, image: torch.Tensor, mask: torch.Tensor, prefill: torch.Tensor) -> torch.Tensor:
        use_pyramid = prefill.numel() == 0
        images = [image.masked_fill(mask > 0, 0.0)]
        masks = [(mask > 0).to(torch.float32)]
        last = 0  # index of the smallest copy that the network completes
        side = max(image.shape[2], image.shape[3])
        while use_pyramid and side > 1:
            if side > self.pyramid_base:
                last += 1
            smaller, smaller_mask = self.pull(images[-1], masks[-1])
            images.append(smaller)
            masks.append(smaller_mask)
            side = max(smaller.shape[2], smaller.shape[3])
        filled = torch.full_like(images[-1], 0.5) if use_pyramid else prefill
        for i in range(len(images) - last):
            k = len(images) - 1 - i
            filled = self.enlarge(filled, images[k], masks[k])
        if use_pyramid:
            filled = self.guess(filled, images[last], masks[last])
        for i in range(last + 1):
            k = last - i
            inputs = [filled, images[k], masks[k]]
            if i == 0 and use_pyramid:
                inputs = [with_mirror_image(x) for x in inputs]
            filled = self.level(inputs[0], inputs[1], inputs[2])
            if i == 0 and use_pyramid:
                filled = mean_with_mirror_image(filled)
        return torch.where(mask > 0, filled.clamp(0.0, 1.0), image)


class PyramidCompletion(nn.Module):
    """`Completion` of image and mask, without a prefill."""

    def __init__(self, completion: nn.Module) -> None:
        super().__init__()
        self.completion = completion

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.completion(image, mask, image[:0])


def to_torchscript(network: InpaintingNetwork, *, half: bool) -> torch.jit.ScriptModule:
    """The network as a TorchScript module of image and mask, for any batch and size."""
    below, image, mask = examples()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", category=FutureWarning)  # TorchScript is deprecated; asked for here
        pull = torch.jit.trace(Pull(), (image, mask))
        enlarge = torch.jit.trace(Enlarge(), (below, image, mask))
        level = torch.jit.trace(Level(network, half=half), (below, image, mask))
        small_image, small_mask = image[..., :5, :7], mask[..., :5, :7]  # no side longer than `pyramid_base`
        guess = torch.jit.trace(FirstGuess(network), (small_image, small_image, small_mask))
        completion = Completion(pull, enlarge, guess, level, network.pyramid_base)
        return torch.jit.script(PyramidCompletion(completion).eval())
