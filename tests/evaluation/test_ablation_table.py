"""The table of an ablation holds the means, intervals and paired differences that one computes by hand."""

import csv
import io
import math

import pytest

from evaluation.ablation_table import Result, differences, over_seeds, rows_of, to_csv, to_markdown


def result(row: str, seed: int, psnr: list[float]) -> Result:
    holes = [
        {"name": str(i), "bucket": ("10-20 %", "50-60 %")[i % 2], "mask_ratio": 0.1, "psnr": value, "l1": 0.1}
        for i, value in enumerate(psnr)
    ]
    return Result(row, seed, 10, 1000, 20.0, "0" * 64, holes)


RESULTS = [
    result("baseline", 1, [20, 22]),
    result("full", 1, [21, 23]),
    result("baseline", 2, [18, 20]),
    result("full", 2, [21, 21]),
]


def test_the_table_has_lpips_if_every_run_was_scored_by_it() -> None:
    assert "LPIPS is left out" in to_markdown(RESULTS)
    scored = [result("baseline", 1, [20, 22]), result("full", 1, [21, 23])]
    for each in scored:
        for hole in each.holes:
            hole["lpips"] = 0.25
    assert "| 0.2500 |" in to_markdown(scored) and "left out" not in to_markdown(scored)
    assert "LPIPS is left out" in to_markdown([*scored, RESULTS[2]])


def test_intervals_over_seeds_are_students() -> None:
    mean, half = over_seeds([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.302653 / math.sqrt(3))
    assert over_seeds([1.0]) == (1.0, math.inf)


def test_differences_are_paired_by_seed() -> None:
    rows = rows_of(RESULTS)
    assert differences(rows["full"], rows["baseline"], "psnr") == [1, 2]
    assert differences(rows["full"], rows["baseline"], "psnr", "10-20 %") == [1, 3]
    del rows["full"][1]
    assert differences(rows["full"], rows["baseline"], "psnr") == [2]


def test_the_tables_hold_means_and_differences() -> None:
    text = to_markdown(RESULTS)
    assert "| baseline | 2 | 1,000 | 20 | 20.00 ± 12.71 | 0.10000 ± 0.00000 |  |  |" in text
    assert "| full | 2 | 1,000 | 20 | 21.50 ± 6.35 | 0.10000 ± 0.00000 | +1.50 ± 6.35 |" in text
    assert "| full | 21.00 ± 0.00 (+2.00 ± 12.71) | 22.00 ± 12.71 (+1.00 ± 0.00) |" in text
    rows = list(csv.DictReader(io.StringIO(to_csv(RESULTS))))
    assert [(row["row"], row["seed"], float(row["psnr"])) for row in rows] == [
        ("baseline", "1", 21), ("full", "1", 22), ("baseline", "2", 19), ("full", "2", 21),
    ]  # fmt: skip


def test_a_metric_that_older_results_lack_is_left_out() -> None:
    for hole in (newer := result("full", 3, [20, 20])).holes:
        hole["corner_loss"] = 0.01
    assert "| corner loss |" in to_markdown([newer])
    for text in (to_markdown([newer, *RESULTS]), to_csv([newer, *RESULTS])):
        assert "corner" not in text and "20" in text


def test_buckets_stand_in_order_with_the_rest_last() -> None:
    holes = [
        {"name": label, "bucket": label, "mask_ratio": 0.1, "psnr": 20.0}
        for label in ("other", "10-20 %", "1-10 %")
    ]
    assert Result("full", 1, 1, 1, 1.0, "", holes).buckets() == ["1-10 %", "10-20 %", "other"]
