"""Settings of a training run, their presets, and the command-line flags made from them."""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from utils import DEFAULT_MASK_RATIO, OneLineParser, UserError, is_shards, split_roots


def setting(default: Any, help: str, metavar: str | None = None) -> Any:
    """A field of `Config` with the help text and the unit of its flag."""
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True)
class Config:
    """Settings of one training run; every field is a flag of `train.py` with the same name.

    Raises:
        UserError: naming the flag, for a value out of its range.
    """

    # fmt: off
    # data
    train_root: str = setting("./data/train", "folder of training images, searched recursively; "
                              "'sample' for bundled photographs; or shards {000..999}.tar", "DIR")
    val_root: str = setting("./data/val", "folder of validation images, or 'sample'", "DIR")
    train_subset: int = setting(10_000, "maximum number of training images; 0 for all", "IMAGES")
    val_subset: int = setting(1_000, "maximum number of validation images; 0 for all", "IMAGES")
    image_size: int = setting(256, "side of the square crops", "PIXELS")
    progressive: str = setting("", "stages of smaller crops at the start of the run: size, share of the run "
                               "and optional batch size of each, such as 64:0.4:32,128:0.3", "STAGES")
    mask_ratio: tuple[float, float] = setting(DEFAULT_MASK_RATIO, "mask ratio of random masks (missing "
                                              "share of the image), drawn uniformly from this range")
    mask_root: str = setting("", "folder of mask files to use instead of random masks", "DIR")
    invert_mask: bool = setting(False, "black marks the missing pixels in mask files, instead of white")
    min_crop: float = setting(1.0, "minimum side of a training crop relative to the shorter side", "SHARE")
    rotate: float = setting(0.0, "maximum rotation of a training crop to either side", "DEGREES")
    color_jitter: float = setting(0.0, "maximum change of brightness, contrast and saturation", "SHARE")
    max_enlarge: float = setting(0.0, "leave out training images that would be enlarged by more than this; "
                                 "0 for no limit", "FACTOR")
    num_workers: int = setting(2, "number of data loader processes; 0 loads in the training process", "N")
    cache: bool = setting(True, "keep decoded images in a file that all processes share")
    cache_dir: str = setting("", "folder of the image cache (default: the user's cache folder)", "DIR")

    # network
    base_channels: int = setting(40, "channels at full resolution", "C")
    use_structure_encoder: bool = setting(True, "bias the attention by structure (MSSE)")
    bottleneck_depth: int = setting(2, "residual blocks at 1/8 resolution", "BLOCKS")
    refinement_depth: int = setting(1, "residual blocks of the refinement at 1/4 resolution", "BLOCKS")
    pyramid_base: int = setting(32, "longer side to which the image is halved before its first completion",
                                "PIXELS")
    prior_rank: int = setting(256, "principal components of the training images in the first guess; "
                              "0 for push-pull alone", "COMPONENTS")

    # losses: each lambda_* is an argument of `InpaintingLoss` with the same name
    reconstruction: str = setting("l1", "coarse and refinement loss: l1, or rms (root mean square)", "NAME")
    lambda_coarse: float = setting(1.0, "weight of the coarse loss", "WEIGHT")
    lambda_refine: float = setting(1.0, "weight of the refinement loss", "WEIGHT")
    lambda_edge: float = setting(0.5, "weight of the edge loss", "WEIGHT")
    lambda_corner: float = setting(0.3, "weight of the corner loss", "WEIGHT")
    lambda_color: float = setting(0.5, "weight of the colour loss", "WEIGHT")
    lambda_smaller: float = setting(0.3, "weight of coarse and refinement loss at smaller sizes", "WEIGHT")
    lambda_perceptual: float = setting(0.0, "weight of the VGG16 perceptual loss; 0 for none", "WEIGHT")
    boundary_width: int = setting(5, "width of the boundary band on each side of the hole's edge", "PIXELS")
    vgg_weights: str = setting("", "file of VGG16's features.* layers (default: torchvision's)", "FILE")

    # optimization
    epochs: int = setting(60, "passes over the training images", "N")
    max_minutes: float = setting(0.0, "time limit of the run and its schedules; 0 for none", "MINUTES")
    batch_size: int = setting(8, "images per batch and process", "IMAGES")
    accumulate: int = setting(1, "batches whose gradients are accumulated for one optimizer step", "BATCHES")
    optimizer: str = setting("adamw", "adamw, or muon: Muon for matrices and AdamW for the rest", "NAME")
    lr: float = setting(2e-4, "peak learning rate, which decays to 1 %% by a cosine", "RATE")
    warmup: float = setting(0.02, "share of the run in which the learning rate rises", "SHARE")
    decay: float = setting(1.0, "share of the run, at its end, in which the learning rate decays", "SHARE")
    weight_decay: float = setting(1e-4, "weight decay, decoupled from the gradient", "RATE")
    grad_clip: float = setting(1.0, "maximum norm of the gradient", "NORM")
    ema_decay: float = setting(0.999, "decay per step of the weight average (EMA) that is validated", "DECAY")

    # machine
    device: str = setting("auto", "device to train on: auto, cuda, cuda:1, mps or cpu", "DEVICE")
    amp: bool = setting(False, "mixed precision: bfloat16 (on CPUs with AVX512-BF16 or AMX), or float16 on "
                        "CUDA devices without it")
    channels_last: bool = setting(True, "keep tensors in channels-last memory format")
    compile: bool = setting(False, "compile the network with torch.compile")

    # run
    init: str = setting("", "initial weights: a checkpoint, or bundled weights such as default", "FILE")
    save_dir: str = setting("experiments/exp1", "folder of the run", "DIR")
    save_minutes: float = setting(10.0, "checkpoint interval within an epoch", "MINUTES")
    resume: str = setting("", "checkpoint to resume; 'auto' for the newest of --save_dir, if any", "FILE")
    dry_run: bool = setting(False, "check the data, measure a step and predict the run's time; write nothing")
    seed: int = setting(42, "seed of all random numbers", "SEED")
    val_interval: int = setting(1, "validation interval", "EPOCHS")
    checkpoint_interval: int = setting(10, "interval of the periodic checkpoints", "EPOCHS")
    keep_checkpoints: int = setting(5, "number of periodic checkpoints to keep, the newest; 0 for all", "N")
    use_lpips: bool = setting(False, "add LPIPS to the validation metrics (needs the lpips package)")
    lpips_weights: str = setting("", "file of AlexNet's features.* layers (default: torchvision's)", "FILE")

    def __post_init__(self) -> None:
        lambdas = " ".join(name for name in vars(self) if name.startswith("lambda_"))
        low, high = self.mask_ratio
        checks: list[tuple[str, str, Callable[[Any], bool]]] = [
            ("epochs batch_size accumulate val_interval", "at least 1", lambda x: x >= 1),
            ("checkpoint_interval boundary_width", "at least 1", lambda x: x >= 1),
            ("train_subset val_subset num_workers max_minutes seed", "0 or more", lambda x: x >= 0),
            ("weight_decay keep_checkpoints max_enlarge prior_rank", "0 or more", lambda x: x >= 0),
            (f"bottleneck_depth refinement_depth {lambdas}", "0 or more", lambda x: x >= 0),
            ("image_size", "at least 16 pixels", lambda x: x >= 16),
            ("pyramid_base", "at least 8 pixels", lambda x: x >= 8),
            ("base_channels", "even and at least 2", lambda x: x >= 2 and x % 2 == 0),
            ("seed", "below 2^32", lambda x: x < 2**32),
            ("save_dir", "a folder", bool),
            ("lr save_minutes grad_clip", "above 0", lambda x: x > 0),
            ("warmup color_jitter ema_decay", "at least 0 and below 1", lambda x: 0 <= x < 1),
            ("min_crop decay", "above 0 and at most 1", lambda x: 0 < x <= 1),
            ("rotate", "from 0 to 180 degrees", lambda x: 0 <= x <= 180),
            ("max_enlarge", "0 with shards", lambda x: not (x and is_shards(self.train_root))),
            ("reconstruction", "l1 or rms", lambda x: x in ("l1", "rms")),
            ("optimizer", "adamw or muon", lambda x: x in ("adamw", "muon")),
            ("mask_ratio", "two shares between 0 and 1, the lower first", lambda _: 0 < low <= high < 1),
        ]
        for names, needed, is_valid in checks:
            for name in names.split():
                if not is_valid(getattr(self, name)):
                    raise UserError(f"--{name}: must be {needed}, got {getattr(self, name)}")
        self.stages()
    # fmt: on

    def stages(self) -> list[tuple[float, int, int]]:
        """The stages of `progressive`: the progress at which each ends, its image size and its batch size.

        Raises:
            UserError: if `progressive` is not a list of stages.
        """
        stages, end = [], 0.0
        try:
            for part in self.progressive.split(",") if self.progressive else ():
                size, share, *optional = part.split(":")
                (batch_size,) = map(int, optional or [str(self.batch_size)])
                end += float(share)
                stages.append((end, int(size), batch_size))
                if not (int(size) >= 16 and float(share) > 0 and end < 1 and batch_size >= 1):
                    raise ValueError
        except ValueError:
            raise UserError(
                f"--progressive: must be sizes from 16 pixels up with shares that sum to less than 1, "
                f"such as 64:0.4,128:0.3, or 64:0.4:32,128:0.3:8 with batch sizes, got {self.progressive}"
            ) from None
        return [*stages, (math.inf, self.image_size, self.batch_size)]

    def stage_at(self, progress: float) -> tuple[int, int]:
        """The image size in pixels and the images per batch at `progress` of the run, in [0, 1]."""
        return next((size, batch_size) for end, size, batch_size in self.stages() if progress < end)

    def architecture(self) -> dict[str, Any]:
        """The arguments of `InpaintingNetwork`."""
        names = "base_channels use_structure_encoder bottleneck_depth refinement_depth pyramid_base"
        return {name: getattr(self, name) for name in [*names.split(), "prior_rank"]}


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "default":      dict(),
    "high_quality": dict(epochs=100, batch_size=16, lambda_edge=1.0, lambda_color=1.0, lambda_corner=0.5,
                         lambda_perceptual=0.1, use_lpips=True),
    "fast":         dict(epochs=30, batch_size=16, base_channels=24, use_structure_encoder=False,
                         prior_rank=192, val_interval=2),
    "large":        dict(batch_size=4, bottleneck_depth=4, refinement_depth=2, lambda_refine=1.5,
                         lambda_edge=1.0, lambda_color=1.0, lambda_corner=0.5),
    "small_gpu":    dict(batch_size=4, base_channels=24, use_structure_encoder=False,
                         prior_rank=192, amp=True),
    "debug":        dict(epochs=5, batch_size=2, base_channels=16, prior_rank=0,
                         train_root="sample", val_root="sample", train_subset=100, val_subset=50,
                         image_size=128, num_workers=0),
}
# fmt: on


