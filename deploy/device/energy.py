"""Energy per inference: mean power while a model runs back to back, times the time, divided by the calls.

A pass of its own, after the latency: INA monitors average over more than one call, and reading them takes time that
must not be in the latency.  Power at rest is measured first and reported beside it, so that both the whole board's
and the model's own share can be told.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import sensors
from .measure import Array, Session
from .tegrastats import Reading, parse_tegrastats, total_rails

INTERVAL_SECONDS = 0.05
MIN_SAMPLES = 5
FIRST_LINE_SECONDS = 5.0
"""How long to wait for tegrastats to say something."""


@dataclass(frozen=True)
class Source:
    """Where power is read."""

    name: str
    rails: tuple[str, ...]
    """Added up for the whole."""
    read: Callable[[], Reading | None]
    """The newest reading, or None where nothing new has come."""
    interval: float


@contextlib.contextmanager
def open_source() -> Iterator[Source | str]:
    """Yield the board's power source, or in words why there is none; what it starts, it ends."""
    rails = sensors.ina_rails()
    if whole := total_rails(set(rails)):
        yield Source("INA power monitors", whole, lambda: Reading(sensors.ina_rails()), INTERVAL_SECONDS)
        return
    if shutil.which("tegrastats") is None:
        known = (
            f"its rails ({', '.join(sorted(rails))}) are not known to add up to the whole" if rails else "none found"
        )
        yield f"no power sensor that this program can read: {known}"
        return
    with _tegrastats() as newest:
        deadline = time.monotonic() + FIRST_LINE_SECONDS
        while (first := newest()) is None and time.monotonic() < deadline:
            time.sleep(INTERVAL_SECONDS)
        whole = total_rails(set(first.rails_mw if first else ()))
        yield Source("tegrastats", whole, newest, 2 * INTERVAL_SECONDS) if whole else "tegrastats shows no power rails"


@contextlib.contextmanager
def _tegrastats() -> Iterator[Callable[[], Reading | None]]:
    """Run tegrastats; the yielded function gives each line with rails once."""
    command = ["tegrastats", "--interval", str(int(2000 * INTERVAL_SECONDS))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace")
    newest: list[Reading] = []

    def follow() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if (reading := parse_tegrastats(line)).rails_mw:
                newest[:] = [reading]

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    try:
        yield lambda: newest.pop() if newest else None
    finally:
        process.terminate()
        process.wait(timeout=10)
        reader.join(timeout=10)
        assert process.stdout is not None
        process.stdout.close()


class Sampler:
    """Samples a source in a thread of its own while the ``with`` block runs.

    Attributes:
        watts: the whole, a sample each.
        celsius: the highest temperature seen, by zone.
        hertz: the lowest and the highest clock seen, by unit.
        throttled: every throttle alert that was on at some sample.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.watts: list[float] = []
        self.celsius: dict[str, float] = {}
        self.hertz: dict[str, list[int]] = {}
        self.throttled: set[str] = set()

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(self._source.interval):
            reading = self._source.read() or Reading()
            if set(self._source.rails) <= set(reading.rails_mw):
                self.watts.append(sum(reading.rails_mw[name] for name in self._source.rails) / 1000)
            for zone, value in (sensors.temperatures() or reading.celsius).items():
                self.celsius[zone] = max(value, self.celsius.get(zone, value))
            for unit, clock in {**reading.hertz, **sensors.current_hertz()}.items():
                low, high = self.hertz.get(unit, (clock, clock))
                self.hertz[unit] = [min(clock, low), max(clock, high)]
            self.throttled.update(sensors.throttling())


def measure_rest(source: Source, seconds: float) -> float | None:
    """Mean watts while nothing of ours runs, or None for too few samples."""
    with Sampler(source) as sampler:
        time.sleep(seconds)
    return float(np.mean(sampler.watts)) if len(sampler.watts) >= MIN_SAMPLES else None


def measure_energy(
    session: Session, images: Array, source: Source, rest_watts: float | None, seconds: float
) -> dict[str, Any] | None:
    """Run ``session`` back to back for ``seconds`` at batch 1 and divide the energy by the calls.

    Returns:
        watts, joules an inference of the whole and above rest, samples, temperatures, clocks; None for too few samples.
    """
    feeds = [np.ascontiguousarray(images[at : at + 1]) for at in range(len(images))]
    calls, start = 0, time.perf_counter()
    with Sampler(source) as sampler:
        while (spent := time.perf_counter() - start) < seconds:
            session.run(feeds[calls % len(feeds)])
            calls += 1
    if len(sampler.watts) < MIN_SAMPLES:
        return None
    watts = float(np.mean(sampler.watts))
    return {
        "watts": watts,
        "rest_watts": rest_watts,
        "joules_per_inference": watts * spent / calls,
        "joules_above_rest": None if rest_watts is None else (watts - rest_watts) * spent / calls,
        "calls": calls,
        "seconds": spent,
        "samples": len(sampler.watts),
        "source": source.name,
        "rails": list(source.rails),
        "celsius": sampler.celsius,
        "hertz": sampler.hertz,
        "throttled": sorted(sampler.throttled),
    }
