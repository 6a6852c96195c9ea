"""The report's pictures: Matplotlib figures as inline SVG, coloured by the page's own style sheet.

Colours are drawn as placeholders and replaced by CSS variables afterwards, so that one picture serves light and dark.
Figures are drawn small, about as wide as a phone, because text in an SVG scales with it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from iekd.deploy.results import ClassAccuracy, Curve, Latency, ModelResult

INK, FAINT, TEACHER, STUDENT = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", TEACHER: "var(--teacher)", STUDENT: "var(--student)"}
_COLOURS = {"teacher": TEACHER, "student": STUDENT}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "iekd",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
WORST_CLASSES = 12
DRAWN_CALLS = 500
"""Of each model, as single points: more would make the page heavy and the picture no clearer."""


def accuracy_against_latency(models: Sequence[ModelResult]) -> str:
    """Each model as a point with its intervals; up and to the left is better."""

    def draw(axes: Axes) -> None:
        for model in models:
            x, y = model.latency.median, model.accuracy.top1
            colour = _COLOURS[model.role]
            axes.errorbar(
                x.value,
                100 * y.value,
                xerr=[[max(0, x.value - x.low)], [max(0, x.high - x.value)]],
                yerr=[[100 * max(0, y.value - y.low)], [100 * max(0, y.high - y.value)]],
                fmt="o",
                color=colour,
                capsize=3,
                markersize=8,
            )
            left = x.value <= min(m.latency.median.value for m in models)
            axes.annotate(
                model.role,
                (x.value, 100 * y.value),
                xytext=(10 if left else -10, 8),
                textcoords="offset points",
                color=colour,
                ha="left" if left else "right",
                weight="bold",
            )
        axes.set_xscale("log")
        axes.margins(x=0.25, y=0.2)
        _plain_log(axes)
        axes.set_xlabel("median latency, ms")
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=1))

    return _svg(draw, "Accuracy against latency of teacher and student")


def latency_distribution(models: Sequence[ModelResult]) -> str:
    """Share of calls that were answered within a time."""

    def draw(axes: Axes) -> None:
        for model in models:
            values = np.sort(model.latency.sample)
            share = 100 * np.arange(1, len(values) + 1) / len(values)
            axes.step(values, share, where="post", color=_COLOURS[model.role], label=model.role, linewidth=1.6)
        axes.set_xscale("log")
        _plain_log(axes)
        axes.set_ylim(0, 103)
        axes.set_xlabel("latency, ms")
        axes.set_ylabel("calls answered")
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.legend(loc="best")

    return _svg(draw, "Latency distribution: share of calls answered within a time")


def latency_over_time(models: Sequence[ModelResult]) -> str:
    """Every kept call in its order: drifts, and the machine's hiccups."""

    def draw(axes: Axes) -> None:
        for model in models:
            values = model.latency.sample[:: max(1, len(model.latency.sample) // DRAWN_CALLS)]
            axes.plot(
                np.linspace(0, 100, len(values)), values, ".", color=_COLOURS[model.role], markersize=2, alpha=0.6
            )
        axes.set_yscale("log")
        _plain_log(axes, "y")
        axes.set_xlabel("progress of the measurement")
        axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.set_ylabel("latency, ms")

    return _svg(draw, "Latency of each call over the measurement")


def curve(found: Curve) -> str:
    """One logged quantity, an epoch a point."""

    def draw(axes: Axes) -> None:
        epochs = np.arange(1, len(found.values) + 1)
        percent = found.name == "accuracy"
        values = np.array(found.values, dtype=float) * (100 if percent else 1)  # None becomes NaN, which is not drawn
        colour = _COLOURS.get(found.stage, INK)
        style = "o-" if len(epochs) < 40 or np.isnan(values).any() else "-"  # an epoch between gaps is but a point
        axes.plot(epochs, values, style, color=colour, markersize=3, linewidth=1.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.set_title(found.name, loc="left", fontsize=10)
        axes.set_xlabel("epoch")

    return _svg(draw, f"{found.stage}: {found.name} by epoch", (2.9, 2.0))


def per_class(teacher: Sequence[ClassAccuracy], student: Sequence[ClassAccuracy]) -> str:
    """Accuracy by class; of many classes those where the student does worst."""

    def share(entry: ClassAccuracy) -> float:
        return 100 * entry.correct / entry.total if entry.total else 0.0

    pairs = sorted(zip(teacher, student, strict=True), key=lambda pair: share(pair[1]))[:WORST_CLASSES]

    def draw(axes: Axes) -> None:
        rows = np.arange(len(pairs))
        axes.barh(rows - 0.18, [share(t) for t, _ in pairs], 0.34, color=TEACHER, label="teacher")
        axes.barh(rows + 0.18, [share(s) for _, s in pairs], 0.34, color=STUDENT, label="student")
        axes.set_yticks(rows, [_short(s.name) for _, s in pairs])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 100)
        axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))

    return _svg(draw, "Accuracy by class, teacher and student", (4.4, 0.6 + 0.22 * max(3, len(pairs))))


def percentiles(latency: Latency) -> list[tuple[str, str, str]]:
    """Rows of (name, value, interval) for a table, milliseconds."""
    rows = [("minimum", f"{latency.minimum:.3f}", "")]
    for name in ("median", "p90", "p95", "p99"):
        entry = getattr(latency, name)
        rows.append((name, f"{entry.value:.3f}", f"{entry.low:.3f} to {entry.high:.3f}"))
    return [*rows, ("maximum", f"{latency.maximum:.3f}", ""), ("mean", f"{latency.mean:.3f}", "")]


def _short(name: str, most: int = 18) -> str:
    name = name.replace("$", r"\$")  # Matplotlib would read what stands between dollars as mathematics
    return name if len(name) <= most else name[: most - 1] + "…"


def _plain_log(axes: Axes, which: str = "x") -> None:
    """Plain numbers on a logarithmic axis, also where it spans less than a decade."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    decades = np.log10(high / low)
    if decades > 0.8:
        axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0), numticks=12))
    else:  # a few round numbers: those of a logarithmic locator would overlap here, or be none at all
        axis.set_major_locator(FixedLocator([at for at in MaxNLocator(4).tick_values(low, high) if low <= at <= high]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _svg(draw: Callable[[Axes], None], title: str, size: tuple[float, float] = (4.4, 3.0)) -> str:
    """The figure as an ``<svg>`` element that takes the width it is given."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    text = re.sub(
        r'<svg [^>]*viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{title}">', text, count=1
    )
    return _own_ids(text, title)


def _own_ids(text: str, title: str) -> str:
    """Ids that no other picture on the page uses: they refer to clip paths and markers."""
    prefix = re.sub(r"\W+", "-", title.lower())
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    return re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
