"""Pictures of a diagnosis, in the manner of :mod:`iekd.deploy.charts`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from iekd.deploy.charts import INK, STUDENT, TEACHER, _short, _svg
from iekd.deploy.results import Diagnosis, NoiseCurve, TapDiagnosis

_PARTS = {"inheritance": TEACHER, "exploration": STUDENT, "all": INK}


def pictures(found: Diagnosis | None) -> dict[str, str]:
    """``cka``, where any channels have one, and ``noise``; nothing without a diagnosis."""
    if found is None:
        return {}
    comparable = any(part.cka for tap in found.taps for part in tap.parts)
    drawn = {"cka": likeness(found.taps)} if comparable else {}
    return {**drawn, "noise": accuracy_under_noise(found.noise)}


def likeness(taps: list[TapDiagnosis]) -> str:
    """CKA of each part with the teacher, with its interval, one row a part."""
    rows = [(tap, part) for tap in taps for part in tap.parts if part.cka is not None]

    def draw(axes: Axes) -> None:
        for row, (_, part) in enumerate(rows):
            cka = part.cka
            assert cka is not None
            error = [[max(0, cka.value - cka.low)], [max(0, cka.high - cka.value)]]
            axes.errorbar(cka.value, row, xerr=error, fmt="o", color=_PARTS[part.part], capsize=3, markersize=8)
        several = len(taps) > 1
        axes.set_yticks(range(len(rows)), [f"{tap.stage}: {part.part}" if several else part.part for tap, part in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(min(0.0, axes.get_xlim()[0]), 1.03)
        axes.set_xlabel("linear CKA with the teacher")

    return _svg(draw, "Likeness of each part to the teacher", (4.4, 1.2 + 0.36 * max(3, len(rows))))


def accuracy_under_noise(curves: list[NoiseCurve]) -> str:
    """Accuracy by the noise's relative standard deviation: a line through the means, a band of one deviation."""

    def draw(axes: Axes) -> None:
        for number, curve in enumerate(curves):
            x = [level.relative_std for level in curve.levels]
            mean = np.array([100 * level.mean for level in curve.levels])
            spread = np.array([100 * level.spread for level in curve.levels])
            colour = STUDENT if number == 0 else INK
            axes.plot(x, mean, "o-" if number == 0 else "s--", color=colour, markersize=4, label=_short(curve.name, 30))
            axes.fill_between(x, np.maximum(mean - spread, 0), np.minimum(mean + spread, 100), color=colour, alpha=0.15)
        axes.set_ylim(0, 103)
        axes.set_xlabel("noise, as a share of each weight tensor's deviation")
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        if len(curves) > 1:
            axes.legend(loc="best")

    return _svg(draw, "Accuracy under weight noise")
