"""Write RESULTS.md from reports of test.py: protocols, scores and baselines, nothing by hand."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from evaluation.report import bucket_table, method_table, protocol_lines
from utils import OneLineParser, UserError, write_text

INTRODUCTION = """# Results

Made by `python benchmarks/results.py RESULTS.md TITLE=report.json ...` from reports of test.py, each made by

```bash
python test.py --test_root IMAGES --make_pack PACK --image_size 256
python test.py --test_root IMAGES --pack PACK --save_dir RESULTS --use_lpips
```

A pack has one hole per bucket for every image: strokes, boxes and holes at the border in turn. PSNR, SSIM,
L1 and boundary PSNR are computed in the hole alone, on composited images, and averaged over images; `_full`
is the whole image. Gains are differences in PSNR on the same hole; the best baseline of *that* hole scores
more than any single baseline does on average. Intervals are 95 % bootstraps over images. Baselines: the mean
of the known colours, push-pull, and both methods of `cv2.inpaint`.
"""


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(prog="results.py", description=__doc__)
    parser.add_argument("file", metavar="FILE", help="Markdown file to write")
    parser.add_argument(
        "reports", nargs="+", metavar="TITLE=REPORT", help="heading, and report.json of test.py"
    )
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
            lines += [f"## {title}", "", *protocol_lines(report), "", *tables, ""]
        write_text("\n".join(lines).rstrip() + "\n", Path(args.file))
    except UserError as error:
        print(f"results.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
