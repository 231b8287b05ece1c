"""Train variants of a configuration with several seeds, score them on the same holes, and compare them.

Without --vary: four variants, with and without MSSE and the corner loss. The training settings apply to all
variants. The same command resumes.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from config import Config, parse_config, parse_field, with_current_names
from dataset import InpaintingDataset, Loader, report_unreadable
from evaluation.ablation_table import Result, draw, to_csv, to_markdown
from evaluation.evaluate import Item, ScoreSettings, one_by_one, score
from evaluation.mask_packs import bucket_of
from inference.checkpoints import load_checkpoint, network_of, weights_digest
from inference.device import seed_everything, select_device
from losses import InpaintingLoss
from metrics import why_no_lpips
from models import InpaintingNetwork
from train import train
from training.process import Interrupted
from utils import OneLineParser, UserError, one_line, run_program, write_json, write_text

# fmt: off
ROWS: dict[str, dict[str, Any]] = {
    "baseline": dict(use_structure_encoder=False, lambda_corner=0.0),
    "msse":     dict(lambda_corner=0.0),
    "corner":   dict(use_structure_encoder=False),
    "full":     dict(),
}
# fmt: on
# settings that differ from machine to machine, and do not change the network
MACHINE = {"train_root", "val_root", "mask_root", "cache_dir", "save_dir", "vgg_weights", "lpips_weights"}
MACHINE |= {"num_workers", "cache", "device", "resume", "save_minutes", "dry_run"}


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, Config, dict[str, dict[str, Any]]]:
    """The ablation's own flags, the configuration of all rows, and the settings that each row changes."""
    parser = OneLineParser(prog="ablation.py", description=__doc__, add_help=False)
    add = parser.add_argument_group("ablation").add_argument
    add("--num_seeds", type=int, default=3, metavar="N", help="number of seeds, from --seed upwards")
    add("--vary", action="append", default=[], metavar="FIELD=A,B",
        help="setting and its values, instead of the four variants; repeat it for combinations")  # fmt: skip
    add("--test_root", default="", metavar="DIR",
        help="folder of images to score, all of them (default: --val_root and --val_subset)")  # fmt: skip
    args, rest = parser.parse_known_args(argv)
    if args.num_seeds < 1:
        raise UserError(f"--num_seeds: must be at least 1, got {args.num_seeds}")
    config = parse_config(rest, "ablation.py", parser)
    if config.resume or config.dry_run:
        raise UserError("--resume and --dry_run: not supported here; the same command resumes")
    return args, config, vary(args.vary) if args.vary else ROWS


def vary(settings: list[str]) -> dict[str, dict[str, Any]]:
    """The rows of settings `field=a,b`: every combination, named after its values."""
    fields = {}
    for setting in settings:
        name, equals, values = setting.partition("=")
        if not equals or not all(values.split(",")):
            raise UserError(f"--vary: must be a setting and its values, such as lr=1e-3,2e-3, got {setting}")
        if name in MACHINE | {"seed"}:
            raise UserError(f"--vary: {name} does not change the network")
        fields[name] = [parse_field(name, text, "--vary") for text in values.split(",")]
    rows = {}
    for chosen in itertools.product(*fields.values()):
        changes = dict(zip(fields, chosen, strict=True))
        rows[",".join(f"{name}={value}" for name, value in changes.items()).replace("/", "_")] = changes
    return rows


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that identify a run on any machine, as JSON holds them."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in MACHINE}
    return json.loads(json.dumps(settings))


