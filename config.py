"""Every setting of a training run, the six presets, and the flags that are made of them."""

import argparse
import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from utils import DEFAULT_MASK_RATIO, OneLineParser, UserError, is_shards, split_roots


def setting(default: Any, help: str, metavar: str | None = None) -> Any:
    """A field of `Config` with the text and the unit that `--help` shows."""
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True)
class Config:
    """One training run. Every field is a flag of `train.py` and `quick_train.py` of the same name.

    Raises:
        UserError: naming the flag, for a value out of its range.
    """

    # data
    train_root: str = setting(
        "./data/train", "training images, searched recursively; 'sample'; or shards {000..999}.tar", "DIR"
    )
    val_root: str = setting("./data/val", "validation images, likewise", "DIR")
    train_subset: int = setting(10_000, "at most this many training images; 0 for all", "IMAGES")
    val_subset: int = setting(1_000, "at most this many validation images; 0 for all", "IMAGES")
    image_size: int = setting(256, "side of the square crops", "PIXELS")
    progressive: str = setting(
        "", "smaller sizes to begin with, their shares of the run, their batches: 64:0.4:32,128:0.3", "PLAN"
    )
    mask_ratio: tuple[float, float] = setting(
        DEFAULT_MASK_RATIO, "range of missing shares, drawn evenly", "SHARE"
    )
    mask_root: str = setting("", "folder of mask files to use instead of drawn masks", "DIR")
    invert_mask: bool = setting(False, "in mask files black is missing, not white")
    min_crop: float = setting(1.0, "least side of a training crop, of the image's shorter side", "SHARE")
    rotate: float = setting(0.0, "largest angle by which a training crop is turned", "DEGREES")
    color_jitter: float = setting(
        0.0, "largest change of brightness, contrast and saturation of a training crop", "SHARE"
    )
    max_enlarge: float = setting(
        0.0, "leave out training images that would be enlarged by more than this; 0 for none", "FACTOR"
    )
    num_workers: int = setting(2, "loader processes", "N")
    cache: bool = setting(True, "keep decoded images in a file that all processes share")
    cache_dir: str = setting("", "where that file is (default: the user's cache folder)", "DIR")

    # network
    base_channels: int = setting(40, "C, channels at full size", "N")
    use_structure_encoder: bool = setting(True, "bias the attention by MSSE")
    bottleneck_depth: int = setting(2, "residual blocks at 1/8 size", "N")
    refinement_depth: int = setting(1, "residual blocks of the refinement at 1/4 size", "N")
    pyramid_base: int = setting(
        32, "the image is halved to this longer side before its first completion", "PIXELS"
    )
    prior_rank: int = setting(
        256, "principal components of the training images in the first guess; 0 for push-pull alone", "N"
    )

    # losses
    reconstruction: str = setting("l1", "coarse and refinement loss: l1, or rms (root mean square)", "NAME")
    lambda_coarse: float = setting(1.0, "weight of the coarse loss", "W")
    lambda_refine: float = setting(1.0, "weight of the refinement loss", "W")
    lambda_edge: float = setting(0.5, "weight of the edge loss", "W")
    lambda_corner: float = setting(0.3, "weight of the corner loss", "W")
    lambda_color: float = setting(0.5, "weight of the colour loss", "W")
    lambda_smaller: float = setting(0.3, "weight of coarse and refinement loss at each smaller size", "W")
    lambda_perceptual: float = setting(0.0, "weight of the VGG16 perceptual loss; 0 for none", "W")
    boundary_width: int = setting(5, "width of the rim on each side of the hole's edge", "PIXELS")
    vgg_weights: str = setting(
        "", "file with VGG16's features.* layers (default: torchvision's cache)", "FILE"
    )

    # optimisation
    epochs: int = setting(60, "passes over the training images", "N")
    max_minutes: float = setting(
        0.0, "end the run, schedules included, after this time; 0 for no limit", "MINUTES"
    )
    batch_size: int = setting(8, "images a batch", "IMAGES")
    accumulate: int = setting(1, "batches whose gradients make one step", "BATCHES")
    optimizer: str = setting("adamw", "adamw, or muon: Muon for matrices and AdamW for the rest", "NAME")
    lr: float = setting(2e-4, "peak learning rate; falls to 1 %% by a cosine", "RATE")
    warmup: float = setting(0.02, "share of the run in which the learning rate rises", "SHARE")
    decay: float = setting(1.0, "share of the run, at its end, in which it falls", "SHARE")
    weight_decay: float = setting(1e-4, "weight decay, decoupled from the gradient", "W")
    grad_clip: float = setting(1.0, "largest norm of the gradient", "NORM")
    ema_decay: float = setting(
        0.999, "decay a step of the averaged weights, which are validated and kept", "SHARE"
    )

    # machine
    device: str = setting("auto", "auto, cuda, cuda:1, mps or cpu", "NAME")
    amp: bool = setting(
        False, "mixed precision: bfloat16, or float16 on CUDA without it; on CPUs with AVX512-BF16 or AMX"
    )
    channels_last: bool = setting(True, "keep tensors in channels-last order")
    compile: bool = setting(False, "compile the network with torch.compile")

    # run
    init: str = setting("", "weights to begin with: a checkpoint, or one that comes with it: default", "FILE")
    save_dir: str = setting("experiments/exp1", "folder of the run", "DIR")
    save_minutes: float = setting(10.0, "time from one saving to the next inside an epoch", "MINUTES")
    resume: str = setting("", "checkpoint to continue; 'auto': the last of save_dir, if there is one", "FILE")
    dry_run: bool = setting(False, "look at the data, measure a step, predict the run's time, write nothing")
    seed: int = setting(42, "of everything random", "N")
    val_interval: int = setting(1, "epochs from one validation to the next", "EPOCHS")
    checkpoint_interval: int = setting(10, "epochs from one kept checkpoint to the next", "EPOCHS")
    keep_checkpoints: int = setting(5, "at most so many of those, the newest; 0 for all", "N")
    use_lpips: bool = setting(False, "add LPIPS to the validation metrics (needs the lpips package)")
    lpips_weights: str = setting(
        "", "file with AlexNet's features.* layers (default: torchvision's cache)", "FILE"
    )

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, needed: str) -> None:
            if not condition:
                raise UserError(f"--{name}: must be {needed}, got {getattr(self, name)}")

        for name in (
            "epochs",
            "batch_size",
            "accumulate",
            "val_interval",
            "checkpoint_interval",
            "boundary_width",
        ):
            require(getattr(self, name) >= 1, name, "at least 1")
        for name in (
            "train_subset",
            "val_subset",
            "num_workers",
            "max_minutes",
            "seed",
            "weight_decay",
            "keep_checkpoints",
        ):
            require(getattr(self, name) >= 0, name, "0 or more")
        for name in (
            "bottleneck_depth",
            "refinement_depth",
            "prior_rank",
            *(f for f in self.__dict__ if f.startswith("lambda_")),
        ):
            require(getattr(self, name) >= 0, name, "0 or more")
        require(self.image_size >= 16, "image_size", "at least 16 pixels")
        require(self.pyramid_base >= 8, "pyramid_base", "at least 8 pixels")
        require(
            self.base_channels >= 2 and self.base_channels % 2 == 0, "base_channels", "even and at least 2"
        )
        require(self.seed < 2**32, "seed", "below 2^32")
        require(bool(self.save_dir), "save_dir", "a folder")
        require(self.lr > 0, "lr", "above 0")
        require(self.save_minutes > 0, "save_minutes", "above 0")
        require(self.grad_clip > 0, "grad_clip", "above 0")
        require(0 <= self.warmup < 1, "warmup", "at least 0 and below 1")
        require(0 < self.min_crop <= 1, "min_crop", "above 0 and at most 1")
        require(0 <= self.rotate <= 180, "rotate", "from 0 to 180 degrees")
        require(0 <= self.color_jitter < 1, "color_jitter", "at least 0 and below 1")
        require(self.max_enlarge >= 0, "max_enlarge", "0 or more")
        require(not (self.max_enlarge and is_shards(self.train_root)), "max_enlarge", "0 with shards")
        require(0 < self.decay <= 1, "decay", "above 0 and at most 1")
        require(self.reconstruction in ("l1", "rms"), "reconstruction", "l1 or rms")
        require(self.optimizer in ("adamw", "muon"), "optimizer", "adamw or muon")
        require(0 <= self.ema_decay < 1, "ema_decay", "at least 0 and below 1")
        low, high = self.mask_ratio
        require(0 < low <= high < 1, "mask_ratio", "two shares between 0 and 1, the lower first")
        self.stage_at(1.0)  # reads the whole plan

    def stage_at(self, progress: float) -> tuple[int, int]:
        """The training size in pixels and the images a batch when the share `progress` of the run is done."""
        end = 0.0
        for part in self.progressive.split(",") if self.progressive else ():
            try:
                size_text, share_text, *batch_text = part.split(":")
                size, share = int(size_text), float(share_text)
                (batch_size,) = [int(text) for text in batch_text] or [self.batch_size]
            except ValueError:
                size, share, batch_size = 0, 0.0, 0
            end += share
            if size < 16 or share <= 0 or end >= 1 or batch_size < 1:
                raise UserError(
                    f"--progressive: must be sizes from 16 pixels up with shares that sum to less than 1, "
                    f"such as 64:0.4,128:0.3, or 64:0.4:32,128:0.3:8 with batch sizes, got {self.progressive}"
                )
            if progress < end:
                return size, batch_size
        return self.image_size, self.batch_size

    def architecture(self) -> dict[str, Any]:
        """The arguments of `InpaintingNetwork`."""
        names = (
            "base_channels",
            "use_structure_encoder",
            "bottleneck_depth",
            "refinement_depth",
            "pyramid_base",
            "prior_rank",
        )
        return {name: getattr(self, name) for name in names}


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