RENAMED = {"mask_coverage": "mask_ratio"}  # earlier names of settings and their flags, and the current ones


def with_current_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings saved by an earlier version, under their current names."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def get_config(name: str = "default", **overrides: Any) -> Config:
    """A preset with some of its fields changed.

    Raises:
        UserError: for an unknown preset or an unknown field.
    """
    if name not in PRESETS:
        raise UserError(f"--config: no such preset: {name} (there are {', '.join(PRESETS)})")
    unknown = overrides.keys() - {field.name for field in dataclasses.fields(Config)}
    if unknown:
        raise UserError(f"no such setting: {', '.join(sorted(unknown))}")
    return Config(**(PRESETS[name] | overrides))


class BooleanFlag(argparse.Action):
    """The two flags of a boolean setting: `--name` and `--no_name`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not str(option_string).startswith("--no_"))


def add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    """Add the flag of one field; the negative flag of a boolean lacks the name's `use_`."""
    flags, default = [f"--{field.name}"], str(field.default) or "none"
    options: dict[str, Any] = {"type": field.type, "metavar": field.metadata["metavar"]}
    if field.type is bool:
        flags.append(f"--no_{field.name.removeprefix('use_')}")
        options, default = {"action": BooleanFlag, "nargs": 0}, "on" if field.default else "off"
    elif isinstance(field.default, tuple):
        options = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
        default = " ".join(map(str, field.default))
    text = field.metadata["help"]
    text += "" if "default:" in text else f" (default: {default})"
    parser.add_argument(*flags, dest=field.name, default=argparse.SUPPRESS, help=text, **options)


