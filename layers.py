"""Layers that the network is built of: partial convolution, normalisation, residual blocks, resampling."""

import torch
import torch.nn.functional as F
from torch import nn


def activation(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, 0.2)


def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bilinear resampling to the height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def ceil_div(side: int, unit: int) -> int:
    """How many units cover a side: ⌈side / unit⌉, of positive terms because exporters' division truncates."""
    return (side + unit - 1) // unit


def padding_to_multiple(side: int, unit: int) -> int:
    """What `side` lacks to be a multiple of `unit`."""
    return ceil_div(side, unit) * unit - side


def zero_module(module: nn.Module) -> nn.Module:
    """Start `module` at zero: the residual that it predicts begins as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class PartialConv2d(nn.Module):
    """Convolution over the known pixels only, with the hole shrunk by what the window could reach.

        y = W * (x (1 - m)) · k² / max(1 * (1 - m), 1) + b,    m' = [1 * (1 - m) == 0]

    and y = 0 where m' = 1. Liu et al., "Image Inpainting for Irregular Holes Using Partial
    Convolutions", ECCV 2018, eq. 1-2; their mask marks *known* pixels, ours marks missing ones. Pixels
    beyond the border count as missing. A fully known window gives an ordinary convolution.

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
    """Scales the channels of each position to a root mean square of 1, then each by a learnt factor.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019, eq. 4, over channels alone:
    what is normalised does not depend on the size of the image, nor on the rest of it.

    Shapes:
        (B, C, H, W) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # squares overflow half precision
        factor = torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + 1e-6)
        return x * factor.to(x.dtype) * self.scale[:, None, None].to(x.dtype)


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(norm(x))))), 3×3, the second convolution started small.

    Shapes:
        (B, C, H, W) to the same.
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
    """Residual blocks with dilations 1, 2, 4, 1, ..., and the norm of what they add up to."""
    blocks = (ResidualBlock(channels, hidden, dilation=(1, 2, 4)[i % 3]) for i in range(depth))
    return nn.Sequential(*blocks, ChannelNorm(channels))


def pool(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Means of factor×factor blocks; incomplete blocks at the far border are means of what they hold."""
    return x if factor == 1 else F.avg_pool2d(x, factor, ceil_mode=True)