RENAMED = {"mask_coverage": "mask_ratio"}  # settings of earlier versions, and their present names


def with_current_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version may have saved, under the names that they have now."""
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


def add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    """Add the flag of one field; a boolean gets `--name` and `--no_name`, without its `use_`."""
    text = field.metadata["help"] or field.name
    common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    if field.type is bool:
        negative = f"--no_{field.name.removeprefix('use_')}"
        parser.add_argument(
            f"--{field.name}", action="store_true", help=f"{text} (default: {field.default})", **common
        )
        parser.add_argument(negative, action="store_false", help="the opposite", **common)
    elif isinstance(field.default, tuple):
        parser.add_argument(
            "--mask_ratio", "--mask_coverage", type=float, nargs=2, metavar=("LOW", "HIGH"),
            help=f"{text} (default: {field.default[0]} {field.default[1]})", **common
        )  # fmt: skip
    else:
        default = field.default if field.default != "" else "none"
        help_text = text if "default:" in text else f"{text} (default: {default})"
        parser.add_argument(
            f"--{field.name}", type=field.type, metavar=field.metadata["metavar"], help=help_text, **common
        )


def parse_field(name: str, text: str, flag: str) -> Any:
    """A value of a field out of a text.

    Raises:
        UserError: naming `flag`, for an unknown field, or a text that is not of its type.
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


