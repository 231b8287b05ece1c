"""Write a network as one ONNX or TorchScript file that runs without this project."""

import argparse
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from config import PRESETS, get_config
from exporters.traceable import to_torchscript
from inference.checkpoints import find_weights, load_network, weights_digest
from inference.onnx_network import FORMAT, OnnxNetwork
from models import InpaintingNetwork
from utils import OneLineParser, UserError, atomic_path, one_line, run_program

Completer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # image and mask to output

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt"}
# batch, height and width of the images on which a file is verified
CASES = ((1, 1, 1), (2, 1, 7), (3, 33, 9), (1, 64, 64), (3, 64, 64), (1, 257, 301), (3, 257, 301),
         (1, 512, 384), (3, 512, 384))  # fmt: skip
TOLERANCE = {"float32": 1e-4, "float16": 1e-2}  # largest difference of a pixel in [0, 1]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line.

    Raises:
        UserError: if a flag is unknown, or contradicts another one.
    """
    parser = OneLineParser(prog="export.py", description=__doc__)
    parser.add_argument(
        "--checkpoint", default="default", metavar="FILE",
        help="checkpoint of train.py, or the name of bundled weights",
    )  # fmt: skip
    parser.add_argument("--format", default="onnx", type=check_format, choices=SUFFIXES, help="file format")
    parser.add_argument(
        "--half", action="store_true", help="compute in float16; inputs and output stay float32"
    )
    parser.add_argument(
        "--output", default="", metavar="FILE",
        help="file to write; if not given, the checkpoint's name in the current folder",
    )  # fmt: skip
    args = parser.parse_args(argv)
    suffix = SUFFIXES[args.format]
    if not args.output:
        args.output = f"{find_weights(args.checkpoint).stem}{'_half' if args.half else ''}{suffix}"
    output = Path(args.output)
    if output.suffix != suffix:
        raise UserError(f"--output: must end in {suffix} with --format {args.format}, got {output}")
    if not output.parent.is_dir():
        raise UserError(f"--output: no such folder: {output.parent}")
    if output.is_dir() or output.resolve() == find_weights(args.checkpoint).resolve():
        raise UserError(f"--output: would overwrite a folder or the checkpoint: {output}")
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if args.format == "onnx" and missing:
        raise UserError(f"--format: onnx needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    return args


def check_format(name: str) -> str:
    """The format of a file, for the parser.

    Raises:
        UserError: if it is the former `torch_export`.
    """
    if name == "torch_export":
        raise UserError("--format: torch_export was removed; use onnx or torchscript")
    return name


def describe(network: InpaintingNetwork, state: dict[str, Any], *, half: bool) -> dict[str, str]:
    """Metadata that the file carries."""
    presets = [name for name in PRESETS if get_config(name).architecture() == state["architecture"]]
    return {
        "format": FORMAT,
        "preset": ", ".join(presets) or "none",
        "architecture": json.dumps(state["architecture"]),
        "trained": json.dumps({name: state["config"][name] for name in ("image_size", "mask_ratio")}),
        "weights_sha256": weights_digest(state["ema"]),
        "precision": "float16" if half else "float32",
        "image": "float32 (batch, 3, height, width), RGB in [0, 1]; any value under the hole",
        "mask": "float32 (batch, 1, height, width): 1 = missing, 0 = known",
        "output": "float32 (batch, 3, height, width), RGB in [0, 1]; the image's pixels where known",
    }


def write(
    network: InpaintingNetwork, path: Path, metadata: dict[str, str], *, format: str, half: bool
) -> None:
    """Export the network to a file of one of the formats."""
    if format == "onnx":
        import onnx

        from exporters.onnx_graph import build_model  # needs onnx

        model = build_model(network, half=half)
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, path)
        return
    with warnings.catch_warnings(), path.open("wb") as file:
        warnings.filterwarnings("ignore", category=FutureWarning)  # TorchScript is deprecated; asked for here
        extra = {"metadata.json": json.dumps(metadata)}
        torch.jit.save(to_torchscript(network, half=half), file, _extra_files=extra)


def read(path: Path, format: str) -> Completer:
    """Load a written file as a function of image and mask."""
    if format == "onnx":
        network = OnnxNetwork(path, "--output")
        return lambda image, mask: network(image, mask)["output"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return torch.jit.load(str(path))


def make_case(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images with noise, each with a hole somewhere else and NaN under it, and their masks."""
    generator = torch.Generator().manual_seed(height * width + batch)
    smooth = torch.nn.functional.interpolate(
        torch.rand(batch, 3, 5, 5, generator=generator), size=(height, width), mode="bilinear"
    )
    image = 0.8 * smooth + 0.2 * torch.rand(batch, 3, height, width, generator=generator)
    coarse = torch.rand(batch, 1, 6, 6, generator=generator)
    mask = (torch.nn.functional.interpolate(coarse, size=(height, width)) > 0.6).float()
    return image.masked_fill(mask > 0, torch.nan), mask


@torch.no_grad()
def verify(completer: Completer, network: InpaintingNetwork, tolerance: float) -> float:
    """Compare an exported file with the network on `CASES`; returns the largest difference of a pixel.

    Raises:
        UserError: if a difference exceeds `tolerance`, or a known pixel is not the image's, bit for bit.
    """
    largest = 0.0
    for batch, height, width in CASES:
        image, mask = make_case(batch, height, width)
        output, expected = completer(image, mask), network(image, mask)["output"]
        case = f"for {batch}×{height}×{width}"
        if output.shape != expected.shape or output.dtype != expected.dtype:
            raise UserError(
                f"--format: the file returns {output.dtype} {tuple(output.shape)} {case}; not written"
            )
        if not torch.equal(torch.where(mask > 0, 0, output), torch.where(mask > 0, 0, image)):
            raise UserError(f"--format: the file changes known pixels {case}; not written")
        difference = (output - expected).abs().max().item()
        if not difference <= tolerance:  # also catches NaN
            raise UserError(
                f"--format: the file differs from the network by {difference:.2g} {case}, "
                f"more than {tolerance:g}; not written"
            )
        largest = max(largest, difference)
    return largest


def export(args: argparse.Namespace) -> None:
    """Write the file whole and verified, or not at all.

    Raises:
        UserError: if the checkpoint cannot be read, or the file not be written or verified.
    """
    network, state = load_network(args.checkpoint, torch.device("cpu"))
    metadata = describe(network, state, half=args.half)
    path = Path(args.output)
    try:
        with atomic_path(path) as temporary:
            write(network, temporary, metadata, format=args.format, half=args.half)
            tolerance = TOLERANCE[metadata["precision"]]
            difference = verify(read(temporary, args.format), network, tolerance)
    except OSError as error:
        raise UserError(f"--output: cannot write to {path}: {error.strerror}") from None
    size = path.stat().st_size / 2**20
    print(f"{path}: {size:.1f} MiB, {args.format}, {metadata['precision']}, any batch, height and width")
    print(
        f"largest difference from the network in {len(CASES)} cases: {difference:.1g} ({tolerance:g} allowed)"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for a user error."""
    try:
        export(parse_args(argv))
    except UserError as error:
        print(f"export.py: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_program(main, "export.py")
