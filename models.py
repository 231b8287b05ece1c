"""The network: partial-convolution encoder, coarse decoder, structure-biased attention, refinement."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from layers import (
    ChannelNorm,
    PartialConv2d,
    activation,
    ceil_div,
    padding_to_multiple,
    pool,
    residual_blocks,
    resize,
    zero_module,
)
from msse import MultiScaleStructureEncoder, StructureAwareAttentionGate
from prior import GaussianPrior, pull, push_pull

STRIDE = 8  # pixels per feature of the bottleneck; sides are padded to a multiple of it
PATCH_SIZES = (3, 7, 15)  # kernel sizes of the structure encoder, in pixels
GLOBAL = 2**31  # window of global attention: larger than any image
UNKNOWN = -1e4  # attention bias of a key without known pixels; finite in half precision, unlike -inf


def with_mirror_image(x: torch.Tensor) -> torch.Tensor:
    """Append the mirror image of each image to a batch: (B, C, H, W) to (2B, C, H, W)."""
    return torch.cat([x, x.flip(3)])


def mean_with_mirror_image(x: torch.Tensor) -> torch.Tensor:
    """Average a batch with its mirrored second half, mirrored back: (2B, C, H, W) to (B, C, H, W)."""
    straight, mirrored = x.chunk(2)
    return (straight + mirrored.flip(3)) / 2


def padding_to_stride(image: torch.Tensor) -> tuple[int, int, int, int]:
    """Padding (left, right, top, bottom) that makes the sides of an image multiples of `STRIDE`."""
    height, width = image.shape[-2:]
    return 0, padding_to_multiple(width, STRIDE), 0, padding_to_multiple(height, STRIDE)


class ContextEncoder(nn.Module):
    """Features of the known pixels at four scales, by partial convolutions alone.

    Shapes:
        image (B, 3, H, W) in [0, 1], any value under the hole; mask (B, 1, H, W), 1 = missing; H and W
        multiples of 8.
        Returns features [(B, C, H, W), (B, 2C, H/2, W/2), (B, 4C, H/4, W/4), (B, 4C, H/8, W/8)] and
        the mask of each scale: 1 where no known pixel was in reach, and the features are 0.
    """

    def __init__(self, base_channels: int) -> None:
        super().__init__()
        C = base_channels
        self.level1 = PartialConv2d(3, C, kernel_size=5)
        self.level2 = PartialConv2d(C, 2 * C, stride=2)
        self.level3 = PartialConv2d(2 * C, 4 * C, stride=2)
        self.level4 = PartialConv2d(4 * C, 4 * C, stride=2)

    def forward(
        self, image: torch.Tensor, mask: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        x = 2 * image - 1
        features, masks = [], []
        for level in (self.level1, self.level2, self.level3, self.level4):
            x, mask = level(x, mask)
            x = activation(x)
            features.append(x)
            masks.append(mask)
        return features, masks


class CoarseDecoder(nn.Module):
    """Coarse completion: a bottleneck at 1/8 size with a large receptive field, then upsampling with skips.

    The bottleneck and a block at 1/4 size also get the prefill. The decoder predicts a residual over it, so
    that an untrained network already starts near a classical method.

    Args:
        base_channels: C.
        bottleneck_depth: residual blocks at 1/8 size, with dilations 1, 2, 4, 1, 2, 4, ...

    Shapes:
        features of `ContextEncoder`; prefill (B, 3, H, W) in [0, 1]; mask (B, 1, H, W). Returns coarse
        (B, 3, H, W) and decoded features [(B, C, H, W), (B, 2C, H/2, W/2), (B, 4C, H/4, W/4)].
    """

    def __init__(self, base_channels: int, bottleneck_depth: int) -> None:
        super().__init__()
        C = base_channels
        self.guide = nn.Conv2d(4, 4 * C, 3, padding=1)
        self.bottleneck = nn.Sequential(ChannelNorm(4 * C), *residual_blocks(4 * C, bottleneck_depth))
        self.up3 = nn.Conv2d(4 * C, 4 * C, 1)
        self.guide3 = nn.Conv2d(4, 4 * C, 3, padding=1)
        self.block3 = residual_blocks(4 * C, depth=1, hidden=2 * C)
        self.up2 = nn.Conv2d(4 * C, 2 * C, 1)
        self.up1 = nn.Conv2d(2 * C, C, 1)
        self.to_rgb = zero_module(nn.Conv2d(C, 3, 1))

    def forward(
        self, features: list[torch.Tensor], prefill: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        e1, e2, e3, e4 = features
        guide = torch.cat([2 * prefill - 1, mask], dim=1)
        d4 = self.bottleneck(e4 + self.guide(pool(guide, STRIDE)))
        d3 = resize(self.up3(d4), like=e3) + e3 + self.guide3(pool(guide, 4))
        d3 = activation(self.block3(d3))
        d2 = activation(resize(self.up2(d3), like=e2) + e2)
        d1 = activation(resize(self.up1(d2), like=e1) + e1)
        return prefill + self.to_rgb(d1), [d1, d2, d3]


class MaskQueryCrossAttention(nn.Module):
    """Softmax attention from the image being completed to its context, biased by known pixels and structure.

        Softmax(QKᵀ/√d + α·S + log κ) V

    docs/METHOD.md, "Multi-Scale Structure Encoder"; Vaswani et al., "Attention Is All You Need", NeurIPS
    2017, eq. 1. All tokens query; the mask enters as a bias of the keys. Tokens are averages over `stride`²
    features. κ is the known share of a key's patch, so that a key weighs as much as its known pixels
    together; a key without known pixels gets the bias `UNKNOWN` and is attended to only if no known key is
    in reach. S tells keys on structure from keys on flat ground.

    The softmax is computed explicitly if its weights or a gradient are needed, because the fused kernel does
    not differentiate the bias; otherwise, the fused kernel saves memory.

    Args:
        channels: channels of x and of the result.
        context_channels: channels of the context, from which keys and values come.
        num_heads: number of heads, each with its own bias.
        head_channels: d, the channels of each head's queries, keys and values.
        use_structure: whether S biases the attention.
        scale: image pixels per feature, along a side.
        stride: features per token, along a side.
        window: tokens per side of the windows into which queries are cut, or `GLOBAL`.
        halo: tokens around a window that its queries reach as well.
        max_keys: limit above which global attention averages keys in blocks.

    Shapes:
        x (B, C, H, W); context (B, C', H, W); mask and structure (B, 1, scale·H, scale·W), the image's size.
        Returns (B, C, H, W), to be added to x, and the attention weights (B, windows, heads, queries, keys)
        if `return_attention`, else None. Each row of weights sums to 1.
    """

    def __init__(
        self,
        *,
        channels: int,
        context_channels: int,
        num_heads: int,
        head_channels: int,
        use_structure: bool,
        scale: int,
        stride: int = 1,
        window: int = GLOBAL,
        halo: int = 0,
        max_keys: int = 1024,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_channels = head_channels
        self.scale = scale
        self.stride = stride
        self.window = window
        self.halo = halo
        self.max_keys = max_keys
        inner = num_heads * head_channels
        self.to_query = nn.Conv2d(channels, inner, 1)
        self.to_key = nn.Conv2d(context_channels, inner, 1, bias=False)  # a bias cancels in the softmax
        self.to_value = nn.Conv2d(context_channels, inner, 1)
        self.to_out = nn.Conv2d(inner, channels, 1)
        self.gate = StructureAwareAttentionGate(num_heads) if use_structure else None

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor,
        mask: torch.Tensor,
        structure: torch.Tensor | None = None,
        return_attention: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens = pool(x, self.stride)
        height, width = tokens.shape[-2:]
        keys = self.pool_keys(context, self.stride)

        q = self.split(self.to_query(tokens))  # (B·windows, heads, queries, d)
        k = self.split(self.to_key(keys), halo=self.halo)
        v = self.split(self.to_value(keys), halo=self.halo)
        bias = self.bias(mask, structure).to(q.dtype)  # (B, heads, h, w)
        # (B·windows, heads, 1, keys): every query of a window sees the same bias
        bias = self.split(bias, halo=self.halo, outside=-math.inf).transpose(2, 3)
        attention = None
        if return_attention or q.requires_grad:
            weights = torch.softmax((q @ k.transpose(2, 3)) / math.sqrt(self.head_channels) + bias, dim=-1)
            y = weights @ v
            if return_attention:
                attention = weights.unflatten(0, (x.shape[0], -1))
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return resize(self.to_out(self.join(y, height, width)), like=x), attention

    def is_one_window(self, height: int, width: int) -> bool:
        """Tell whether every query sees every key: in global attention, and in windows on a small image."""
        return max(height, width) <= self.window

    def key_block(self, height: int, width: int) -> int:
        """Tokens per side that make one key: 1 in windows; in global attention, what `max_keys` needs."""
        block = 1
        while self.window == GLOBAL and ceil_div(height, block) * ceil_div(width, block) > self.max_keys:
            block += 1
        return block

    def pool_keys(self, x: torch.Tensor, factor: int) -> torch.Tensor:
        """Means of x (B, C, H, W) over the patch of each key; a token has `factor` values per side."""
        height, width = (ceil_div(side, factor) for side in x.shape[-2:])
        return pool(x, factor * self.key_block(height, width))

    def bias(self, mask: torch.Tensor, structure: torch.Tensor | None) -> torch.Tensor:
        """Attention bias of every key, log κ, plus α·S if there is a gate: (B, heads, h, w).

        `exporters.traceable.ShapeAgnosticAttention` extends it for exported networks.
        """
        factor = self.scale * self.stride
        known = self.pool_keys(1 - mask.float(), factor)
        bias = torch.where(known > 0, torch.log(known.clamp_min(1e-6)), UNKNOWN)
        bias = bias.expand(-1, self.num_heads, -1, -1)
        if self.gate is not None and structure is not None:
            bias = bias + self.gate(self.pool_keys(structure, factor))
        return bias

    def split(self, x: torch.Tensor, *, halo: int = 0, outside: float = 0.0) -> torch.Tensor:
        """Cut (B, heads·d, h, w) into (B·windows, heads, tokens, d), with `outside` beyond the border."""
        if self.is_one_window(*x.shape[-2:]):
            return x.unflatten(1, (self.num_heads, -1)).flatten(3).transpose(2, 3)
        bottom, right = (padding_to_multiple(side, self.window) for side in x.shape[-2:])
        x = F.pad(x, (halo, right + halo, halo, bottom + halo), value=outside)
        x = self.windows(x, self.window + 2 * halo)
        return x.unflatten(1, (self.num_heads, -1)).transpose(2, 3)

    def windows(self, x: torch.Tensor, size: int) -> torch.Tensor:
        """Squares of `size` tokens, `window` apart: (B, C, h, w) to (B·windows, C, size²), row by row."""
        x = x.unfold(2, size, self.window).unfold(3, size, self.window)  # (B, C, rows, columns, size, size)
        return x.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(2)  # F.unfold is slow on CUDA

    def join(self, y: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Invert `split` without a halo: (B·windows, heads, tokens, d) to (B, heads·d, h, w)."""
        y = y.transpose(2, 3).flatten(1, 2)  # (B·windows, heads·d, tokens)
        if self.is_one_window(height, width):
            return y.unflatten(2, (height, width))
        rows, columns = ceil_div(height, self.window), ceil_div(width, self.window)
        y = y.unflatten(0, (-1, rows, columns)).unflatten(4, (self.window, self.window))
        y = y.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return y[:, :, :height, :width]


class ProgressiveRefinementModule(nn.Module):
    """Three cross-attention stages of shrinking reach: structure, shape, texture, all biased by the same S.

    Stage 1 works at C×H×W and attends globally; stage 2 at 2C×H/2×W/2, in windows of 32 px plus 32 px to
    each side; stage 3 at 4C×H/4×W/4, in windows of 32 px plus 8 px to each side.

    Shapes:
        f0 (B, C, H, W); context [(B, C, H, W), (B, 2C, H/2, W/2), (B, 4C, H/4, W/4)]; mask (B, 1, H, W);
        structure (B, 1, H, W) or None. Returns [f1, f2, f3], shaped like the context, and the three
        attention maps (see `MaskQueryCrossAttention`) if `return_attention`, else an empty list.
    """

    def __init__(self, base_channels: int, use_structure: bool) -> None:
        super().__init__()
        C = base_channels

        def stage(level: int, heads: int, stride: int, window: int, halo: int) -> MaskQueryCrossAttention:
            return MaskQueryCrossAttention(
                channels=level * C,
                context_channels=level * C,
                num_heads=heads,
                head_channels=max(1, C // 2),
                use_structure=use_structure,
                scale=level,
                stride=stride,
                window=window,
                halo=halo,
            )

        self.structure_stage = stage(1, heads=2, stride=8, window=GLOBAL, halo=0)
        self.down2 = nn.Conv2d(C, 2 * C, 3, stride=2, padding=1)
        self.shape_stage = stage(2, heads=4, stride=4, window=4, halo=4)
        self.down3 = nn.Conv2d(2 * C, 4 * C, 3, stride=2, padding=1)
        self.texture_stage = stage(4, heads=4, stride=1, window=8, halo=2)

    def forward(
        self,
        f0: torch.Tensor,
        context: list[torch.Tensor],
        mask: torch.Tensor,
        structure: torch.Tensor | None,
        return_attention: bool = False,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        residual, map1 = self.structure_stage(f0, context[0], mask, structure, return_attention)
        f1 = f0 + residual
        x = activation(self.down2(f1))
        residual, map2 = self.shape_stage(x, context[1], mask, structure, return_attention)
        f2 = x + residual
        x = activation(self.down3(f2))
        residual, map3 = self.texture_stage(x, context[2], mask, structure, return_attention)
        f3 = x + residual
        return [f1, f2, f3], [m for m in (map1, map2, map3) if m is not None]


class RefinementDecoder(nn.Module):
    """Decodes the refined features to the residual ΔI of I_refined = I_coarse + ΔI; starts at zero.

    Shapes:
        [f1, f2, f3] of `ProgressiveRefinementModule`. Returns (B, 3, H, W).
    """

    def __init__(self, base_channels: int, refinement_depth: int) -> None:
        super().__init__()
        C = base_channels
        self.blocks = residual_blocks(4 * C, refinement_depth, hidden=2 * C)
        self.up2 = nn.Conv2d(4 * C, 2 * C, 1)
        self.fuse2 = nn.Conv2d(2 * C, 2 * C, 3, padding=1)
        self.up1 = nn.Conv2d(2 * C, C, 1)
        self.to_rgb = zero_module(nn.Conv2d(C, 3, 3, padding=1))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        f1, f2, f3 = features
        x = self.blocks(f3)
        x = activation(self.fuse2(activation(resize(self.up2(x), like=f2) + f2)))
        x = activation(resize(self.up1(x), like=f1) + f1)
        return self.to_rgb(x)


class InpaintingNetwork(nn.Module):
    """Completes the hole and leaves all other pixels unchanged: Î = I ⊙ (1 - M) + G(I, M) ⊙ M.

    The image is halved until its longer side is at most `pyramid_base`. That copy is completed first, over
    the prefill of prior and push-pull (`first_guess`); in evaluation mode, the completion is averaged with
    that of its mirror image. Each completion, enlarged, is the prefill of the next larger size. All sizes
    share one set of weights, so that a hole is filled from as far away in a large image as in a small one.

    Args:
        base_channels: C, an even number.
        use_structure_encoder: bias the attention by MSSE; without it, no MSSE parameter exists.
        bottleneck_depth: residual blocks of the coarse decoder at 1/8 size.
        refinement_depth: residual blocks of the refinement decoder at 1/4 size.
        pyramid_base: longer side in pixels, at most, of the copy that is completed first.
        prior_rank: number of components of `GaussianPrior`; 0 for none.

    Shapes:
        image (B, 3, H, W) in [0, 1], any value (NaN included) under the hole; mask (B, 1, H, W) in {0, 1},
        1 = missing; any H and W from 1. Returns a dict of `coarse`, `refined` and `output`, (B, 3, H, W)
        (the first two clamped to [0, 1] in evaluation mode); `structure` (B, 1, H, W) with a structure
        encoder; `attention`, three maps (see `MaskQueryCrossAttention`), with `return_attention`; `smaller`
        in training mode, mask (B, 1, h, w), coarse and refined of each smaller copy, the smallest first.
    """

    def __init__(
        self,
        base_channels: int = 32,
        use_structure_encoder: bool = True,
        bottleneck_depth: int = 2,
        refinement_depth: int = 1,
        pyramid_base: int = 32,
        prior_rank: int = 0,
    ) -> None:
        super().__init__()
        if base_channels < 2 or base_channels % 2:
            raise ValueError(f"base_channels must be even and positive, got {base_channels}")
        if pyramid_base < 1:
            raise ValueError(f"pyramid_base must be positive, got {pyramid_base}")
        self.pyramid_base = pyramid_base
        self.prior = GaussianPrior(prior_rank, pyramid_base) if prior_rank else None
        self.encoder = ContextEncoder(base_channels)
        self.coarse_decoder = CoarseDecoder(base_channels, bottleneck_depth)
        self.embed = nn.Conv2d(4, base_channels, 3, padding=1)
        self.structure_encoder = (
            MultiScaleStructureEncoder(base_channels, PATCH_SIZES) if use_structure_encoder else None
        )
        self.refinement = ProgressiveRefinementModule(base_channels, use_structure=use_structure_encoder)
        self.refinement_decoder = RefinementDecoder(base_channels, refinement_depth)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def forward(
        self, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False
    ) -> dict[str, Any]:
        known = image.masked_fill(mask > 0, 0)
        outputs = self.complete_pyramid(known, mask, return_attention)
        if not self.training:
            outputs |= {name: outputs[name].clamp(0, 1) for name in ("coarse", "refined")}
        return outputs | {"output": torch.where(mask > 0, outputs["refined"].to(image.dtype), image)}

    def complete_pyramid(
        self, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False
    ) -> dict[str, Any]:
        """Complete an image, 0 under the hole, over its enlarged smaller copy, completed likewise.

        Returns the dict of `forward` without `output`, not clamped.
        """
        if max(image.shape[-2:]) <= self.pyramid_base:
            prefill = self.first_guess(image, mask)
            if self.training:
                return self.complete_from_prefill(prefill, image, mask, return_attention) | {"smaller": []}
            return self.complete_with_mirror_image(prefill, image, mask, return_attention)
        smaller, smaller_mask = pull(image, mask)
        below = self.complete_pyramid(smaller, smaller_mask)
        prefill = torch.where(smaller_mask > 0, below["refined"], smaller)
        prefill = torch.where(mask > 0, resize(prefill, like=image), image)
        outputs = self.complete_from_prefill(prefill, image, mask, return_attention)
        if self.training:
            outputs["smaller"] = [*below["smaller"], (smaller_mask, below["coarse"], below["refined"])]
        return outputs

    def first_guess(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Fill an image, 0 under the hole, by the prior's expectation plus push-pull of its known error."""
        guess = push_pull(image, mask)
        if self.prior is not None:
            expected = self.prior(image, mask).to(image.dtype)
            guess = guess + expected - push_pull(expected * (1 - mask), mask)  # push-pull is linear
        return torch.where(mask > 0, guess, image)

    def complete_with_mirror_image(
        self, prefill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False
    ) -> dict[str, Any]:
        """Average `complete_from_prefill` of an image and of its mirror image; attention maps are unmirrored.

        At the smallest copy, on which all larger ones build, this costs next to nothing.
        """
        prefills, images, masks = (with_mirror_image(x) for x in (prefill, image, mask))
        outputs = self.complete_from_prefill(prefills, images, masks, return_attention)
        attention = outputs.pop("attention", [])
        outputs = {name: mean_with_mirror_image(value) for name, value in outputs.items()}
        return outputs | ({"attention": [x[: len(image)] for x in attention]} if return_attention else {})

    def complete_from_prefill(
        self, prefill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False
    ) -> dict[str, Any]:
        """Complete an image, 0 under the hole, at its own size alone, over a prefill (B, 3, H, W) of it.

        Pads to multiples of `STRIDE`. Returns the dict of `forward` without `output`, not clamped.
        """
        height, width = image.shape[-2:]
        border = padding_to_stride(image)
        if any(border):  # a padding by nothing copies too, and torch.compile mistakes its gradient's layout
            image, prefill = F.pad(image, border), F.pad(prefill, border, mode="replicate")
        hole = F.pad(mask, border, value=1)  # pixels beyond the border are as unknown as the hole
        outputs = self.run_stages(prefill, image, hole, return_attention)
        return {name: x if name == "attention" else x[..., :height, :width] for name, x in outputs.items()}

    def run_stages(
        self, prefill: torch.Tensor, image: torch.Tensor, hole: torch.Tensor, return_attention: bool = False
    ) -> dict[str, Any]:
        """Run the parts of the network in turn on sides that are multiples of `STRIDE`."""
        encoded, masks = self.encoder(image, hole)
        coarse, decoded = self.coarse_decoder(encoded, prefill, hole)
        completed = torch.where(hole > 0, coarse, image)
        scales = zip(encoded[:3], decoded, masks[:3], strict=True)  # all but 1/8 size
        context = [torch.where(m > 0, d, e) for e, d, m in scales]
        f0 = activation(self.embed(torch.cat([2 * completed - 1, hole], dim=1)))
        structure = self.structure_encoder(f0, hole) if self.structure_encoder is not None else None
        stages, attention = self.refinement(f0, context, hole, structure, return_attention)
        outputs: dict[str, Any] = {"coarse": coarse, "refined": coarse + self.refinement_decoder(stages)}
        outputs |= {"structure": structure} if structure is not None else {}
        return outputs | ({"attention": attention} if return_attention else {})
