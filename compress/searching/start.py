"""Which candidates are trained first, before there is anything for a sampler to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iekd.compress.searching.space import Candidate


def spread_out(
    worth: Sequence[Candidate], table: Mapping[Candidate, Mapping[str, Any]], trials: int
) -> list[Candidate]:
    """Different networks, each as little pruned as it may be, evenly spread from the fastest to the slowest.

    Drawn at random, the few short trainings of a search fall on one network's shares of pruning or pass over whole
    families.

    Args:
        worth: candidates worth training.
        table: their entries in the latency table.
        trials: trainings of the whole search; half of them are spent here.
    """
    whole: dict[str, Candidate] = {}
    for candidate in sorted(worth, key=lambda one: (one.prune, -one.size)):
        whole.setdefault(candidate.student, candidate)
    ordered = sorted(whole.values(), key=lambda one: min(table[one]["latency"].values()))
    count = min(len(ordered), max(1, trials // 2))
    places = [round(step * (len(ordered) - 1) / max(1, count - 1)) for step in range(count)]
    return [ordered[place] for place in places]
