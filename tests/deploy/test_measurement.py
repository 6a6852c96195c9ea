"""Export, sessions, statistics and the latency protocol, end to end on a small network."""

from __future__ import annotations

import ctypes
import gc
import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from scipy import stats
from torch import nn

from iekd.deploy import benchmark as bench
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import Array, get_backend
from iekd.deploy.backends.torch import TorchSession
from iekd.deploy.export import export_onnx, read_metadata
from iekd.deploy.results import Interval
from iekd.deploy.statistics import percentile, ratio_of_accuracies, ratio_of_medians, wilson
from iekd.deploy.verdict import judge
from iekd.deploy.verify import verify
from iekd.errors import EnvironmentMissingError, InputError, VerificationError
from iekd.models.preprocessing import Preprocessing

HOW = Preprocessing(size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), crop_fraction=0.875)
CLASSES = ("cat", "dög", 'quo"te')


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.body(images).mean((2, 3))))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return Small()


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    return export_onnx(network, path, preprocessing=HOW, classes=CLASSES, name="small")


def images(count: int) -> Array:
    return np.random.default_rng(1).standard_normal((count, 3, 16, 16), dtype=np.float32)


def test_export_leaves_the_network_alone_and_says_nothing(
    network: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    export_onnx(network, tmp_path / "a.onnx", preprocessing=HOW, classes=CLASSES, name="small")
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"], "one file, weights inside"


def test_what_travels_in_the_file(exported: Path) -> None:
    metadata = read_metadata(exported)
    assert (metadata.name, metadata.classes, metadata.preprocessing) == ("small", CLASSES, HOW)
    model = onnx.load(str(exported))
    assert max(entry.version for entry in model.opset_import) <= 20
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert "Dropout" not in {node.op_type for node in model.graph.node}, "exported as it runs, not as it trains"


def test_a_network_that_cannot_be_exported_leaves_no_file(tmp_path: Path) -> None:
    class Branching(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) if images.sum() > 0 else super().forward(-images)

    with pytest.raises(VerificationError, match="cannot be exported"):
        export_onnx(Branching(), tmp_path / "a.onnx", preprocessing=HOW, classes=CLASSES, name="branching")
    assert not list(tmp_path.iterdir())


def test_foreign_onnx_files_are_refused(tmp_path: Path, exported: Path) -> None:
    model = onnx.load(str(exported))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "bare.onnx"))
    with pytest.raises(InputError, match="says nothing of its classes"):
        read_metadata(tmp_path / "bare.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\1\2\3")
    with pytest.raises(InputError, match="cannot open"):
        get_backend("onnxruntime").load(tmp_path / "broken.onnx")


def sessions(exported: Path, network: nn.Module) -> list[object]:
    return [get_backend("onnxruntime").load(exported, threads=1), TorchSession(network, (3, 16, 16))]


def test_a_provider_that_is_missing_is_no_silent_fallback(exported: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(EnvironmentMissingError, match=r"CUDAExecutionProvider.*iekd-compress\[gpu\]"):
        get_backend("onnxruntime-cuda").load(exported)


def test_a_tensorrt_provider_without_tensorrt_is_told_apart(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's GPU wheels name the provider whether or not it can start."""
    import onnxruntime

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    with pytest.raises(EnvironmentMissingError, match="libnvinfer"):
        get_backend("onnxruntime-tensorrt").load(exported)


def test_verification_passes_and_tells_by_how_much(exported: Path, network: nn.Module) -> None:
    ort, torch_ = sessions(exported, network)
    found = verify(ort, torch_, images(32), name="small")  # type: ignore[arg-type]
    assert (found.images, found.top1_agreement) == (32, 1.0)
    assert 0 <= found.relative_difference < 1e-5


def test_verification_catches_a_file_that_computes_something_else(exported: Path, network: nn.Module) -> None:
    """One weight of the head changed by a hundredth of a logit's size."""
    other = Small()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        other.head.bias[0] += 0.02
    with pytest.raises(VerificationError, match="differs from the PyTorch network"):
        verify(sessions(exported, network)[0], TorchSession(other, (3, 16, 16)), images(32), name="small")  # type: ignore[arg-type]


class Fixed:
    """A session that answers with given logits."""

    input_shape = (3, 16, 16)
    batch_range = (1, None)

    def __init__(self, logits: list[list[float]]) -> None:
        self.logits = np.array(logits, np.float32)

    def run(self, images: Array) -> Array:
        return self.logits[: len(images)]

    def describe(self) -> dict[str, str]:
        return {}

    def close(self) -> None: ...


def test_a_tie_within_rounding_may_fall_either_way() -> None:
    one, other = Fixed([[1.0, 1.00001], [5.0, 0.0]]), Fixed([[1.00001, 1.0], [5.0, 0.0]])
    assert verify(other, one, images(2), name="x").top1_agreement == 0.5


def test_accuracy_counts_by_class() -> None:
    session = Fixed([[2, 1, 0], [0, 3, 1], [0, 3, 1], [1, 0, 0]])
    found, correct = measure_accuracy(session, [(images(4), np.array([0, 1, 2, 2]))], CLASSES)
    assert (found.correct, found.total) == (2, 4)
    assert correct.tolist() == [True, True, False, False]
    assert [(entry.name, entry.correct, entry.total) for entry in found.per_class] == [
        ("cat", 1, 1),
        ("dög", 1, 1),
        ('quo"te', 0, 2),
    ]


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (355, 359), (1, 3)])
def test_wilson_is_scipy_s(correct: int, total: int) -> None:
    expected = stats.binomtest(correct, total).proportion_ci(0.95, "wilson")
    found = wilson(correct, total)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("q", [50, 90, 99])
