"""Training of an inpainting network: loop over epochs and steps, validation, checkpoints, command line."""

import contextlib
import itertools
import math
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import Config, parse_config
from dataset import report_unreadable
from inference.device import select_device
from inference.visualize import attention_heatmaps, comparison_grid, heatmap_grid
from losses import InpaintingLoss
from metrics import MetricsCalculator, lpips_score
from models import InpaintingNetwork
from training.dry_run import print_report
from training.loaders import make_loaders, set_position
from training.prior_fit import fit_prior
from training.process import Interrupted, StopSignal, WorkerLost, process_group, set_up_process
from training.run_dir import (
    EventLog,
    changed_settings,
    delete_old_checkpoints,
    find_checkpoint,
    prepare_run_dir,
    try_to_save,
    warn_on_os_error,
)
from training.state import TrainingState
from training.step import make_criterion, to_device, train_step
from utils import UserError, atomic_path, is_shards, one_line, run_program, write_text

NUM_GRID_IMAGES = 4  # validation images in the grids
MAX_NONFINITE_STEPS = 3  # consecutive steps without a finite loss


def train(config: Config) -> Path:
    """Train from the start, or from the checkpoint that `config` resumes, to the end of the run.

    Under `torchrun` every process trains on its share of the images; the first one validates and writes.

    Returns:
        The path of the best checkpoint by validation PSNR in the hole.

    Raises:
        UserError: for a user error, before the run folder is touched.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
        WorkerLost: if another process of the run ended.
    """
    with process_group(config.device) as (rank, num_processes), StopSignal() as stop:
        device = select_device(config.device)
        set_up_process(config.seed)
        state = TrainingState(config, device, rank, num_processes)
        folder = Path(config.save_dir).resolve()
        resumed = find_checkpoint(config, folder)
        if resumed is not None:
            state.load_state_dict(*resumed)
        elif config.init:
            state.init_from_checkpoint(config.init)
        state.check_same_checkpoint_on_all_ranks()
        criterion = make_criterion(config).to(device)
        if config.use_lpips:  # missing weights are found now, not after an epoch
            probe = torch.zeros(1, 3, config.image_size, config.image_size, device=device)
            lpips_score(probe, probe, config.lpips_weights or None)
        loaders = make_loaders(state)
        with contextlib.ExitStack() as cleanup:
            if rank == 0:
                cleanup.callback(open_run_dir(state, loaders, resumed, folder).release)
            fit_prior(state)
            log = cleanup.enter_context(contextlib.closing(EventLog(folder / "logs", state.step, rank == 0)))
            return run_epochs(state, criterion, loaders, folder, stop, log)


def open_run_dir(
    state: TrainingState,
    loaders: tuple[DataLoader, DataLoader],
    resumed: tuple[dict[str, Any], Path] | None,
    folder: Path,
) -> FileLock:
    """Lock and prepare the run's folder, and print what will be trained; `resumed` is `find_checkpoint`'s."""
    for loader in loaders:
        report_unreadable(loader.dataset)  # type: ignore[arg-type]
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    buffers = sum(buffer.numel() for buffer in state.model.buffers())
    keep = resumed is not None and folder in resumed[1].parents
    # parameters with their average and two moments, buffers with their copy, 4 bytes each
    lock = prepare_run_dir(folder, state.config, keep, checkpoint_bytes=4 * (4 * parameters + 2 * buffers))
    changes = changed_settings(resumed[0]["config"], state.config) if resumed is not None else []
    if changes:
        print(f"resumed with other settings: {', '.join(changes)}")
    if not (folder / "checkpoints" / "best_model.pth").exists():  # the checkpoint is from another folder
        state.best_psnr = -math.inf
    num_train, num_val = (len(loader.dataset) for loader in loaders)  # type: ignore[arg-type]
    if is_shards(state.config.train_root):
        num_train *= state.num_processes
    print(
        f"{num_train:,} training and {num_val:,} validation images, {parameters:,} parameters, {state.device}"
        + (f", continuing after {state.step:,} steps" if state.step else "")
    )
    return lock


def run_epochs(
    state: TrainingState,
    criterion: InpaintingLoss,
    loaders: tuple[DataLoader, DataLoader],
    folder: Path,
    stop: StopSignal,
    log: EventLog,
) -> Path:
    """Train, validate and save epoch by epoch; see `train`."""
    config, (train_loader, val_loader) = state.config, loaders
    last_file = folder / "checkpoints" / "last.pth"
    network: nn.Module = state.model
    if config.compile:
        network = cast(nn.Module, torch.compile(network))
    if state.num_processes > 1:
        network = nn.parallel.DistributedDataParallel(network)
    signum, saved = 0, True
    while state.epoch < config.epochs and (state.batch > 0 or state.progress(len(train_loader)) < 1):
        if state.batch == 0:
            state.size, state.batch_size = config.stage_at(state.progress(len(train_loader)))
        stage = train_loader.dataset.image_size, train_loader.batch_size  # type: ignore[attr-defined]
        if stage != (state.size, state.batch_size):
            train_loader, _ = make_loaders(state)
        signum = train_epoch(state, network, criterion, train_loader, folder, stop, log)
        if not signum:
            signum = finish_epoch(state, len(train_loader), val_loader, folder, stop, log)
        saved = save(state, last_file)
        if signum:
            break
    if not saved:
        raise UserError(
            f"--save_dir: the end of the run could not be saved to {last_file}; make room, --resume auto"
        )
    if signum:
        if state.rank == 0:
            print(f"stopped after {state.step:,} steps; --resume auto continues from here")
        raise Interrupted(signum)
    best_file = folder / "checkpoints" / "best_model.pth"
    if state.rank == 0:
        print(f"best PSNR in the hole: {state.best_psnr:.2f} dB, in {best_file}")
    return best_file


