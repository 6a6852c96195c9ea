"""Which of a run's measured files ships; chosen from the figures each time, as a limit may change when they do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iekd.compress.config import RunConfig


def choose(config: RunConfig, models: Mapping[str, Mapping[str, Any]]) -> str:
    """The name of the student's file that ships.

    A precision that was asked for by name does.  Else, of the files that keep the accuracy asked for, the fastest;
    where none does, the most accurate of the float32 file and those that are faster than it.

    Args:
        config: the precision and the limit of now.
        models: what ``benchmark.json`` says of each file, by name.
    """
    students = [name for name in models if name != "teacher"]
    if config.precision not in ("fp32", "best") and f"student-{config.precision}" in students:
        return f"student-{config.precision}"
    retained = {name: models[name]["retained"]["value"] for name in students}
    medians = {name: models[name]["latency"]["median"]["value"] for name in students}
    good = [name for name in students if retained[name] >= config.min_retained]
    if not good:  # what a slower precision has more of accuracy is rounding that happened to be lucky
        worth = [name for name in students if name == "student" or medians[name] < medians["student"]]
        return max(worth, key=retained.__getitem__)
    return min(good, key=medians.__getitem__)
