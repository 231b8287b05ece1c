"""The prior is the conditional mean of a Gaussian at any size, and push-pull interpolates smoothly."""

import pytest
import torch

from models import InpaintingNetwork
from prior import NOISE_INFLATION, GaussianPrior, pull, push_pull, resampling

Batch = tuple[torch.Tensor, torch.Tensor]
SIDE = 12


def images_of(count: int, side: int = SIDE, patterns: int = 4) -> torch.Tensor:
    """Images that are sums of a few smooth patterns, symmetric ones among them: (count, 3, side, side)."""
    generator = torch.Generator().manual_seed(5)
    across = (torch.arange(side) + 0.5) / side
    waves = torch.stack([torch.cos(torch.pi * k * across) for k in range(3)])
    images = torch.stack([a[:, None] * b for a in waves for b in waves])[:patterns]
    weights = 0.1 * torch.randn(count, 3, patterns, generator=generator)
    return 0.5 + torch.einsum("ncp,pij->ncij", weights, images)


def hole(side: int = SIDE) -> torch.Tensor:
    mask = torch.zeros(1, 1, side, side)
    mask[..., 2:9, 3:11] = 1
    return mask


@pytest.fixture
def prior() -> GaussianPrior:
    torch.manual_seed(0)
    prior = GaussianPrior(20, SIDE)
    prior.fit(images_of(60))
    return prior


def test_the_prior_recovers_a_hole_in_images_of_few_patterns(prior: GaussianPrior) -> None:
    image, mask = images_of(70)[60:], hole()
    expected = prior(image * (1 - mask), mask.expand(10, -1, -1, -1))
    smooth = push_pull(image * (1 - mask), mask.expand(10, -1, -1, -1))
    assert ((expected - image) * mask).abs().max() < 0.02
    assert ((smooth - image) * mask).abs().max() > 0.1


def test_the_prior_is_the_mean_of_the_gaussian_given_the_known_pixels(prior: GaussianPrior) -> None:
    prior.noise.fill_(0.01)
    image, mask = images_of(61)[60:] + 0.1 * torch.rand(1, 3, SIDE, SIDE), hole()
    basis, mean = prior.basis.double(), prior.mean[0].double()
    covariance = basis.t() @ basis
    known = mask.expand_as(image).flatten() == 0
    seen = covariance[known][:, known] + 0.01 * torch.eye(int(known.sum()))
    misfit = image.flatten().double()[known] - mean[known]
    conditional = mean + covariance[:, known] @ torch.linalg.solve(seen, misfit)
    assert torch.allclose(prior(image * (1 - mask), mask).flatten().double(), conditional, atol=1e-4)


def test_values_under_the_hole_change_nothing(prior: GaussianPrior) -> None:
    image, mask = images_of(61)[60:], hole()
    assert torch.equal(prior(image, mask), prior(torch.where(mask > 0, 0.9, image), mask))


def test_the_expectation_without_known_pixels_is_the_mean(prior: GaussianPrior) -> None:
    nothing = torch.ones(1, 1, SIDE, SIDE)
    assert torch.allclose(prior(torch.zeros(1, 3, SIDE, SIDE), nothing).flatten(), prior.mean[0], atol=1e-6)


def test_the_expectation_of_a_mirror_image_is_the_mirror_image(prior: GaussianPrior) -> None:
    image, mask = images_of(61)[60:], hole()
    mirrored = prior((image * (1 - mask)).flip(3), mask.flip(3))
    assert torch.allclose(mirrored.flip(3), prior(image * (1 - mask), mask), atol=2e-3)


@pytest.mark.parametrize(("height", "width"), [(9, 9), (12, 7), (8, 11), (1, 1)])
def test_smaller_and_oblong_images_use_the_middle_of_the_components(
    prior: GaussianPrior, height: int, width: int
) -> None:
    step = SIDE / max(height, width)
    rows, columns = resampling(height, step, SIDE), resampling(width, step, SIDE)
    image = rows @ images_of(61)[60:] @ columns.t()
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 3 : height // 2, width // 3 : width // 2] = 1
    expected = prior(image * (1 - mask), mask)
    assert expected.shape == image.shape
    assert ((expected - image) * mask).abs().max() < 0.02


