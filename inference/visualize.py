"""Draws the parts of a completion: comparison grids, attention and structure as heat maps."""

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from inference.tiling import WHOLE, to_tensor, to_unit
from layers import ceil_div, padding_to_multiple, pool
from models import STRIDE, InpaintingNetwork, MaskQueryCrossAttention


def comparison_grid(
    image: torch.Tensor, mask: torch.Tensor, outputs: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Six columns, one row per image: Ground Truth | Mask | Masked Input | Coarse | Refined | Final Output.

    An exported network gives the last of them alone: four columns.

    Shapes:
        image (B, 3, H, W) in [0, 1], mask (B, 1, H, W), outputs of the network.
        Returns (3, B·(H+2)+2, 6·(W+2)+2).
    """
    columns = [image, mask.expand_as(image), image * (1 - mask) + mask]
    columns += [outputs[name] for name in ("coarse", "refined", "output") if name in outputs]
    return grid_of([column.detach().float().nan_to_num().clamp(0, 1).cpu() for column in columns])


def heatmap_grid(image: torch.Tensor, mask: torch.Tensor, heatmaps: dict[str, torch.Tensor]) -> torch.Tensor:
    """One row per image: Masked Input | one column per heat map, from dark (0) to bright (1).

    Shapes:
        image (B, 3, H, W) in [0, 1], mask and each heat map (B, 1, H, W) in [0, 1]; returns (3, H', W').
    """
    columns = [(image * (1 - mask) + mask).clamp(0, 1).cpu()]
    for heatmap in heatmaps.values():
        colors = np.stack([viridis(values) for values in heatmap.detach().float().cpu().numpy()[:, 0]])
        columns.append(torch.from_numpy(colors.transpose(0, 3, 1, 2) / np.float32(255)))
    return grid_of(columns)


def grid_of(columns: list[torch.Tensor]) -> torch.Tensor:
    """Images (B, 3, H, W) of every column, side by side in B rows with white lines between: (3, H', W')."""
    cells = F.pad(torch.stack(columns, dim=1), (2, 0, 2, 0), value=1.0)  # (B, columns, 3, H + 2, W + 2)
    grid = cells.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return F.pad(grid, (0, 2, 0, 2), value=1.0)


def viridis(values: np.ndarray) -> np.ndarray:
    """Colours from dark (0) to bright (1): (H, W) in [0, 1], clipped, to (H, W, 3) uint8."""
    grey = (np.nan_to_num(values).clip(0, 1) * 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def attention_heatmaps(
    network: InpaintingNetwork, outputs: dict[str, Any], mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Heat maps of the structure, and of the context that each stage attends to from the hole.

    Args:
        outputs: of `network`, with `return_attention=True`, for this mask (B, 1, H, W).

    Returns:
        `structure` (S; absent without MSSE), `stage 1`, `stage 2` and `stage 3`: (B, 1, H, W) in [0, 1],
        the stages scaled to a largest value of 1.
    """
    height, width = mask.shape[-2:]
    border = (0, padding_to_multiple(width, STRIDE), 0, padding_to_multiple(height, STRIDE))
    padded = F.pad(mask, border, value=1)
    module = network.refinement
    stages = (module.structure_stage, module.shape_stage, module.texture_stage)
    heatmaps = {"structure": outputs["structure"]} if "structure" in outputs else {}
    for number, (stage, attention) in enumerate(zip(stages, outputs["attention"], strict=True), start=1):
        shares = attention_shares(stage, attention, padded)
        shares = F.interpolate(shares, size=padded.shape[-2:], mode="nearest")[..., :height, :width]
        heatmaps[f"stage {number}"] = shares / shares.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    return heatmaps


def attention_shares(
    stage: MaskQueryCrossAttention, attention: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Share of the hole's attention that each key gets: (B, 1, h, w), at the resolution of the keys.

    Args:
        attention: of `stage`, for this mask (B, 1, H, W).
    """
    queries = pool(mask.float(), stage.scale * stage.stride)
    height, width = queries.shape[-2:]
    queries = stage.split(queries.expand(-1, stage.num_heads, -1, -1))  # (B·windows, heads, queries, 1)
    shares = (attention.flatten(0, 1) * queries).sum(dim=2).mean(dim=1).unflatten(0, (mask.shape[0], -1))
    if stage.is_one_window(height, width):
        shares = shares.unflatten(2, (-1, ceil_div(width, stage.key_block(height, width))))
    else:
        side = stage.window + 2 * stage.halo
        rows, columns = ceil_div(height, stage.window), ceil_div(width, stage.window)
        size = (rows * stage.window + 2 * stage.halo, columns * stage.window + 2 * stage.halo)
        shares = F.fold(shares.transpose(1, 2), size, side, stride=stage.window)
        shares = shares[:, :, stage.halo :, stage.halo :][:, :, :height, :width]
    return shares / shares.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)


def small_copy(image: np.ndarray, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """An image and its mask at `WHOLE` pixels per side or less, to draw the stages of its completion.

    Shapes:
        image (H, W, 1 or 3) of any type; mask (H, W) bool. Returns (1, 3, h, w) in [0, 1] and (1, 1, h, w).
    """
    scale = min(1, WHOLE / max(mask.shape))
    size = tuple(max(1, round(side * scale)) for side in mask.shape[::-1])
    small = np.atleast_3d(cv2.resize(to_unit(image), size, interpolation=cv2.INTER_AREA))
    small_mask = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    return to_tensor(small).expand(-1, 3, -1, -1), torch.from_numpy(small_mask)[None, None]


@torch.inference_mode()
def draw_stages(network: InpaintingNetwork, image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """The coarse completion of a small copy, S, and the attention of each stage, (h, w, 3) uint8 by name.

    Shapes:
        image (H, W, 1 or 3) of any type; mask (H, W) bool.
    """
    x, m = (value.to(network.device) for value in small_copy(image, mask))
    outputs = network(x, m, return_attention=True)
    coarse = torch.where(m > 0, outputs["coarse"], x)[0].clamp(0, 1).permute(1, 2, 0)
    stages = {"coarse": (coarse.cpu().numpy() * 255).round().astype(np.uint8)}
    for name, heatmap in attention_heatmaps(network, outputs, m).items():
        stages[name] = viridis(heatmap[0, 0].cpu().numpy())
    return stages
