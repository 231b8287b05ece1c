"""Heat maps show where the hole attends, and grids have their columns."""

import numpy as np
import pytest
import torch
from conftest import photograph

from inference.checkpoints import load_network
from inference.visualize import attention_shares, comparison_grid, draw_stages, heatmap_grid, viridis
from models import MaskQueryCrossAttention

SCOPES = [{}, {"max_keys": 20}, {"window": 4, "halo": 2}, {"window": 4, "halo": 2, "stride": 2}]


@pytest.mark.parametrize("scope", SCOPES)
def test_the_heatmap_is_where_the_hole_attends(scope: dict) -> None:
    torch.manual_seed(0)
    stage = MaskQueryCrossAttention(
        channels=8, context_channels=8, num_heads=2, head_channels=4, use_structure=True, scale=1, **scope
    )
    x, context = torch.randn(2, 2, 8, 12, 16).unbind()
    mask = torch.zeros(2, 1, 12, 16)
    mask[0, :, 4:8, 4:8] = 1
    _, attention = stage(x, context, mask, torch.rand(2, 1, 12, 16), return_attention=True)
    shares = attention_shares(stage, attention, mask)
    assert shares[0].sum().item() == pytest.approx(1, abs=1e-5)
    assert shares[1].abs().sum() == 0  # no hole, no attention
    if scope == {"window": 4, "halo": 2}:
        assert shares[0, 0, 4:8, 4:8].sum() == 0  # nothing is known there
        assert shares[0, 0, :, 10:].sum() == 0  # out of reach


def test_the_grid_has_six_columns(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, mask = batch
    outputs = {"coarse": image, "refined": image * 0, "output": image}
    grid = comparison_grid(image, mask, outputs)
    assert grid.shape == (3, 2 * (37 + 2) + 2, 6 * (51 + 2) + 2)
    column = grid[:, 2:39, 4 * 53 + 2 : 5 * 53]
    assert column.abs().max() == 0  # the fifth is `refined`


def test_a_heat_map_is_a_column_in_the_colours_of_viridis(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, mask = batch
    grid = heatmap_grid(image, mask, {"structure": mask * 0.6})
    assert grid.shape == (3, 2 * (37 + 2) + 2, 2 * (51 + 2) + 2)
    column = grid[:, 2:39, 53 + 2 : 2 * 53].permute(1, 2, 0)
    expected = viridis(mask[0, 0].numpy() * 0.6) / np.float32(255)
    assert np.array_equal(column.numpy(), expected)


def test_the_stages_are_drawn_at_most_at_the_size_of_one_piece() -> None:
    network, _ = load_network("default", torch.device("cpu"))
    mask = np.zeros((300, 1024), bool)
    mask[20:40, 30:60] = True
    stages = draw_stages(network, photograph(300, 1024), mask)
    assert list(stages) == ["coarse", "structure", "stage 1", "stage 2", "stage 3"]
    for stage in stages.values():
        assert stage.shape == (150, 512, 3) and stage.dtype == np.uint8 and stage.std() > 0
