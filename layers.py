"""Layers of the network: resampling, partial convolution, normalisation, residual blocks."""

import torch
import torch.nn.functional as F
from torch import nn


def activation(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, 0.2)


def pool(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Means of factor×factor blocks; an incomplete block at the far border is the mean of its values."""
    return x if factor == 1 else F.avg_pool2d(x, factor, ceil_mode=True)


def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bilinear resampling to the height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def ceil_div(side: int, unit: int) -> int:
    """Number of units that cover a side, ⌈side / unit⌉, in positive terms, as exported divisions truncate."""
    return (side + unit - 1) // unit


def padding_to_multiple(side: int, unit: int) -> int:
    """Pixels to add to `side` to make it a multiple of `unit`."""
    return ceil_div(side, unit) * unit - side


def zero_module(module: nn.Module) -> nn.Module:
    """Set the parameters of a module to zero, so that the residual that it predicts starts at zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class PartialConv2d(nn.Module):
    """Convolution over the known pixels only, which shrinks the hole to where its window saw none.

        y = W * (x (1 - m)) · k² / max(1 * (1 - m), 1) + b,    m' = [1 * (1 - m) == 0]

    and y = 0 where m' = 1. Liu et al., "Image Inpainting for Irregular Holes Using Partial
    Convolutions", ECCV 2018, eq. 1-2; their mask marks *known* pixels, ours marks missing ones. Pixels
    beyond the border count as missing. In a fully known window, it is an ordinary convolution.

    Shapes:
        x (B, C_in, H, W), any value under the hole; m (B, 1, H, W), 1 = missing.
        Returns y (B, C_out, H', W') and m' (B, 1, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.padding = kernel_size // 2 if padding is None else padding
        self.stride = stride
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, self.padding, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        window = self.conv.kernel_size[0]
        with torch.no_grad():
            known = 1 - mask.float()
            mean = F.avg_pool2d(known, window, self.stride, self.padding)
            count = (mean * window**2).round()  # not divisor_override=1, which the ONNX exporter drops
            reached = (count > 0).float()
            ratio = reached * window**2 / count.clamp_min(1)
        y = self.conv(x.masked_fill(mask > 0, 0))
        y = y * ratio.to(y.dtype) + self.bias[:, None, None].to(y.dtype) * reached.to(y.dtype)
        return y, (1 - reached).to(mask.dtype)


class ChannelNorm(nn.Module):
    """Scales the channels of each position to a root mean square of 1, then each by a learned factor.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019, eq. 4, over channels alone,
    so that a position does not depend on the size of the image, nor on other positions.

    Shapes:
        (B, C, H, W) to (B, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squares = x.to(torch.promote_types(x.dtype, torch.float32)).square()  # half precision overflows
        factor = torch.rsqrt(squares.mean(dim=1, keepdim=True) + 1e-6)
        return x * factor.to(x.dtype) * self.scale[:, None, None].to(x.dtype)


class ResidualBlock(nn.Module):
    """Residual block x + conv(act(conv(act(norm(x))))) of 3×3 convolutions, the second one initially small.

    Shapes:
        (B, C, H, W) to (B, C, H, W).
    """

    def __init__(self, channels: int, hidden: int | None = None, dilation: int = 1) -> None:
        super().__init__()
        hidden = hidden or channels
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(activation(self.conv1(activation(self.norm(x)))))


def residual_blocks(channels: int, depth: int, hidden: int | None = None) -> nn.Sequential:
    """Residual blocks with dilations 1, 2, 4, 1, ..., followed by a norm."""
    blocks = (ResidualBlock(channels, hidden, dilation=(1, 2, 4)[i % 3]) for i in range(depth))
    return nn.Sequential(*blocks, ChannelNorm(channels))
