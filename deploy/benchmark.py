"""Latency, measured so that it can be believed.

All sessions are measured in one run, interleaved in short blocks whose order rotates, so that a drift of the machine
touches them alike; warm-up is by time; every call counts and is kept.  docs/benchmarking.md maps each rule of the
protocol to its place here.  Throughput is another mode, in :mod:`iekd.deploy.throughput`.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from iekd.deploy.backends import Array, Session
from iekd.deploy.conditions import Monitor, warnings_of
from iekd.deploy.device.stages import stage_warnings
from iekd.deploy.results import Conditions, Distribution, Interval, Latency
from iekd.deploy.statistics import distribution, ratio_of_medians
from iekd.files import atomic_file

BLOCK_SECONDS = 0.1
"""Of one session within a round: short against the drift of clocks, long against a cache warming up again."""
SETTLE_SECONDS = 0.05
"""Before each block of several sessions.  Idle workers of the session before spin on their cores for a while: without
a pause they doubled the latency of every seventh call of the next session (docs/log.md)."""
SAMPLE_CALLS = 2000
CV_LIMIT = 0.10
"""Of the host's clock: above this, on a shared or floating machine the median holds, the tail does not."""
POLICY = "host wall clock around one call, input and output in host memory, one request in flight"
PARTS = ("h2d", "compute", "d2h", "enqueue")


@runtime_checkable
class TimedSession(Protocol):
    """A session that can tell the parts of a call apart, by the device's events or the runtime's own clock."""

    def timed_run(self, images: Array) -> tuple[Array, dict[str, float]]:
        """What ``run`` answers, and milliseconds: ``host``, the wall clock of what it does, and any of ``PARTS``."""
        ...


