"""Latency, measured so that it can be believed.

All sessions are measured in one run, interleaved in short blocks whose order rotates, so that a drift of the machine
touches them alike; warm-up is by time; every call counts and is kept.  docs/benchmarking.md maps each rule of the
protocol to its place here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iekd.deploy.backends import Array, Session
from iekd.deploy.results import Interval, Latency
from iekd.deploy.statistics import percentile, ratio_of_medians
from iekd.files import atomic_file

BLOCK_SECONDS = 0.1
"""Of one session within a round: short against the drift of clocks, long against a cache warming up again."""
SETTLE_SECONDS = 0.05
"""Before each block.  Idle workers of the session before spin on their cores for a while: without a pause they doubled
the latency of every seventh call of the next session (docs/log.md)."""
SAMPLE_CALLS = 2000
CV_LIMIT = 0.10
"""Above this the figures carry a warning: on a shared or floating machine the median holds, the tail does not."""
POLICY = "host wall clock around one call, input and output in host memory, one request in flight"


@dataclass
class Trace:
    """All calls of one session."""

    milliseconds: list[float] = field(default_factory=list)
    started: list[float] = field(default_factory=list)
    """Seconds since the measurement began."""
    block: list[int] = field(default_factory=list)
    """Number of the round."""

    def blocks(self) -> list[NDArray[np.float64]]:
        """Latencies by round."""
        values, numbers = np.array(self.milliseconds), np.array(self.block)
        return [values[numbers == number] for number in np.unique(numbers)]


@dataclass(frozen=True)
class LatencyRun:
    """What one interleaved measurement found."""

    latency: dict[str, Latency]
    traces: dict[str, Trace]

    def ratio(self, slow: str, fast: str) -> Interval:
        """Median of ``slow`` / median of ``fast``, with its interval."""
        return ratio_of_medians(self.traces[slow].blocks(), self.traces[fast].blocks())


def measure_latency(
    sessions: Mapping[str, Session],
    images: Array,
    *,
    folder: Path,
    batch: int = 1,
    seconds: float = 3.0,
    warmup_seconds: float = 0.2,
    min_iterations: int = 10,
    progress: Callable[[float], None] = lambda _share: None,
) -> LatencyRun:
    """Single-stream latency of each session, interleaved in one run.

    Args:
        sessions: by name.
        images: real, preprocessed inputs (N, 3, H, W), used in turn; N >= ``batch``.
        folder: for the raw traces, one ``latency-NAME.npz`` a session.
        batch: images a call.
        seconds: at least this long for each session, measured calls alone.
        warmup_seconds: for each session before its first measured call.
        min_iterations: at least this many measured calls for each session.
        progress: told the share that is done, 0..1.
    """
    feeds = [np.ascontiguousarray(images[at : at + batch]) for at in range(0, len(images) - batch + 1, batch)]
    names = list(sessions)
    for name in names:
        warm_up(sessions[name], feeds, warmup_seconds)
    traces = {name: Trace() for name in names}
    origin, number = time.perf_counter(), 0
    with _no_garbage_collection():
        while any(_short(traces[name], seconds, min_iterations) for name in names):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                _measure_block(sessions[name], feeds, traces[name], number, origin)
            number += 1
            progress(min(1.0, min(sum(traces[name].milliseconds) for name in names) / 1e3 / seconds))
    latency = {}
    for name in names:
        file = folder / f"latency-{name}.npz"
        _keep(traces[name], file)
        latency[name] = _summarize(traces[name], batch, warmup_seconds, file)
    return LatencyRun(latency, traces)


def warm_up(session: Session, feeds: list[Array], seconds: float) -> int:
    """Call ``session`` for at least ``seconds``; returns how many calls that took, at least one."""
    end = time.perf_counter() + seconds
    calls = 0
    while calls == 0 or time.perf_counter() < end:
        session.run(feeds[calls % len(feeds)])
        calls += 1
    return calls


def measure_throughput(session: Session, images: Array, *, batch: int, seconds: float = 3.0) -> float:
    """Images a second at ``batch`` images a call, calls back to back; a mode of its own, never mixed with latency."""
    feeds = [np.ascontiguousarray(images[at : at + batch]) for at in range(0, len(images) - batch + 1, batch)]
    warm_up(session, feeds, min(1.0, seconds / 5))
    calls, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        session.run(feeds[calls % len(feeds)])
        calls += 1
    return calls * batch / spent


def _measure_block(session: Session, feeds: list[Array], trace: Trace, number: int, origin: float) -> None:
    """Calls for ``BLOCK_SECONDS``, at least three; the clock is read twice a call and nothing else is done between."""
    clock, run = time.perf_counter, session.run
    time.sleep(SETTLE_SECONDS)
    run(feeds[0])  # brings the caches back from the other sessions; not counted
    begin = clock()
    calls = 0
    while calls < 3 or clock() - begin < BLOCK_SECONDS:
        feed = feeds[len(trace.milliseconds) % len(feeds)]
        start = clock()
        run(feed)
        end = clock()
        trace.milliseconds.append((end - start) * 1e3)
        trace.started.append(start - origin)
        trace.block.append(number)
        calls += 1


def _short(trace: Trace, seconds: float, min_iterations: int) -> bool:
    return sum(trace.milliseconds) < seconds * 1e3 or len(trace.milliseconds) < min_iterations


def _keep(trace: Trace, path: Path) -> None:
    with atomic_file(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(
            handle,
            milliseconds=np.array(trace.milliseconds),
            started_seconds=np.array(trace.started),
            block=np.array(trace.block),
        )


def _summarize(trace: Trace, batch: int, warmup_seconds: float, file: Path) -> Latency:
    values = np.array(trace.milliseconds)
    cv = float(values.std(ddof=1) / values.mean())
    every = max(1, -(-len(values) // SAMPLE_CALLS))
    warnings = []
    if cv > CV_LIMIT:
        warnings.append(
            f"latency varied by {cv:.0%} (coefficient of variation): the machine was busy or its clocks moved; "
            "trust the median and the ratio, not the tail"
        )
    return Latency(
        batch=batch,
        iterations=len(values),
        warmup_seconds=warmup_seconds,
        measured_seconds=float(values.sum() / 1e3),
        minimum=float(values.min()),
        mean=float(values.mean()),
        median=percentile(values, 50),
        p90=percentile(values, 90),
        p95=percentile(values, 95),
        p99=percentile(values, 99),
        maximum=float(values.max()),
        cv=cv,
        policy=POLICY,
        trace=file.name,
        sample=[round(float(value), 5) for value in values[::every]],
        warnings=warnings,
    )


class _no_garbage_collection:  # noqa: N801 - reads as a statement
    """Python's collector pauses at moments of its own; they are not the model's."""

    def __enter__(self) -> None:
        self._was = gc.isenabled()
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was:
            gc.enable()
