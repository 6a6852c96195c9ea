"""Multiples for pruned widths, compared by a real clock."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import prune_rounding


def test_each_multiple_has_its_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--students", "resnet10t", "--fewer", "0.5", "--multiples", "8", "16", "--seconds", "0.1", "--size", "64"]
    monkeypatch.setattr(sys, "argv", ["prune_rounding.py", *given])
    prune_rounding.main()
    *_, eights, sixteens, last = capsys.readouterr().out.splitlines()
    figures = {}
    for line in (eights, sixteens):
        _, student, fewer, multiple, *left, _ = (cell.strip() for cell in line.split("|"))
        assert (student, fewer) == ("resnet10t", "0.5")
        figures[multiple] = [float(value) for value in left]
        assert all(0 < value < 1 for value in figures[multiple][1:])
    assert figures.keys() == {"8", "16"}
    assert float(last.removeprefix("RESULT latency_16_over_8=")) == pytest.approx(
        figures["16"][0] / figures["8"][0], rel=0.02
    )


def test_a_network_that_is_too_narrow_is_left_out_of_the_mean() -> None:
    rows = [
        {"student": "a", "fewer": 0.5, "multiple": 8, "latency": 0.8},
        {"student": "a", "fewer": 0.5, "multiple": 16, "latency": 0.4},
        {"student": "b", "fewer": 0.5, "multiple": 8, "latency": 0.1},
    ]
    assert prune_rounding.second_over_first(rows, [8, 16, 32]) == pytest.approx(0.5)
