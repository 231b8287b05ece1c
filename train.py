"""Train an inpainting network: epochs, validations, savings, signals, and the command line around them."""

import math
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
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
from training import dry_run
from training.loaders import make_loaders, set_position
from training.prior_fit import fit_prior
from training.process import (
    Interrupted,
    StopSignal,
    WorkerLost,
    is_connection_error,
    process_group,
    set_up_process,
)
from training.run_dir import (
    EventLog,
    changed_settings,
    find_state,
    keep_checkpoints,
    prepare_run_dir,
    try_to_save,
    warn_on_os_error,
)
from training.state import TrainingState
from training.step import make_criterion, to_device, train_step
from utils import UserError, atomic_path, is_shards, one_line, run_program

NUM_PICTURES = 4  # validation images drawn
MAX_NONFINITE_STEPS = 3  # steps in a row without a finite loss


@torch.no_grad()
def validate(run: TrainingState, loader: DataLoader) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Score the averaged weights on every image of `loader`.

    Returns:
        The mean metrics, and pictures (3, H, W) of the first images: `comparison` and `attention`.
    """
    config = run.config
    network = cast(InpaintingNetwork, run.ema.module.eval())
    calculator = MetricsCalculator(config.boundary_width, config.use_lpips, config.lpips_weights or None)
    pictures: dict[str, torch.Tensor] = {}
    for batch in tqdm(loader, desc="validating", unit="batch", leave=False, disable=None):
        image, mask = to_device(batch, run)
        outputs = network(image, mask)
        calculator.update(outputs["output"], image, mask)
        if not pictures:
            image, mask = image[:NUM_PICTURES], mask[:NUM_PICTURES]
            outputs = network(image, mask, return_attention=True)
            heatmaps = attention_heatmaps(network, outputs, mask)
            pictures = {
                "comparison": comparison_grid(image, mask, outputs),
                "attention": heatmap_grid(image, mask, heatmaps),
            }
    return calculator.compute(), pictures


def train(config: Config) -> Path:
    """Run `config` from its start, or from the checkpoint that it resumes, to its end.

    Under `torchrun` every process takes its share of the images; the first one validates and writes.

    Returns:
        The path of the best checkpoint by validation PSNR in the hole.

    Raises:
        UserError: for anything that the user can mend, before the run folder is touched.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
        WorkerLost: if another process of the run ended.
    """
    with process_group(config.device) as (rank, num_processes), StopSignal() as stop:
        device = select_device(config.device)
        set_up_process(config.seed)

        run = TrainingState(config, device, rank, num_processes)
        folder = Path(config.save_dir).resolve()
        found = find_state(config, folder)
        if found is not None:
            run.load_state_dict(*found)
        elif config.init:
            run.init_from_checkpoint(config.init)
        run.check_same_checkpoint_on_all_ranks()
        criterion = make_criterion(config).to(device)
        if config.use_lpips:  # find out now, not after an epoch, that its weights are missing
            probe = torch.zeros(1, 3, config.image_size, config.image_size, device=device)
            lpips_score(probe, probe, config.lpips_weights or None)
        loaders = make_loaders(run)
        lock = None
        if rank == 0:
            for loader in loaders:
                report_unreadable(loader.dataset)  # type: ignore[arg-type]
            checkpoint_bytes = 4 * 4 * sum(p.numel() for p in run.model.parameters())  # weights, EMA, moments
            checkpoint_bytes += 4 * 2 * sum(b.numel() for b in run.model.buffers())
            keep = found is not None and folder in found[1].parents
            lock = prepare_run_dir(folder, config, keep, checkpoint_bytes)
            changes = changed_settings(found[0]["config"], config) if found is not None else []
            if changes:
                print(f"resumed with other settings: {', '.join(changes)}")
        if not (folder / "checkpoints" / "best_model.pth").exists():  # another folder's best stays there
            run.best_psnr = -math.inf
        try:
            fit_prior(run)
            return run_epochs(run, criterion, loaders, folder, stop)
        except RuntimeError as error:
            if num_processes > 1 and is_connection_error(error):
                raise WorkerLost from error
            raise
        finally:
            if lock is not None:
                lock.release()


def run_epochs(
    run: TrainingState,
    criterion: InpaintingLoss,
    loaders: tuple[DataLoader, DataLoader],
    folder: Path,
    stop: StopSignal,
) -> Path:
    """Train, validate and save, epoch by epoch; as `train`."""
    config, (train_loader, val_loader) = run.config, loaders
    best_file, last_file = (folder / "checkpoints" / name for name in ("best_model.pth", "last.pth"))
    network: nn.Module = run.model
    if config.compile:
        network = cast(nn.Module, torch.compile(network))
    if run.num_processes > 1:
        network = nn.parallel.DistributedDataParallel(network)
    writer = None
    saved = True
    if run.rank == 0:
        writer = EventLog(folder / "logs", run.step)
        counts = [len(loader.dataset) for loader in loaders]  # type: ignore[arg-type]
        if is_shards(config.train_root):
            counts[0] *= run.num_processes
        parameters = sum(parameter.numel() for parameter in run.model.parameters())
        print(
            f"{counts[0]:,} training and {counts[1]:,} validation images, "
            f"{parameters:,} parameters, {run.device}"
            + (f", continuing after {run.step:,} steps" if run.step else "")
        )
    while run.epoch < config.epochs and (run.batch > 0 or run.progress(len(train_loader)) < 1):
        if run.batch == 0:
            run.size, run.batch_size = config.stage_at(run.progress(len(train_loader)))
        present = train_loader.dataset.image_size, train_loader.batch_size  # type: ignore[attr-defined]
        if present != (run.size, run.batch_size):
            train_loader, _ = make_loaders(run)
        train_epoch(run, network, criterion, train_loader, writer, stop, last_file)
        if stop.agreed is None:
            start = time.perf_counter()
            if writer is not None and is_validated(run, len(train_loader)):
                try_to_save(run.state_dict(), last_file)  # who stops us may not wait for the validation
            finish_epoch(run, len(train_loader), val_loader, writer, folder)
            if writer is not None:
                before, psnr = run.best_psnr, run.tracker.rows[-1].get("psnr", -math.inf)
                if psnr > before:
                    run.best_psnr = psnr
                    if not try_to_save(run.state_dict(), best_file):
                        run.best_psnr = before
                if run.epoch % config.checkpoint_interval == 0:
                    try_to_save(
                        run.state_dict(), last_file.with_name(f"checkpoint_epoch_{run.epoch:04d}.pth")
                    )
                    keep_checkpoints(folder, config.keep_checkpoints)
            run.elapsed_s += time.perf_counter() - start
            stop.agreed = run.agree(stop.received)  # the others wait here for the validation
        if writer is not None:
            saved = try_to_save(run.state_dict(), last_file)
        if stop.agreed is not None:
            break
    if writer is not None:
        writer.close()
    if not saved:
        raise UserError(
            f"--save_dir: the end of the run could not be saved to {last_file}; make room, --resume auto"
        )
    if stop.agreed is not None:
        if run.rank == 0:
            print(f"stopped after {run.step:,} steps; --resume auto goes on from here")
        raise Interrupted(stop.agreed)
    if run.rank == 0:
        print(f"best PSNR in the hole: {run.best_psnr:.2f} dB, in {best_file}")
    return best_file


def train_epoch(
    run: TrainingState,
    network: nn.Module,
    criterion: InpaintingLoss,
    loader: DataLoader,
    writer: EventLog | None,
    stop: StopSignal,
    last_file: Path,
) -> None:
    """Train to the end of the epoch, of the run's time, or to a signal, whichever comes first.

    An epoch also ends where a plan in time asks for another size. `last_file` is written now and then.
    """
    config = run.config
    saved = time.perf_counter()
    if run.progress(len(loader)) >= 1:  # it was stopped at its very end
        return
    network.train()
    set_position(loader, run.epoch, run.batch * run.batch_size * run.num_processes)
    bar = tqdm(
        total=len(loader),
        initial=run.batch,
        desc=f"epoch {run.epoch + 1}/{config.epochs}",
        unit="batch",
        disable=None if run.rank == 0 else True,
    )
    group: list[dict[str, Any]] = []
    start = time.perf_counter()
    for batch in loader:
        group.append(batch)
        if len(group) < config.accumulate and run.batch + len(group) < len(loader):
            continue
        progress = run.progress(len(loader))
        losses = train_step(run, network, criterion, group, progress)
        run.num_nonfinite = run.num_nonfinite + 1 if losses is None else 0
        num_images = sum(len(batch["image"]) for batch in group) * run.num_processes
        elapsed, start = time.perf_counter() - start, time.perf_counter()
        run.batch, run.step = run.batch + len(group), run.step + 1
        run.images, run.elapsed_s = run.images + num_images, run.elapsed_s + elapsed
        nonfinite_folder = last_file.parents[1] / "nonfinite"
        if losses is None:
            dump_batches(run, group, nonfinite_folder)
        else:
            for name, value in (losses | {"images": 1, "seconds": elapsed / num_images}).items():
                run.sums[name] = run.sums.get(name, 0.0) + value * num_images
            if writer is not None:
                log_step(run, losses, criterion.weights(progress), num_images / elapsed, writer)
        bar.update(len(group))
        bar.set_postfix(loss=f"{losses['total']:.4f}" if losses is not None else "not finite")
        group = []
        if run.num_nonfinite >= MAX_NONFINITE_STEPS:
            if writer is not None:
                writer.close()
                try_to_save(run.state_dict(), last_file)
            raise UserError(
                f"{MAX_NONFINITE_STEPS} steps running, up to step {run.step}, had a loss or gradient "
                f"that is not finite: look at their batches in {nonfinite_folder}, "
                f"or try a lower --lr with --resume auto"
            )
        stop.agreed = run.agree(stop.received)
        progress = run.progress(len(loader))
        if stop.agreed is not None or progress >= 1:
            break
        if config.max_minutes and config.stage_at(progress) != (run.size, run.batch_size):
            break
        if writer is not None and time.perf_counter() - saved > 60 * config.save_minutes:
            try_to_save(run.state_dict(), last_file)
            saved = time.perf_counter()
    bar.close()


def dump_batches(run: TrainingState, batches: list[dict[str, Any]], folder: Path) -> None:
    """Keep what spoilt a step, images, masks, names and position, to be replayed."""
    content = {"epoch": run.epoch, "batch": run.batch, "step": run.step, "seed": run.config.seed}
    path = folder / f"step_{run.step:07d}_process_{run.rank}.pth"
    try_to_save(content | {"batches": batches}, path)
    print(f"warning: step {run.step} was not finite and is skipped; its batch is in {path}", file=sys.stderr)


def log_step(
    run: TrainingState,
    losses: dict[str, float],
    weights: dict[str, float],
    images_per_s: float,
    writer: EventLog,
) -> None:
    """Write one step's scalars for TensorBoard."""
    for name, value in losses.items():
        writer.add_scalar("train/grad_norm" if name == "grad_norm" else f"loss/{name}", value, run.step)
    for name, value in weights.items():
        writer.add_scalar(f"weight/{name}", value, run.step)
    writer.add_scalar("train/lr", run.optimizers[0].param_groups[0]["lr"], run.step)
    writer.add_scalar("train/images_per_s", images_per_s, run.step)