def parse_config(argv: list[str] | None, prog: str, presets: bool, *parents: OneLineParser) -> Config:
    """The configuration that a command line asks for: a preset if there is `--config`, overridden by flags.

    `--help` also lists the flags of `parents`, which are no settings, under the description of the first.

    Raises:
        UserError: for an unknown flag, a value that is not of its type or range, or a missing folder.
    """
    description = parents[0].description if parents else "Train an inpainting network."
    parser = OneLineParser(prog=prog, description=description, parents=list(parents))
    if presets:
        parser.add_argument(
            "--config", default="default", metavar="PRESET", help=f"one of {', '.join(PRESETS)}"
        )
    for field in dataclasses.fields(Config):
        add_flag(parser, field)
    names = {"config", *(field.name for field in dataclasses.fields(Config))}
    flags = {name: value for name, value in vars(parser.parse_args(argv)).items() if name in names}
    preset = flags.pop("config", "default")
    if "mask_ratio" in flags:
        flags["mask_ratio"] = tuple(flags["mask_ratio"])
    config = get_config(preset, **flags)
    for name in ("train_root", "val_root"):
        for part in split_roots(getattr(config, name)):
            if name == "train_root" and is_shards(part):
                continue
            if part != "sample" and not os.path.isdir(part):
                raise UserError(f"--{name}: no such folder: {part}")
    return config
