"""Fitting the network's Gaussian prior to the training images before training."""

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from losses import masked_mean
from prior import pull, push_pull
from training.loaders import loaders_at, set_position
from training.state import TrainingState
from training.step import to_device

MAX_PASSES = 4  # over the training images
MAX_IMAGES = 8192  # training crops
VALIDATION_IMAGES = 200
BATCH_SIZE = 8


def fit_prior(state: TrainingState) -> None:
    """Fit a prior that is not fitted yet to crops of the training images at the size of the smallest copy.

    Every process fits the same prior. A prior that guesses the validation images worse than push-pull, for
    instance because there are few training images, is left out, with a note. The time counts as training.
    """
    prior = state.model.prior
    if prior is None or prior.basis.any() or state.step > 0:
        return
    start = time.perf_counter()
    config = dataclasses.replace(state.config, num_workers=0)
    loader, val_loader = loaders_at(config, prior.side, BATCH_SIZE)

    def batches() -> Iterator[torch.Tensor]:
        for epoch in range(MAX_PASSES):
            set_position(loader, epoch, 0)
            yield from (batch["image"] for batch in loader)

    prior.fit(torch.cat(list(itertools.islice(batches(), MAX_IMAGES // BATCH_SIZE))))
    with_prior, without = first_guess_errors(state, val_loader)
    if with_prior > without:
        prior.forget()
        if state.rank == 0:
            difference = 10 * math.log10(with_prior / max(without, 1e-12))
            print(
                f"note: a prior of these training images guesses the validation images {difference:.2f} dB "
                f"worse than push-pull; training without it",
                file=sys.stderr,
            )
    state.ema.module.prior.load_state_dict(prior.state_dict())  # type: ignore[union-attr]
    state.elapsed_s += time.perf_counter() - start


@torch.no_grad()
def first_guess_errors(state: TrainingState, loader: DataLoader) -> tuple[float, float]:
    """Squared errors of the first guess in the hole of the smallest copy, with and without the prior."""
    network, sums = state.model, torch.zeros(2)
    for batch in itertools.islice(loader, VALIDATION_IMAGES // BATCH_SIZE):
        target, mask = to_device(batch, state)
        known = target * (1 - mask)
        while max(mask.shape[-2:]) > network.pyramid_base:
            target = pull(target, torch.zeros_like(mask))[0]
            known, mask = pull(known, mask)
        guesses = (network.first_guess(known, mask), push_pull(known, mask))
        sums += torch.stack([masked_mean((guess - target).square(), mask).sum() for guess in guesses]).cpu()
    return sums[0].item(), sums[1].item()
