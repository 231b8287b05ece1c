import math

import numpy as np
import pytest
import torch
from conftest import photograph, randomize_zero_init
from torch import nn

from config import PRESETS, get_config
from inference.visualize import attention_heatmaps
from losses import InpaintingLoss
from metrics import psnr
from models import UNKNOWN, InpaintingNetwork, MaskQueryCrossAttention
from prior import pull, push_pull

Batch = tuple[torch.Tensor, torch.Tensor]
WHOLE = 2**31  # a pyramid base that no image is larger than


@pytest.fixture(scope="module")
def network() -> InpaintingNetwork:
    torch.manual_seed(0)
    network = randomize_zero_init(InpaintingNetwork(base_channels=16, prior_rank=8)).eval()
    network.prior.fit(torch.rand(40, 3, 32, 32))  # type: ignore[union-attr]
    return network


# --- attention


def attention_module(**changes: object) -> MaskQueryCrossAttention:
    torch.manual_seed(0)
    arguments = {
        "channels": 8,
        "context_channels": 8,
        "num_heads": 2,
        "head_channels": 4,
        "use_structure": True,
        "scale": 1,
    }
    return MaskQueryCrossAttention(**(arguments | changes))  # type: ignore[arg-type]


SCOPES = [{}, {"max_keys": 20}, {"window": 4, "halo": 2}, {"window": 4, "halo": 2, "stride": 2}]


@pytest.mark.parametrize("scope", SCOPES)
def test_attention_rows_sum_to_one_and_the_fused_kernel_agrees(scope: dict) -> None:
    module = attention_module(**scope)
    x, context = torch.randn(2, 2, 8, 13, 18).unbind()
    mask = (torch.rand(2, 1, 13, 18) > 0.5).float()
    S = torch.rand(2, 1, 13, 18)
    y, attention = module(x, context, mask, S, return_attention=True)
    assert attention is not None
    assert torch.allclose(attention.sum(dim=-1), torch.ones(()), atol=1e-5)
    with torch.no_grad():
        fused, none = module(x, context, mask, S)
    assert none is None
    assert torch.allclose(y, fused, atol=1e-5)


def test_global_attention_equals_the_equation() -> None:
    module = attention_module(num_heads=1, head_channels=8)
    x, context = torch.randn(2, 1, 8, 3, 4).unbind()
    mask = torch.zeros(1, 1, 3, 4)
    mask[..., 0, 0] = 1
    S = torch.rand(1, 1, 3, 4)
    y, _ = module(x, context, mask, S)
    q, k, v = (
        layer(z).flatten(2)[0].T
        for layer, z in ((module.to_query, x), (module.to_key, context), (module.to_value, context))
    )
    assert module.gate is not None
    B = module.gate.alpha * S.flatten() + torch.where(mask.flatten() > 0, UNKNOWN, 0)
    expected = torch.softmax(q @ k.T / math.sqrt(8) + B, dim=-1) @ v
    expected = module.to_out(expected.T.view(1, 8, 3, 4))
    assert torch.allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("scope", SCOPES)
def test_changing_structure_changes_the_attention(scope: dict) -> None:
    module = attention_module(**scope)
    x, context = torch.randn(2, 1, 8, 12, 12).unbind()
    mask = torch.zeros(1, 1, 12, 12)
    S = torch.rand(1, 1, 12, 12)
    _, before = module(x, context, mask, S, return_attention=True)
    _, after = module(x, context, mask, 1 - S, return_attention=True)
    assert (before - after).abs().max() > 1e-3


def test_unknown_keys_win_only_where_no_known_key_is_in_reach() -> None:
    module = attention_module(window=4, halo=0)
    x, context = torch.randn(2, 1, 8, 4, 8).unbind()
    mask = torch.zeros(1, 1, 4, 8)
    mask[..., :4] = 1  # the left window has no known pixel
    mask[..., 1, 5] = 1  # one pixel of the right window is missing
    _, attention = module(x, 100 * context, mask, torch.rand(1, 1, 4, 8), return_attention=True)
    left, right = attention[0]
    assert torch.allclose(left.sum(dim=-1), torch.ones(()))
    assert right[..., 5].max() == 0
    assert left.amax() > 0.1


def test_a_key_weighs_as_much_as_its_known_pixels() -> None:
    module = attention_module(stride=2, use_structure=False)
    mask = torch.zeros(1, 1, 2, 4)
    mask[..., 0, :2] = 1  # half of the first key
    same = torch.ones(1, 8, 2, 4)
    _, attention = module(same, same, mask, return_attention=True)
    assert torch.allclose(attention[0, 0, :, 0], torch.tensor([1 / 3, 2 / 3]), atol=1e-6)


# --- the whole network


