"""First guess of the hole: conditional mean of a Gaussian prior (PPCA), and push-pull interpolation."""

import torch
import torch.nn.functional as F
from torch import nn

from layers import resize

NOISE_INFLATION = 12  # neighbouring pixels are correlated: 12 of them count as one independent value
MIN_NOISE = 1e-4  # variance; keeps the equations solvable if there are too few images to leave any


def resampling(count: int, step: torch.Tensor | float, side: int) -> torch.Tensor:
    """Weights of a linear resampling of `side` values to `count`, around the middle: (count, side).

    Args:
        step: distance between two results, in input values, at least 1; each averages as many.
    """
    wanted = (torch.arange(count) + 0.5 - count / 2) * step + side / 2
    distance = (wanted[:, None] - (torch.arange(side) + 0.5)).abs()
    weights = (1 - distance / step).clamp_min(0)
    return weights / weights.sum(dim=1, keepdim=True)


class GaussianPrior(nn.Module):
    """Conditional mean of an image given its known pixels, under a Gaussian with few components.

        x = μ + Bz + ε,  z ~ N(0, I),  ε ~ N(0, σ²I)
        E[μ + Bz | known x] = μ + B (BᵀKB + σ²I)⁻¹ BᵀK (x - μ),  K = diag(1 - m)

    Tipping and Bishop, "Probabilistic Principal Component Analysis", Journal of the Royal Statistical
    Society B 61, 1999, with the sums over the known pixels alone. Fitted in closed form, not trained. Before
    `fit`, B = 0 and μ is grey, so that the mean is grey.

    Args:
        rank: number of components, columns of B.
        side: height and width of the components in pixels; they are scaled to the longer side of smaller and
            oblong images, which use their middle.

    Shapes:
        image (B, 3, H, W) in [0, 1], 0 under the hole; mask (B, 1, H, W), 1 = missing. Returns the
        expectation of the whole image (B, 3, H, W), in the precision of the prior.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    noise: torch.Tensor

    def __init__(self, rank: int, side: int) -> None:
        super().__init__()
        self.rank = rank
        self.side = side
        self.register_buffer("mean", torch.full((1, 3 * side * side), 0.5))
        self.register_buffer("basis", torch.zeros(rank, 3 * side * side))  # Bᵀ
        self.register_buffer("noise", torch.tensor(1.0))  # σ²

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.autocast(image.device.type, enabled=False):
            mean, basis = self.scaled_to(*image.shape[-2:])
            matrix, right = self.equations(mean, basis, image, mask)
            return (mean + self.solve(matrix, right) @ basis).view(image.shape)

    def solve(self, matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Solution (B, rank) of the positive definite `equations`."""
        return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))[:, :, 0]

    def equations(
        self, mean: torch.Tensor, basis: torch.Tensor, image: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normal equations of z: BᵀKB + σ²I (B, rank, rank) and BᵀK (x - μ) (B, rank, 1)."""
        known = (1 - mask.to(mean)).expand(-1, 3, -1, -1).flatten(1)  # the diagonal of K
        misfit = (image.to(mean).flatten(1) - mean) * known
        matrix = (basis * known[:, None]) @ basis.t()
        matrix = matrix + self.noise * torch.eye(self.rank, device=image.device)
        return matrix, (misfit @ basis.t())[:, :, None]

    def scaled_to(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (1, 3·height·width) and components (rank, 3·height·width) at the size of an image."""
        if height == self.side and width == self.side:
            return self.mean, self.basis
        return self.resampled(height, width, self.side / max(height, width))

    def resampled(
        self, height: int, width: int, step: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and components of `scaled_to` where a pixel spans `step` pixels of the components."""
        rows, columns = (resampling(n, step, self.side).to(self.mean) for n in (height, width))
        images = torch.cat([self.mean, self.basis]).unflatten(1, (3, self.side, self.side))
        images = (rows @ images @ columns.t()).flatten(1)
        return images[:1], images[1:]

    @torch.no_grad()
    def fit(self, images: torch.Tensor) -> None:
        """Fit μ, B and σ² to images (N, 3, side, side) in [0, 1] and their mirror images.

        B holds the leading principal components, each as long as its standard deviation. σ² is
        `NOISE_INFLATION` times the mean variance that they do not explain.
        """
        rows = torch.cat([images, images.flip(3)]).flatten(1)
        mean = rows.mean(dim=0, keepdim=True)
        rows -= mean
        rank = min(self.rank, *rows.shape)
        _, deviations, axes = torch.svd_lowrank(rows, q=min(rank + 32, *rows.shape), niter=4)
        variances = deviations[:rank].square() / len(rows)
        unexplained = rows.square().sum() / len(rows) - variances.sum()
        self.mean.copy_(mean)
        self.basis.zero_()
        self.basis[:rank] = (axes[:, :rank] * variances.sqrt()).t()
        self.noise.fill_(max(MIN_NOISE, NOISE_INFLATION * unexplained.item() / max(1, rows.shape[1] - rank)))

    def forget(self) -> None:
        """Return to the state before `fit`, so that `InpaintingNetwork.first_guess` is push-pull alone."""
        self.mean.fill_(0.5)
        self.basis.zero_()
        self.noise.fill_(1.0)


def pull(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Halve an image with a hole: means of the known pixels of 2×2 blocks, missing where there are none.

    Shapes:
        image (B, C, H, W), 0 under the hole; mask (B, 1, H, W), 1 = missing. Returns both at (⌈H/2⌉, ⌈W/2⌉).
    """
    share = F.avg_pool2d(1 - mask, 2, ceil_mode=True)
    mean = F.avg_pool2d(image, 2, ceil_mode=True) / share.clamp_min(0.25)  # 1/4 is one pixel
    return mean, (share == 0).to(mask.dtype)


def push_pull(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Fill the hole smoothly from a pyramid of averages over known pixels; no parameters.

    Pull: halve until one pixel is left. Push: from the top, every missing pixel takes the bilinearly
    enlarged value of the level above. After Gortler et al., "The Lumigraph", SIGGRAPH 1996, section
    3.4.2; our weights are 0 or 1 at every level.

    Shapes:
        image (B, C, H, W), 0 under the hole; mask (B, 1, H, W), 1 = missing. Returns (B, C, H, W), equal
        to `image` where known; 0.5 everywhere if nothing is known.
    """
    levels = [(image, mask)]
    while max(levels[-1][0].shape[-2:]) > 1:
        levels.append(pull(*levels[-1]))
    filled = torch.full_like(levels[-1][0], 0.5)
    for fine, hole in reversed(levels):
        filled = torch.where(hole > 0, resize(filled, like=fine), fine)
    return filled
