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

STRIDE = 8  # pixels, of the bottleneck: sides are padded to a multiple of it
PATCH_SIZES = (3, 7, 15)  # of the structure encoder
GLOBAL = 2**31  # a window larger than any image
UNKNOWN = -1e4  # attention bias of a key with nothing known under it; finite in half precision


def with_mirror_image(x: torch.Tensor) -> torch.Tensor:
    """A batch (B, C, H, W), then the mirror image of each: (2B, C, H, W)."""
    return torch.cat([x, x.flip(3)])


def mean_with_mirror_image(x: torch.Tensor) -> torch.Tensor:
    """The means of what became of each image and of its mirror image: (2B, C, H, W) to (B, C, H, W)."""
    straight, mirrored = x.chunk(2)
    return (straight + mirrored.flip(3)) / 2


class ContextEncoder(nn.Module):
    """Features of the known pixels at four scales, by partial convolutions alone.

    Shapes:
        image (B, 3, H, W) in [0, 1], any value under the hole; mask (B, 1, H, W), 1 = missing; H and W
        multiples of 8.
        Returns features [(B, C, H, W), (B, 2C, H/2, W/2), (B, 4C, H/4, W/4), (B, 4C, H/8, W/8)] and
        the mask of each: 1 where the features have seen no known pixel (and are 0).
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
        x, m = 2 * image - 1, mask
        features, masks = [], []
        for level in (self.level1, self.level2, self.level3, self.level4):
            x, m = level(x, m)
            x = activation(x)
            features.append(x)
            masks.append(m)
        return features, masks


class CoarseDecoder(nn.Module):
    """The rough completion: a bottleneck at 1/8 size that sees far, and a symmetric way up with skips.

    Bottleneck and a block at 1/4 size see the prefill as well. Predicts a residual over it, so that an
    untrained network already starts near a classical method; supervised by L1 in the hole.

    Args:
        base_channels: C.
        bottleneck_depth: residual blocks at 1/8 size, with dilations 1, 2, 4, 1, 2, 4, ...

    Shapes:
        features as `ContextEncoder` returns them; prefill (B, 3, H, W); mask (B, 1, H, W). Returns coarse
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
        seen = torch.cat([2 * prefill - 1, mask], dim=1)
        d4 = self.bottleneck(e4 + self.guide(pool(seen, STRIDE)))
        d3 = resize(self.up3(d4), like=e3) + e3 + self.guide3(pool(seen, 4))
        d3 = activation(self.block3(d3))
        d2 = activation(resize(self.up2(d3), like=e2) + e2)
        d1 = activation(resize(self.up1(d2), like=e1) + e1)
        return prefill + self.to_rgb(d1), [d1, d2, d3]


