"""What a search found: every point a file, the front, the choice, and the sentence that explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from iekd.compress.config import RunConfig
from iekd.compress.searching.latency_table import Entry
from iekd.compress.searching.space import Candidate
from iekd.deploy.results import Interval, Record, Report


class Limits(Record):
    """What the user asked for; at least one."""

    max_latency_ms: float | None
    min_retained: float | None

    def fast_enough(self, latency: float) -> bool:
        """Is a median within the limit?"""
        return self.max_latency_ms is None or latency <= self.max_latency_ms

    def good_enough(self, retained: float) -> bool:
        """Is a share of the teacher's accuracy within the limit?"""
        return self.min_retained is None or retained >= self.min_retained


class Point(Record):
    """One file that could ship, measured."""

    student: str
    prune: float
    size: int
    precision: str
    phase: Literal["short", "full"]
    retained: float
    """Accuracy / the teacher's."""
    accuracy: Interval
    latency: Interval
    """Median, milliseconds."""
    run: str
    """Run folder, relative to the study's; on ``host``."""
    file: str
    """Relative to ``run``."""
    host: str

    @property
    def title(self) -> str:
        """The file in a few words."""
        return f"{Candidate(self.student, self.prune, self.size).title}, {self.precision}"


class Estimate(Record):
    """A candidate that the latency table alone ruled out."""

    student: str
    prune: float
    size: int
    latency: dict[str, float]
    """Median of the untrained files by precision, milliseconds."""


class Outcome(Record):
    """``search.json``."""

    schema_version: int = 1
    kept: bool
    sentence: str
    limits: Limits
    teacher: str
    teacher_accuracy: float | None
    """On the validation set, at the largest input size; None where none had to be trained."""
    data: str
    target: str
    chosen: Point | None
    nearest_fast: Point | None
    """Where the limits were missed: the most accurate of the files that are fast enough."""
    nearest_accurate: Point | None
    """Where the limits were missed: the fastest of the files that are accurate enough."""
    nearest_estimate: Estimate | None
    """Where no candidate is fast enough: the fastest."""
    front: list[Point]
    points: list[Point]
    too_slow: list[Estimate]
    refused: dict[str, str]
    """Candidates that cannot be used, and why."""


def points_of(
    report: Report, candidate: Candidate, phase: Literal["short", "full"], reference: float, run: str, host: str
) -> list[Point]:
    """Every file of a finished run.

    Args:
        report: of the run.
        candidate: that was trained.
        phase: how long.
        reference: the teacher's accuracy.
        run: the run folder, relative to the study's.
        host: machine that holds it.
    """
    return [
        Point(
            **candidate.to_json(),
            precision=model.precision,
            phase=phase,
            retained=model.accuracy.top1.value / reference,
            accuracy=model.accuracy.top1,
            latency=model.latency.median,
            run=run,
            file=model.file,
            host=host,
        )
        for model in (report.student, *report.variants)
    ]


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, or equals, in both accuracy and latency; fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.latency.value, -point.retained)):
        if not front or point.retained > front[-1].retained:
            front.append(point)
    return front


def promising(points: Sequence[Point], limits: Limits, count: int) -> list[Candidate]:
    """The networks that deserve the full schedule, at most ``count``, best first.

    Of the files that are fast enough the front; on it those first that meet the accuracy after a short recovery
    already, fastest first, then the others, most accurate first.
    """
    front = pareto_front([point for point in points if limits.fast_enough(point.latency.value)])
    meet = [point for point in front if limits.min_retained is not None and limits.good_enough(point.retained)]
    rest = sorted((point for point in front if point not in meet), key=lambda point: -point.retained)
    networks = dict.fromkeys(Candidate(point.student, point.prune, point.size) for point in [*meet, *rest])
    return list(networks)[:count]


