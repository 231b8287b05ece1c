"""Mask-aware multi-scale structure encoding, and the attention bias that it gives."""

import torch
import torch.nn.functional as F
from torch import nn


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution with zero padding that keeps the size.

    On CUDA, it is a dense convolution whose kernels between different channels are 0: with few channels, it
    costs little, whereas cuDNN's gradient of grouped weights took a fifth of a training step.

    Shapes:
        (B, C, H, W) to (B, C, H, W).
    """

    def __init__(self, channels: int, kernel_size: tuple[int, int], bias: bool = True) -> None:
        padding = (kernel_size[0] // 2, kernel_size[1] // 2)
        super().__init__(channels, channels, kernel_size, padding=padding, groups=channels, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.as_dense(x) if x.is_cuda else super().forward(x)

    def as_dense(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.diag_embed(self.weight[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)
        return F.conv2d(x, weight.contiguous(), self.bias, padding=self.padding)


class MultiScaleStructureEncoder(nn.Module):
    """Structure confidence at every pixel, from features on both sides of the mask at several scales.

        S = σ( Σ_k f_k(X ⊙ M, X ⊙ (1 - M)) )

    docs/METHOD.md, "Multi-Scale Structure Encoder". X are features of the coarsely *completed* image: the
    encoder's partial convolutions give 0 under the hole, so that their X ⊙ M would be empty. X ⊙ M alone
    would not do either: S biases *keys*, the keys that count are known, and beyond 7 pixels from the hole S
    would be constant on them, which cancels in the softmax. Each f_k is a 1×1 reduction with separate
    weights for either side of the mask, a separable depthwise k×k convolution (k×1, then 1×k: 2k products
    per pixel instead of k²), a ReLU, and a 1×1 projection to one channel.

    Args:
        in_channels: channels of X.
        patch_sizes: odd kernel sizes k in pixels, small for edges, large for layout.
        hidden_ratio: channels inside f_k, relative to `in_channels` (at least one).

    Shapes:
        features (B, C, H, W); mask (B, 1, H, W), 1 = missing. Returns S (B, 1, H, W) in [0, 1].
    """

    def __init__(
        self, in_channels: int = 32, patch_sizes: tuple[int, ...] = (3, 7, 15), hidden_ratio: float = 0.25
    ) -> None:
        super().__init__()
        if not patch_sizes or any(size < 1 or size % 2 == 0 for size in patch_sizes):
            raise ValueError(f"patch_sizes must be odd and positive, got {patch_sizes}")
        hidden = max(1, round(in_channels * hidden_ratio))
        self.reduce = nn.Conv2d(in_channels, hidden * len(patch_sizes), 1)  # all 1×1 reductions together
        self.reduce_known = nn.Conv2d(in_channels, hidden * len(patch_sizes), 1, bias=False)
        self.scales = nn.ModuleList(
            nn.Sequential(
                DepthwiseConv2d(hidden, (size, 1), bias=False),
                DepthwiseConv2d(hidden, (1, size)),
                nn.ReLU(),
            )
            for size in patch_sizes
        )
        self.project = nn.Conv2d(hidden * len(patch_sizes), 1, 1)  # all last 1×1 projections, and their sum

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        dtype = self.project.weight.dtype
        with torch.autocast(features.device.type, enabled=False):  # depthwise in bfloat16 is slow on CPUs
            features, mask = features.to(dtype), mask.to(dtype)
            reduced = self.reduce(features * mask) + self.reduce_known(features * (1 - mask))
            parts = zip(self.scales, reduced.chunk(len(self.scales), dim=1), strict=True)
            response = torch.cat([scale(x) for scale, x in parts], dim=1)
            return torch.sigmoid(self.project(response))


class StructureAwareAttentionGate(nn.Module):
    """Attention bias from structure, B_structure = α · S, with one learned α per head.

    docs/METHOD.md, "Multi-Scale Structure Encoder": Softmax(QKᵀ/√d + α·S)V. S is averaged over each key's
    patch. α starts at 1, so that structure is preferred from the first step and S receives a gradient.

    Shapes:
        structure (B, 1, h, w) in [0, 1], at the resolution of the keys. Returns (B, heads, h, w).
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(num_heads))

    def forward(self, structure: torch.Tensor) -> torch.Tensor:
        return self.alpha[:, None, None] * structure

    def extra_repr(self) -> str:
        return f"num_heads={self.alpha.numel()}"