class MaskQueryCrossAttention(nn.Module):
    """Softmax attention from the image being completed to its context, biased by known pixels and structure.

        Softmax(QKᵀ/√d + α·S + log κ) V

    README, "Multi-Scale Structure Encoder"; Vaswani et al., "Attention Is All You Need", NeurIPS 2017,
    eq. 1. Tokens are averages over `stride`² features. κ is the known share of a key's patch, so that a
    key weighs what its known pixels weigh together; a key with nothing known gets the bias `UNKNOWN` and
    is heard only where no known key is in reach. S tells keys on structure from keys on flat ground.

    Args:
        channels: of x and of the result.
        context_channels: of the context, from which keys and values come.
        num_heads: each with a bias of its own.
        head_channels: d, of each head's queries, keys and values.
        scale: image pixels a feature's side.
        stride: features a token's side.
        window: tokens a side of the windows into which queries are cut, or `GLOBAL`.
        halo: tokens around a window that its queries reach as well.
        max_keys: global attention averages keys in blocks until there are no more than this.

    Shapes:
        x (B, C, H, W); context (B, C', H, W); mask and structure (B, 1, scale·H, scale·W), the image's size.
        Returns (B, C, H, W), to be added to x, and the attention (B, windows, heads, queries, keys),
        each row summing to 1, or None unless it is asked for.
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
        self.num_heads, self.head_channels, self.scale, self.stride = num_heads, head_channels, scale, stride
        self.window, self.halo, self.max_keys = window, halo, max_keys
        inner = num_heads * head_channels
        self.to_query = nn.Conv2d(channels, inner, 1)
        self.to_key = nn.Conv2d(
            context_channels, inner, 1, bias=False
        )  # its bias would cancel in the softmax
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
        if return_attention or torch.is_grad_enabled():  # the fused kernels know no gradient of the bias
            attention = torch.softmax((q @ k.transpose(2, 3)) / math.sqrt(self.head_channels) + bias, dim=-1)
            y = attention @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        y = resize(self.to_out(self.join(y, height, width)), like=x)
        if attention is None or not return_attention:
            return y, None
        return y, attention.unflatten(0, (x.shape[0], -1))

    def is_one_window(self, height: int, width: int) -> bool:
        """Whether all tokens see all keys: always in global attention, in windows on a small image."""
        return max(height, width) <= self.window

    def key_block(self, height: int, width: int) -> int:
        """Tokens a side that make one key: 1 in windows; in global attention, what `max_keys` needs."""
        block = 1
        while self.window == GLOBAL and ceil_div(height, block) * ceil_div(width, block) > self.max_keys:
            block += 1
        return block

    def pool_keys(self, x: torch.Tensor, factor: int) -> torch.Tensor:
        """Means of x (B, C, H, W) over what each key stands for, a token being `factor` values a side."""
        height, width = (ceil_div(side, factor) for side in x.shape[-2:])
        return pool(x, factor * self.key_block(height, width))

    def bias(self, mask: torch.Tensor, structure: torch.Tensor | None) -> torch.Tensor:
        """log κ, plus α·S if there is a gate, of every key: (B, heads, h, w)."""
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
        """Squares of `size` tokens, `window` apart, of (B, C, h, w): (B·windows, C, size²), row by row."""
        x = x.unfold(2, size, self.window).unfold(3, size, self.window)  # (B, C, rows, columns, size, size)
        return x.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(2)  # F.unfold goes image by image on CUDA

    def join(self, y: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The inverse of `split` without a halo: (B·windows, heads, tokens, d) to (B, heads·d, h, w)."""
        y = y.transpose(2, 3).flatten(1, 2)  # (B·windows, heads·d, tokens)
        if self.is_one_window(height, width):
            return y.unflatten(2, (height, width))
        rows, columns = ceil_div(height, self.window), ceil_div(width, self.window)
        y = y.unflatten(0, (-1, rows, columns)).unflatten(4, (self.window, self.window))
        y = y.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return y[:, :, :height, :width]


