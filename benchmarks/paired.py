"""Scores of several methods over the same seeds: mean, spread, and paired differences."""

from __future__ import annotations

import numpy as np
from scipy import stats

Scores = dict[str, dict[int, float]]
"""Per cent top-1 by method and seed."""


def is_lifted(row: str) -> bool:
    """Is this an inherit-and-explore row?"""
    return row.startswith("ie-")


def difference(scores: Scores, row: str, base: str) -> tuple[float, float | None]:
    """Mean difference over the shared seeds, in points, and the p value of the paired t test (None below 2 seeds)."""
    seeds = sorted(scores[row].keys() & scores[base].keys())
    ours, theirs = (np.array([scores[name][seed] for seed in seeds]) for name in (row, base))
    if len(seeds) < 2 or np.allclose(ours - theirs, (ours - theirs)[0]):
        return float((ours - theirs).mean()), None
    return float((ours - theirs).mean()), float(stats.ttest_rel(ours, theirs).pvalue)


def best(scores: Scores, *, lifted: bool) -> str | None:
    """The method with the highest mean among those that are (or are not) lifted."""
    rows = [row for row in scores if is_lifted(row) == lifted]
    return max(rows, key=lambda row: np.mean(list(scores[row].values())), default=None)


def render(scores: Scores, teacher: float | None) -> str:
    """A Markdown table."""
    lines = [
        f"Teacher: {teacher:.2f} %." if teacher is not None else "No teacher yet.",
        "",
        "| method | top-1, % | spread | seeds | over the student alone | p |",
    ]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for row, own in scores.items():
        values = np.array(list(own.values()))
        spread = f"{values.std(ddof=1):.2f}" if len(values) > 1 else ""
        gain, p = difference(scores, row, "ce") if "ce" in scores else (None, None)
        shown = "" if row == "ce" or gain is None else f"{gain:+.2f}"
        lines.append(
            f"| {row} | {values.mean():.2f} | {spread} | {len(values)} | {shown} | {'' if p is None else f'{p:.3f}'} |"
        )
    return "\n".join(lines) + "\n"


def result_line(scores: Scores) -> str:
    """How far the best lifted method is above the student alone and above the best method that is not lifted."""
    ours, other = best(scores, lifted=True), best(scores, lifted=False)
    if ours is None or other is None or "ce" not in scores:
        return "RESULT incomplete: the student alone, a lifted and another row are needed"
    gain, over = difference(scores, ours, "ce")[0], difference(scores, ours, other)[0]
    return f"RESULT best_ie={ours} gain_points={gain:.2f} best_other={other} over_other_points={over:.2f}"
