"""The report as a file, and as a person sees it in a browser."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure
from report_samples import sample_report

from iekd.deploy import charts
from iekd.deploy.report import read_report, render, write_report
from iekd.deploy.results import SCHEMA_VERSION, Curve, Report
from iekd.errors import InputError

SECTIONS = ["verdict", "summary", "latency", "accuracy", "training", "verification", "environment"]
HOSTILE = [
    '<script>alert("x")</script>',
    "a & b",
    "$x_1$",
    "$5 or $6",
    "\"quoted' name",
    "ein sehr langer Klassenname, der nirgends passt",
]


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.36), (0.3, 1.0), (1.7, 8.5), (0.17, 2.3), (0.1, 900)])
def test_numbers_of_a_latency_axis_stand_apart(low: float, high: float) -> None:
    with matplotlib.rc_context(charts._STYLE):
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
    axes.plot([low, high], [0, 1])
    axes.set_xscale("log")
    charts._plain_log(axes)
    figure.draw_without_rendering()
    labels = [label for label in axes.get_xticklabels() if low / 2 <= label.get_position()[0] <= 2 * high]
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    assert len(boxes) >= 2
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_round_trip(tmp_path: Path) -> None:
    report = sample_report()
    page = write_report(report, tmp_path)
    assert page == tmp_path / "report.html"
    assert read_report(tmp_path / "report.json") == report


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    write_report(sample_report(), tmp_path)
    file = tmp_path / "report.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(InputError, match="schema version"):
        read_report(file)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema_version": 1}', '{"schema_version": "x"}'])
def test_damaged_reports_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match=r"report\.json"):
        read_report(tmp_path / "report.json")


def test_a_curve_has_a_gap_where_an_epoch_had_no_such_quantity(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(charts, "_svg", lambda draw, *_: drawn.append(draw))
    found = Curve(stage="student", name="a.task", values=[None, 2.0, None, 1.0])
    assert Curve.model_validate_json(found.model_dump_json()) == found
    charts.curve(found)
    axes = Figure().subplots()
    drawn[0](axes)
    (line,) = axes.get_lines()
    points = {epoch: value for epoch, value in zip(*line.get_data(), strict=True) if value == value}
    assert points == {2: 2.0, 4: 1.0}
    assert line.get_marker() == "o", "a line between gaps would not be seen"


def test_the_documented_schema_is_the_one_in_the_code() -> None:
    documented = Path(__file__).parents[2] / "docs" / "report.schema.json"
    assert json.loads(documented.read_text()) == Report.model_json_schema()


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_names_cannot_become_markup() -> None:
    text = render(sample_report(HOSTILE, names=("<b>big</b>", "small</title><script>")))
    page = _Page(text)
    assert "script" not in [tag for tag, _ in page.tags]
    assert "b" in [tag for tag, _ in page.tags]
    assert not any("</b>" in word and "<b>" not in word for word in page.words)
    assert "<b>big</b>" in "".join(page.words)


def test_the_page_asks_for_nothing() -> None:
    text = render(sample_report())
    for _, attributes in _Page(text).tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), value
    assert not re.search(r"@import|url\((?!#)", text)


def test_ids_are_unique() -> None:
    ids = [attributes["id"] for _, attributes in _Page(render(sample_report())).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_many_classes_show_the_worst() -> None:
    page = render(sample_report([f"kind {number}" for number in range(1000)]))
    assert "The 12 of 1000 classes where the student does worst" in page


PROBE = """
<script>
addEventListener("load", () => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  const overlaps = [];
  for (const svg of document.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
    for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length; j++) {
      const [a, b] = [texts[i][1], texts[j][1]];
      const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (w > 2 && h > 4)
        overlaps.push(svg.getAttribute("aria-label") + ": " + texts[i][0].trim() + " / " + texts[j][0].trim());
    }
  }
  const heights = [...document.querySelectorAll("svg text")].map(t => t.getBoundingClientRect().height);
  const small = heights.filter(h => h > 0);
  document.documentElement.setAttribute("data-seen", JSON.stringify({
    width: innerWidth, scroll: document.documentElement.scrollWidth,
    sections: [...document.querySelectorAll("section")].map(s => [s.id, ...box(s)]),
    pictures: [...document.querySelectorAll("svg")].map(box), overlaps, smallest: Math.min(...small),
    requests: performance.getEntriesByType("resource").length }));
});
</script>
"""


def _browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on this machine: apt-get install chromium")


def _look(page: Path, width: int, tmp_path: Path) -> tuple[dict[str, Any], bytes]:
    """What the browser made of the page in a window of that width: facts, and a picture."""
    picture = tmp_path / f"{width}.png"
    # A frame of the wanted width: headless windows have a minimum width of their own.
    frame = tmp_path / f"frame{width}.html"
    frame.write_text(
        f'<body style="margin:0"><iframe src="{page.name}" style="border:0;width:{width}px;height:9000px"></iframe>'
        "<script>onload=()=>setTimeout(()=>{document.documentElement.setAttribute('data-seen',"
        "document.querySelector('iframe').contentDocument.documentElement.getAttribute('data-seen'))},200)</script>"
    )
    command = [
        _browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
        "--virtual-time-budget=4000",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={max(width, 500)},2400",
    ]
    dom = subprocess.run([*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120)
    subprocess.run([*command, f"--screenshot={picture}", frame.as_uri()], capture_output=True, timeout=120, check=True)
    seen = next(attributes["data-seen"] for tag, attributes in _Page(dom.stdout).tags if tag == "html")
    assert seen, dom.stdout[:500] + dom.stderr[-500:]
    return json.loads(seen), picture.read_bytes()


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("classes", [None, HOSTILE])
def test_the_report_in_a_browser(tmp_path: Path, width: int, classes: list[str] | None) -> None:
    page = tmp_path / "report.html"
    text = render(sample_report(classes, names=("resnet50", "mobilenetv2_100")))
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # it forbids our probe, as it should
    page.write_text(text.replace("</body>", PROBE + "</body>"))
    seen, picture = _look(page, width, tmp_path)
    assert seen["width"] == width
    assert seen["scroll"] <= width, "the page scrolls sideways"
    assert [name for name, *_ in seen["sections"]] == SECTIONS
    assert all(w > 250 and h > 60 for _, w, h in seen["sections"])
    assert len(seen["pictures"]) == 8
    assert all(w > 150 and h > 100 for w, h in seen["pictures"])
    assert seen["overlaps"] == []
    assert seen["smallest"] >= 8, "text in a picture is too small to read"
    assert seen["requests"] == 0
    assert len(picture) > 20_000, "the picture is blank"
