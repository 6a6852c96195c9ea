"""The harness's parts beyond single-stream latency: device parts, conditions, throughput, repetition, publication."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from iekd.deploy import benchmark as bench
from iekd.deploy import conditions, repeat
from iekd.deploy.backends import Array, Session
from iekd.deploy.backends.tensorrt import TensorRTSession
from iekd.deploy.conditions import Monitor, parse_gpu_row, warnings_of
from iekd.deploy.export import export_onnx
from iekd.deploy.repeat import Candidate, combine, measure_publishable, repeat_ratio
from iekd.deploy.results import Conditions, GpuConditions, Interval, Throughput
from iekd.deploy.statistics import distribution, mean_ratio, rate
from iekd.deploy.throughput import measure_throughput
from iekd.errors import InputError
from iekd.models.preprocessing import Preprocessing


def images(count: int, size: int = 4) -> Array:
    return np.random.default_rng(1).standard_normal((count, 3, size, size), dtype=np.float32)


class Sleeping:
    """A session whose call takes a known time without using the processor."""

    input_shape = (3, 4, 4)
    batch_range = (1, None)

    def __init__(self, milliseconds: float = 1.0) -> None:
        self.seconds = milliseconds / 1e3
        self.batches: list[int] = []

    def run(self, batch: Array) -> Array:
        self.batches.append(len(batch))
        time.sleep(self.seconds)
        return np.zeros((len(batch), 2), np.float32)

    def describe(self) -> dict[str, str]:
        return {"backend": "sleeping"}

    def close(self) -> None: ...


class Device(Sleeping):
    """A session with a device's events: a real call whose parts follow a given pattern."""

    policy = "blocking wait, no CUDA graph"

    def __init__(self, *, h2d: float, compute: float, d2h: float, enqueue: float, spread: float = 0.0) -> None:
        super().__init__(h2d + compute + d2h)
        self.pattern = {"h2d": h2d, "compute": compute, "d2h": d2h, "enqueue": enqueue}
        self.random = np.random.default_rng(0)
        self.spread = spread
        self.timed = 0

    def timed_run(self, batch: Array) -> tuple[Array, dict[str, float]]:
        self.timed += 1
        start = time.perf_counter()
        answer = self.run(batch)
        host = (time.perf_counter() - start) * 1e3
        time.sleep(0.002)  # reading the events takes time that is not the call's
        factor = 1 + self.spread * self.random.standard_normal()
        return answer, {"host": host, **{name: value * factor for name, value in self.pattern.items()}}

    def streams(self, count: int) -> list[Callable[[Array], Array]]:
        return [self.run] * count

    def describe(self) -> dict[str, str]:
        return {"backend": "scripted", "cuda graph": "captured"}


def measured(tmp_path: Path, device: Session) -> bench.LatencyRun:
    return bench.measure_latency({"x": device}, images(2), folder=tmp_path, seconds=0.1, warmup_seconds=0)


def test_the_parts_of_a_call_are_separate_figures(tmp_path: Path) -> None:
    device = Device(h2d=0.2, compute=2.0, d2h=0.1, enqueue=0.5)
    run = measured(tmp_path, device)
    latency, trace = run.latency["x"], np.load(tmp_path / "latency-x.npz")
    assert {name: part.median.value for name, part in latency.parts.items()} == pytest.approx(device.pattern)
    assert len(trace["compute_milliseconds"]) == len(trace["milliseconds"]) == latency.iterations
    assert latency.median.value >= 2.3, "the headline is the host's wall clock, transfers included"
    assert latency.minimum < 2.3 + 1.9, "and without the reading of the events"
    assert device.timed == latency.iterations + len(np.unique(trace["block"])), "one uncounted call a block"
    assert latency.policy.endswith("; blocking wait, no CUDA graph")
    assert not [warning for warning in latency.warnings if "bound" in warning or "compute" in warning]


