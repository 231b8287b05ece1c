"""Images of what the network does: comparison grids, attention and structure as heat maps."""

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from inference.tiling import WHOLE, to_tensor, to_unit
from layers import padding_to_multiple
from models import STRIDE, InpaintingNetwork


def comparison_grid(
    image: torch.Tensor, mask: torch.Tensor, outputs: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Six columns, one row an image: Ground Truth | Mask | Masked Input | Coarse | Refined | Final Output.

    An exported network gives the last of them alone: four columns.

    Shapes:
        image (B, 3, H, W) in [0, 1], mask (B, 1, H, W), outputs of the network.
        Returns (3, B·(H+2)+2, 6·(W+2)+2).
    """
    from torchvision.utils import make_grid  # slow to import, needed only for pictures

    columns = [image, mask.expand_as(image), image * (1 - mask) + mask]
    columns += [outputs[name] for name in ("coarse", "refined", "output") if name in outputs]
    cells = torch.stack([column.detach().float().nan_to_num().clamp(0, 1).cpu() for column in columns], dim=1)
    return make_grid(cells.flatten(0, 1), nrow=len(columns), padding=2, pad_value=1.0)


def heatmap_grid(image: torch.Tensor, mask: torch.Tensor, heatmaps: dict[str, torch.Tensor]) -> torch.Tensor:
    """One row an image: Masked Input | one column a heat map, from dark (0) to bright (1).

    Shapes:
        image (B, 3, H, W) in [0, 1], mask and each heat map (B, 1, H, W) in [0, 1]; returns (3, H', W').
    """
    from torchvision.utils import make_grid  # slow to import, needed only for pictures

    columns = [(image * (1 - mask) + mask).clamp(0, 1).cpu()]
    for heat in heatmaps.values():
        values = (heat.detach().float().nan_to_num().clamp(0, 1).cpu().numpy() * 255).astype(np.uint8)
        colored = np.stack([cv2.applyColorMap(each[0], cv2.COLORMAP_VIRIDIS)[:, :, ::-1] for each in values])
        columns.append(torch.from_numpy(colored.transpose(0, 3, 1, 2) / np.float32(255)))
    return make_grid(torch.stack(columns, dim=1).flatten(0, 1), nrow=len(columns), padding=2, pad_value=1.0)


def attention_heatmaps(
    network: InpaintingNetwork, outputs: dict[str, Any], mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Pictures of where structure is and where each stage looks to fill the hole.

    Args:
        outputs: of `network`, with `return_attention=True`, for this mask (B, 1, H, W).

    Returns:
        `structure` (S; absent without MSSE), `stage 1`, `stage 2` and `stage 3`: (B, 1, H, W) in [0, 1],
        the stages scaled to a largest value of 1.
    """
    height, width = mask.shape[-2:]
    hole = F.pad(
        mask, (0, padding_to_multiple(width, STRIDE), 0, padding_to_multiple(height, STRIDE)), value=1
    )
    module = network.refinement
    stages = (module.structure_stage, module.shape_stage, module.texture_stage)
    maps = {"structure": outputs["structure"]} if "structure" in outputs else {}
    for number, (stage, attention) in enumerate(zip(stages, outputs["attention"], strict=True), start=1):
        heat = F.interpolate(stage.heatmap(attention, hole), size=hole.shape[-2:], mode="nearest")
        heat = heat[..., :height, :width]
        maps[f"stage {number}"] = heat / heat.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    return maps


def viridis(values: np.ndarray) -> np.ndarray:
    """Colours from dark (0) to bright (1): (H, W) in [0, 1], clipped, to (H, W, 3) uint8."""
    grey = (np.nan_to_num(values).clip(0, 1) * 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def small_copy(pixels: np.ndarray, missing: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture and its hole at `WHOLE` pixels a side or less, to draw the stages of its completion.

    Shapes:
        pixels (H, W, 1 or 3) of any type; missing (H, W) bool. Returns (1, 3, h, w) in [0, 1] and
        (1, 1, h, w), 1 = missing.
    """
    scale = min(1, WHOLE / max(missing.shape))
    size = tuple(max(1, round(side * scale)) for side in missing.shape[::-1])
    image = np.atleast_3d(cv2.resize(to_unit(pixels), size, interpolation=cv2.INTER_AREA))
    mask = cv2.resize(missing.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    return to_tensor(image).expand(-1, 3, -1, -1), torch.from_numpy(mask)[None, None]