def is_validated(run: TrainingState, batches: int) -> bool:
    """Whether the epoch that ends, of so many batches, is validated: every n-th is, and the last."""
    last = run.batch < batches or run.epoch + 1 == run.config.epochs or run.progress(batches) >= 1
    return last or (run.epoch + 1) % run.config.val_interval == 0


def finish_epoch(
    run: TrainingState, batches: int, val_loader: DataLoader, writer: EventLog | None, folder: Path
) -> None:
    """Validate if it is time, and write the epoch's row, curves and pictures."""
    sums = run.sums
    validated = is_validated(run, batches)
    seconds, num_images = sums.pop("seconds", math.nan), sums.pop("images", math.nan)
    means = {name: value / num_images for name, value in sums.items()}
    run.epoch, run.batch, run.sums = run.epoch + 1, 0, {}
    if writer is None:
        return

    metrics, pictures = validate(run, val_loader) if validated else ({}, {})
    run.tracker.add(
        run.epoch,
        {name: value for name, value in means.items() if name != "grad_norm"},
        metrics,
        step=run.step,
        images=run.images,
        size=run.size,
        lr=run.optimizers[0].param_groups[0]["lr"],
        grad_norm=means.get("grad_norm", math.nan),
        images_per_s=num_images / seconds,
    )
    with warn_on_os_error(folder / "metrics.csv"), atomic_path(folder / "metrics.csv") as temporary:
        temporary.write_text(run.tracker.to_csv())
    if validated:
        from torchvision.utils import save_image  # slow to import

        for name, value in metrics.items():
            writer.add_scalar(f"val/{name}", value, run.step)
        for name, picture in pictures.items():
            writer.add_image(f"val/{name}", picture, run.step)
            path = folder / "visualizations" / f"epoch_{run.epoch:04d}_{name}.png"
            with warn_on_os_error(path), atomic_path(path) as temporary:
                save_image(picture, temporary, format="png")
        with warn_on_os_error(folder / "visualizations"):
            run.tracker.draw(folder / "visualizations")
        print(f"epoch {run.epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    writer.flush()


def main(argv: list[str] | None = None, *, prog: str = "train.py", presets: bool = False) -> int:
    """Train as the command line says; returns the exit status: 2 for a user's mistake, 130 or 143 if
    stopped by a signal, 1 if another process of the run was lost.
    """
    try:
        config = parse_config(argv, prog, presets)
        if config.dry_run:
            dry_run.report(config)
        else:
            train(config)
    except UserError as error:
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except WorkerLost:
        message = "another process of the run ended; --resume auto goes on from the last checkpoint"
        print(f"{prog}: error: {message}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        return 128 + stop.signum
    return 0


if __name__ == "__main__":
    run_program(main, "train.py")
