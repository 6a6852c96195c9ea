"""Latency and accuracy on the board, in numpy only, by the rules of ``docs/benchmarking.md``.

All sessions are measured in one run, interleaved in short blocks whose order rotates; warm-up is by time; every call
counts and is kept.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .files import atomic_file

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

CONFIDENCE = 0.95
BLOCK_SECONDS = 0.1
"""Of one session within a round: short against the drift of clocks, long against a cache warming up again."""
SETTLE_SECONDS = 0.05
"""Before each block, so that idle workers of the session before have gone to rest."""
MIN_CALLS = 10
SAMPLE_CALLS = 2000
CV_LIMIT = 0.10
POLICY = "host wall clock around one call, input and output in host memory, one request in flight"


class Session(Protocol):
    """A loaded model: ``session.EngineSession`` or ``onnx_session.OnnxSession``."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        ...

    @property
    def most(self) -> int | None:
        """Largest batch, or None for any."""
        ...

    def run(self, images: Array) -> Array:
        """Logits (N, classes) of a float32 batch (N, C, H, W)."""
        ...

    def timed_run(self, images: Array) -> tuple[Array, dict[str, float]]:
        """The same, and milliseconds by stage."""
        ...

    def describe(self) -> dict[str, str]:
        """What identifies the session in a result."""
        ...

    def close(self) -> None:
        """Give back what the session holds."""
        ...


@dataclass
class Trace:
    """All measured calls of one session."""

    milliseconds: list[float] = field(default_factory=list)
    started: list[float] = field(default_factory=list)
    """Seconds since the measurement began."""
    block: list[int] = field(default_factory=list)
    """Number of the round."""

    def keep(self, path: Path) -> None:
        """Write the raw trace as ``.npz``, atomically."""
        with atomic_file(path) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(
                handle,
                milliseconds=np.array(self.milliseconds),
                started_seconds=np.array(self.started),
                block=np.array(self.block),
            )


def measure_latency(
    sessions: Mapping[str, Session],
    images: Array,
    *,
    seconds: float,
    warmup_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Trace]:
    """Single-stream latency of each session at batch 1, interleaved in one run.

    Args:
        sessions: by name.
        images: real, preprocessed inputs (N, C, H, W), used in turn.
        seconds: at least this long for each session, measured calls alone; and at least ``MIN_CALLS`` calls.
        warmup_seconds: for each session before its first measured call.
        clock: seconds that only grow.
        sleep: how to wait.
    """
    feeds = [np.ascontiguousarray(images[at : at + 1]) for at in range(len(images))]
    names = list(sessions)
    for name in names:
        warm_up(sessions[name], feeds, warmup_seconds, clock)
    traces = {name: Trace() for name in names}
    origin, number = clock(), 0
    collecting = gc.isenabled()
    gc.disable()  # Python's collector pauses at moments of its own; they are not the model's
    try:
        while any(_short(trace, seconds) for trace in traces.values()):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                sleep(SETTLE_SECONDS)
                _measure_block(sessions[name], feeds, traces[name], number, origin, clock)
            number += 1
    finally:
        if collecting:
            gc.enable()
    return traces


def warm_up(
    session: Session, feeds: Sequence[Array], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> int:
    """Call ``session`` for at least ``seconds``; returns how many calls that took, at least one."""
    end, calls = clock() + seconds, 0
    while calls == 0 or clock() < end:
        session.run(feeds[calls % len(feeds)])
        calls += 1
    return calls


def _measure_block(
    session: Session, feeds: Sequence[Array], trace: Trace, number: int, origin: float, clock: Callable[[], float]
) -> None:
    """Calls for ``BLOCK_SECONDS``, at least three; the clock is read twice a call and nothing else is done between."""
    run = session.run
    run(feeds[0])  # brings the caches back from the other sessions; not counted
    begin, calls = clock(), 0
    while calls < 3 or clock() - begin < BLOCK_SECONDS:
        feed = feeds[len(trace.milliseconds) % len(feeds)]
        start = clock()
        run(feed)
        end = clock()
        trace.milliseconds.append((end - start) * 1e3)
        trace.started.append(start - origin)
        trace.block.append(number)
        calls += 1


def _short(trace: Trace, seconds: float) -> bool:
    return sum(trace.milliseconds) < seconds * 1e3 or len(trace.milliseconds) < MIN_CALLS


def summarize(trace: Trace, warmup_seconds: float) -> dict[str, Any]:
    """The figures of one trace, milliseconds; the fields of the host's ``Latency`` record but for ``trace``."""
    values = np.array(trace.milliseconds)
    cv = float(values.std(ddof=1) / values.mean())
    every = max(1, -(-len(values) // SAMPLE_CALLS))
    warnings = []
    if cv > CV_LIMIT:
        warnings.append(
            f"latency varied by {cv:.0%} (coefficient of variation): the board was busy or its clocks moved; "
            "trust the median, not the tail"
        )
    return {
        "batch": 1,
        "iterations": len(values),
        "warmup_seconds": warmup_seconds,
        "measured_seconds": float(values.sum() / 1e3),
        "minimum": float(values.min()),
        "mean": float(values.mean()),
        **{name: percentile(values, q) for name, q in (("median", 50), ("p90", 90), ("p95", 95), ("p99", 99))},
        "maximum": float(values.max()),
        "cv": cv,
        "policy": POLICY,
        "sample": [round(float(value), 5) for value in values[::every]],
        "warnings": warnings,
    }


def percentile(values: Floats, q: float) -> dict[str, float]:
    """The ``q``-th percentile with a distribution-free 95 % interval from binomial order statistics.

    The ends are order statistics whose ranks the true percentile lies between with at least that probability (Hahn and
    Meeker, Statistical Intervals, 1991, section 5.2); where there are too few values, the extreme one stands in.

    Args:
        values: at least one.
        q: 0..100.
    """
    ordered = np.sort(values)
    n = len(ordered)
    tail = (1 - CONFIDENCE) / 2
    low, high = binomial_quantile(tail, n, q / 100), binomial_quantile(1 - tail, n, q / 100)
    return {
        "value": float(np.percentile(ordered, q)),
        "low": float(ordered[min(max(low - 1, 0), n - 1)]),
        "high": float(ordered[min(high, n - 1)]),
    }


def binomial_quantile(share: float, n: int, p: float) -> int:
    """The smallest k with P(X <= k) >= ``share`` for X binomial in ``n`` draws of probability ``p``, 0 < p < 1."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    log_mass = log_factorial[n] - log_factorial - log_factorial[::-1] + k * math.log(p) + (n - k) * math.log1p(-p)
    return min(int(np.searchsorted(np.cumsum(np.exp(log_mass)), share)), n)


def wilson(correct: int, total: int) -> dict[str, float]:
    """A proportion with Wilson's 95 % score interval (E. B. Wilson 1927)."""
    z = 1.959963984540054  # the normal's 97.5 % quantile
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return {"value": p, "low": max(0.0, centre - half), "high": min(1.0, centre + half)}


def answers(session: Session, images: NDArray[np.uint8], normalize: Callable[[Any], Array]) -> NDArray[np.int64]:
    """The class that ``session`` gives each image, in batches as large as it takes, at most 32.

    Args:
        session: the model.
        images: pixels (N, H, W, 3).
        normalize: from pixels to the model's input.
    """
    batch = min(session.most or 32, 32)
    parts = [session.run(normalize(images[at : at + batch])).argmax(1) for at in range(0, len(images), batch)]
    found: NDArray[np.int64] = np.concatenate(parts).astype(np.int64)
    return found
