"""Pruning to a latency, against a real clock."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import prune_latency


def test_what_is_pruned_to_half_of_the_latency_is_faster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--students", "resnet10t", "--shares", "0.5", "--size", "96", "--seconds", "0.1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["prune_latency.py", *given])
    prune_latency.main()
    *_, row, last = capsys.readouterr().out.splitlines()
    _, student, asked, seen, again, macs, _ = (cell.strip() for cell in row.split("|"))
    assert (student, asked) == ("resnet10t", "0.5")
    assert 0 < float(seen) <= 0.5
    assert 0 < float(again) < 0.9, "measured again, beside the whole network"
    assert 0 < float(macs) < 1
    assert last.startswith("RESULT worst_over_asked=")
