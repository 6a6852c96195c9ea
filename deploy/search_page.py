"""``search.html``: the front, the choice and every point of a search, on one page that asks for nothing."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from iekd.deploy.charts import FAINT, INK, STUDENT, TEACHER, _plain_log, _svg


def render(outcome: dict[str, Any]) -> str:
    """The page.

    Args:
        outcome: as ``search.json`` holds it.
    """
    template = importlib.resources.files("iekd.deploy").joinpath("templates/search.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    picture = Markup(pareto_chart(outcome)) if outcome["points"] else ""  # its text is escaped by Matplotlib
    return environment.from_string(template).render(found=outcome, picture=picture)


def pareto_chart(outcome: dict[str, Any]) -> str:
    """Every file's accuracy kept against its latency, the front as a line, the limits as dashes; an SVG element."""
    points, front, chosen, limits = (outcome[key] for key in ("points", "front", "chosen", "limits"))

    def draw(axes: Axes) -> None:
        axes.plot(*_columns(points), "o", color=FAINT, markersize=5, label="measured")
        axes.step(*_columns(front), "o-", where="post", color=STUDENT, markersize=6, label="front")
        if chosen is not None:
            axes.plot(*_columns([chosen]), "*", color=TEACHER, markersize=14, label="chosen")
        for number, point in enumerate(front, 1):  # numbers, as in the table: names would lie upon one another
            place = point["latency"]["value"], 100 * point["retained"]
            axes.annotate(
                str(number),
                place,
                (4, -4),
                textcoords="offset points",
                va="top",
                fontsize=9,
                weight="bold",
                color=STUDENT,
            )
        if limits["min_retained"] is not None or limits["max_latency_ms"] is not None:
            axes.plot([], [], "--", color=INK, linewidth=1, label="limit")
        if limits["min_retained"] is not None:
            axes.axhline(100 * limits["min_retained"], color=INK, linestyle="--", linewidth=1)
        if limits["max_latency_ms"] is not None:
            axes.axvline(limits["max_latency_ms"], color=INK, linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.margins(x=0.15, y=0.15)
        _plain_log(axes)
        axes.set_xlabel("median latency, ms")
        axes.set_ylabel("of the teacher's accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=1))
        axes.legend(loc="best")

    return _svg(draw, "Accuracy kept against latency of every file, with the Pareto front", (8.4, 3.8))


def _columns(points: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [point["latency"]["value"] for point in points], [100 * point["retained"] for point in points]
