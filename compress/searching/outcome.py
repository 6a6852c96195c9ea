"""What a search found: every point a file, the front, the choice, and the sentence that explains it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pydantic import Field

from iekd.compress.config import RunConfig
from iekd.compress.searching.latency_table import Entry
from iekd.compress.searching.space import Candidate
from iekd.compress.targets import TARGETS
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
    warnings: list[str] = Field(default=[])
    """What the latency's measurement says against itself."""
    run: str
    """Run folder, relative to the study's; on ``host``."""
    file: str
    """Relative to ``run``."""
    host: str

    @property
    def title(self) -> str:
        """The file in a few words."""
        return f"{_network(self).title}, {self.precision}"


class Estimate(Record):
    """A candidate that the latency table ruled out, and that was not trained."""

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
    """Where the limits were missed: the fastest of the files that are accurate enough, slow ones among them."""
    nearest_estimate: Estimate | None
    """Where no candidate is fast enough: the fastest."""
    front: list[Point]
    points: list[Point]
    too_slow: list[Estimate]
    untried: list[Estimate] = Field(default=[])
    """Within the limit by the table, and not trained, since ``--trials`` were spent."""
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
            warnings=model.latency.warnings,
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
    networks = dict.fromkeys(map(_network, [*meet, *rest]))
    return list(networks)[:count]


def most_accurate(points: Sequence[Point]) -> Point:
    """Of at least one point; the faster of two that are equally accurate.

    Another precision that is no faster than float32 of the same network is passed over: what it has more of accuracy
    is rounding that happened to be lucky on these images, and was made for speed alone.
    """
    exact = {_network(point): point.latency.value for point in points if point.precision == "fp32"}
    worth = [p for p in points if p.precision == "fp32" or p.latency.value < exact.get(_network(p), float("inf"))]
    return max(worth, key=lambda point: (point.retained, -point.latency.value))


def most_accurate_network(points: Sequence[Point], among: Collection[Candidate]) -> list[Candidate]:
    """The one of ``among`` whose file is the most accurate; none where none of them has a file."""
    own = [point for point in points if _network(point) in among]
    return [_network(most_accurate(own))] if own else []


def judge(
    points: Sequence[Point],
    table: Mapping[Candidate, Entry],
    too_slow: Sequence[Candidate],
    untried: Sequence[Candidate],
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
        too_slow: those that the table has above the limit.
        untried: those that it has within the limit and that the number of trials left out.
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
        chosen = most_accurate(both)
    nearest_fast = most_accurate(fast) if fast and not chosen else None
    nearest_accurate = min(good, key=lambda p: (p.latency.value, -p.retained)) if good and not chosen else None
    trained = {_network(point) for point in points}
    slow = [_estimate(candidate, table[candidate]) for candidate in too_slow if candidate not in trained]
    slow.sort(key=_fastest)
    left = sorted((_estimate(candidate, table[candidate]) for candidate in untried), key=_fastest)
    nearest_estimate = min([*left, *slow], key=_fastest, default=None) if not fast else None
    sentence = (
        _why(chosen, len(points), config.target, limits)
        if chosen
        else f"No file has {' and '.join(_asked(limits))}.{_fast_side(nearest_fast, nearest_estimate, points, limits)}"
        f"{_accurate_side(nearest_accurate, points, limits)} {_advice(len(left))}"
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
        untried=left,
        refused=dict(refused),
    )


def _advice(untried: int) -> str:
    """What to do after a miss."""
    if not untried:
        return "Loosen a limit, or give other students or more epochs in another --out."
    are = "candidate that may be fast enough was" if untried == 1 else "candidates that may be fast enough were"
    return f"{untried} {are} not tried: raise --trials, or loosen a limit; other students or epochs want another --out."


def _without_superseded(points: Sequence[Point]) -> list[Point]:
    full = {_network(point) for point in points if point.phase == "full"}
    return [point for point in points if point.phase == "full" or _network(point) not in full]


def _network(found: Point | Estimate) -> Candidate:
    return Candidate(found.student, found.prune, found.size)


def _estimate(candidate: Candidate, entry: Entry) -> Estimate:
    return Estimate(**candidate.to_json(), latency=entry["latency"])


def _fastest(estimate: Estimate) -> float:
    return min(estimate.latency.values())


def _why(chosen: Point, count: int, target: str, limits: Limits) -> str:
    best = "fastest" if limits.min_retained is not None else "most accurate"
    where = f", float32 on this machine and not on the {target}" if TARGETS[target].on_board else ""
    return (
        f"{chosen.title}: of {count} measured files it is the {best} with {' and '.join(_asked(limits))}, "
        f"keeping {chosen.retained:.1%} at {chosen.latency.value:.3g} ms{where}."
    )


def _fast_side(fast: Point | None, estimate: Estimate | None, points: Sequence[Point], limits: Limits) -> str:
    """What comes nearest among the fast ones; where none is fast enough, the fastest that is known."""
    if fast:
        of_these = "" if limits.max_latency_ms is None else " of those that are fast enough"
        return f" The most accurate{of_these}: {_figures(fast)}."
    known = [(point.latency.value, _figures(point)) for point in points]
    if estimate:
        known.append((_fastest(estimate), f"{_network(estimate).title}, {_fastest(estimate):.3g} ms untrained"))
    return f" None is fast enough; the fastest: {min(known)[1]}." if known else ""


def _accurate_side(good: Point | None, points: Sequence[Point], limits: Limits) -> str:
    """The same among the accurate ones; one limit alone has no second side."""
    if limits.max_latency_ms is None or limits.min_retained is None or not points:
        return ""
    if good:
        return f" The fastest of those that are accurate enough: {_figures(good)}."
    return f" None is accurate enough; the most accurate: {_figures(most_accurate(points))}."


def _asked(limits: Limits) -> list[str]:
    found = []
    if limits.max_latency_ms is not None:
        found.append(f"at most {limits.max_latency_ms:.3g} ms")
    if limits.min_retained is not None:
        found.append(f"at least {limits.min_retained:.1%} of the teacher's accuracy")
    return found


def _figures(point: Point) -> str:
    short = " after a short recovery" if point.phase == "short" else ""
    return f"{point.title}, {point.retained:.1%} at {point.latency.value:.3g} ms{short}"
