"""Size, speed and accuracy of exported files, compared with the eager network, on one thread.

Every round times each file once; reported are the median processor time and its range. Half precision, which
CPUs emulate, is timed on the smaller image alone. The difference from the eager network is the largest of any
pixel, in an image of [0, 1].
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from export import SUFFIXES, Completer, describe, make_case, read, write  # noqa: E402
from inference.checkpoints import load_network  # noqa: E402

SIDES = (256, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="default", help="checkpoint, or the name of bundled weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--formats", nargs="+", default=list(SUFFIXES), choices=SUFFIXES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    network, state = load_network(args.checkpoint, torch.device("cpu"))
    completers: dict[tuple[str, str], Completer] = {
        ("eager PyTorch", "float32"): lambda image, mask: network(image, mask)["output"]
    }
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.formats:
            for half in (False, True):
                name = kind, "float16" if half else "float32"
                path = Path(folder, f"{name[1]}{SUFFIXES[kind]}")
                write(network, path, describe(network, state, half=half), format=kind, half=half)
                completers[name] = read(path, kind)
                sizes[name] = f"{path.stat().st_size / 2**20:.1f} MiB"
    seconds: dict[tuple, list[float]] = {}
    differences = dict.fromkeys(completers, 0.0)
    with torch.no_grad():
        for side in SIDES:
            image, mask = make_case(1, side, side)
            for round_ in range(args.rounds + 2):  # two to warm up: TorchScript compiles in its second call
                expected = None
                for name, completer in completers.items():
                    if name[1] == "float16" and side > SIDES[0]:
                        continue
                    start = time.process_time()
                    output = completer(image, mask)
                    elapsed = time.process_time() - start
                    if round_ >= 2:
                        seconds.setdefault((*name, side), []).append(elapsed)
                    expected = output if expected is None else expected
                    differences[name] = max(differences[name], (output - expected).abs().max().item())
    print("| format | precision | file | 256×256 | 512×512 | difference |\n|---|---|---|---|---|---|")
    for name in completers:
        cells = [*name, sizes.get(name, "")]
        for side in SIDES:
            times = sorted(seconds.get((*name, side), []))
            cells.append(
                f"{statistics.median(times):.2f} s ({times[0]:.2f} to {times[-1]:.2f})" if times else ""
            )
        print("| " + " | ".join([*cells, f"{differences[name]:.0e}" if name in sizes else ""]) + " |")


if __name__ == "__main__":
    main()