@pytest.mark.parametrize("junk", [0.7, 1e9, -1e9, math.nan, math.inf])
def test_nothing_under_the_hole_is_read(network: InpaintingNetwork, batch: Batch, junk: float) -> None:
    image, mask = batch
    with torch.no_grad():
        expected = network(image, mask)
        outputs = network(torch.where(mask > 0, junk, image), mask)
    for name in ("coarse", "refined", "output", "structure"):
        assert torch.equal(outputs[name], expected[name]), name


def test_the_output_is_the_input_outside_the_hole_and_refined_inside(
    network: InpaintingNetwork, batch: Batch
) -> None:
    image, mask = batch
    outputs = network(image, mask)
    hole = mask.expand_as(image) > 0
    assert torch.equal(outputs["output"][~hole], image[~hole])
    assert torch.equal(outputs["output"][hole], outputs["refined"][hole])


def test_a_batch_gives_each_image_what_it_gets_alone(network: InpaintingNetwork, batch: Batch) -> None:
    image, mask = batch
    with torch.no_grad():
        together = network(image, mask)["output"]
        alone = torch.cat([network(image[i : i + 1], mask[i : i + 1])["output"] for i in range(2)])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (8, 8), (9, 31), (40, 24), (65, 66)])
@pytest.mark.parametrize("hole", ["empty", "full", "half"])
def test_any_size_and_hole(network: InpaintingNetwork, size: tuple[int, int], hole: str) -> None:
    image = torch.rand(1, 3, *size)
    mask = {"empty": torch.zeros, "full": torch.ones, "half": torch.zeros}[hole](1, 1, *size)
    if hole == "half":
        mask[..., : size[1] // 2] = 1
    outputs = network(image, mask, return_attention=True)
    assert outputs["output"].shape == image.shape
    assert outputs["output"].isfinite().all()
    assert len(outputs["attention"]) == 3
    for attention in outputs["attention"]:
        assert torch.allclose(attention.sum(dim=-1), torch.ones(()), atol=1e-5)
    for heat in attention_heatmaps(network, outputs, mask).values():
        assert heat.shape == mask.shape and heat.min() >= 0 and heat.max() <= 1
    if hole == "empty":
        assert torch.equal(outputs["output"], image)


def test_maps_are_returned_on_request_and_structure_with_msse(batch: Batch) -> None:
    outputs = InpaintingNetwork(16, use_structure_encoder=False).eval()(*batch)
    assert set(outputs) == {"coarse", "refined", "output"}


def test_in_training_the_completions_of_the_smaller_copies_are_given(batch: Batch) -> None:
    image, mask = batch
    network = InpaintingNetwork(4, pyramid_base=16).train()
    outputs = network(image, mask)
    side = image.shape[-1]
    assert [hole.shape[-1] for hole, *_ in outputs["smaller"]] == [-(-side // 4), -(-side // 2)]
    smaller, smaller_mask = pull(image.masked_fill(mask > 0, 0), mask)
    hole, coarse, refined = outputs["smaller"][-1]
    alone = network(smaller, smaller_mask)
    assert torch.equal(hole, smaller_mask)
    assert torch.equal(coarse, alone["coarse"]) and torch.equal(refined, alone["refined"])


def test_without_msse_no_parameter_of_it_exists() -> None:
    plain = InpaintingNetwork(16, use_structure_encoder=False)
    assert not [name for name, _ in plain.named_parameters() if "structure_encoder" in name or "gate" in name]
    full = InpaintingNetwork(16)
    assert {n for n, _ in full.named_parameters()} > {n for n, _ in plain.named_parameters()}


def test_an_untrained_network_is_its_prefill(batch: Batch) -> None:
    image, mask = batch
    outputs = InpaintingNetwork(16, pyramid_base=WHOLE).eval()(image, mask)
    prefill = push_pull(image * (1 - mask), mask)
    for name in ("coarse", "refined"):
        assert torch.allclose(outputs[name], prefill, atol=1e-6)


def test_every_stage_and_the_smaller_scales_change_the_output(batch: Batch) -> None:
    torch.manual_seed(0)
    network = randomize_zero_init(InpaintingNetwork(16)).eval()
    image, mask = batch
    expected = network(image, mask)["output"]
    stages = network.refinement
    for layer in (stages.structure_stage, stages.shape_stage, stages.texture_stage):
        weight = layer.to_out.weight.detach().clone()
        nn.init.zeros_(layer.to_out.weight)
        assert not torch.equal(network(image, mask)["output"], expected)
        with torch.no_grad():
            layer.to_out.weight.copy_(weight)
    network.pyramid_base = WHOLE
    assert not torch.equal(network(image, mask)["output"], expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_of_every_preset_gets_a_gradient(preset: str, batch: Batch) -> None:
    torch.manual_seed(0)
    network = randomize_zero_init(InpaintingNetwork(**get_config(preset).architecture()))
    image, mask = batch
    InpaintingLoss()(network(image, mask), image, mask)["total"].backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not without


def test_the_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    network = randomize_zero_init(InpaintingNetwork(4, bottleneck_depth=1, pyramid_base=16)).double()
    image, mask = torch.rand(1, 3, 17, 18, dtype=torch.float64), torch.zeros(1, 1, 17, 18).double()
    mask[..., 3:12, 4:14] = 1

    def loss() -> torch.Tensor:
        return network(image, mask)["refined"].square().mean()

    loss().backward()
    for name in ("encoder.level1.conv.weight", "refinement.structure_stage.gate.alpha", "embed.weight"):
        parameter = network.get_parameter(name)
        assert parameter.grad is not None
        position = parameter.grad.abs().argmax()
        slope = parameter.grad.flatten()[position].item()
        flat = parameter.detach().view(-1)
        values = []
        for step in (1e-8, -2e-8):
            flat[position] += step
            values.append(loss().item())
        flat[position] += 1e-8  # a small step: a leaky ReLU has its kink nearby
        assert (values[0] - values[1]) / 2e-8 == pytest.approx(slope, rel=1e-3), name


def test_default_has_the_specified_size_and_cost() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = InpaintingNetwork(**get_config("default").architecture()).eval()
    assert 2e6 <= sum(p.numel() for p in network.state_dict().values()) <= 3.3e6
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 60:150, 60:150] = 1
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.rand(1, 3, 256, 256), mask)
    assert counter.get_total_flops() / 2 <= 10e9


def test_channels_last_gives_the_same(network: InpaintingNetwork, batch: Batch) -> None:
    image, mask = batch
    expected = network(image, mask)["output"]
    outputs = network(image.to(memory_format=torch.channels_last), mask)["output"]
    assert torch.allclose(outputs, expected, atol=1e-4)


def test_bfloat16_autocast_stays_close_and_finite(network: InpaintingNetwork, batch: Batch) -> None:
    image, mask = batch
    expected = network(image, mask)["output"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network(image, mask)["output"]
    assert outputs.isfinite().all()
    assert (outputs - expected).abs().mean() < 0.02


def test_odd_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="base_channels"):
        InpaintingNetwork(15)


def test_one_batch_is_overfitted_to_30_db() -> None:
    image = torch.from_numpy(np.stack([photograph(48, 48, seed=i) for i in range(2)])).permute(0, 3, 1, 2)
    image = image.float() / 255
    mask = torch.zeros(2, 1, 48, 48)
    mask[:1, :, 15:33, 12:30] = 1
    mask[1:, :, 8:23, 22:45] = 1
    torch.manual_seed(0)
    network = InpaintingNetwork(16, pyramid_base=WHOLE)  # the smaller copies add time, not capacity
    criterion = InpaintingLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    reached = 0.0
    for step in range(1000):
        outputs = network(image, mask)
        losses = criterion(outputs, image, mask)
        optimizer.zero_grad()
        losses["total"].backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 1000)
        optimizer.step()
        if step % 20 == 19:
            reached = psnr(outputs["output"], image, mask).mean().item()
            if reached >= 30:
                break
    assert reached >= 30


def test_one_window_that_holds_the_whole_image_is_global_attention() -> None:
    x, context = torch.randn(2, 2, 8, 5, 7).unbind()
    mask = (torch.rand(2, 1, 5, 7) > 0.5).float()
    S = torch.rand(2, 1, 5, 7)
    windowed, attention = attention_module(window=8, halo=2)(x, context, mask, S, return_attention=True)
    everywhere, expected = attention_module()(x, context, mask, S, return_attention=True)
    assert torch.equal(windowed, everywhere) and torch.equal(attention, expected)


def test_the_smallest_copy_is_completed_with_its_mirror_image(batch: Batch) -> None:
    network = randomize_zero_init(InpaintingNetwork(16)).eval()
    mask = batch[1][..., :24, :31]
    known = batch[0][..., :24, :31] * (1 - mask)
    guess = network.first_guess(known, mask)
    outputs = network(known, mask, return_attention=True)
    straight = network.complete_from_prefill(guess, known, mask)
    mirrored = network.complete_from_prefill(guess.flip(3), known.flip(3), mask.flip(3))
    for name in ("coarse", "refined", "structure"):
        mean = (straight[name] + mirrored[name].flip(3)) / 2
        torch.testing.assert_close(outputs[name], mean.clamp(0, 1), atol=1e-5, rtol=0)
    assert (straight["refined"] - mirrored["refined"].flip(3)).abs().max() > 1e-3
    assert all(len(attention) == len(known) for attention in outputs["attention"])
    trained = network.train()(known, mask)
    torch.testing.assert_close(trained["refined"], straight["refined"], atol=1e-5, rtol=0)