def test_an_engine_s_own_times_reach_the_record(tmp_path: Path) -> None:
    """The TensorRT backend over a device session that is scripted: the two must agree on what a timed call returns."""
    device = Device(h2d=0.2, compute=2.0, d2h=0.1, enqueue=0.5)
    latency = measured(tmp_path, TensorRTSession(device)).latency["x"]  # type: ignore[arg-type]
    assert {name: part.median.value for name, part in latency.parts.items()} == pytest.approx(device.pattern)
    assert latency.policy.endswith("CUDA graph captured")
    calls = TensorRTSession(device).streams(3, 2)  # type: ignore[arg-type]
    assert [len(call(images(2))) for call in calls] == [2, 2, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"enqueue": 1.7}, "launch-bound"),
        ({"h2d": 2.0}, "transfer-bound: copying to the device"),
        ({"d2h": 2.5}, "transfer-bound: copying from the device"),
        ({"spread": 0.1}, "compute time varied"),
    ],
)
def test_what_the_parts_warn_of(tmp_path: Path, changes: dict[str, float], words: str) -> None:
    run = measured(tmp_path, Device(**{"h2d": 0.2, "compute": 2.0, "d2h": 0.1, "enqueue": 0.5, **changes}))
    found = [warning for warning in run.latency["x"].warnings if "bound" in warning or "compute" in warning]
    assert len(found) == 1
    assert words in found[0]


def test_a_session_without_events_has_no_parts(tmp_path: Path) -> None:
    run = bench.measure_latency({"x": Sleeping()}, images(1), folder=tmp_path, seconds=0.02, warmup_seconds=0)
    assert run.latency["x"].parts == {}
    assert run.latency["x"].policy == bench.POLICY


def test_one_session_alone_is_measured_without_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses would let a hot device cool; they are there for the sake of the other session."""
    monkeypatch.setattr(bench, "SETTLE_SECONDS", None)  # no pause can be of that length
    one, two = {"x": Sleeping()}, {"x": Sleeping(), "y": Sleeping()}
    bench.measure_latency(one, images(1), folder=tmp_path, seconds=0.01, warmup_seconds=0)
    with pytest.raises(TypeError):
        bench.measure_latency(two, images(1), folder=tmp_path, seconds=0.01, warmup_seconds=0)


# --- throughput ---------------------------------------------------------------------------------------------------


class Overlapping(Sleeping):
    """Any number of requests at once."""

    def __init__(self, milliseconds: float = 2.0) -> None:
        super().__init__(milliseconds)
        self.now, self.most = 0, 0
        self.lock = threading.Lock()

    def streams(self, count: int, batch: int) -> list[object]:
        return [self.count_up] * count

    def count_up(self, batch: Array) -> Array:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        answer = self.run(batch)
        with self.lock:
            self.now -= 1
        return answer


def throughput(session: Sleeping, tmp_path: Path, **settings: float) -> Throughput:
    return measure_throughput(session, images(8), trace=tmp_path / "t.npz", seconds=0.3, **settings)  # type: ignore[arg-type]


def test_streams_overlap(tmp_path: Path) -> None:
    session = Overlapping(20)
    throughput(session, tmp_path, streams=1, batch=2, warmup_seconds=0)
    assert session.most == 1
    four = throughput(session, tmp_path, streams=4, batch=2, warmup_seconds=0)
    assert session.most == 4
    assert set(session.batches) == {2}
    trace = np.load(tmp_path / "t.npz")
    assert len(trace["ended_seconds"]) == len(trace["started_seconds"]) == four.calls
    assert set(trace["stream"]) == {0, 1, 2, 3}
    assert (trace["ended_seconds"] >= trace["started_seconds"]).all()
    assert four.images_per_second.value == pytest.approx(four.calls * 2 / trace["ended_seconds"].max())
    assert "4 request(s) in flight" in four.policy


def test_one_at_a_time_sessions_have_one_stream(tmp_path: Path) -> None:
    found = throughput(Sleeping(5), tmp_path)
    assert found.images_per_second.value < 200
    with pytest.raises(InputError, match="one request at a time"):
        throughput(Sleeping(5), tmp_path, streams=2)


def test_an_error_in_a_stream_is_the_caller_s(tmp_path: Path) -> None:
    class Failing(Overlapping):
        def run(self, batch: Array) -> Array:
            raise InputError("out of order.")

    with pytest.raises(InputError, match="out of order"):
        throughput(Failing(), tmp_path, streams=3, warmup_seconds=0)


def test_the_rate_s_interval_covers_it() -> None:
    random, held = np.random.default_rng(0), 0
    for _ in range(300):
        ends = np.cumsum(random.gamma(4, 0.0025, 800))
        held += rate(ends, 2).low <= 200 <= rate(ends, 2).high
    assert held / 300 > 0.91


# --- conditions ---------------------------------------------------------------------------------------------------


def machine(root: Path, *, busy: int, steal: int, mhz: int, heat: int, throttles: int) -> None:
    """A file system such as Linux shows it."""
    cores = root / "sys/devices/system/cpu/cpu0"
    for path, text in (
        (root / "proc/stat", f"cpu  {busy} 0 0 500 0 0 0 {steal} 0 0\ncpu0 1 2 3\n"),
        (cores / "cpufreq/scaling_cur_freq", f"{mhz * 1000}\n"),
        (cores / "thermal_throttle/core_throttle_count", f"{throttles}\n"),
        (root / "sys/class/thermal/thermal_zone0/temp", f"{heat * 1000}\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_monitor_sees_what_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(conditions.shutil, "which", lambda _name: None)
    machine(tmp_path, busy=1000, steal=0, mhz=3000, heat=50, throttles=7)
    monitor = Monitor(tmp_path)
    monitor.sample()
    machine(tmp_path, busy=1_000_000, steal=1_000_000, mhz=2000, heat=80, throttles=9)
    monitor.sample()
    machine(tmp_path, busy=1_000_000, steal=1_000_000, mhz=2500, heat=60, throttles=9)
    found = monitor.summary()
    assert (found.samples, found.mhz, found.celsius, found.throttled) == (2, (2000.0, 3000.0), 80.0, 2)
    assert found.other_cpu is not None
    assert found.other_cpu > 1
    assert [warning.split(" ")[0] for warning in warnings_of(found)] == ["other", "the", "the"]


def test_a_machine_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions.shutil, "which", lambda _name: None)
    monitor = Monitor(tmp_path)
    monitor.sample()
    found = monitor.summary()
    assert found == Conditions(samples=1, other_cpu=None, steal=None, mhz=None, celsius=None, throttled=None)
    assert warnings_of(found) == []


def test_own_work_is_not_the_others_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds, in which cores were busy for 13 s, 8 s of them with this process."""
    now = {"moment": 100.0, "own": 5.0}
    monkeypatch.setattr(conditions.time, "monotonic", lambda: now["moment"])
    monkeypatch.setattr(conditions.os, "times", lambda: os.times_result((now["own"], 0.0, 0.0, 0.0, 0.0)))
    ticks = os.sysconf("SC_CLK_TCK")
    machine(tmp_path, busy=50 * ticks, steal=0, mhz=1, heat=1, throttles=0)
    monitor = Monitor(tmp_path)
    machine(tmp_path, busy=63 * ticks, steal=2 * ticks, mhz=1, heat=1, throttles=0)
    now.update(moment=110.0, own=13.0)
    found = monitor.summary()
    assert (found.other_cpu, found.steal) == (0.5, 0.2)


