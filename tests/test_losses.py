import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from losses import (
    CornerDetector,
    InpaintingLoss,
    LaplacianEdgeDetector,
    PerceptualLoss,
    SobelEdgeDetector,
    color_statistics,
    loss_weights,
    masked_l1,
)
from models import InpaintingNetwork
from utils import UserError

Batch = tuple[torch.Tensor, torch.Tensor]
TERMS = ("coarse", "refine", "edge", "corner", "color")


def outputs_of(image: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"coarse": image, "refined": image, "output": image}


def step_edge(angle: float, size: int = 33) -> torch.Tensor:
    """A smooth straight edge through the centre, its normal at `angle`: (1, 1, size, size)."""
    y, x = torch.meshgrid(torch.arange(size) - size // 2, torch.arange(size) - size // 2, indexing="ij")
    distance = x * math.cos(angle) + y * math.sin(angle)
    return torch.sigmoid(distance / 1.5)[None, None]


def test_sobel_of_a_ramp_is_its_slope() -> None:
    ramp = 0.25 * torch.arange(9.0).expand(1, 1, 9, 9)
    dx, dy = SobelEdgeDetector()(ramp)[0, 0, :, 1:-1, 1:-1]
    assert torch.allclose(dx, torch.full_like(dx, 0.25))
    assert dy.abs().max() == 0


def test_laplacian_is_that_of_a_parabola_and_ignores_ramps() -> None:
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    laplacian = LaplacianEdgeDetector()
    assert torch.allclose(laplacian((x**2 + 2 * y**2)[None, None])[inner], torch.tensor(6.0), atol=1e-3)
    assert laplacian((3 * x - y)[None, None])[inner].abs().max() < 1e-4


def test_the_laplacian_kernel_is_the_isotropic_nine_point_one() -> None:
    impulse = torch.zeros(1, 1, 5, 5)
    impulse[..., 2, 2] = 1
    expected = torch.tensor([[1.0, 4, 1], [4, -20, 4], [1, 4, 1]]) / 6
    assert torch.allclose(LaplacianEdgeDetector()(impulse)[0, 0, 1:4, 1:4], expected, atol=1e-6)


@pytest.mark.parametrize("degrees", [0, 90, 20, 45, 70])
def test_the_corner_detector_responds_to_corners_and_not_to_straight_edges(degrees: float) -> None:
    detector = CornerDetector()
    angle = math.radians(degrees)
    edge = step_edge(angle)
    corner = edge * step_edge(angle + math.pi / 2)
    middle = (0, 0, slice(8, 25), slice(8, 25))
    at_edge = detector(edge)[middle].abs().max()
    at_corner = detector(corner)[middle].abs().max()
    assert at_corner > 4 * at_edge
    # an ordinary edge detector cannot tell them apart
    gradient = [SobelEdgeDetector()(x).norm(dim=2)[middle].max() for x in (edge, corner)]
    assert gradient[1] < 1.2 * gradient[0]


def test_every_term_is_zero_for_equal_images_and_positive_for_others(batch: Batch) -> None:
    image, mask = batch
    criterion = InpaintingLoss()
    assert all(loss == 0 for loss in criterion(outputs_of(image), image, mask).values())
    noisy = (image + 0.1 * torch.randn_like(image) * mask).clamp(0, 1)
    losses = criterion(outputs_of(noisy), image, mask)
    assert set(losses) == {"total", "smaller", *TERMS}
    assert all(losses[term] > 0 for term in TERMS)


def test_l1_terms_are_means_over_the_hole() -> None:
    target = torch.zeros(1, 3, 16, 16)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:8, 4:8] = 1
    pred = {"coarse": target + 0.5, "refined": target + 0.25, "output": target + 0.25 * mask}
    losses = InpaintingLoss()(pred, target, mask)
    assert losses["coarse"].item() == pytest.approx(0.5)
    assert losses["refine"].item() == pytest.approx(0.25)