def judge(
    points: Sequence[Point],
    table: Mapping[Candidate, Entry],
    too_slow: Sequence[Candidate],
    refused: Mapping[str, str],
    *,
    config: RunConfig,
    limits: Limits,
    teacher_accuracy: float | None,
) -> Outcome:
    """Choose among ``points``.

    With a limit on accuracy the fastest file that keeps all limits ships, without one the most accurate.

    Args:
        points: all files; where a network was trained fully its short recovery is left out.
        table: latencies of the untrained candidates.
        too_slow: those that were not trained for their latency.
        refused: those that cannot be used, and why.
        config: the search's settings.
        limits: to keep.
        teacher_accuracy: the reference.
    """
    points = _without_superseded(points)
    fast = [point for point in points if limits.fast_enough(point.latency.value)]
    good = [point for point in points if limits.good_enough(point.retained)]
    both = [point for point in fast if point in good]
    chosen = None
    if both and limits.min_retained is not None:
        chosen = min(both, key=lambda point: (point.latency.value, -point.retained))
    elif both:
        chosen = max(both, key=lambda point: (point.retained, -point.latency.value))
    nearest_fast = max(fast, key=lambda p: (p.retained, -p.latency.value)) if fast and not chosen else None
    nearest_accurate = min(good, key=lambda p: (p.latency.value, -p.retained)) if good and not chosen else None
    slow = sorted((_estimate(candidate, table[candidate]) for candidate in too_slow), key=_fastest)
    nearest_estimate = slow[0] if slow and not fast else None
    sentence = (
        _why(chosen, len(points), limits)
        if chosen
        else _why_not(nearest_fast, nearest_accurate, nearest_estimate, limits, trained=bool(points))
    )
    return Outcome(
        kept=chosen is not None,
        sentence=sentence,
        limits=limits,
        teacher=config.teacher,
        teacher_accuracy=teacher_accuracy,
        data=config.data,
        target=config.target,
        chosen=chosen,
        nearest_fast=nearest_fast,
        nearest_accurate=nearest_accurate,
        nearest_estimate=nearest_estimate,
        front=pareto_front(points),
        points=sorted(points, key=lambda point: point.latency.value),
        too_slow=slow,
        refused=dict(refused),
    )


def _without_superseded(points: Sequence[Point]) -> list[Point]:
    full = {(point.student, point.prune, point.size) for point in points if point.phase == "full"}
    return [p for p in points if p.phase == "full" or (p.student, p.prune, p.size) not in full]


def _estimate(candidate: Candidate, entry: Entry) -> Estimate:
    return Estimate(**candidate.to_json(), latency=entry["latency"])


def _fastest(estimate: Estimate) -> float:
    return min(estimate.latency.values())


def _why(chosen: Point, count: int, limits: Limits) -> str:
    best = "fastest" if limits.min_retained is not None else "most accurate"
    return (
        f"{chosen.title}: {chosen.retained:.1%} of the teacher's accuracy at {chosen.latency.value:.3g} ms. "
        f"Of {count} measured files it is the {best} with {' and '.join(_asked(limits))}."
    )


def _why_not(
    fast: Point | None, good: Point | None, estimate: Estimate | None, limits: Limits, *, trained: bool
) -> str:
    parts = [f"No file has {' and '.join(_asked(limits))}."]
    if fast:
        of_these = "" if limits.max_latency_ms is None else " of those that are fast enough"
        parts.append(f"The most accurate{of_these}: {_figures(fast)}.")
    elif estimate:
        network = Candidate(estimate.student, estimate.prune, estimate.size)
        parts.append(f"None is fast enough: the fastest, {network.title}, takes {_fastest(estimate):.3g} ms untrained.")
    if good:
        of_these = "" if limits.min_retained is None else " of those that are accurate enough"
        parts.append(f"The fastest{of_these}: {_figures(good)}.")
    elif trained:
        parts.append("None is accurate enough.")
    parts.append("Loosen a limit, or give other students or more epochs.")
    return " ".join(parts)


def _asked(limits: Limits) -> list[str]:
    found = []
    if limits.max_latency_ms is not None:
        found.append(f"at most {limits.max_latency_ms:.3g} ms")
    if limits.min_retained is not None:
        found.append(f"at least {limits.min_retained:.1%} of the teacher's accuracy")
    return found


def _figures(point: Point) -> str:
    return f"{point.title}, {point.retained:.1%} at {point.latency.value:.3g} ms"