def test_samples_are_a_second_apart() -> None:
    monitor = Monitor()
    for _ in range(50):
        monitor.sample()
    assert monitor.summary().samples <= 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1980, 45, 120.52, 0x0000000000000000\n", (1980.0, 45.0, 120.52, 0)),
        ("345, 90, [N/A], 0x0000000000000048\n", (345.0, 90.0, None, 0x48)),
        ("345, 90, 12.0, [N/A]\n", (345.0, 90.0, 12.0, 0)),
        ("[N/A], [N/A], [N/A], [N/A]\n", None),
        ("No devices were found\n", None),
        ("", None),
    ],
)
def test_lines_of_nvidia_smi(text: str, expected: object) -> None:
    assert parse_gpu_row(text) == expected


def test_a_gpu_s_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a program of that name, which counts up: the whole way from the command to the warning."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\necho x >> {tmp_path}/calls\nn=$(wc -l < {tmp_path}/calls)\n"
        'echo "$((n * 1000)), 4$n, 100.0, 0x4$n"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(conditions, "SAMPLE_SECONDS", 0.0)
    monitor = Monitor(tmp_path)
    monitor.sample()
    monitor.sample()
    found = monitor.summary().gpu
    assert found == GpuConditions(mhz=(1000, 2000), celsius=42, watts=100, throttled=["thermal, by hardware"])
    summary = monitor.summary()
    assert warnings_of(summary)[-1] == "the GPU was slowed down during the measurement: thermal, by hardware"


def test_conditions_travel_with_the_figures(tmp_path: Path) -> None:
    run = bench.measure_latency({"x": Sleeping()}, images(1), folder=tmp_path, seconds=0.02, warmup_seconds=0)
    found = run.latency["x"].conditions
    assert found is not None
    assert found.samples >= 1


# --- statistics ---------------------------------------------------------------------------------------------------


