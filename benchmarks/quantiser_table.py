"""The table of benchmarks/quantisers.py: what each library's file has over ours, and the worst of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from iekd.deploy.results import Interval

OURS = "ours"
ALLOWED_POINTS = 0.1


def points_behind(ours: NDArray[np.bool_], other: NDArray[np.bool_]) -> Interval:
    """Points of accuracy that ours lacks of another file's, with the paired 95 % interval over the same images (N,)."""
    differences = 100 * (other.astype(np.float64) - ours)
    middle, half = differences.mean(), 1.96 * differences.std() / len(differences) ** 0.5
    return Interval(value=middle, low=middle - half, high=middle + half)


def measurably_more_accurate(rows: list[dict[str, Any]]) -> list[str]:
    """The libraries' files that are more accurate than ours by more than is allowed, luck aside."""
    rivals = [row for row in rows if row["file"] not in (OURS, "float32") and "ours_behind_points" in row]
    ahead = [row for row in rivals if row["ours_behind_points"]["low"] > ALLOWED_POINTS]
    return [f"{row['file']} on {row['backend']}" for row in ahead]


def gaps(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The worst of ours over all backends, against the libraries' files (see the top of this page)."""
    found: dict[str, list[float]] = {"drop_gap": [], "latency_ratio": [], "latency_ratio_of_accurate": []}
    for backend in {row["backend"] for row in rows}:
        mine = next(row for row in rows if row["backend"] == backend and row["file"] == OURS)
        others = [row for row in rows if row["backend"] == backend and row["file"] not in (OURS, "float32")]
        if not others:
            continue
        least = min(row["drop_points"] for row in others)
        accurate = [row for row in others if row["drop_points"] <= least + ALLOWED_POINTS]
        found["drop_gap"].append(mine["drop_points"] - least)
        found["latency_ratio"].append(max(_ratio(row) for row in others))
        found["latency_ratio_of_accurate"].append(max(_ratio(row) for row in accurate))
    return {name: max(values, default=float("nan")) for name, values in found.items()}


def _ratio(row: dict[str, Any]) -> float:
    """Ours over this file's latency: repeated in fresh processes, where it was."""
    return float(row.get("repeated", row["ours_over_it"])["value"])


def show_student(found: dict[str, Any]) -> None:
    """One student's part of the table, in Markdown, and what made no file."""
    for row in found["rows"]:
        ratio = row.get("repeated", row["ours_over_it"])
        against = "" if row["file"] == OURS else f"{ratio['value']:.2f} ({ratio['low']:.2f}..{ratio['high']:.2f})"
        cells = (
            *(found["student"], row["backend"], row["file"], f"{row['accuracy']:.2%}", f"{row['drop_points']:+.2f}"),
            *(behind(row), f"{row['latency_ms']:.3f}", f"{row['over_float32']:.2f}", against, row["how"]),
        )
        print(f"| {' | '.join(cells)} |")
    for name, reason in found["missing"].items():
        print(f"{name} made no file: {reason}")


def behind(row: dict[str, Any]) -> str:
    """What ours lacks of this file's accuracy, in points; of results that are older than the interval, nothing."""
    found = row.get("ours_behind_points")
    if found is None or row["file"] == OURS:
        return ""
    return f"{found['value']:+.2f} ({found['low']:+.2f}..{found['high']:+.2f})"


def show(students: list[dict[str, Any]]) -> None:
    """The whole table, and the result in its last line."""
    print(
        "| student | backend | file | accuracy | points lost | ours lacks of it | ms | of float32 | ours / it | how |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---|")
    for found in students:
        show_student(found)
    worst = [gaps(found["rows"]) for found in students]
    points, ratio, accurate = (max(found[name] for found in worst) for name in worst[0])
    ahead = [f"{found['student']}: {name}" for found in students for name in measurably_more_accurate(found["rows"])]
    print(f"measurably more accurate than ours by over {ALLOWED_POINTS} points: {', '.join(ahead) or 'none'}")
    print(f"against files that keep the accuracy asked of ours: worst_latency_ratio={accurate:.3f}")
    print(f"RESULT worst_drop_gap={points:.2f} worst_latency_ratio={ratio:.3f}")