def test_the_percentile_s_interval_covers_it(q: float) -> None:
    """Of 400 samples of 500 at least 93 % must hold the true percentile: nominal 95 %, less four standard errors."""
    random = np.random.default_rng(0)
    truth = stats.lognorm.ppf(q / 100, 1)
    found = [percentile(random.lognormal(0, 1, 500), q) for _ in range(400)]
    assert np.mean([interval.low <= truth <= interval.high for interval in found]) > 0.91
    assert all(interval.low <= interval.value <= interval.high for interval in found)


def test_the_ratio_s_interval_covers_it_although_the_machine_drifts() -> None:
    random, held = np.random.default_rng(1), 0
    for trial in range(200):
        drift = 1 + 0.3 * np.sin(np.linspace(0, 6, 30) + trial)
        a = [random.normal(10, 0.8, 9) * mood for mood in drift]
        b = [random.normal(2, 0.2, 40) * mood for mood in drift]
        interval = ratio_of_medians(a, b, draws=300)
        held += interval.low <= 5 <= interval.high
    assert held > 170, held


def test_paired_accuracies_know_more_than_unpaired_ones() -> None:
    random = np.random.default_rng(2)
    teacher = random.random(400) < 0.9
    student = teacher.copy()
    student[random.choice(400, 6, replace=False)] ^= True
    paired = ratio_of_accuracies(student, teacher)
    shuffled = ratio_of_accuracies(random.permutation(student), teacher)
    assert paired.value == student.sum() / teacher.sum() == shuffled.value
    assert paired.high - paired.low < 0.6 * (shuffled.high - shuffled.low)


class Clock:
    """A clock that only sessions advance: the protocol's arithmetic without the machine's moods."""

    now = 100.0
    slept = 0

    def perf_counter(self) -> float:
        self.now += 1e-7
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    return clock


class Timed(Fixed):
    """Takes a known time a call, by the clock given, and remembers each call."""

    def __init__(self, clock: Clock, milliseconds: float, log: list[str] | None = None, name: str = "x") -> None:
        super().__init__([[0.0, 1.0, 0.0]] * 8)
        self.clock, self.seconds, self.name = clock, milliseconds / 1e3, name
        self.log = [] if log is None else log
        self.batches: list[int] = []
        self.collecting = False

    def run(self, images: Array) -> Array:
        self.log.append(self.name)
        self.batches.append(len(images))
        self.collecting = gc.isenabled()
        self.clock.now += self.seconds
        return super().run(images)


