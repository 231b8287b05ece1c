"""The network in operations that one graph can hold for every height, width and batch.

`InpaintingNetwork` decides in Python, by the size of the image, how often to halve it, whether windows are
needed, and how many tokens make a key. A graph is recorded once for all sizes. So what depends on the size
within one completion is arithmetic on indices here, and the loop over the pyramid is left to the format.
"""

import copy
import math
import operator
import warnings
from typing import Any, cast

import torch
import torch._dynamo
import torch.fx.experimental._config
import torch.nn.functional as F
from torch import nn
from torch._higher_order_ops.while_loop import while_loop

from layers import ceil_div, padding_to_multiple, pool
from models import (
    GLOBAL,
    STRIDE,
    InpaintingNetwork,
    MaskQueryCrossAttention,
    mean_with_mirror_image,
    with_mirror_image,
)
from prior import GaussianPrior

MOST_LEVELS = 17  # of the pyramid: images of up to 65,536 pixels a side
LARGEST_BLOCK = 256  # tokens a side of a key: images of up to 65,536 pixels a side


class ShapeAgnosticAttention(MaskQueryCrossAttention):
    """The same attention without a decision by size.

    Windowed attention cuts small images into windows as well (what lies beyond the border is never heard).
    Global attention always has `max_keys` keys: the means of blocks of tokens come first, the rest has a
    bias of -∞. Products are summed in single precision, whatever the weights'.
    """

    def is_one_window(self, height: int, width: int) -> bool:
        return self.window == GLOBAL

    def split(self, x: torch.Tensor, *, halo: int = 0, outside: float = 0.0) -> torch.Tensor:
        return super().split(x.float(), halo=halo, outside=outside)

    def windows(self, x: torch.Tensor, size: int) -> torch.Tensor:
        x = F.unfold(x, size, stride=self.window)  # ONNX knows it; (B, C·size², windows)
        return x.transpose(1, 2).unflatten(2, (-1, size * size)).flatten(0, 1)

    def join(self, y: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return super().join(y, height, width).to(self.to_out.weight.dtype)

    def pool_keys(self, x: torch.Tensor, factor: int) -> torch.Tensor:
        x = pool(x, factor)
        if self.window != GLOBAL:
            return x
        members = self.members(x.shape[-2], x.shape[-1]).float()
        share = members / members.sum(dim=1, keepdim=True).clamp_min(1)
        return (x.flatten(2).float() @ share.t()).to(x.dtype)[:, :, None]  # (B, C, 1, keys)

    def bias(self, mask: torch.Tensor, structure: torch.Tensor | None) -> torch.Tensor:
        bias = super().bias(mask, structure)
        if self.window != GLOBAL:
            return bias
        side = self.scale * self.stride
        exists = self.members(ceil_div(mask.shape[-2], side), ceil_div(mask.shape[-1], side)).any(dim=1)
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
        self.network.prior = None  # the part of `FirstGuess`
        for module in self.network.modules():
            if isinstance(module, MaskQueryCrossAttention):
                module.__class__ = ShapeAgnosticAttention  # the same weights, other arithmetic

    def forward(self, below: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        border = (0, padding_to_multiple(width, STRIDE), 0, padding_to_multiple(height, STRIDE))
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
    """`models.pull`, where odd sides get a missing row or column more, which changes no mean."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        border = (0, padding_to_multiple(image.shape[3], 2), 0, padding_to_multiple(image.shape[2], 2))
        share = F.avg_pool2d(1 - F.pad(mask, border, value=1), 2)
        mean = F.avg_pool2d(F.pad(image, border), 2) / share.clamp_min(0.25)
        return mean, (share == 0).to(mask.dtype)


class ShapeAgnosticPrior(GaussianPrior):
    """The same prior, which resamples its components to every size, their own included."""

    def scaled_to(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        one = torch.ones(())
        return self.resampled(height, width, self.side / torch.maximum(one * height, one * width))


def shape_agnostic_prior(network: InpaintingNetwork) -> ShapeAgnosticPrior | None:
    """The prior of a network, if it has one, without a decision by size."""
    prior = copy.deepcopy(network.prior)
    if prior is not None:
        prior.__class__ = ShapeAgnosticPrior
    return cast(ShapeAgnosticPrior | None, prior)


class ApplyPrior(nn.Module):
    """The rest of `InpaintingNetwork.first_guess`, given its push-pull prefill and the expected picture.

    Shapes:
        expected, prefill and image (B, 3, H, W), no side longer than `pyramid_base`; mask (B, 1, H, W).
        Returns (B, 3, H, W), `image` where it is known.
    """

    def __init__(self, pyramid_base: int) -> None:
        super().__init__()
        self.pull, self.enlarge = Pull(), Enlarge()
        self.halvings = math.ceil(math.log2(pyramid_base))  # a single pixel stays one

    def forward(
        self, expected: torch.Tensor, prefill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        levels = [(expected * (1 - mask), mask)]
        for _ in range(self.halvings):
            levels.append(self.pull(*levels[-1]))
        filled = torch.full_like(levels[-1][0], 0.5)
        for fine, hole in reversed(levels):
            filled = self.enlarge(filled, fine, hole)
        return torch.where(mask > 0, prefill + expected - filled, image)


class FirstGuess(nn.Module):
    """`InpaintingNetwork.first_guess`, given its push-pull prefill; shapes as of `ApplyPrior`."""

    def __init__(self, network: InpaintingNetwork) -> None:
        super().__init__()
        self.prior, self.expect = shape_agnostic_prior(network), ApplyPrior(network.pyramid_base)

    def forward(self, prefill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.prior is None:
            return prefill
        return self.expect(self.prior(image, mask), prefill, image, mask)


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

    def __init__(
        self, pull: nn.Module, enlarge: nn.Module, guess: nn.Module, level: nn.Module, pyramid_base: int
    ) -> None:
        super().__init__()
        self.pull, self.enlarge, self.guess, self.level = pull, enlarge, guess, level
        self.pyramid_base = pyramid_base

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
            if k >= last:
                filled = self.enlarge(filled, images[k], masks[k])
            if k == last:
                filled = self.guess(filled, images[k], masks[k])
                pairs = [with_mirror_image(x) for x in (filled, images[k], masks[k])]
                filled = mean_with_mirror_image(self.level(pairs[0], pairs[1], pairs[2]))
            if k < last:
                filled = self.level(filled, images[k], masks[k])
        return torch.where(mask > 0, filled.clamp(0.0, 1.0), image)


class PackedCompletion(nn.Module):
    """The whole network for torch.export, whose loops carry tensors of one shape only: as `Completion`.

    So all levels of the pyramid lie one after the other in one tensor, (B, 4, pixels): image and hole.
    The completion of a level lies at the beginning of another, (B, 3, pixels).
    """

    def __init__(self, network: InpaintingNetwork, *, half: bool) -> None:
        super().__init__()
        self.pull, self.enlarge, self.level = Pull(), Enlarge(), Level(network, half=half)
        self.guess = FirstGuess(network)
        self.pyramid_base = network.pyramid_base

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        scale = 2 ** torch.arange(MOST_LEVELS)
        heights, widths = (height + scale - 1) // scale, (width + scale - 1) // scale
        starts = (heights * widths).cumsum(0) - heights * widths
        longer = torch.maximum(heights, widths)
        last, top = (longer > self.pyramid_base).sum(), (longer > 1).sum()

        def read(packed: torch.Tensor, start: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            h, w = int(at(heights, k).item()), int(at(widths, k).item())
            torch._check(h >= 1)
            torch._check(w >= 1)
            return packed.index_select(2, start + torch.arange(h * w)).unflatten(2, (h, w))

        def write(packed: torch.Tensor, start: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return packed.index_copy(2, start + torch.arange(x.shape[2] * x.shape[3]), x.flatten(2))

        def pull_level(k: torch.Tensor, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            fine = read(packed, at(starts, k), k)
            smaller = torch.cat(self.pull(fine[:, :3], fine[:, 3:]), dim=1)
            return k + 1, write(packed, at(starts, k + 1), smaller)

        def image_and_hole(k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return read(levels, at(starts, k), k).split((3, 1), dim=1)

        def push_level(k: torch.Tensor, filled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            below = read(filled, torch.zeros_like(k), (k + 1).clamp_max(MOST_LEVELS - 1))
            return k - 1, write(filled, torch.zeros_like(k), self.enlarge(below, *image_and_hole(k)))

        def guess_level(k: torch.Tensor, prefill: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            guess = self.guess(read(prefill, torch.zeros_like(k), k), *image_and_hole(k))
            return k - 1, write(prefill, torch.zeros_like(k), guess)

        def complete_smallest(k: torch.Tensor, prefill: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            known = (read(prefill, torch.zeros_like(k), k), *image_and_hole(k))
            completed = mean_with_mirror_image(self.level(*map(with_mirror_image, known)))
            enlarged = self.enlarge(completed, *image_and_hole((k - 1).clamp_min(0)))
            return k - 1, write(prefill, torch.zeros_like(k), enlarged)

        def complete_level(k: torch.Tensor, prefill: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            completed = self.level(read(prefill, torch.zeros_like(k), k), *image_and_hole(k))
            enlarged = self.enlarge(completed, *image_and_hole((k - 1).clamp_min(0)))
            return k - 1, write(prefill, torch.zeros_like(k), enlarged)

        known, hole = image.masked_fill(mask > 0, 0), (mask > 0).to(image.dtype)
        finest = torch.cat([known, hole], dim=1).flatten(2)
        space = height * width + 2 * (height + width) + 2 * MOST_LEVELS  # at least what the others need
        levels = F.pad(finest, (0, space))
        _, levels = while_loop(lambda k, _: k < top, pull_level, (torch.zeros_like(top), levels))
        filled = torch.full_like(levels[:, :3], 0.5)
        _, filled = while_loop(lambda k, _: k >= last, push_level, (top, filled))
        _, filled = while_loop(lambda k, _: k >= last, guess_level, (last, filled))  # once
        below, filled = while_loop(lambda k, _: k >= last, complete_smallest, (last, filled))  # once
        _, filled = while_loop(lambda k, _: k >= 0, complete_level, (below, filled))
        output = filled[:, :, : height * width].unflatten(2, (height, width)).clamp(0, 1)
        return torch.where(mask > 0, output, image)


def at(table: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """(1,), the entry `k` (0-dimensional) of a table."""
    return table.index_select(0, k.reshape(1))


def to_exported_program(network: InpaintingNetwork, *, half: bool) -> torch.export.ExportedProgram:
    """The network as a program of torch.export of image and mask, for any batch and size."""
    _, image, mask = examples()
    sides = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    module = PackedCompletion(network, half=half).requires_grad_(False).eval()
    module.to(memory_format=torch.contiguous_format)  # saving doubts tensors of another layout
    with (
        torch.enable_grad(),  # takes the explicit softmax: the fused one asks whether there is a single query
        torch.fx.experimental._config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
        torch._dynamo.config.patch(capture_scalar_outputs=True),
    ):
        program = torch.export.export(module, (image, mask), dynamic_shapes=(sides, sides), strict=False)
    make_portable(program.graph_module)
    return program


def make_portable(program: torch.fx.GraphModule) -> None:
    """Make a program fit to be saved: without this machine's file names, and sums of sizes as additions.

    torch.export records the line of code behind every node, and `sym_sum`, which it cannot save.
    """
    for module in program.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
                node.meta.pop(name, None)
        for node in module.graph.find_nodes(op="call_function", target=torch.sym_sum):
            total, *terms = cast(list[Any], node.args[0])
            for term in terms:
                with module.graph.inserting_before(node):
                    addition = module.graph.call_function(operator.add, (total, term))
                addition.meta["val"] = value_of(total) + value_of(term)
                total = addition
            node.replace_all_uses_with(total)
            module.graph.erase_node(node)
        module.recompile()


def value_of(operand: Any) -> Any:
    return operand.meta["val"] if isinstance(operand, torch.fx.Node) else operand


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
        return torch.jit.script(Completion(pull, enlarge, guess, level, network.pyramid_base).eval())