def train_epoch(
    state: TrainingState,
    network: nn.Module,
    criterion: InpaintingLoss,
    loader: DataLoader,
    folder: Path,
    stop: StopSignal,
    log: EventLog,
) -> int:
    """Train to the end of the epoch, or until a signal, the time limit or its next stage ends it early.

    Returns:
        The number of the signal, or 0.

    Raises:
        UserError: after `MAX_NONFINITE_STEPS` consecutive steps without a finite loss.
    """
    config, num_batches, last_file = state.config, len(loader), folder / "checkpoints" / "last.pth"
    if state.progress(num_batches) >= 1:  # the run was stopped between its last step and its validation
        return 0
    network.train()
    set_position(loader, state.epoch, state.batch * state.batch_size * state.num_processes)
    title = f"epoch {state.epoch + 1}/{config.epochs}"
    disable = None if state.rank == 0 else True  # None: shown on a terminal only
    with tqdm(total=num_batches, initial=state.batch, desc=title, unit="batch", disable=disable) as bar:
        start = last_save = time.perf_counter()
        iterator = iter(loader)
        while batches := list(itertools.islice(iterator, config.accumulate)):
            progress = state.progress(num_batches)
            losses = train_step(state, network, criterion, batches, progress)
            num_images = sum(len(batch["image"]) for batch in batches) * state.num_processes
            elapsed_s, start = time.perf_counter() - start, time.perf_counter()
            state.count_step(losses, len(batches), num_images, elapsed_s)
            if losses is None:
                handle_nonfinite(state, batches, folder)
            else:
                log_step(state, losses, criterion.weights(progress), num_images / elapsed_s, log)
            bar.update(len(batches))
            bar.set_postfix(loss="not finite" if losses is None else f"{losses['total']:.4f}")
            signum, progress = synchronize(state, stop), state.progress(num_batches)
            is_next_stage = config.max_minutes and config.stage_at(progress) != (state.size, state.batch_size)
            if signum or progress >= 1 or is_next_stage:
                return signum
            if time.perf_counter() - last_save > 60 * config.save_minutes:
                save(state, last_file)
                last_save = time.perf_counter()
    return 0


def handle_nonfinite(state: TrainingState, batches: list[dict[str, Any]], folder: Path) -> None:
    """Save the batches of a skipped step for inspection.

    Raises:
        UserError: if it was one of `MAX_NONFINITE_STEPS` consecutive steps; the state is saved before.
    """
    path = folder / "nonfinite" / f"step_{state.step:07d}_process_{state.rank}.pth"
    position = {"epoch": state.epoch, "batch": state.batch, "step": state.step, "seed": state.config.seed}
    try_to_save(position | {"batches": batches}, path)
    print(f"warning: step {state.step} was not finite and is skipped; see {path}", file=sys.stderr)
    if state.num_nonfinite >= MAX_NONFINITE_STEPS:
        save(state, folder / "checkpoints" / "last.pth")
        raise UserError(
            f"{MAX_NONFINITE_STEPS} consecutive steps, up to step {state.step}, had a loss or gradient "
            f"that is not finite: look at their batches in {path.parent}, or lower --lr and --resume auto"
        )


def synchronize(state: TrainingState, stop: StopSignal) -> int:
    """Give all processes the longest of their times; returns the signal that any of them received, or 0."""
    state.elapsed_s, signum = state.max_over_processes(state.elapsed_s, stop.received)
    return int(signum)


def save(state: TrainingState, path: Path) -> bool:
    """Save a checkpoint from the first process; returns False if it could not be written."""
    return state.rank != 0 or try_to_save(state.state_dict(), path)


def log_step(
    state: TrainingState,
    losses: dict[str, float],
    weights: dict[str, float],
    images_per_s: float,
    log: EventLog,
) -> None:
    """Write the scalars of one step to TensorBoard."""
    for name, value in losses.items():
        log.add_scalar("train/grad_norm" if name == "grad_norm" else f"loss/{name}", value, state.step)
    for name, value in weights.items():
        log.add_scalar(f"weight/{name}", value, state.step)
    log.add_scalar("train/lr", state.optimizers[0].param_groups[0]["lr"], state.step)
    log.add_scalar("train/images_per_s", images_per_s, state.step)