def finished(folder: Path, config: Config, names: list[str]) -> Result | None:
    """The result of a finished run; None if there is none.

    Args:
        names: names of the images to score.

    Raises:
        UserError: if it has other settings, was scored on other images, or is not a result of this project.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        settings, result = content.pop("settings"), Result(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--save_dir: not a result of this project: {path} ({error})") from None
    settings = settings_of(Config()) | with_current_names(settings)  # newer settings had their defaults
    changed = [
        f"{name} {settings[name]!r}, not {value!r}"
        for name, value in settings_of(config).items()
        if settings[name] != value
    ]
    if changed:
        raise UserError(f"--save_dir: {folder} holds a run of other settings: {'; '.join(changed)}")
    scored = {hole["name"] for hole in result.holes}
    if scored != set(names):
        different = min(scored ^ set(names))
        raise UserError(f"--save_dir: {folder} holds a run that was scored on other images: {different}")
    return result


def run(row: str, config: Config, loader: DataLoader) -> Result:
    """Train or resume one row with one seed, and score its averaged weights at the end."""
    folder = Path(config.save_dir)
    train(dataclasses.replace(config, resume="auto"))
    last = folder / "checkpoints" / "last.pth"
    state = load_checkpoint(last, "--save_dir")
    device = select_device(config.device)
    network = network_of(state, last, "--save_dir", device)
    criterion = InpaintingLoss(boundary_width=config.boundary_width).to(device)
    weights = config.lpips_weights or None
    use_lpips = config.use_lpips or not why_no_lpips(weights, config.image_size)
    settings = ScoreSettings(use_lpips=use_lpips, lpips_weights=weights)
    holes = [score_hole(network, criterion, item, settings) for item in one_by_one(loader, device)]
    counters = state["counters"]
    result = Result(
        row=row,
        seed=config.seed,
        steps=counters["step"],
        images=counters["images"],
        minutes=counters["elapsed_s"] / 60,
        weights_sha256=weights_digest(state["ema"]),
        holes=holes,
    )
    write_json(dataclasses.asdict(result) | {"settings": settings_of(config)}, folder / "result.json")
    return result


@torch.no_grad()
def score_hole(
    network: InpaintingNetwork, criterion: InpaintingLoss, item: Item, settings: ScoreSettings
) -> dict[str, Any]:
    """Name, bucket, mask ratio and scores of one hole, as `Result` holds them."""
    outputs = network(item.image, item.mask)
    scores = score(outputs["output"], item, settings)
    scores["corner_loss"] = criterion(outputs, item.image, item.mask)["corner"].item()
    ratio = item.mask.double().mean().item()
    return {"name": item.name, "bucket": bucket_of(ratio), "mask_ratio": ratio, **scores}


def report(results: list[Result], changes: dict[str, dict[str, Any]], folder: Path) -> str:
    """Write the table, the chart, and TensorBoard's hyperparameters for all results so far."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    text = to_markdown(results)
    write_text(text, folder / "ablation.md")
    write_text(to_csv(results), folder / "ablation.csv")
    draw(results, folder / "ablation.png")
    for result in results:
        run_name = f"{result.row}-seed_{result.seed}"
        if not (folder / "logs" / run_name).exists():
            settings = {name: value if isinstance(value, bool | int | float) else str(value)
                        for name, value in changes[result.row].items()}  # fmt: skip
            settings |= {"row": result.row, "seed": result.seed}
            means = {f"hparam/{name}": value for name, value in result.means().items()}
            with SummaryWriter(str(folder / "logs")) as writer:
                writer.add_hparams(settings, means, run_name=run_name)
    return text


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 for a user error, 128 + its number for a signal."""
    try:
        args, config, rows = parse_args(argv)
        folder = Path(config.save_dir)
        runs = []
        for seed in range(config.seed, config.seed + args.num_seeds):
            for row, changes in rows.items():
                save_dir = folder / row / f"seed_{seed}"
                runs.append((row, dataclasses.replace(config, seed=seed, save_dir=str(save_dir), **changes)))
        dataset = InpaintingDataset(
            args.test_root or config.val_root,
            config.image_size,
            training=False,
            max_images=None if args.test_root else config.val_subset or None,
            mask_ratio=config.mask_ratio,
            mask_root=config.mask_root,
            invert_mask=config.invert_mask,
            cache_dir=config.cache_dir if config.cache else None,
            flag="--test_root" if args.test_root else "--val_root",
        )
        report_unreadable(dataset)
        results = {
            i: result
            for i, (_, run_config) in enumerate(runs)
            if (result := finished(Path(run_config.save_dir), run_config, dataset.names))
        }
        loader = Loader(dataset, num_workers=config.num_workers)
        left_out = "" if config.use_lpips else why_no_lpips(config.lpips_weights or None, config.image_size)
        if left_out:
            print(f"LPIPS left out: {left_out}")
        for i, (row, run_config) in enumerate(runs):
            if i not in results:
                print(f"{row}, seed {run_config.seed}: run {i + 1} of {len(runs)}", flush=True)
                seed_everything(run_config.seed)
                results[i] = run(row, run_config, loader)
                report([results[k] for k in sorted(results)], rows, folder)
        print(report([results[i] for i in range(len(runs))], rows, folder))
    except UserError as error:
        print(f"ablation.py: error: {one_line(error)}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        return 128 + stop.signum
    return 0


if __name__ == "__main__":
    run_program(main, "ablation.py")
