"""What the main command is: one run, or under ``--max-latency`` a search among what ``--student`` stands for.

In the folder of a run that was begun without that limit it stays this run, which is judged by it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from iekd.compress.config import RunConfig
from iekd.compress.objectives.catalogue import is_mutual
from iekd.compress.targets import TARGETS


def students_to_search(given: dict[str, Any]) -> tuple[str, ...]:
    """The networks among which the main command looks for the student; none where it trains the one that is named.

    Args:
        given: settings as the user gave them.

    Raises:
        InputError: an unknown student, or a pattern that matches nothing.
    """
    if given.get("max_latency") is None or given.get("student") is None or not _can_search(given):
        return ()
    from iekd.compress.run_folder import is_run_folder  # loads torch
    from iekd.compress.searching.space import parse_students
    from iekd.models.registry import is_artefact

    if given.get("out") is not None and is_run_folder(Path(given["out"])):
        return ()
    named = str(given["student"])
    students = () if is_artefact(named) else parse_students(named)
    return students if len(students) > 1 else ()


def announce_search(student: str, students: tuple[str, ...]) -> str:
    """What happens, and how to have the other job instead, in one line."""
    return (
        f"--student {student} stands for {len(students)} networks: searching them, as `iekd-compress search` does; "
        f"name one, such as {students[0]}, to train that alone."
    )


def with_accuracy_limit(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with the main command's own limit where the user gave none: a search alone would do without."""
    limit = given.get("min_retained")
    return {**given, "min_retained": RunConfig.min_retained if limit is None else limit}


def _can_search(given: dict[str, Any]) -> bool:
    """False where latency is judged on a board, where networks train together, and of several processes on one run."""
    target = TARGETS.get(given.get("target") or RunConfig.target)
    if target is None or target.on_board or is_mutual(str(given.get("objective") or RunConfig.objective)):
        return False
    return os.environ.get("WORLD_SIZE", "1") == "1"
