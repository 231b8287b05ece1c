"""Scores of single images summarised bucket by bucket, with intervals, as a dict and as a table."""

from typing import Any

import numpy as np

from metrics import mean_interval

Summary = dict[str, Any]
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "boundary_psnr": True, "lpips": False}


def summarize(rows: list[dict[str, Any]], methods: tuple[str, ...], floors: tuple[str, ...]) -> Summary:
    """Means of every metric over images, and the gain over the better floor, image by image.

    Args:
        rows: one an image: the metrics of `output` under their names, those of other methods as
            `method_metric`; `gain` in dB.
        methods: `output` first.
        floors: those of the methods that a network has to beat.

    Returns:
        `images`; a dict of metrics for every method; `gain` and its 95 % interval (None for one image);
        `best_floor`, of every metric the better of the floors' means.
    """
    names = [name.removeprefix(f"{methods[1]}_") for name in rows[0] if name.startswith(f"{methods[1]}_")]
    summary: Summary = {"images": len(rows)}
    for method in methods:
        prefix = "" if method == "output" else f"{method}_"
        summary[method] = {name: float(np.mean([row[prefix + name] for row in rows])) for name in names}
    gains = [row["gain"] for row in rows]
    summary |= {"gain": float(np.mean(gains)), "gain_interval": mean_interval(gains)}
    summary["best_floor"] = {
        name: (max if better else min)(summary[floor][name] for floor in floors)
        for name, better in HIGHER_IS_BETTER.items()
        if name in names
    }
    return summary


def by_bucket(
    rows: list[dict[str, Any]], methods: tuple[str, ...], floors: tuple[str, ...]
) -> dict[str, Summary]:
    """`summarize` of the rows of each `bucket`, in the order of the buckets' names."""
    labels = sorted({row["bucket"] for row in rows}, key=lambda label: (label == "other", len(label), label))
    return {
        label: summarize([row for row in rows if row["bucket"] == label], methods, floors) for label in labels
    }


def to_markdown(protocol: dict[str, Any], buckets: dict[str, Summary]) -> str:
    """The protocol in words and one row a bucket."""
    lines = ["# Evaluation", "", *(f"- {name}: {value}" for name, value in protocol.items()), ""]
    metrics = list(next(iter(buckets.values()))["best_floor"])
    others = [name for name in metrics if name != "psnr"]
    header = ["hole", "n", "PSNR, dB", "coarse", "better floor", "gain, image by image (95 %)"]
    header += [f"{name} / better floor" for name in others]
    lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for label, each in buckets.items():
        interval = each["gain_interval"]
        gain = f"{each['gain']:+.2f}" + (f" ({interval[0]:+.2f} to {interval[1]:+.2f})" if interval else "")
        cells = [label, str(each["images"])]
        kinds = ("output", "coarse", "best_floor")
        cells += [f"{each[kind]['psnr']:.2f}" if kind in each else "" for kind in kinds]
        cells += [gain, *(f"{each['output'][name]:.3f} / {each['best_floor'][name]:.3f}" for name in others)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
