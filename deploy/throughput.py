"""Throughput: as many images a second as the machine gives, requests overlapping.

A mode of its own.  A latency measured under overlap says nothing of one request, and a throughput computed from
latencies nothing of overlap, so neither is ever derived from the other here.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from iekd.deploy.backends import Array, Session
from iekd.deploy.benchmark import feeds_of, warm_up
from iekd.deploy.results import Throughput
from iekd.deploy.statistics import rate
from iekd.errors import InputError
from iekd.files import atomic_file

Call = Callable[[Array], Array]


@runtime_checkable
class Streaming(Protocol):
    """A session that can answer several requests at once."""

    def streams(self, count: int, batch: int) -> list[Call]:
        """``count`` functions like ``run`` for batches of ``batch``, each for one thread; valid until ``close``."""
        ...


@dataclass
class _Stream:
    """One thread's calls."""

    call: Call
    started: array[float] = field(default_factory=lambda: array("d"))
    ended: array[float] = field(default_factory=lambda: array("d"))
    error: BaseException | None = None


def measure_throughput(
    session: Session,
    images: Array,
    *,
    trace: Path,
    batch: int = 1,
    streams: int = 1,
    seconds: float = 3.0,
    warmup_seconds: float = 0.2,
) -> Throughput:
    """Images a second with ``streams`` requests in flight, each thread calling back to back.

    Args:
        session: any; for more than one stream it must be :class:`Streaming`.
        images: real, preprocessed inputs (N, 3, H, W), used in turn; N >= ``batch``.
        trace: file for the raw trace (.npz): start, end and stream of every call.
        batch: images a call.
        streams: requests in flight.
        seconds: after this no further call is made; those in flight are waited for and count.
        warmup_seconds: of each stream before, one after the other.

    Raises:
        InputError: the session answers one request at a time only.
    """
    feeds = feeds_of(images, batch)
    workers = [_Stream(call) for call in _calls(session, streams, batch)]
    for worker in workers:
        warm_up(worker.call, feeds, warmup_seconds)
    origin = _run(workers, feeds, seconds)
    started = np.concatenate([np.array(worker.started) for worker in workers]) - origin
    ended = np.concatenate([np.array(worker.ended) for worker in workers]) - origin
    numbers = np.repeat(np.arange(streams), [len(worker.ended) for worker in workers])
    with atomic_file(trace) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, started_seconds=started, ended_seconds=ended, stream=numbers)
    return Throughput(
        batch=batch,
        streams=streams,
        calls=len(ended),
        warmup_seconds=warmup_seconds,
        measured_seconds=float(ended.max()),
        images_per_second=rate(ended, batch),
        policy=f"{streams} request(s) in flight, host wall clock, input and output in host memory",
        trace=trace.name,
    )


def _calls(session: Session, streams: int, batch: int) -> list[Call]:
    if isinstance(session, Streaming):
        return session.streams(streams, batch)
    if streams > 1:
        raise InputError(
            f"{session.describe().get('backend', 'this backend')} answers one request at a time.",
            "Measure it with one stream.",
        )
    return [session.run]


def _run(workers: list[_Stream], feeds: list[Array], seconds: float) -> float:
    """Let all streams call until ``seconds`` are over; returns the moment they began."""
    gate = threading.Event()
    moments: list[float] = []

    def work(worker: _Stream, number: int) -> None:
        clock, call = time.perf_counter, worker.call
        gate.wait()
        end = moments[0] + seconds
        while len(worker.ended) < 2 or clock() < end:
            start = clock()
            try:
                call(feeds[(number + len(worker.ended)) % len(feeds)])
            except BaseException as error:
                worker.error = error
                return
            worker.ended.append(clock())
            worker.started.append(start)

    threads = [threading.Thread(target=work, args=(worker, number)) for number, worker in enumerate(workers)]
    for thread in threads:
        thread.start()
    moments.append(time.perf_counter())
    gate.set()
    for thread in threads:
        thread.join()
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    return moments[0]
