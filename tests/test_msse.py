import pytest
import torch

from msse import DepthwiseConv2d, MultiScaleStructureEncoder, StructureAwareAttentionGate


def test_structure_is_a_confidence_at_every_pixel() -> None:
    encoder = MultiScaleStructureEncoder(in_channels=32)
    S = encoder(10 * torch.randn(2, 32, 19, 23), torch.ones(2, 1, 19, 23))
    assert S.shape == (2, 1, 19, 23)
    assert S.min() >= 0 and S.max() <= 1 and S.std() > 0.01


def test_structure_tells_known_pixels_apart_far_from_the_hole() -> None:
    torch.manual_seed(0)
    encoder = MultiScaleStructureEncoder(in_channels=8)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :8, :8] = 1
    S = encoder(10 * torch.randn(1, 8, 64, 64), mask)
    assert S[..., 32:, 32:].std() > 0.01  # a constant would cancel in the softmax over known keys


def test_structure_weighs_the_two_sides_of_the_mask_differently() -> None:
    torch.manual_seed(0)
    encoder = MultiScaleStructureEncoder(in_channels=8)
    x = torch.randn(1, 8, 32, 32)
    hole, known = torch.ones(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    assert not torch.allclose(encoder(x, hole), encoder(x, known), atol=1e-3)
    with torch.no_grad():
        encoder.reduce_known.weight.zero_()
    assert torch.equal(encoder(x, known), encoder(torch.zeros_like(x), known))


@pytest.mark.parametrize("size", [3, 7, 15])
def test_each_scale_reaches_as_far_as_its_patch(size: int) -> None:
    torch.manual_seed(0)
    encoder = MultiScaleStructureEncoder(in_channels=32, patch_sizes=(size,))
    x = torch.randn(1, 32, 41, 41, requires_grad=True)
    encoder(x, torch.ones(1, 1, 41, 41))[0, 0, 20, 20].backward()
    assert x.grad is not None
    reached = x.grad.abs().sum(dim=1)[0].nonzero()
    assert reached.min() == 20 - size // 2 and reached.max() == 20 + size // 2


def test_even_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_sizes"):
        MultiScaleStructureEncoder(8, patch_sizes=(3, 4))


def test_the_gate_is_alpha_times_structure_per_head() -> None:
    gate = StructureAwareAttentionGate(num_heads=3)
    with torch.no_grad():
        gate.alpha.copy_(torch.tensor([0.0, 1.0, -2.0]))
    S = torch.rand(2, 1, 4, 5)
    assert torch.equal(gate(S), torch.cat([0 * S, S, -2 * S], dim=1))


@pytest.mark.parametrize("size", [(7, 1), (1, 15)])
def test_a_dense_convolution_stands_in_for_the_depthwise_one(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, x = DepthwiseConv2d(6, size).double(), torch.randn(2, 6, 19, 23).double()
    expected, dense = layer(x), layer.as_dense(x)
    torch.testing.assert_close(dense, expected)
    gradients = [torch.autograd.grad(y.square().sum(), layer.weight)[0] for y in (expected, dense)]
    torch.testing.assert_close(*gradients)


def test_a_new_gate_prefers_structure_in_every_head() -> None:
    S = torch.rand(1, 1, 3, 4)
    assert torch.equal(StructureAwareAttentionGate(num_heads=2)(S), S.expand(1, 2, 3, 4))
