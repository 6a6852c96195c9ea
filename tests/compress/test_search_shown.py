"""How a search's outcome is shown: what a measurement says against itself is not lost on the way."""

from __future__ import annotations

import io

from report_samples import sample_report
from rich.console import Console

from iekd.compress.config import make_config
from iekd.compress.search_command import _print
from iekd.compress.searching.outcome import Limits, judge, points_of
from iekd.compress.searching.space import Candidate
from iekd.deploy.search_page import render

DISTURBED = "latency varied by 40%: the machine was <busy>"


def test_a_latency_s_warnings_reach_the_page_and_the_summary() -> None:
    report = sample_report()
    report.student.latency.warnings[:] = [DISTURBED]
    points = points_of(report, Candidate("a", 0.0, 16), "full", 0.9, "full/a", "here")
    assert points[0].warnings == [DISTURBED]
    config = make_config({"teacher": "t", "student": "s"})
    limits = Limits(max_latency_ms=None, min_retained=0.01)
    outcome = judge(points, {}, [], {}, config=config, limits=limits, teacher_accuracy=0.9)
    page, screen = render(outcome.model_dump()), io.StringIO()
    _print(Console(file=screen, width=200), outcome)
    file = f"full/a/{report.student.file}"
    assert f"* {file}: latency varied by 40%: the machine was &lt;busy&gt;" in page
    lines = screen.getvalue().splitlines()
    assert lines[lines.index(f"1  {file}") + 1] == f"   {DISTURBED}"
