"""Scores of several methods over the same seeds: mean, spread, and paired differences."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

Scores = dict[str, dict[int, float]]
"""Per cent top-1 by method and seed."""

ALONE = "ce"
"""The student alone."""
_SILENT = {"explore_weight": 0.0, "inherit_fraction": 1.0}
"""Settings of a row, and the value by which nothing of it explores."""
FEWEST_SEEDS = 3
"""Shared with the student alone, below which a row is the best only where no row of its kind has so many."""


class Difference(NamedTuple):
    """How far one row lies above another over the seeds that both have, in points."""

    points: float
    """Mean; NaN without a shared seed."""
    low: float
    """Of the 95 % interval of Student's t; NaN below two seeds."""
    high: float
    p: float
    """Of the paired t test; NaN below two seeds, and where all differences are the same."""
    seeds: int

    def __str__(self) -> str:
        if not self.seeds:
            return ""
        interval = "" if math.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.points:+.2f}{interval}"


class Best(NamedTuple):
    """The best row of its kind."""

    row: str
    seeds: int
    """That each row which could be chosen shares with the student alone, at the least."""


def is_lifted(row: str) -> bool:
    """Does this row inherit and explore?  One that is told not to explore is a row to compare with."""
    name, _, settings = row.partition("@")
    given = [text.partition("=") for text in settings.split(",")]
    silent = any(float(value) == _SILENT[key] for key, _, value in given if key in _SILENT)
    return name.startswith("ie-") and not silent


def difference(scores: Scores, row: str, base: str) -> Difference:
    """How far ``row`` lies above ``base``, paired by seed."""
    seeds = sorted(scores[row].keys() & scores[base].keys())
    gaps = np.array([scores[row][seed] - scores[base][seed] for seed in seeds])
    if len(gaps) < 2:
        return Difference(float(gaps[0]) if seeds else math.nan, math.nan, math.nan, math.nan, len(seeds))
    mean = float(gaps.mean())
    if np.allclose(gaps, gaps[0]):
        return Difference(mean, mean, mean, math.nan, len(seeds))
    half = float(stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps))
    return Difference(mean, mean - half, mean + half, float(stats.ttest_1samp(gaps, 0).pvalue), len(seeds))


def best(scores: Scores, *, lifted: bool) -> Best | None:
    """The row furthest above the student alone among those that are (or are not) lifted; None where there is none.

    Only rows that share :data:`FEWEST_SEEDS` with the student alone are looked at; where none does, those that share
    the most.
    """
    gains = {row: difference(scores, row, ALONE) for row in scores if is_lifted(row) == lifted}
    shared = max((gain.seeds for row, gain in gains.items() if row != ALONE), default=0)
    fewest = min(FEWEST_SEEDS, shared or max((gain.seeds for gain in gains.values()), default=0))
    if not fewest:
        return None
    able = [row for row, gain in gains.items() if gain.seeds >= fewest]
    return Best(max(able, key=lambda row: gains[row].points), fewest)


def render(scores: Scores, teacher: float | None) -> str:
    """A Markdown table."""
    other = best(scores, lifted=False) if ALONE in scores else None
    against = [] if other is None else list(dict.fromkeys([ALONE, other.row]))
    heads = [head for base in against for head in (f"over `{base}` [95 %]", "p", "seeds of both")]
    lines = [
        f"Teacher: {teacher:.2f} %." if teacher is not None else "No teacher yet.",
        "",
        f"| {' | '.join(['method', 'top-1, %', 'spread', 'seeds', *heads])} |",
        f"|---|{'---:|' * (3 + len(heads))}",
    ]
    for row, own in scores.items():
        values = np.array(list(own.values()))
        cells = [row, f"{values.mean():.2f}", f"{values.std(ddof=1):.2f}" if len(values) > 1 else "", str(len(values))]
        for base in against:
            cells += ["", "", ""] if row == base else _cells(difference(scores, row, base))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *_cautions(scores)]) + "\n"


def result_line(scores: Scores) -> str:
    """How far the best lifted method is above the student alone and above the best method that is not lifted."""
    ours, other = (best(scores, lifted=lifted) if ALONE in scores else None for lifted in (True, False))
    if ours is None or other is None:
        return "RESULT incomplete: the student alone, a lifted and another row are needed, with a seed that both share"
    gain, over = difference(scores, ours.row, ALONE), difference(scores, ours.row, other.row)
    return (
        f"RESULT best_ie={ours.row} gain_points={gain.points:.2f} best_other={other.row} "
        f"over_other_points={over.points:.2f} {_fields('gain', gain)} {_fields('over_other', over)}"
    )


def _cells(found: Difference) -> list[str]:
    return [str(found), "" if math.isnan(found.p) else f"{found.p:.3f}", str(found.seeds)]


def _fields(name: str, found: Difference) -> str:
    return f"{name}_seeds={found.seeds} {name}_low={found.low:.2f} {name}_high={found.high:.2f} {name}_p={found.p:.3f}"


def _cautions(scores: Scores) -> list[str]:
    """What stands under the table: how the best rows were chosen, and where it was among rows of too few seeds."""
    found = []
    if ALONE in scores and all(best(scores, lifted=lifted) for lifted in (True, False)):
        found = ["", "The best row with IE and the best without are chosen by the scores that compare them."]
    for kind, lifted in (("with IE", True), ("without IE", False)):
        chosen = best(scores, lifted=lifted) if ALONE in scores else None
        if chosen is not None and chosen.seeds < FEWEST_SEEDS:
            found += [
                "",
                f"No row {kind} shares {FEWEST_SEEDS} seeds with `{ALONE}`: "
                f"the best, `{chosen.row}`, is chosen among those that share {chosen.seeds}.",
            ]
    return found
