"""The table of methods: differences are paired, told with their interval, and no row wins by a lucky seed."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from paired import Scores, best, difference, render, result_line

SCORES: Scores = {
    "ce": {0: 70.0, 1: 72.0, 2: 71.0},
    "kd": {0: 71.0, 1: 73.2, 2: 72.1},
    "ie-ft": {0: 72.0, 1: 74.1, 2: 73.0},
}


def test_differences_are_paired() -> None:
    found = difference(SCORES, "ie-ft", "ce")
    assert found.points == pytest.approx((2.0 + 2.1 + 2.0) / 3)
    half = 4.30265 * math.sqrt(1 / 300) / math.sqrt(3)  # Student's t of two degrees of freedom; deviation 0.0577
    assert (found.low, found.high) == pytest.approx((found.points - half, found.points + half), rel=1e-4)
    assert 0 < found.p < 0.01
    assert found.seeds == 3
    assert difference(SCORES, "kd", "ie-ft").points == pytest.approx(-(1.0 + 0.9 + 0.9) / 3)


def test_both_differences_are_told_with_seeds_interval_and_p() -> None:
    told = result_line(SCORES)
    assert told.startswith("RESULT best_ie=ie-ft gain_points=2.03 best_other=kd over_other_points=0.93 ")
    assert "gain_seeds=3 gain_low=1.89 gain_high=2.18 gain_p=0.000" in told
    assert "over_other_seeds=3 over_other_low=0.79 over_other_high=1.08 over_other_p=0.001" in told
    table = render(SCORES, 80.0)
    assert "| kd | 72.10 | 1.10 | 3 | +1.10 [0.85, 1.35] | 0.003 | 3 |" in table
    assert "| 0.000 | 3 | +0.93 [0.79, 1.08] | 0.001 | 3 |" in table
    assert "No row" not in table


def test_a_row_of_one_seed_does_not_win() -> None:
    scores = {**SCORES, "ie-at": {0: 90.0}, "dkd": {1: 90.0, 2: 90.0}}
    assert result_line(scores) == result_line(SCORES)
    del scores["ie-ft"]
    assert "best_ie=ie-at gain_points=20.00 best_other=kd" in result_line(scores)
    assert "gain_seeds=1 gain_low=nan" in result_line(scores)
    assert "No row with IE shares 3 seeds with `ce`: the best, `ie-at`, is chosen among those that share 1." in render(
        scores, None
    )


def test_rows_of_other_seeds_are_compared_over_those_they_share() -> None:
    """With its easy seed 3 `ie-od` has the higher mean; over the seeds that `ce` has, too, it is below."""
    scores = {**SCORES, "ie-od": {0: 71.0, 1: 73.0, 2: 72.5, 3: 99.0}}
    found = best(scores, lifted=True)
    assert found is not None
    assert found.row == "ie-ft"
    scores["kd"] = {7: 99.0}
    assert "best_other=ce" in result_line(scores)
    assert "| kd | 99.00 |  | 1 |  |  | 0 |" in render(scores, None)


@pytest.mark.parametrize("silent", ["explore_weight=0", "inherit_fraction=1.0", "tap=-2,explore_weight=0.0"])
def test_a_row_that_does_not_explore_is_one_to_compare_with(silent: str) -> None:
    rows = {"ce": 60.0, "ft": 70.0, f"ie-ft@{silent}": 72.0, "ie-ft@explore_weight=0.5": 71.0}
    scores: Scores = {row: {seed: score + seed for seed in range(3)} for row, score in rows.items()}
    assert f"best_ie=ie-ft@explore_weight=0.5 gain_points=11.00 best_other=ie-ft@{silent}" in result_line(scores)
    assert "chosen by the scores that compare them" in render(scores, None)


def test_without_a_student_alone_there_is_no_result() -> None:
    assert "incomplete" in result_line({"kd": {0: 70.0}, "ie-ft": {0: 71.0}})
    assert "| kd | 70.00 |  | 1 |" in render({"kd": {0: 70.0}}, None)
