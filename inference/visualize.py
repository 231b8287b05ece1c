"""Images of what the network does: comparison grids, attention and structure as heat maps."""

import cv2
import numpy as np
import torch


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
