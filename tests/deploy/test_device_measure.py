"""The latency protocol on a clock of its own, and its statistics against scipy's."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from iekd.deploy import statistics
from iekd.deploy.device import measure, stages
from iekd.deploy.results import Latency


class Clock:
    """Seconds that pass only when a session works or sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


class Fake:
    """A session whose calls take what it is told."""

    input_shape = (1, 1, 1)
    most = None

    def __init__(self, clock: Clock, seconds: float, log: list[str] | None = None, name: str = "") -> None:
        self.clock, self.seconds, self.log, self.name = clock, seconds, log, name
        self.inputs: list[float] = []
        self.collecting: list[bool] = []

    def run(self, images: np.ndarray) -> np.ndarray:
        self.inputs.append(float(images[0, 0, 0, 0]))
        self.collecting.append(gc.isenabled())
        if self.log is not None and (not self.log or self.log[-1] != self.name):
            self.log.append(self.name)
        self.clock.now += self.seconds
        return np.zeros((len(images), 2), np.float32)

    def timed_run(self, images: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        return self.run(images), {"compute": self.seconds * 1e3, "host": self.seconds * 2e3}

    def describe(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


IMAGES = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)


def measured(clock: Clock, sessions: dict[str, Fake], seconds: float = 1.0, warmup: float = 0.2) -> dict:
    return measure.measure_latency(
        sessions, IMAGES, seconds=seconds, warmup_seconds=warmup, clock=clock, sleep=clock.pass_by
    )


def test_the_protocol() -> None:
    clock, log = Clock(), []
    sessions = {name: Fake(clock, seconds, log, name) for name, seconds in (("slow", 0.02), ("fast", 0.002))}
    traces = measured(clock, sessions)
    for name, session in sessions.items():
        trace = traces[name]
        assert sum(trace.milliseconds) >= 1000
        assert trace.milliseconds == pytest.approx([session.seconds * 1e3] * len(trace.milliseconds))
        rounds, warm = len(set(trace.block)), int(np.ceil(0.2 / session.seconds - 1e-6))
        assert len(session.inputs) - len(trace.milliseconds) - rounds in (warm, warm + 1)
        assert set(session.inputs) == {0, 1, 2, 3}, "real inputs in turn"
    assert log[:2] == ["slow", "fast"], "warm-up"
    assert log[2:5] == ["slow", "fast", "slow"] or log[1:5] == ["fast", "slow", "fast", "slow"], "order rotates"
    assert gc.isenabled()
    assert not any(sessions["slow"].collecting[-10:])


def test_warm_up_is_by_time_and_at_least_one_call() -> None:
    clock = Clock()
    feeds = list(IMAGES[:, None])
    assert measure.warm_up(Fake(clock, 0.125), feeds, 1.0, clock) == 8
    assert measure.warm_up(Fake(clock, 0.125), feeds, 0.0, clock) == 1
    assert measure.warm_up(Fake(clock, 5.0), feeds, 1.0, clock) == 1


def test_a_slow_model_is_called_often_enough() -> None:
    clock = Clock()
    traces = measured(clock, {"a": Fake(clock, 2.0)}, seconds=1.0)
    assert len(traces["a"].milliseconds) >= measure.MIN_CALLS


def test_no_outlier_is_clipped_and_the_trace_is_kept(tmp_path: Path) -> None:
    trace = measure.Trace([1.0] * 99 + [500.0], list(range(100)), [0] * 100)
    figures = measure.summarize(trace, 0.5)
    assert figures["maximum"] == 500
    assert figures["mean"] == pytest.approx(5.99)
    assert len(figures["warnings"]) == 1
    trace.keep(tmp_path / "traces" / "t.npz")
    with np.load(tmp_path / "traces" / "t.npz") as kept:
        assert kept["milliseconds"].tolist() == trace.milliseconds
        assert kept["started_seconds"].tolist() == trace.started


def test_the_record_is_the_host_s() -> None:
    values = np.random.default_rng(0).lognormal(0, 0.02, 5000).tolist()
    figures = measure.summarize(measure.Trace(values, values, [0] * 5000), 0.5)
    latency = Latency.model_validate({**figures, "trace": "t.npz"})
    assert len(latency.sample) <= measure.SAMPLE_CALLS
    assert latency.warnings == []


@pytest.mark.parametrize("q", [50, 90, 95, 99])
@pytest.mark.parametrize("n", [1, 2, 10, 57, 1000, 20_000])
def test_percentiles_are_the_host_s(q: float, n: int) -> None:
    values = np.random.default_rng(n).lognormal(0, 0.3, n)
    expected = statistics.percentile(values, q)
    found = measure.percentile(values, q)
    assert (found["value"], found["low"], found["high"]) == (expected.value, expected.low, expected.high)


def test_the_binomial_quantile_is_scipy_s() -> None:
    for n in (1, 3, 10, 99, 1000, 300_000):
        for p in (0.5, 0.9, 0.95, 0.99):
            for share in (0.025, 0.3, 0.975):
                assert measure.binomial_quantile(share, n, p) == int(stats.binom.ppf(share, n, p)), (share, n, p)


@pytest.mark.parametrize(("correct", "total"), [(0, 5), (5, 5), (37, 40), (990, 1000)])
def test_wilson_is_the_host_s(correct: int, total: int) -> None:
    expected = statistics.wilson(correct, total)
    found = measure.wilson(correct, total)
    assert [found["value"], found["low"], found["high"]] == pytest.approx([expected.value, expected.low, expected.high])


class Staged(Fake):
    """Calls that go by a script: the first is slow, as after a pause, and each has stages of its own."""

    def __init__(self, *calls: dict[str, float]) -> None:
        super().__init__(Clock(), 0)
        self.script = list(calls)

    def timed_run(self, images: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        return self.run(images), self.script.pop(0)


def test_stages_are_summed_up_but_for_the_first_call() -> None:
    session = Staged({"compute": 90.0, "host": 99.0}, *({"compute": ms, "host": 2 * ms} for ms in (2.0, 3.0, 4.0)))
    found = stages.measure_stages(session, IMAGES, calls=3)
    assert found["compute"] == pytest.approx({"median": 3.0, "p99": 3.98, "cv": 1 / 3})
    assert found["host"]["median"] == 6.0
    assert session.inputs == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"enqueue": 1.7}, ["launch-bound: enqueueing took 1.7 ms of 2 ms compute"]),
        ({"h2d": 2.0}, ["transfer-bound: copying to the device took 2 ms, computing 2 ms"]),
        ({"d2h": 2.5}, ["transfer-bound: copying from the device took 2.5 ms, computing 2 ms"]),
        ({"spread": 0.06}, ["compute time varied by 3.0% (coefficient of variation): lock the device's clocks"]),
    ],
)
def test_the_board_warns_as_the_host_does(changes: dict[str, float], words: list[str]) -> None:
    given = {"h2d": 0.2, "compute": 2.0, "d2h": 0.1, "enqueue": 0.5, "host": 3.0, "spread": 0.04, **changes}
    half = given.pop("spread") / 2 * given["compute"]
    calls = [{**given, "compute": given["compute"] + step} for step in (0, *[-half, half] * 50)]
    found = stages.stage_warnings(stages.measure_stages(Staged(*calls), IMAGES, calls=100))
    assert len(found) == len(words)
    assert all(map(str.startswith, found, words))
    assert stages.stage_warnings({"host": {"median": 1.0, "p99": 9.0, "cv": 3.0}}) == []


@pytest.mark.parametrize("most", [None, 1, 5, 100])
def test_answers_come_in_the_order_of_the_images(most: int | None) -> None:
    class Echo(Fake):
        def run(self, images: np.ndarray) -> np.ndarray:
            assert len(images) <= (most or 32)
            return np.eye(70, dtype=np.float32)[images[:, 0, 0, 0].astype(int)]

    session = Echo(Clock(), 0)
    session.most = most
    pixels = np.arange(70, dtype=np.uint8).reshape(70, 1, 1, 1)
    found = measure.answers(session, pixels, lambda batch: batch.astype(np.float32))
    assert found.tolist() == list(range(70))