def test_the_smaller_term_compares_each_smaller_size_with_means_of_the_target() -> None:
    target = torch.rand(2, 3, 8, 12)
    half, quarter = F.avg_pool2d(target, 2), F.avg_pool2d(target, 4)
    hole = torch.ones(2, 1, 4, 6)
    no_hole = torch.zeros(2, 1, 2, 3)
    smaller = [(no_hole, quarter + 9, quarter + 9), (hole, half + 0.5, half - 0.25)]
    outputs = outputs_of(target) | {"smaller": smaller}
    criterion = InpaintingLoss(lambda_smaller=0.2)
    losses = criterion(outputs, target, torch.ones(2, 1, 8, 12))
    assert losses["smaller"].item() == pytest.approx(0.75)
    assert losses["total"].item() == pytest.approx(0.2 * 0.75, abs=1e-6)
    assert criterion(outputs_of(target), target, torch.ones(2, 1, 8, 12))["smaller"] == 0


def test_the_color_term_is_the_difference_of_means_and_deviations() -> None:
    target = torch.full((1, 3, 20, 20), 0.4)
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 10:] = 1
    losses = InpaintingLoss(boundary_width=3)(outputs_of(target + 0.2 * mask), target, mask)
    # the boundary band is half known (difference 0) and half missing (0.2): Δμ = 0.1, Δσ = 0.1
    assert losses["color"].item() == pytest.approx(0.2, abs=2e-3)


@pytest.mark.parametrize("term", TERMS)
def test_the_weight_of_each_term_counts(term: str, batch: Batch) -> None:
    image, mask = batch
    noisy = outputs_of((image + 0.1 * mask * torch.randn_like(image)).clamp(0, 1))
    alone = {f"lambda_{name}": 2.0 if name == term else 0.0 for name in TERMS}
    losses = InpaintingLoss(**alone)(noisy, image, mask, epoch=10, total_epochs=10)
    weight = loss_weights(1.0, coarse=2, refine=2, edge=2, corner=2, color=2)[term]
    assert losses["total"].item() == pytest.approx(weight * losses[term].item(), rel=1e-5)


def test_the_rms_reconstruction_is_the_root_of_the_mean_square_in_the_hole() -> None:
    target, mask = torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    pred = target.clone()
    pred[..., :2], pred[..., 4:] = 0.6, 0.9  # half of the hole, and known pixels
    losses = InpaintingLoss(reconstruction="rms")(outputs_of(pred), target, mask)
    assert losses["refine"].item() == pytest.approx(0.18**0.5, abs=1e-5)


def test_an_unknown_weight_is_refused() -> None:
    with pytest.raises(TypeError, match="lambda_edges"):
        InpaintingLoss(lambda_edges=1.0)


def test_the_schedule_is_the_readmes() -> None:
    lambdas = {"coarse": 1.0, "refine": 1.0, "edge": 0.5, "corner": 0.3, "color": 0.5}
    assert loss_weights(0.0, **lambdas) == pytest.approx(
        {"coarse": 1.0, "refine": 1.0, "edge": 0.25, "corner": 0.09, "color": 0.25}
    )
    assert loss_weights(1.0, **lambdas) == pytest.approx(
        {"coarse": 0.5, "refine": 1.0, "edge": 0.5, "corner": 0.3, "color": 0.5}
    )
    assert InpaintingLoss().weights(0.5)["corner"] == pytest.approx(0.3 * 0.65)


def test_every_image_of_a_batch_has_the_same_weight(batch: Batch) -> None:
    image, mask = batch
    noisy = outputs_of((image + 0.2 * mask).clamp(0, 1))
    criterion = InpaintingLoss()
    together = criterion(noisy, image, mask)
    alone = [
        criterion({k: v[i : i + 1] for k, v in noisy.items()}, image[i : i + 1], mask[i : i + 1])
        for i in range(2)
    ]
    for name, value in together.items():
        assert value.item() == pytest.approx((alone[0][name] + alone[1][name]).item() / 2, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_and_full_holes_have_finite_gradients(value: float) -> None:
    mask = torch.full((1, 1, 16, 16), value)
    pred = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    losses = InpaintingLoss()(outputs_of(pred), torch.full((1, 3, 16, 16), 0.5), mask)
    losses["total"].backward()
    assert pred.grad is not None and pred.grad.isfinite().all()
    assert losses["total"].isfinite()


def test_differences_far_from_the_hole_change_no_term() -> None:
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 15:25, 15:25] = 1
    target = torch.rand(1, 3, 40, 40)
    far = target.clone()
    far[..., :6, :] += 0.5  # more than 5 + 1 pixels from the hole
    losses = InpaintingLoss()(outputs_of(far), target, mask)
    assert losses["edge"] == 0 and losses["corner"] == 0 and losses["color"] == 0


