"""Write a network as one file that needs none of this project: ONNX, TorchScript or torch.export."""

import argparse
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from config import PRESETS, get_config
from exporters.traceable import to_exported_program, to_torchscript
from inference.checkpoints import find_weights, load_network, weights_digest
from inference.onnx_network import FORMAT, OnnxNetwork
from models import InpaintingNetwork
from utils import OneLineParser, UserError, atomic_path, one_line, run_program

Completer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # image and mask to output

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "torch_export": ".pt2"}
# batch, height, width of what a file is verified on
CASES = ((1, 1, 1), (2, 1, 7), (3, 33, 9), (1, 64, 64), (3, 64, 64), (1, 257, 301), (3, 257, 301),
         (1, 512, 384), (3, 512, 384))  # fmt: skip
TOLERANCE = {"float32": 1e-4, "float16": 1e-2}  # of any pixel, in an image of [0, 1]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: for a flag that is unknown or at odds with another.
    """
    parser = OneLineParser(prog="export.py", description=__doc__)
    parser.add_argument(
        "--checkpoint", default="default", metavar="FILE",
        help="of train.py, or the name of one that comes along",
    )  # fmt: skip
    parser.add_argument("--format", default="onnx", choices=SUFFIXES, help="of the file")
    parser.add_argument(
        "--half", action="store_true", help="compute in float16; inputs and output stay float32"
    )
    parser.add_argument(
        "--output",
        default="",
        metavar="FILE",
        help="to write; if not named, the checkpoint's name in this folder",
    )
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


def describe(network: InpaintingNetwork, state: dict[str, Any], *, half: bool) -> dict[str, str]:
    """What the file says of itself."""
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
    extra = {"metadata.json": json.dumps(metadata)}
    if format == "torch_export":
        with path.open("wb") as file:
            torch.export.save(to_exported_program(network, half=half), file, extra_files=extra)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            module = to_torchscript(network, half=half)
            with path.open("wb") as file:
                torch.jit.save(module, file, _extra_files=extra)


def read(path: Path, format: str) -> Completer:
    """What a written file computes."""
    if format == "onnx":
        network = OnnxNetwork(path, "--output")
        return lambda image, mask: network(image, mask)["output"]
    if format == "torch_export":
        logging.getLogger("torch._export.serde").setLevel(logging.ERROR)  # it warns of symbols inside loops
        with path.open("rb") as file:
            return torch.export.load(file).module()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return torch.jit.load(str(path))


def make_case(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images with noise on them, and a hole of another place in each, with NaN under it."""
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
    """The largest difference between a file's output and the network's, over `CASES`.

    Raises:
        UserError: if it is above `tolerance`, or a known pixel is not the image's, bit for bit.
    """
    largest = 0.0
    for batch, height, width in CASES:
        image, mask = make_case(batch, height, width)
        output, expected = completer(image, mask), network(image, mask)["output"]
        case = f"of {batch}×{height}×{width}"
        if output.shape != expected.shape or output.dtype != expected.dtype:
            raise UserError(
                f"--format: the file gives {output.dtype} {tuple(output.shape)} {case}; not written"
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
        UserError: for anything that the user can mend.
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
        f"differs from the network by {difference:.1g} at most, in {len(CASES)} cases ({tolerance:g} allowed)"
    )


def main(argv: list[str] | None = None) -> int:
    """Export as the command line says; returns the exit status, 2 for a user's mistake."""
    try:
        export(parse_args(argv))
    except UserError as error:
        print(f"export.py: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_program(main, "export.py")
