"""Write RESULTS.md out of reports of test.py: the protocol, our figures, the floors, nothing by hand."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from evaluation.report import bucket_table, method_table
from utils import OneLineParser, UserError, write_text

INTRODUCTION = """# Results

Made by `python benchmarks/results.py RESULTS.md TITLE=report.json ...` out of reports of test.py, each by

```bash
python test.py --test_root IMAGES --make_pack PACK --image_size 256
python test.py --test_root IMAGES --pack PACK --save_dir RESULTS --use_lpips
```

A pack has one hole a bucket for every image: strokes, boxes and holes at the border in turn. PSNR, SSIM, L1
and boundary PSNR are means over images of values in the hole alone, of composited images; `_full` is the
whole image. Gains are differences in PSNR on the same hole; the best floor of *that* hole scores more than
any single floor does on average. Intervals are 95 % bootstraps over images. Floors: the mean of the known
colours, push-pull, and both methods of `cv2.inpaint`.
"""


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(prog="results.py", description=__doc__)
    parser.add_argument("file", metavar="FILE", help="to write")
    parser.add_argument("reports", nargs="+", metavar="TITLE=REPORT", help="a heading and a report.json")
    try:
        args = parser.parse_args(argv)
        lines = [INTRODUCTION]
        for part in args.reports:
            title, _, path = part.partition("=")
            try:
                report = json.loads(Path(path).read_text())
                tables = [*bucket_table(report), "", *method_table(report)]
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise UserError(f"{part}: not a heading and a report of test.py ({error})") from None
            lines += [f"## {title}", ""]
            lines += [f"- {name}: {value}" for name, value in report["protocol"].items()]
            if report.get("frechet_distance") is not None:
                lines.append(f"- Fréchet distance to the true images: {report['frechet_distance']:.3f}")
            lines += ["", *tables, ""]
        write_text("\n".join(lines).rstrip() + "\n", Path(args.file))
    except UserError as error:
        print(f"results.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