def test_masked_l1_ignores_pixels_outside_the_region() -> None:
    region = torch.zeros(1, 1, 4, 4)
    region[..., 0, 0] = 1
    pred = torch.ones(1, 3, 4, 4)
    assert masked_l1(pred, torch.zeros_like(pred), region).item() == 1
    assert masked_l1(pred, torch.zeros_like(pred), torch.zeros_like(region)).item() == 0


def test_color_statistics_are_those_of_the_region(batch: Batch) -> None:
    image, mask = batch
    statistics = color_statistics(image, mask)
    pixels = image[0][:, mask[0, 0] > 0].double()
    expected = torch.cat([pixels.mean(dim=1), pixels.std(dim=1, unbiased=False)])
    assert torch.allclose(statistics[0].double(), expected, atol=1e-4)


def test_the_perceptual_loss_compares_normalised_features_after_three_blocks(vgg16_file: Path) -> None:
    loss = PerceptualLoss(str(vgg16_file))
    pred, target = torch.rand(2, 2, 3, 16, 20).unbind()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x, y = (((image.movedim(1, 3) - mean) / deviation).movedim(3, 1) for image in (pred, target))
    expected, taken = torch.zeros(2), []
    for layer in loss.features:
        x, y = layer(x), layer(y)
        taken += [type(layer).__name__[0]]
        if "".join(taken) in ("CRCR", "CRCRMCRCR", "CRCRMCRCRMCRCRCR"):  # relu1_2, relu2_2, relu3_3
            distance = (x - y).abs().mean(dim=(1, 2, 3))
            assert (distance > 0.01).all()
            expected += distance
    assert "".join(taken) == "CRCRMCRCRMCRCRCR"
    torch.testing.assert_close(loss(pred, target), expected)
    stored = torch.load(vgg16_file, weights_only=True)
    assert torch.equal(loss.features[14].weight, stored["features.14.weight"])


def test_the_perceptual_loss_refuses_files_without_its_layers(vgg16_file: Path) -> None:
    torch.save({"classifier.0.weight": torch.zeros(3)}, vgg16_file)
    with pytest.raises(UserError, match=r"--vgg_weights: does not hold the features\.\* layers of vgg16"):
        PerceptualLoss(str(vgg16_file))


def test_the_perceptual_loss_trains(vgg16_file: Path) -> None:
    torch.manual_seed(0)
    target = torch.rand(1, 3, 32, 32)
    pred = torch.rand(1, 3, 32, 32, requires_grad=True)
    loss = PerceptualLoss(str(vgg16_file))
    assert loss(target, target).item() == 0
    optimizer = torch.optim.Adam([pred], lr=0.02)
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        value = loss(pred, target).sum()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    criterion = InpaintingLoss(lambda_perceptual=0.5, vgg_weights=str(vgg16_file))
    losses = criterion(outputs_of(pred.detach()), target, torch.ones(1, 1, 32, 32))
    assert losses["perceptual"] > 0 and criterion.weights(0.7)["perceptual"] == 0.5


def test_the_perceptual_loss_reaches_every_weight_of_the_network_and_falls(
    batch: Batch, vgg16_file: Path
) -> None:
    torch.manual_seed(0)
    image, mask = batch
    network = InpaintingNetwork(base_channels=8, bottleneck_depth=1)
    for layer in (network.coarse_decoder.to_rgb, network.refinement_decoder.to_rgb):
        torch.nn.init.normal_(layer.weight, std=0.05)  # they start at 0, which stops all gradients
    nothing = {f"lambda_{term}": 0.0 for term in ("coarse", "refine", "edge", "corner", "color", "smaller")}
    criterion = InpaintingLoss(**nothing, lambda_perceptual=1.0, vgg_weights=str(vgg16_file))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    values = []
    for _ in range(25):
        optimizer.zero_grad()
        losses = criterion(network(image, mask), image, mask, 0.5, 1)
        losses["total"].backward()
        optimizer.step()
        values.append(losses["total"].item())
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without
    assert values[-1] < 0.9 * values[0]
