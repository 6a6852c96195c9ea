"""The comparison with OpenVINO's benchmark_app, but for the measuring: what it reads, reports and ends with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import harness_agreement

CSV = """Command line parameters
m;student.onnx
d;CPU

Configuration setup
topology;student

Execution results
read network time (ms);12.50
count;800
execution time (ms);8000.12
latency (ms);9.95
avg latency;10.02
min latency;9.71
max latency;14.20
throughput;99.80
"""
"""The layout of benchmark_report.csv; figures made up."""


def rounds(*differences: float) -> list[dict[str, float]]:
    return [{"median": value, "minimum": value / 2, "wall": value + 2} for value in differences]


def test_their_report_is_read(tmp_path: Path) -> None:
    (tmp_path / "benchmark_report.csv").write_text(CSV)
    assert harness_agreement.read_theirs(tmp_path) == {"median": 9.95, "minimum": 9.71, "wall": 9.95}


@pytest.mark.parametrize("missing", ["latency (ms)", "min latency"])
def test_a_report_without_its_figures_is_not_taken_for_one(tmp_path: Path, missing: str) -> None:
    (tmp_path / "benchmark_report.csv").write_text(CSV.replace(f"\n{missing};", "\nother;"))
    with pytest.raises(KeyError, match=missing.split()[0]):
        harness_agreement.read_theirs(tmp_path)


def test_a_difference_is_relative_to_theirs() -> None:
    assert harness_agreement.percent(10.2, 10.0) == pytest.approx(2.0)
    assert harness_agreement.percent(9.9, 10.0) == pytest.approx(-1.0)


def test_the_last_line_is_the_median_of_the_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness_agreement.report(rounds(0.5, 1.25, 9.0)) == 1.25
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "RESULT difference_percent=1.25"
    assert lines[0].startswith("3 quiet rounds")
    assert "headline           +3.25 %" in lines[1]
    assert lines[3].endswith("+0.50 to +9.00")
    assert lines[4] == "the mark is 2 %, of the medians of compute: kept"


def test_without_a_quiet_round_there_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="no quiet round"):
        harness_agreement.report([])
    assert "RESULT" not in capsys.readouterr().out


def test_rounds_in_which_others_worked_are_printed_and_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one_round(file: Path, options: Any, folder: Path, number: int) -> dict[str, dict[str, float]]:
        theirs = {"median": 10.0, "minimum": 9.0, "wall": 10.0}
        ours = {"median": 10.0 + number, "minimum": 9.0, "wall": 11.0}
        return {"ours": ours, "theirs": theirs, "others": {"cores": 0.5 if number == 1 else 0.0}}

    monkeypatch.setattr(harness_agreement, "one_round", one_round)
    options = type("Options", (), {"rounds": 3})()
    quiet = harness_agreement.compare(tmp_path / "m.onnx", options, tmp_path)
    assert [round(row["median"]) for row in quiet] == [0, 20]
    assert capsys.readouterr().out.count("round ") == 3


@pytest.mark.parametrize(
    ("differences", "code", "word"),
    [((1.9, 2.0, 2.1), 0, "kept"), ((2.0, 2.1, 2.2), 1, "missed"), ((-3.0,), 1, "missed")],
)
def test_beyond_the_mark_it_does_not_end_with_0(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    differences: tuple[float, ...],
    code: int,
    word: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["harness_agreement.py"])
    monkeypatch.setattr(harness_agreement.os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(harness_agreement, "export", lambda *_: Path("m.onnx"))
    monkeypatch.setattr(harness_agreement, "compare", lambda *_: rounds(*differences))
    with pytest.raises(SystemExit) as ended:
        harness_agreement.main()
    assert ended.value.code == code
    assert f"the medians of compute: {word}" in capsys.readouterr().out
