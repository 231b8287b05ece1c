"""Reports hold the means and gains of the scores, and leave out scores that mean nothing."""

import csv
import io
import json
import math

import numpy as np
import pytest

from evaluation.report import Scored, by_bucket, gain, make_report, means, summarize, to_csv, to_markdown


def hole(number: int, bucket: str, source: str = "", ratio: float = 0.2, **psnr: float) -> Scored:
    values = {"output": 20.0 + number, "coarse": 19.0, "telea": 18.0, "navier_stokes": 17.0 + 2 * number}
    lpips = {"output": 0.2, "coarse": 0.3, "telea": 0.4, "navier_stokes": 0.1}
    values |= psnr
    scores = {name: {"psnr": value, "lpips": lpips[name]} for name, value in values.items()}
    return Scored(f"hole{number}", source or f"image{number}", bucket, ratio, scores)


HOLES = [hole(i, label) for i, label in enumerate(["1-10 %", "10-20 %", "10-20 %", "other"])]


def test_summaries_are_means_and_paired_gains() -> None:
    whole = summarize(HOLES)
    assert whole["methods"]["output"] == pytest.approx({"psnr": 21.5, "lpips": 0.2})
    assert whole["best_baseline"] == pytest.approx({"psnr": 20.0, "lpips": 0.1})
    # the better baseline of each hole is 18, 19, 21 and 23 dB
    assert whole["gain"]["mean"] == pytest.approx(np.mean([2, 2, 1, 0])) and whole["gain"]["share"] == 0.75
    low, high = whole["gain"]["interval"]
    assert 0 <= low < 1.25 < high <= 2
    assert whole["gain_coarse"]["mean"] == pytest.approx(2.5) and "gain_against" not in whole


def test_the_best_baseline_in_sharpness_is_the_one_nearest_to_the_truth() -> None:
    values = {"output": 0.1, "telea": 0.4, "navier_stokes": 1.7}
    scores = {name: {"psnr": 20.0, "sharpness": value} for name, value in values.items()}
    report = make_report({}, [Scored("a", "a", "10-20 %", 0.2, scores)])
    assert report["best_baseline"]["sharpness"] == 0.4
    assert "| sharpness / best baseline |" in to_markdown(report) and "| 0.100 / 0.400 |" in to_markdown(
        report
    )


def test_buckets_are_reported_in_order_and_one_image_has_no_interval() -> None:
    buckets = by_bucket(HOLES)
    assert list(buckets) == ["1-10 %", "10-20 %", "other"]
    assert buckets["10-20 %"]["gain"]["mean"] == 1.5 and buckets["other"]["gain"]["interval"] is None


def test_holes_of_one_image_are_not_taken_for_independent() -> None:
    holes = [
        hole(i, "10-20 %", source=f"image{i // 50}", output=20 + i // 50, navier_stokes=0) for i in range(100)
    ]
    assert gain(holes, ["telea"])["interval"] == pytest.approx((2, 3))  # two images, not a hundred


def test_a_hole_that_is_empty_counts_in_no_metric_of_the_hole() -> None:
    holes = [hole(0, "10-20 %"), hole(1, "other", ratio=0.0, output=100.0, telea=100.0)]
    assert means(holes, "output") == pytest.approx({"psnr": 20.0, "lpips": 0.2})
    assert gain(holes, ["telea"])["mean"] == 2.0
    assert means(holes[1:], "output")["psnr"] == 100.0  # by definition, where nothing else is


def test_the_report_is_plain_json_and_its_tables_hold_its_numbers() -> None:
    report = json.loads(json.dumps(make_report({"seed": 42}, HOLES, frechet_distance=1.5)))
    text = to_markdown(report)
    assert "- seed: 42" in text and "Fréchet distance to the true images: 1.500" in text
    assert "| 10-20 % | 2 | 21.50 | 20.00 | +1.50 (+1.00 to +2.00) |" in text
    assert "| all | 4 | 21.50 |" in text and "| telea | 18.0000 | 0.4000 |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 2 and "nan" not in text


def test_the_distance_by_method_is_named_with_its_number_of_images_and_never_as_fid() -> None:
    lite = {"n": 4, "methods": {"output": 12.346, "telea": 20.0}}
    text = to_markdown(make_report({}, HOLES, frechet_distance_lite0=lite))
    line = "- Fréchet distance (EfficientNet-Lite0) to the true images, n = 4, biased upwards at small n:"
    assert f"{line} output 12.35, telea 20.00" in text and "FID" not in text
    unknown = {"n": 1, "methods": None}
    assert "EfficientNet" not in to_markdown(make_report({}, HOLES, frechet_distance_lite0=unknown))


def test_every_hole_is_a_row_of_the_table() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(HOLES))))
    assert [row["name"] for row in rows] == ["hole0", "hole1", "hole2", "hole3"]
    assert float(rows[1]["gain"]) == 2.0 and float(rows[1]["telea_psnr"]) == 18.0
    assert not any(math.isnan(float(row["psnr"])) for row in rows)
