"""Fits the Gaussian prior to the training images before the network learns."""

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
from training.loaders import loaders_of, set_position
from training.state import TrainingState
from training.step import to_device

PRIOR_PASSES, PRIOR_IMAGES, PRIOR_BATCH = 4, 8192, 8  # over the training images, at most, at a time


GUESS_IMAGES = 200  # of validation, on which a prior has to guess better than push-pull


def fit_prior(run: TrainingState) -> None:
    """Fit the prior of a network that has an unfitted one to the training images, and count the time.

    They are cropped as in training, to the size of the smallest copy. Every process of the run fits the same.
    A prior that guesses the validation images worse than push-pull alone, as one of few or of other pictures
    does, is left out, with a note.
    """
    prior = run.model.prior
    if prior is None or prior.basis.any() or run.step > 0:
        return
    start = time.perf_counter()
    config = dataclasses.replace(run.config, num_workers=0)
    loader, val_loader = loaders_of(config, prior.side, PRIOR_BATCH)

    def passes() -> Iterator[torch.Tensor]:
        for epoch in range(PRIOR_PASSES):
            set_position(loader, epoch, 0)
            yield from (batch["image"] for batch in loader)

    prior.fit(torch.cat(list(itertools.islice(passes(), PRIOR_IMAGES // PRIOR_BATCH))))
    with_prior, without = guess_errors(run, val_loader)
    if with_prior > without:
        prior.forget()
        if run.rank == 0:
            difference = 10 * math.log10(with_prior / max(without, 1e-12))
            print(
                f"note: a prior of these training images guesses the validation images {difference:.2f} dB "
                f"worse than push-pull does; going on without",
                file=sys.stderr,
            )
    run.ema.module.prior.load_state_dict(prior.state_dict())  # type: ignore[union-attr]
    run.elapsed_s += time.perf_counter() - start


@torch.no_grad()
def guess_errors(run: TrainingState, loader: DataLoader) -> tuple[float, float]:
    """Mean squared error of the first guess in the hole of the smallest copy, with and without the prior."""
    network, sums = run.model, torch.zeros(2)
    for batch in itertools.islice(loader, GUESS_IMAGES // PRIOR_BATCH):
        truth, mask = to_device(batch, run)
        image = truth * (1 - mask)
        while max(mask.shape[-2:]) > network.pyramid_base:
            truth = pull(truth, torch.zeros_like(mask))[0]
            image, mask = pull(image, mask)
        guesses = (network.first_guess(image, mask), push_pull(image, mask))
        sums += torch.stack([masked_mean((guess - truth).square(), mask).sum() for guess in guesses]).cpu()
    return sums[0].item(), sums[1].item()
