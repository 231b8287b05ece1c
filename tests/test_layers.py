"""Layers agree with their equations, worked by hand or in another way."""

import math

import pytest
import torch
import torch.nn.functional as F

from layers import ChannelNorm, PartialConv2d, ResidualBlock, activation, pool, residual_blocks, resize


def test_partial_conv_equals_its_equation_by_hand() -> None:
    conv = PartialConv2d(1, 1, padding=0)
    with torch.no_grad():
        conv.conv.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
        conv.bias.fill_(2.0)
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    m = torch.zeros(1, 1, 3, 3)
    m[..., 0, :] = 1
    y, hole = conv(x, m)
    products = sum(w * v for w, v in zip(range(3, 9), range(4, 10), strict=True))
    assert y.item() == pytest.approx(products * 9 / 6 + 2)
    assert hole.item() == 0
    y, hole = conv(x, torch.ones_like(m))
    assert y.item() == 0 and hole.item() == 1


@pytest.mark.parametrize("stride", [1, 2])
def test_partial_conv_of_known_windows_is_an_ordinary_convolution(stride: int) -> None:
    conv = PartialConv2d(3, 5, stride=stride, padding=0)
    x = torch.randn(2, 3, 11, 14)
    y, hole = conv(x, torch.zeros(2, 1, 11, 14))
    expected = F.conv2d(x, conv.conv.weight, conv.bias, stride)
    assert torch.allclose(y, expected, atol=1e-6)
    assert hole.sum() == 0


def test_partial_conv_never_reads_what_is_under_the_hole_and_shrinks_it() -> None:
    conv = PartialConv2d(3, 4)
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., 3:9, 3:9] = 1
    x = torch.randn(1, 3, 12, 12)
    y, hole = conv(x, mask)
    for junk in (1e9, math.nan, math.inf):
        assert torch.equal(conv(torch.where(mask > 0, junk, x), mask)[0], y)
    expected = torch.zeros(1, 1, 12, 12)
    expected[..., 4:8, 4:8] = 1
    assert torch.equal(hole, expected)
    assert (y * hole).abs().sum() == 0


def test_blocks_see_the_same_at_any_brightness_of_their_features() -> None:
    torch.manual_seed(0)
    block, x = ResidualBlock(8), torch.randn(1, 8, 6, 7)
    assert torch.allclose(block(50 * x) - 50 * x, block(x) - x, atol=1e-4)
    normed = ChannelNorm(8)(50 * x)
    assert torch.allclose(normed.square().mean(dim=1), torch.ones(1, 6, 7), atol=1e-4)


def test_a_new_block_is_its_equation_with_a_second_convolution_of_a_fifth() -> None:
    torch.manual_seed(0)
    block, x = ResidualBlock(32, hidden=16, dilation=2), torch.randn(1, 32, 9, 8)
    assert block.conv1.weight.std().item() == pytest.approx((3 * 32 * 9) ** -0.5, rel=0.05)
    assert block.conv2.weight.std().item() == pytest.approx(0.2 * (3 * 16 * 9) ** -0.5, rel=0.05)
    y = x / x.square().mean(dim=1, keepdim=True).add(1e-6).sqrt()
    y = F.conv2d(F.leaky_relu(y, 0.2), block.conv1.weight, block.conv1.bias, padding=2, dilation=2)
    y = F.conv2d(F.leaky_relu(y, 0.2), block.conv2.weight, block.conv2.bias, padding=1)
    torch.testing.assert_close(block(x), x + y)


def test_blocks_are_dilated_by_1_2_4_and_end_in_a_norm() -> None:
    *blocks, norm = residual_blocks(8, depth=5)
    assert [block.conv1.dilation[0] for block in blocks] == [1, 2, 4, 1, 2]
    assert isinstance(norm, ChannelNorm)


def test_the_activation_keeps_a_fifth_of_negative_values() -> None:
    assert torch.equal(activation(torch.tensor([-1.0, 2.0])), torch.tensor([-0.2, 2.0]))


def test_pooling_averages_blocks_and_what_is_left_at_the_far_border() -> None:
    x = torch.arange(15.0).view(1, 1, 3, 5)
    expected = torch.tensor([[[[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]]])
    assert torch.equal(pool(x, 2), expected)
    assert pool(x, 1) is x


def test_resizing_is_bilinear_between_the_centres_of_pixels() -> None:
    row = resize(torch.tensor([[[[0.0, 4.0]]]]), like=torch.zeros(1, 1, 1, 4))
    assert torch.equal(row, torch.tensor([[[[0.0, 1.0, 3.0, 4.0]]]]))