def parse_field(name: str, text: str, flag: str) -> Any:
    """The value of a field, parsed from text.

    Raises:
        UserError: naming `flag`, for an unknown field or a text that is not of the field's type.
    """
    fields = {field.name: field for field in dataclasses.fields(Config)}
    if name not in fields or isinstance(fields[name].default, tuple):
        raise UserError(f"{flag}: no such setting, or not of one value: {name}")
    kind: Any = fields[name].type
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        wanted = "true or false" if kind is bool else kind.__name__
        raise UserError(f"{flag}: {name}: must be {wanted}, got {text}") from None


def parse_config(argv: list[str] | None, prog: str, *parents: OneLineParser) -> Config:
    """The configuration of a command line: the preset of `--config`, overridden by flags.

    `--help` also lists the flags of `parents`, which are no settings, under the description of the first.

    Raises:
        UserError: for an unknown flag, a value of another type or out of range, or a missing folder.
    """
    description = parents[0].description if parents else "Train an inpainting network."
    parser = OneLineParser(prog=prog, description=description, parents=list(parents), renamed=RENAMED)
    parser.add_argument("--config", default="default", metavar="PRESET", help=f"preset: {', '.join(PRESETS)}")
    for field in dataclasses.fields(Config):
        add_flag(parser, field)
    names = {"config", *(field.name for field in dataclasses.fields(Config))}
    flags = {name: value for name, value in vars(parser.parse_args(argv)).items() if name in names}
    if "mask_ratio" in flags:
        flags["mask_ratio"] = tuple(flags["mask_ratio"])
    config = get_config(flags.pop("config"), **flags)
    for name in ("train_root", "val_root"):
        for part in split_roots(getattr(config, name)):
            if name == "train_root" and is_shards(part):
                continue
            if part != "sample" and not os.path.isdir(part):
                raise UserError(f"--{name}: no such folder: {part}")
    return config