def test_resampling_is_the_identity_at_its_own_size_and_keeps_means() -> None:
    assert torch.equal(resampling(SIDE, 1.0, SIDE), torch.eye(SIDE))
    half = resampling(SIDE // 2, 2.0, SIDE)
    assert torch.allclose(half.sum(dim=1), torch.ones(SIDE // 2))
    ramp = torch.arange(SIDE).float()
    assert torch.allclose((half @ ramp)[1:-1], ramp.view(-1, 2).mean(dim=1)[1:-1])
    assert torch.allclose(half, half.flip(0, 1))


def test_components_beyond_the_number_of_images_are_zero() -> None:
    torch.manual_seed(0)
    prior = GaussianPrior(300, SIDE)
    prior.fit(images_of(3))
    assert 0 < int((prior.basis.norm(dim=1) > 1e-3).sum()) <= 6
    image, mask = images_of(3)[:1], hole()
    assert ((prior(image * (1 - mask), mask) - image) * mask).abs().max() < 0.05


def test_components_are_orthogonal_and_as_long_as_their_standard_deviations(prior: GaussianPrior) -> None:
    gram = prior.basis @ prior.basis.t()
    lengths = gram.diagonal()
    assert (gram - torch.diag(lengths)).abs().max() < 1e-3
    images = images_of(60)
    varying = torch.cat([images, images.flip(3)]).flatten(1) - prior.mean
    assert lengths.sum() == pytest.approx(varying.square().sum(dim=1).mean().item(), rel=1e-3)


def test_a_network_with_an_unfitted_prior_starts_with_push_pull() -> None:
    torch.manual_seed(0)
    network = InpaintingNetwork(4, bottleneck_depth=1, prior_rank=5).eval()
    image, mask = torch.rand(2, 3, 32, 27), torch.zeros(2, 1, 32, 27)
    mask[..., 5:20, 6:24] = 1
    known = image * (1 - mask)
    assert torch.allclose(network.first_guess(known, mask), push_pull(known, mask), atol=1e-5)
    assert torch.allclose(network(image, mask)["refined"], push_pull(known, mask), atol=1e-5)


def test_a_first_guess_is_the_expectation_of_the_prior_plus_push_pull_of_its_error() -> None:
    torch.manual_seed(0)
    network = InpaintingNetwork(4, bottleneck_depth=1, pyramid_base=SIDE, prior_rank=8)
    assert network.prior is not None
    network.prior.fit(images_of(60))
    image, mask = images_of(61)[60:] + 0.2 * torch.rand(1, 3, SIDE, SIDE), hole()
    known = image * (1 - mask)
    expected = network.prior(known, mask)
    rest = push_pull((known - expected + 0.5) * (1 - mask), mask) - 0.5
    guess = network.first_guess(known, mask)
    assert torch.allclose(guess, expected + rest, atol=1e-5)
    assert torch.equal(guess * (1 - mask), known)


def test_a_prior_has_buffers_and_no_parameters() -> None:
    network = InpaintingNetwork(4, bottleneck_depth=1, prior_rank=5)
    assert not [name for name, _ in network.named_parameters() if "prior" in name]
    assert {"prior.mean", "prior.basis", "prior.noise"} <= network.state_dict().keys()
    assert "prior.basis" not in InpaintingNetwork(4, bottleneck_depth=1).state_dict()


def test_the_noise_is_the_inflated_variance_that_the_components_leave() -> None:
    torch.manual_seed(0)
    images = 0.5 + 0.1 * torch.randn(400, 3, 6, 6)
    prior = GaussianPrior(8, 6)
    prior.fit(images)
    rows = torch.cat([images, images.flip(3)]).flatten(1) - prior.mean
    unexplained = rows.square().sum() / len(rows) - prior.basis.square().sum()
    assert NOISE_INFLATION == 12
    assert prior.noise.item() == pytest.approx(12 * unexplained.item() / (3 * 6 * 6 - 8), rel=1e-3)


def test_the_noise_of_images_that_the_components_explain_is_bounded_from_below(prior: GaussianPrior) -> None:
    assert prior.noise.item() == pytest.approx(1e-4)


def test_push_pull_keeps_known_pixels_and_fills_smoothly(batch: Batch) -> None:
    image, mask = batch
    filled = push_pull(image * (1 - mask), mask)
    assert torch.equal(filled * (1 - mask), image * (1 - mask))
    assert (filled >= image.amin() - 1e-6).all() and (filled <= image.amax() + 1e-6).all()


def test_push_pull_of_a_constant_is_that_constant_and_of_nothing_is_grey() -> None:
    mask = torch.zeros(1, 1, 13, 29)
    mask[..., 2:11, 5:25] = 1
    filled = push_pull(torch.full((1, 3, 13, 29), 0.3) * (1 - mask), mask)
    assert torch.allclose(filled, torch.full_like(filled, 0.3))
    nothing = torch.ones(1, 1, 13, 29)
    grey = torch.full((1, 3, 13, 29), 0.5)
    assert torch.allclose(push_pull(torch.zeros(1, 3, 13, 29), nothing), grey, atol=1e-6)


def test_pull_is_the_mean_of_known_pixels() -> None:
    image = torch.tensor([[[[1.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.2, 0.4, 0.0]]]])
    mask = torch.tensor([[[[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]]])
    mean, hole = pull(image, mask)
    assert torch.allclose(mean, torch.tensor([[[[0.75, 0.0], [0.3, 0.0]]]]))
    assert torch.equal(hole, torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))


def test_pull_of_a_block_with_one_known_pixel_is_that_pixel() -> None:
    mask = torch.ones(1, 1, 2, 2)
    mask[..., 1, 0] = 0
    mean, hole = pull(0.6 * (1 - mask), mask)
    assert mean.item() == pytest.approx(0.6) and hole.item() == 0


def test_a_prior_that_forgets_is_as_new(prior: GaussianPrior) -> None:
    prior.forget()
    assert all(
        torch.equal(x, prior.state_dict()[name]) for name, x in GaussianPrior(20, SIDE).state_dict().items()
    )
