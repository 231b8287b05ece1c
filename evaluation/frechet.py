"""Fréchet distance between completions and true images, by torchmetrics."""

from pathlib import Path

import torch
from torch import nn

from utils import UserError

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's InceptionV3, as in the original FID


class FrechetDistance:
    """Accumulates images of both kinds; Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge
    to a Local Nash Equilibrium", NeurIPS 2017, eq. 6.

    Biased upwards for few images: compare only values of equal n, and not below some thousands with papers'.

    Args:
        weights: file of InceptionV3's weights; None for the one in torch's download cache.
        feature: another network of (B, 3, H, W) uint8 to (B, D), in place of InceptionV3.

    Raises:
        UserError: if torchmetrics or the weights are missing; nothing is downloaded.
    """

    def __init__(self, weights: str | None, device: torch.device, feature: nn.Module | None = None) -> None:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance  # optional, slow to import

            path = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
            if feature is None and not path.is_file():
                raise UserError(
                    f"--fid: no InceptionV3 weights: put {WEIGHTS} at {path}, or name it by --fid_weights"
                )
            self.metric = FrechetInceptionDistance(
                feature or 2048, feature_extractor_weights_path=str(path)
            ).to(device)
        except ModuleNotFoundError:
            raise UserError(
                "--fid: needs torchmetrics and torch-fidelity: pip install torchmetrics torch-fidelity"
            ) from None
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(
                f"--fid_weights: not InceptionV3's: {path} ({str(error).splitlines()[0][:100]})"
            ) from None

    def update(self, pred: torch.Tensor, target: torch.Tensor) -> None:
        """Add pairs (B, 3, H, W) in [0, 1], rounded to 8 bits as files are."""
        for images, real in ((pred, False), (target, True)):
            self.metric.update((images.clamp(0, 1) * 255).round().byte(), real=real)

    def compute(self) -> float | None:
        """The distance over all images so far, 0 or more; None of fewer than two."""
        if int(self.metric.real_features_num_samples) < 2:
            return None
        return float(self.metric.compute())
