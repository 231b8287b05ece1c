"""Loss terms of the network, each averaged per image over its own region, and their schedule."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from metrics import boundary_band, dilate, load_trunk

RMS_EPSILON = 1e-6  # added to the squared error, to bound the gradient of its root; 60 dB
GRADIENT_EPSILON = 1e-4  # added to the squared gradient; an edge well below it has no direction


def masked_mean(values: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Mean of values (B, C, H, W) over the pixels of a region (B, 1, H, W): (B,), 0 for an empty region."""
    total = (values * region).sum(dim=(1, 2, 3))
    return total / (region.sum(dim=(1, 2, 3)) * values.shape[1]).clamp_min(1)


def masked_l1(pred: torch.Tensor, target: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference per image over its region: (B,)."""
    return masked_mean((pred - target).abs(), region)


def masked_rms(pred: torch.Tensor, target: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Root mean square difference per image over its region: (B,); PSNR is its logarithm."""
    return torch.sqrt(masked_mean((pred - target).square(), region) + RMS_EPSILON)


RECONSTRUCTION = {"l1": masked_l1, "rms": masked_rms}


class _FilterBank(nn.Module):
    """3×3 filters on every channel, with the border repeated: (B, C, H, W) to (B, C, N, H, W)."""

    kernels: torch.Tensor

    def __init__(self, kernels: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("kernels", kernels[:, None], persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, C, H, W = x.shape
        x = F.pad(x.reshape(B * C, 1, H, W), (1, 1, 1, 1), mode="replicate")
        return F.conv2d(x, self.kernels).reshape(B, C, -1, H, W)


class SobelEdgeDetector(_FilterBank):
    """Horizontal and vertical derivatives of every channel, per pixel (a ramp of slope 1 gives 1).

    Shapes:
        (B, C, H, W) to (B, C, 2, H, W): ∂/∂x, ∂/∂y.
    """

    def __init__(self) -> None:
        dx = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        super().__init__(torch.stack([dx, dx.T]))


class LaplacianEdgeDetector(_FilterBank):
    """Second derivatives of every channel; their first two sum to the isotropic nine-point Laplacian.

    The kernels of ∂²/∂x² are [1, -2, 1] across and [1, 10, 1] / 12 along, so that
    ∂²/∂x² + ∂²/∂y² = [[1, 4, 1], [4, -20, 4], [1, 4, 1]] / 6.

    Shapes:
        `forward`: (B, C, H, W) to the Laplacian (B, C, H, W).
        `second_derivatives`: (B, C, H, W) to (B, C, 3, H, W): xx, yy, xy.
    """

    def __init__(self) -> None:
        dxx = torch.outer(torch.tensor([1.0, 10.0, 1.0]) / 12, torch.tensor([1.0, -2.0, 1.0]))
        dxy = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]]) / 4
        super().__init__(torch.stack([dxx, dxx.T, dxy]))

    def second_derivatives(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second_derivatives(x)[:, :, :2].sum(dim=2)


class CornerDetector(nn.Module):
    """Corner response C(I) = ΔI - ∂²I/∂n²: the Laplacian minus the part that a straight edge explains.

    n is the direction of the Sobel gradient g, so that C(I) = ΔI - gᵀHg / |g|² is the second derivative
    *along* the edge: 0 on a straight edge however strong, large where an edge bends or ends. Kitchen
    and Rosenfeld, "Gray-Level Corner Detection", 1982. On flat ground, where n is undefined, it is ΔI.

    Shapes:
        x (B, C, H, W); gradient (B, C, 2, H, W), its Sobel gradient if known. Returns (B, C, H, W).
    """

    def __init__(self) -> None:
        super().__init__()
        self.sobel = SobelEdgeDetector()
        self.laplacian = LaplacianEdgeDetector()

    def forward(self, x: torch.Tensor, gradient: torch.Tensor | None = None) -> torch.Tensor:
        gradient = self.sobel(x) if gradient is None else gradient
        gx, gy = gradient.unbind(dim=2)
        dxx, dyy, dxy = self.laplacian.second_derivatives(x).unbind(dim=2)
        across = dxx * gx**2 + dyy * gy**2 + 2 * dxy * gx * gy
        return dxx + dyy - across / (gx**2 + gy**2 + GRADIENT_EPSILON)


def color_statistics(x: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of every channel over a region (B, 1, H, W): (B, 2C)."""
    count = region.sum(dim=(2, 3)).clamp_min(1)
    mean = (x * region).sum(dim=(2, 3)) / count
    variance = ((x - mean[:, :, None, None]).square() * region).sum(dim=(2, 3)) / count
    return torch.cat([mean, torch.sqrt(variance + 1e-6)], dim=1)


class Term(NamedTuple):
    """Default weight λ of a loss term, and the factors on it at the start and at the end of training."""

    weight: float
    start: float = 1.0
    end: float = 1.0


# A term has a row here, its value in `InpaintingLoss.forward`, and its `lambda_*` in `config.Config`.
TERMS = {
    "coarse": Term(1.0, 1.0, 0.5),
    "refine": Term(1.0),
    "edge": Term(0.5, 0.5, 1.0),
    "corner": Term(0.3, 0.3, 1.0),
    "color": Term(0.5, 0.5, 1.0),
    "smaller": Term(0.3),
    "perceptual": Term(0.0),
}


def loss_weights(progress: float, **lambdas: float) -> dict[str, float]:
    """Weights of terms; docs/METHOD.md, "Progressive loss weighting": coarse first, edges and corners later.

    Args:
        progress: fraction of the training done, in [0, 1].
        lambdas: λ of terms by name.
    """
    return {
        name: weight * (TERMS[name].start + (TERMS[name].end - TERMS[name].start) * progress)
        for name, weight in lambdas.items()
    }


class PerceptualLoss(nn.Module):
    """L1 between VGG16 features of prediction and target after relu1_2, relu2_2 and relu3_3.

    Johnson et al., "Perceptual Losses for Real-Time Style Transfer", ECCV 2016, with L1 for their
    squared distance, on composited images.

    Args:
        weights: file with `features.*` of torchvision's VGG16; None for torchvision's download.

    Shapes:
        pred, target (B, 3, H, W) in [0, 1], at least 4×4 pixels. Returns (B,).

    Raises:
        UserError: if the weights are neither given nor in the cache and cannot be downloaded.
    """

    LAYERS = (3, 8, 15)
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        self.features = load_trunk("vgg16", weights, "--vgg_weights")[: self.LAYERS[-1] + 1]
        self.features.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        x = (torch.cat([pred, target]) - self.mean) / self.std
        distance = pred.new_zeros(pred.shape[0])
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.LAYERS:
                a, b = x.chunk(2)
                distance = distance + (a - b).abs().mean(dim=(1, 2, 3)).to(distance.dtype)
        return distance


class InpaintingLoss(nn.Module):
    """Weighted sum of all terms, L_total = Σ λ_term · factor(progress) · L_term over `TERMS`.

    docs/METHOD.md, "Loss functions". Each term is a mean over its own region of each image, then over the
    batch: the hole for coarse and refine, the hole dilated by `boundary_width` pixels for edge and corner,
    the boundary band on both sides of the mask for colour, the whole image for perceptual. All but coarse and
    refine compare the composited output.
    L_smaller is the sum of coarse and refine over all smaller sizes that the network completed on its way
    (`smaller`, in training mode alone), which supervises every scale.

    Args:
        boundary_width: pixels.
        vgg_weights: weights file of `PerceptualLoss`, which exists only if its weight is above 0.
        reconstruction: distance of coarse, refine and smaller: `l1` (the default) or `rms`.
        lambdas: `lambda_<term>` of any of `TERMS`, in place of its default weight.

    Shapes:
        outputs of the network; target (B, 3, H, W) in [0, 1]; mask (B, 1, H, W), 1 = missing;
        epoch / total_epochs is the progress, in [0, 1]. Returns scalars: `total` and every term, unweighted.
    """

    def __init__(
        self,
        boundary_width: int = 5,
        vgg_weights: str | None = None,
        reconstruction: str = "l1",
        **lambdas: float,
    ) -> None:
        super().__init__()
        self.lambdas = {name: lambdas.pop(f"lambda_{name}", term.weight) for name, term in TERMS.items()}
        if lambdas:
            raise TypeError(f"no such loss weights: {', '.join(lambdas)}")
        self.reconstruction = RECONSTRUCTION[reconstruction]
        self.boundary_width = boundary_width
        self.corner_detector = CornerDetector()
        self.perceptual = PerceptualLoss(vgg_weights) if self.lambdas["perceptual"] > 0 else None
        if self.perceptual is None:
            del self.lambdas["perceptual"]

    def weights(self, progress: float) -> dict[str, float]:
        """Weight of every term at `progress` in [0, 1]."""
        return loss_weights(progress, **self.lambdas)

    def smaller(self, completions: list[tuple[torch.Tensor, ...]], target: torch.Tensor) -> torch.Tensor:
        """Sum of coarse and refine over all smaller sizes: (B,); 0 if there are none."""
        distance = target.new_zeros(len(target))
        for mask, *completed in reversed(completions):  # the largest first: each halves the last target
            target = F.avg_pool2d(target, 2, ceil_mode=True)
            for pred in completed:
                distance = distance + self.reconstruction(pred.float(), target, mask.float())
        return distance

    def forward(
        self,
        outputs: dict[str, Any],
        target: torch.Tensor,
        mask: torch.Tensor,
        epoch: float = 0,
        total_epochs: float = 1,
    ) -> dict[str, torch.Tensor]:
        target, mask = target.float(), mask.float()
        output = outputs["output"].float()
        near = dilate(mask, self.boundary_width)
        band = boundary_band(mask, self.boundary_width)

        gradients = [self.corner_detector.sobel(x) for x in (output, target)]
        corners = [self.corner_detector(x, g) for x, g in zip((output, target), gradients, strict=True)]
        colors = [color_statistics(x, band) for x in (output, target)]
        terms = {
            "coarse": self.reconstruction(outputs["coarse"].float(), target, mask),
            "refine": self.reconstruction(outputs["refined"].float(), target, mask),
            "edge": masked_l1(gradients[0].flatten(1, 2), gradients[1].flatten(1, 2), near),
            "corner": masked_l1(corners[0], corners[1], near),
            "color": 2 * (colors[0] - colors[1]).abs().mean(dim=1),  # mean over channels of |Δμ| + |Δσ|
            "smaller": self.smaller(outputs.get("smaller", []), target),
        }
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(output, target)
        losses = {name: values.mean() for name, values in terms.items()}
        weights = self.weights(epoch / total_epochs)
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        return {"total": total, **losses}
