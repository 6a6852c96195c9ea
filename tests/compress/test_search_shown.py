"""How a search's outcome is shown: what a measurement says against itself is not lost on the way."""

from __future__ import annotations

import io
import re

from report_samples import sample_report
from rich.console import Console

from iekd.compress.config_input import make_config
from iekd.compress.search_command import _print
from iekd.compress.searching.outcome import Limits, judge, points_of
from iekd.compress.searching.space import Candidate
from iekd.deploy.results import Interval
from iekd.deploy.search_page import render

DISTURBED = "latency varied by 40%: the machine was <busy>"


def test_a_latency_s_warnings_reach_the_page_and_the_summary() -> None:
    report = sample_report()
    report.student.latency.warnings[:] = [DISTURBED]
    points = points_of(report, Candidate("a", 0.0, 16), "full", 0.9, "full/a", "here")
    assert points[0].warnings == [DISTURBED]
    config = make_config({"teacher": "t", "student": "s"})
    limits = Limits(max_latency_ms=None, min_retained=0.01)
    outcome = judge(points, {}, [], [], {}, config=config, limits=limits, teacher_accuracy=0.9)
    page, screen = render(outcome.model_dump()), io.StringIO()
    _print(Console(file=screen, width=200), outcome)
    file = f"full/a/{report.student.file}"
    assert f"* {file}: latency varied by 40%: the machine was &lt;busy&gt;" in page
    lines = screen.getvalue().splitlines()
    assert lines[lines.index(f"1  {file}") + 1] == f"   {DISTURBED}"


def test_the_front_has_the_same_numbers_in_the_picture_the_table_and_the_summary() -> None:
    """Names in the picture lay upon one another where files are close."""
    report, points = sample_report(), []
    for number, (retained, milliseconds) in enumerate([(0.99, 2.0), (0.90, 1.0), (0.80, 3.0)]):
        (point, *_) = points_of(report, Candidate(f"net{number}", 0.0, 16), "full", 0.9, f"full/{number}", "here")
        latency = Interval(value=milliseconds, low=milliseconds, high=milliseconds)
        points.append(point.model_copy(update={"retained": retained, "latency": latency}))
    config, limits = make_config({"teacher": "t", "student": "s"}), Limits(max_latency_ms=None, min_retained=0.01)
    outcome = judge(points, {}, [], [], {}, config=config, limits=limits, teacher_accuracy=0.9)
    page, screen = render(outcome.model_dump()), io.StringIO()
    _print(Console(file=screen, width=200), outcome)
    for number, student in ((1, "net1"), (2, "net0"), ("", "net2")):
        (row,) = (row for row in page.split("<tr") if f"<td>{student}</td>" in row)
        assert f"<td>full</td><td>{number}</td>" in row
    picture = page[page.index("<svg") : page.index("</svg>")]
    drawn = re.findall(r"<text[^>]*font-weight: 700[^>]*>(\d+)</text>", picture)
    assert drawn == ["1", "2"]
    assert "net1" not in picture
    assert [line.split()[:2] for line in screen.getvalue().splitlines()[2:4]] == [["1", "net1"], ["2", "net0"]]