class ProgressiveRefinementModule(nn.Module):
    """Structure, then shape, then texture: three attentions of shrinking reach, all biased by one S.

    Stage 1 works at C×H×W and looks everywhere; stage 2 at 2C×H/2×W/2 and looks 32 px to each side of
    windows of 32 px; stage 3 at 4C×H/4×W/4 and looks 8 px to each side of windows of 32 px.

    Shapes:
        f0 (B, C, H, W); context [(B, C, H, W), (B, 2C, H/2, W/2), (B, 4C, H/4, W/4)]; mask (B, 1, H, W);
        structure (B, 1, H, W) or None. Returns [f1, f2, f3], shaped like the context, and the three
        attentions (see `MaskQueryCrossAttention`), or an empty list.
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
        step, map1 = self.structure_stage(f0, context[0], mask, structure, return_attention)
        f1 = f0 + step
        x = activation(self.down2(f1))
        step, map2 = self.shape_stage(x, context[1], mask, structure, return_attention)
        f2 = x + step
        x = activation(self.down3(f2))
        step, map3 = self.texture_stage(x, context[2], mask, structure, return_attention)
        f3 = x + step
        return [f1, f2, f3], [m for m in (map1, map2, map3) if m is not None]


class RefinementDecoder(nn.Module):
    """The residual ΔI of I_final = I_coarse + ΔI, from texture back up to full size; starts at zero.

    Shapes:
        [f1, f2, f3] as `ProgressiveRefinementModule` returns them. Returns (B, 3, H, W).
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
    """Completes the hole and leaves everything else as it is: Î = I ⊙ (1 - M) + G(I, M) ⊙ M.

    The image is halved until its longer side is at most `pyramid_base`, and that copy completed first, over
    a push-pull prefill that knows what pictures are like (`first_guess`), and in evaluation mode together
    with its mirror image; each completion, enlarged, is the prefill of the next size, up to the image's
    own. One set of weights serves all sizes, so that a hole is filled from as far away in a large picture
    as in a small one.

    Args:
        base_channels: C, an even number.
        use_structure_encoder: bias the attention by MSSE; without it no MSSE parameter exists.
        bottleneck_depth: residual blocks of the coarse decoder at 1/8 size.
        refinement_depth: residual blocks of the refinement decoder at 1/4 size.
        pyramid_base: longer side, in pixels, down to which the image is halved before its first completion.
        prior_rank: components of `GaussianPrior`; at 0 there is none.

    Shapes:
        image (B, 3, H, W) in [0, 1], any value (NaN included) under the hole; mask (B, 1, H, W) in {0, 1},
        1 = missing; any H and W from 1. Returns a dict of `coarse`, `refined` and `output`, (B, 3, H, W)
        (the first two clamped to [0, 1] in evaluation mode); `structure` (B, 1, H, W), if there is a
        structure encoder; `attention`, three maps (see `MaskQueryCrossAttention`), if asked for; in training
        `smaller`, for each smaller copy, the smallest first, its mask (B, 1, h, w), coarse and refined.
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
        outputs = self.complete(known, mask, return_attention)
        if not self.training:
            outputs |= {name: outputs[name].clamp(0, 1) for name in ("coarse", "refined")}
        return outputs | {"output": torch.where(mask > 0, outputs["refined"].to(image.dtype), image)}

    def complete(
        self, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False
    ) -> dict[str, Any]:
        """Complete an image that is 0 under the hole, after its smaller copies; as `forward`."""
        if max(image.shape[-2:]) <= self.pyramid_base:
            prefill = self.first_guess(image, mask)
            if self.training:
                return self.complete_over(prefill, image, mask, return_attention) | {"smaller": []}
            return self.complete_mirrored(prefill, image, mask, return_attention)
        smaller, smaller_mask = pull(image, mask)
        below = self.complete(smaller, smaller_mask)
        prefill = torch.where(smaller_mask > 0, below["refined"], smaller)
        prefill = torch.where(mask > 0, resize(prefill, like=image), image)
        outputs = self.complete_over(prefill, image, mask, return_attention)
        if self.training:
            outputs["smaller"] = [*below["smaller"], (smaller_mask, below["coarse"], below["refined"])]
        return outputs

    def complete_mirrored(
        self, prefill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False
    ) -> dict[str, Any]:
        """As `complete_over`, but the mean of the completion and of that of the mirror image, mirrored back.

        Of the smallest copy, on which all others build, this costs next to nothing.
        """
        prefills, images, masks = (with_mirror_image(x) for x in (prefill, image, mask))
        outputs = self.complete_over(prefills, images, masks, return_attention)
        for name, value in outputs.items():
            if name == "attention":
                outputs[name] = [each[: len(image)] for each in value]
            else:
                outputs[name] = mean_with_mirror_image(value)
        return outputs

    def first_guess(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Fill an image that is 0 under the hole: what the prior expects, and push-pull of what it misses."""
        guess = push_pull(image, mask)
        if self.prior is not None:
            expected = self.prior(image, mask).to(image.dtype)
            guess = guess + expected - push_pull(expected * (1 - mask), mask)  # push-pull is linear
        return torch.where(mask > 0, guess, image)

    def complete_over(
        self, prefill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False
    ) -> dict[str, Any]:
        """Complete an image that is 0 under the hole over a guess (B, 3, H, W) of the whole; as `forward`."""
        height, width = image.shape[-2:]
        border = (0, padding_to_multiple(width, STRIDE), 0, padding_to_multiple(height, STRIDE))
        if any(border):  # a padding by nothing copies too, and torch.compile mistakes its gradient's layout
            image, prefill = F.pad(image, border), F.pad(prefill, border, mode="replicate")
        hole = F.pad(mask, border, value=1)  # what lies beyond the border is as unknown as the hole
        outputs = self.complete_padded(prefill, image, hole, return_attention)
        return {
            name: value if name == "attention" else value[..., :height, :width]
            for name, value in outputs.items()
        }

    def complete_padded(
        self, prefill: torch.Tensor, image: torch.Tensor, hole: torch.Tensor, return_attention: bool = False
    ) -> dict[str, Any]:
        """As `complete_over`, of a height and width that are multiples of `STRIDE`."""
        features, masks = self.encoder(image, hole)
        coarse, decoded = self.coarse_decoder(features, prefill, hole)
        completed = torch.where(hole > 0, coarse, image)
        context = [torch.where(m > 0, d, e) for e, d, m in zip(features, decoded, masks, strict=False)]

        f0 = activation(self.embed(torch.cat([2 * completed - 1, hole], dim=1)))
        structure = self.structure_encoder(f0, hole) if self.structure_encoder is not None else None
        stages, attention = self.refinement(f0, context, hole, structure, return_attention)
        outputs: dict[str, Any] = {"coarse": coarse, "refined": coarse + self.refinement_decoder(stages)}
        if structure is not None:
            outputs["structure"] = structure
        if return_attention:
            outputs["attention"] = attention
        return outputs