def test_a_distribution_holds_every_value() -> None:
    values: NDArray[np.float64] = np.array([1.0, 2.0, 3.0, 100.0])
    found = distribution(values)
    assert (found.minimum, found.maximum, found.mean) == (1, 100, 26.5)
    assert found.cv == pytest.approx(stats.variation(values, ddof=1))
    for q, interval in ((50, found.median), (90, found.p90), (95, found.p95), (99, found.p99)):
        assert interval.value == pytest.approx(np.percentile(values, q))


def test_repeated_ratios_are_student_s() -> None:
    ratios = np.array([1.9, 2.0, 2.2, 2.1, 2.0])
    expected = stats.t.interval(0.95, 4, np.log(ratios).mean(), stats.sem(np.log(ratios)))
    found = mean_ratio(ratios)
    assert (found.low, found.high) == pytest.approx(np.exp(expected))
    assert found.value == pytest.approx(stats.gmean(ratios))


# --- repetition and publication -----------------------------------------------------------------------------------


def test_processes_that_contradict_one_another_are_told() -> None:
    near = [Interval(value=v, low=v - 0.2, high=v + 0.2) for v in (2.0, 2.1, 1.9)]
    assert combine(near, [(2, 1)] * 3).warnings == []
    far = [*near, Interval(value=2.6, low=2.5, high=2.7)]
    found = combine(far, [(2, 1)] * 4)
    assert "contradict" in found.warnings[0]
    assert found.ratio.high > 2.5


def test_a_ratio_in_fresh_processes(tmp_path: Path) -> None:
    import torch
    from torch import nn

    how = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, crop_fraction=1)

    def network(width: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, width, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    for name, width in (("wide", 256), ("thin", 2)):
        export_onnx(network(width), tmp_path / f"{name}.onnx", preprocessing=how, classes=["x"] * width, name=name)
    sides = [Candidate(tmp_path / f"{name}.onnx", threads=1) for name in ("wide", "thin")]
    shares: list[float] = []
    found = repeat_ratio(
        *sides, images(4, 16), folder=tmp_path / "out", processes=2, seconds=0.1, progress=shares.append
    )
    assert shares == [0.5, 1.0]
    assert len(found.runs) == len(found.medians) == 2
    assert found.ratio.value > 1.5, "128 times the work"
    for run, (slow, fast) in zip(found.runs, found.medians, strict=True):
        assert run.value == pytest.approx(slow / fast)
    assert json.loads((tmp_path / "out" / "repeat.json").read_text()) == json.loads(found.model_dump_json())
    orders = [
        list(json.loads((tmp_path / "out" / f"process-{n}" / "task.json").read_text())["sides"]) for n in range(2)
    ]
    assert orders == [["slow", "fast"], ["fast", "slow"]]
    assert len(list((tmp_path / "out").rglob("latency-*.npz"))) == 4, "the raw traces stay"
    assert not (tmp_path / "out" / "images.npy").exists()


def test_a_repetition_s_bad_input(tmp_path: Path) -> None:
    none = Candidate(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="two processes"):
        repeat_ratio(none, none, images(1), folder=tmp_path, processes=1)
    with pytest.raises(InputError, match=r"no ONNX file at .*none\.onnx"):
        repeat_ratio(none, none, images(1), folder=tmp_path, processes=2)


def test_publishable_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BLOCK_SECONDS", 0.02)
    session, shares = Sleeping(1), []
    found = measure_publishable(session, images(8), folder=tmp_path, seconds=0.1, progress=shares.append)
    assert set(session.batches) == {1, 8}
    assert (found.single_stream.batch, found.multi_stream.batch) == (1, 8)
    assert found.single_stream.measured_seconds >= 0.1
    assert found.multi_stream.p99.low <= found.multi_stream.p99.value <= found.multi_stream.p99.high
    assert shares[-1] == 1
    assert shares == sorted(shares)
    assert {path.name for path in tmp_path.iterdir()} == {
        "latency-single-stream.npz",
        "latency-multi-stream.npz",
        "publishable.json",
    }
    with pytest.raises(InputError, match="at least 8"):
        measure_publishable(session, images(7), folder=tmp_path)


def test_publishable_defaults_are_mlperf_s() -> None:
    assert (repeat.MLPERF_SECONDS, repeat.MULTI_STREAM_SAMPLES) == (600, 8)
    assert measure_publishable.__kwdefaults__["seconds"] == 600