@dataclass
class Trace:
    """All calls of one session."""

    milliseconds: array[float] = field(default_factory=lambda: array("d"))
    started: array[float] = field(default_factory=lambda: array("d"))
    """Seconds since the measurement began."""
    block: array[int] = field(default_factory=lambda: array("L"))
    """Number of the round."""
    parts: dict[str, array[float]] = field(default_factory=dict)
    """Milliseconds of the same calls, where the session tells them apart."""
    seconds: float = 0.0
    """The sum of ``milliseconds``, in seconds."""

    def blocks(self) -> list[NDArray[np.float64]]:
        """Latencies by round."""
        values, numbers = np.array(self.milliseconds), np.array(self.block)
        return np.split(values, np.flatnonzero(np.diff(numbers)) + 1)


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
        sessions: by name.  Those that are a :class:`TimedSession` are measured by ``timed_run``.
        images: real, preprocessed inputs (N, 3, H, W), used in turn; N >= ``batch``.
        folder: for the raw traces, one ``latency-NAME.npz`` a session.
        batch: images a call.
        seconds: at least this long for each session, measured calls alone.
        warmup_seconds: for each session before its first measured call.
        min_iterations: at least this many measured calls for each session.
        progress: told the share that is done, 0..1.
    """
    feeds = feeds_of(images, batch)
    names = list(sessions)
    for name in names:
        warm_up(sessions[name].run, feeds, warmup_seconds)
    traces = {name: Trace() for name in names}
    monitor, origin, number = Monitor(), time.perf_counter(), 0
    with _no_garbage_collection():
        while any(_short(traces[name], seconds, min_iterations) for name in names):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                monitor.sample()
                if len(names) > 1:
                    time.sleep(SETTLE_SECONDS)
                _measure_block(sessions[name], feeds, traces[name], number, origin)
            number += 1
            progress(min(1.0, min(traces[name].seconds for name in names) / seconds))
    conditions = monitor.summary()
    latency = {}
    for name in names:
        file = folder / f"latency-{name}.npz"
        _keep(traces[name], file)
        latency[name] = _summarize(sessions[name], traces[name], batch, warmup_seconds, file, conditions)
    return LatencyRun(latency, traces)


def feeds_of(images: Array, batch: int) -> list[Array]:
    """``images`` cut into whole batches, each contiguous, made before anything is timed."""
    return [np.ascontiguousarray(images[at : at + batch]) for at in range(0, len(images) - batch + 1, batch)]


def warm_up(call: Callable[[Array], object], feeds: list[Array], seconds: float) -> int:
    """Call for at least ``seconds``; returns how many calls that took, at least one."""
    end = time.perf_counter() + seconds
    calls = 0
    while calls == 0 or time.perf_counter() < end:
        call(feeds[calls % len(feeds)])
        calls += 1
    return calls


def _measure_block(session: Session, feeds: list[Array], trace: Trace, number: int, origin: float) -> None:
    """Calls for ``BLOCK_SECONDS``, at least three; the clock is read twice a call and nothing else is done between."""
    clock = time.perf_counter
    timed = isinstance(session, TimedSession)
    call: Callable[[Array], Any] = session.timed_run if isinstance(session, TimedSession) else session.run
    call(feeds[0])  # brings the caches back from the other sessions; not counted
    begin, first = clock(), len(trace.milliseconds)
    while len(trace.milliseconds) < first + 3 or clock() - begin < BLOCK_SECONDS:
        feed = feeds[len(trace.milliseconds) % len(feeds)]
        start = clock()
        answer = call(feed)
        end = clock()
        trace.milliseconds.append(_note_parts(answer[1], trace) if timed else (end - start) * 1e3)
        trace.started.append(start - origin)
        trace.block.append(number)
    trace.seconds += sum(trace.milliseconds[first:]) / 1e3


def _note_parts(times: Mapping[str, float], trace: Trace) -> float:
    """Keep what a timed call said of its parts; returns its wall clock, without the reading of the events."""
    for name in PARTS:
        if name in times:
            trace.parts.setdefault(name, array("d")).append(times[name])
    return times["host"]


def _short(trace: Trace, seconds: float, min_iterations: int) -> bool:
    return trace.seconds < seconds or len(trace.milliseconds) < min_iterations


def _keep(trace: Trace, path: Path) -> None:
    arrays: dict[str, Any] = {
        "milliseconds": np.array(trace.milliseconds),
        "started_seconds": np.array(trace.started),
        "block": np.array(trace.block),
        **{f"{name}_milliseconds": np.array(values) for name, values in trace.parts.items()},
    }
    with atomic_file(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, **arrays)


def _summarize(
    session: Session, trace: Trace, batch: int, warmup_seconds: float, file: Path, conditions: Conditions
) -> Latency:
    values = np.array(trace.milliseconds)
    whole = distribution(values)
    parts = {name: distribution(np.array(part)) for name, part in trace.parts.items()}
    stages = {name: {"median": part.median.value, "cv": part.cv} for name, part in parts.items()}
    every = max(1, -(-len(values) // SAMPLE_CALLS))
    own = getattr(session, "policy", "")
    return Latency(
        **whole.model_dump(),
        batch=batch,
        iterations=len(values),
        warmup_seconds=warmup_seconds,
        measured_seconds=trace.seconds,
        policy=f"{POLICY}; {own}" if own else POLICY,
        trace=file.name,
        sample=[round(float(value), 5) for value in values[::every]],
        parts=parts,
        conditions=conditions,
        warnings=[*_restless(whole), *stage_warnings(stages), *warnings_of(conditions)],
    )


def _restless(whole: Distribution) -> list[str]:
    if whole.cv <= CV_LIMIT:
        return []
    return [
        f"latency varied by {whole.cv:.0%} (coefficient of variation): the machine was busy or its clocks moved; "
        "trust the median and the ratio, not the tail"
    ]


class _no_garbage_collection:  # noqa: N801 - reads as a statement
    """Python's collector pauses at moments of its own; they are not the model's."""

    def __enter__(self) -> None:
        self._was = gc.isenabled()
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was:
            gc.enable()