def finish_epoch(
    state: TrainingState,
    num_batches: int,
    val_loader: DataLoader,
    folder: Path,
    stop: StopSignal,
    log: EventLog,
) -> int:
    """Validate if it is due, write the epoch's metrics, and save its checkpoints.

    Returns:
        The number of a signal received until then, or 0.
    """
    config, checkpoints, start = state.config, folder / "checkpoints", time.perf_counter()
    ends_run_or_stage = (
        state.batch < num_batches or state.epoch + 1 == config.epochs or state.progress(num_batches) >= 1
    )
    is_validated = ends_run_or_stage or (state.epoch + 1) % config.val_interval == 0
    if is_validated:
        save(state, checkpoints / "last.pth")  # a kill during the validation then loses no step
    means = state.finish_epoch()
    if state.rank == 0:
        metrics, grids = validate(state, val_loader) if is_validated else ({}, {})
        write_epoch(state, means, metrics, grids, folder, log)
        psnr, best_psnr = metrics.get("psnr", -math.inf), state.best_psnr
        if psnr > best_psnr:
            state.best_psnr = psnr
            if not save(state, checkpoints / "best_model.pth"):
                state.best_psnr = best_psnr
        if state.epoch % config.checkpoint_interval == 0:
            save(state, checkpoints / f"checkpoint_epoch_{state.epoch:04d}.pth")
            delete_old_checkpoints(folder, config.keep_checkpoints)
    state.elapsed_s += time.perf_counter() - start
    return synchronize(state, stop)  # the other processes wait here for the validation


@torch.no_grad()
def validate(state: TrainingState, loader: DataLoader) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Score the averaged weights on every image of `loader`.

    Returns:
        The mean metrics, and grids (3, H, W) of the first images: `comparison` and `attention`.
    """
    config = state.config
    network = cast(InpaintingNetwork, state.ema.module.eval())
    calculator = MetricsCalculator(config.boundary_width, config.use_lpips, config.lpips_weights or None)
    grids: dict[str, torch.Tensor] = {}
    for batch in tqdm(loader, desc="validating", unit="batch", leave=False, disable=None):
        image, mask = to_device(batch, state)
        outputs = network(image, mask)
        calculator.update(outputs["output"], image, mask)
        if not grids:
            image, mask = image[:NUM_GRID_IMAGES], mask[:NUM_GRID_IMAGES]
            outputs = network(image, mask, return_attention=True)
            heatmaps = attention_heatmaps(network, outputs, mask)
            grids = {
                "comparison": comparison_grid(image, mask, outputs),
                "attention": heatmap_grid(image, mask, heatmaps),
            }
    return calculator.compute(), grids


def write_epoch(
    state: TrainingState,
    means: dict[str, float],
    metrics: dict[str, float],
    grids: dict[str, torch.Tensor],
    folder: Path,
    log: EventLog,
) -> None:
    """Write the row of an epoch and, if it was validated, its curves and image grids.

    Args:
        means: see `TrainingState.finish_epoch`.
        metrics, grids: see `validate`; empty if the epoch was not validated.
    """
    state.tracker.add(
        state.epoch,
        {name: value for name, value in means.items() if name not in ("grad_norm", "seconds")},
        metrics,
        step=state.step,
        images=state.images,
        size=state.size,
        lr=state.optimizers[0].param_groups[0]["lr"],
        grad_norm=means.get("grad_norm", math.nan),
        images_per_s=1 / means.get("seconds", math.nan),
    )
    with warn_on_os_error(folder / "metrics.csv"):
        write_text(state.tracker.to_csv(), folder / "metrics.csv")
    if metrics:
        from torchvision.utils import save_image  # slow to import

        for name, value in metrics.items():
            log.add_scalar(f"val/{name}", value, state.step)
        for name, grid in grids.items():
            log.add_image(f"val/{name}", grid, state.step)
            path = folder / "visualizations" / f"epoch_{state.epoch:04d}_{name}.png"
            with warn_on_os_error(path), atomic_path(path) as temporary:
                save_image(grid, temporary, format="png")
        with warn_on_os_error(folder / "visualizations"):
            state.tracker.draw(folder / "visualizations")
        print(f"epoch {state.epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    log.flush()


def main(argv: list[str] | None = None, *, prog: str = "train.py") -> int:
    """Run the command line; returns the exit status.

    It is 2 for a user error, 1 if another process of the run was lost, 130 or 143 after a signal.
    """
    try:
        config = parse_config(argv, prog)
        if config.dry_run:
            print_report(config)
        else:
            train(config)
    except UserError as error:
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except WorkerLost:
        message = "another process of the run ended; --resume auto continues from the last checkpoint"
        print(f"{prog}: error: {message}", file=sys.stderr)
        return 1
    except Interrupted as interruption:
        return 128 + interruption.signum
    return 0


if __name__ == "__main__":
    run_program(main, "train.py")