def test_the_protocol(clock: Clock, tmp_path: Path) -> None:
    log: list[str] = []
    pair = {"slow": Timed(clock, 4, log, "slow"), "fast": Timed(clock, 1, log, "fast")}
    shares: list[float] = []
    run = bench.measure_latency(
        pair, images(6), folder=tmp_path, batch=2, seconds=0.5, warmup_seconds=0.05, progress=shares.append
    )
    for name, session in pair.items():
        latency, trace = run.latency[name], np.load(tmp_path / f"latency-{name}.npz")
        rounds = len(np.unique(trace["block"]))
        warm = round(0.05 / session.seconds)
        assert len(trace["milliseconds"]) == latency.iterations, "every measured call is kept"
        assert abs(len(session.batches) - latency.iterations - rounds - warm) <= 1, "warm-up is by time"
        assert latency.measured_seconds >= 0.5
        assert latency.median.value == pytest.approx(session.seconds * 1e3, rel=1e-3)
        assert set(session.batches) == {2}
        assert (np.diff(trace["started_seconds"]) > 0).all()
    assert run.ratio("slow", "fast").value == pytest.approx(4, rel=1e-3)
    changes = sum(a != b for a, b in itertools.pairwise(log))
    assert changes >= 4, "blocks take turns"
    assert clock.slept == 2 * rounds, "a pause before each block, for the other session's threads to go to rest"
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_no_outlier_is_clipped(clock: Clock, tmp_path: Path) -> None:
    class Hiccup(Timed):
        def run(self, images: Array) -> Array:
            self.seconds = 0.2 if len(self.batches) == 40 else 0.002
            return super().run(images)

    run = bench.measure_latency({"x": Hiccup(clock, 2)}, images(1), folder=tmp_path, seconds=0.5, warmup_seconds=0)
    latency = run.latency["x"]
    assert latency.maximum == pytest.approx(200, rel=1e-3)
    assert latency.mean > 2.5
    assert latency.median.value == pytest.approx(2, rel=1e-3)
    assert "varied by" in latency.warnings[0]


def test_the_collector_rests_while_calls_are_measured(clock: Clock, tmp_path: Path) -> None:
    session = Timed(clock, 1)
    session.run(images(1))
    assert session.collecting
    bench.measure_latency({"x": session}, images(1), folder=tmp_path, seconds=0.05, warmup_seconds=0)
    assert not session.collecting, "the last call was a measured one"
    assert gc.isenabled()


def test_who_goes_first_takes_turns(clock: Clock, tmp_path: Path) -> None:
    log: list[str] = []
    pair = {"a": Timed(clock, 30, log, "a"), "b": Timed(clock, 30, log, "b")}
    bench.measure_latency(pair, images(1), folder=tmp_path, seconds=0.6, warmup_seconds=0)
    blocks = [(name, len(list(calls))) for name, calls in itertools.groupby(log[2:])]
    assert [name for name, _ in blocks[:4]] == ["a", "b", "a", "b"]
    assert blocks[1][1] == 2 * blocks[0][1], "where the order turns two blocks of one session meet"


def test_warm_up_is_by_time(clock: Clock) -> None:
    assert bench.warm_up(Timed(clock, 20).run, [images(1)], 0.1) == 5
    assert bench.warm_up(Timed(clock, 2).run, [images(1)], 0.1) == 50
    assert bench.warm_up(Timed(clock, 20).run, [images(1)], 0) == 1


def test_a_slow_model_is_called_often_enough(clock: Clock, tmp_path: Path) -> None:
    session = Timed(clock, 900)
    run = bench.measure_latency({"x": session}, images(1), folder=tmp_path, seconds=1, min_iterations=10)
    assert run.latency["x"].iterations >= 10


def interval(value: float, spread: float = 0.01) -> Interval:
    return Interval(value=value, low=value - spread, high=value + spread)


def test_the_verdict_holds_each_limit() -> None:
    def judged(retained: float, milliseconds: float, limit: float | None) -> tuple[bool, str]:
        found = judge(interval(retained), interval(8), interval(milliseconds), min_retained=0.97, max_latency_ms=limit)
        return found.kept, found.sentence

    kept, sentence = judged(0.99, 1.5, 2.0)
    assert kept
    assert "99.0%" in sentence
    assert "8.0 times as fast" in sentence
    assert judged(0.975, 1, None)[1].endswith("reaches below the limit.")
    kept, sentence = judged(0.96, 3, 2.0)
    assert not kept
    assert "97.0% was asked for" in sentence
    assert "at most 2 ms was asked for" in sentence
    assert judged(0.97, 2.0, 2.0)[0], "on the limit is kept"


def test_the_verdict_tells_what_rounds_alike_apart_and_where_a_limit_lies_within_an_interval() -> None:
    def judged(retained: float, milliseconds: float) -> str:
        given = interval(retained, 0.001), interval(8), interval(milliseconds, 0.01)
        return judge(*given, min_retained=0.97, max_latency_ms=2.0).sentence

    sentence = judged(0.9697, 2.004)
    assert "keeps 96.97% of the teacher's accuracy; 97.00% was asked for" in sentence
    assert "takes 2.004 ms (median); at most 2 ms" in sentence
    assert "(96.9% to 97.1%) reaches beyond the limit" in sentence
    assert sentence.endswith("The interval of the median (1.99 to 2.01 ms) holds the limit.")
    assert judged(0.99, 1.995).endswith("holds the limit."), "kept, and close"
    assert "interval" not in judged(0.99, 1.5)
    assert "interval" not in judged(0.9, 3)
