"""One suite for every backend: what the benchmark, the verification and the accuracy check rely on."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from iekd.deploy.backends import BACKENDS, Array, Session, get_backend, logits_of
from iekd.deploy.backends.onnxruntime import _placement
from iekd.deploy.backends.torch import TorchSession
from iekd.deploy.benchmark import PARTS, TimedSession, measure_latency
from iekd.deploy.export import export_onnx
from iekd.deploy.throughput import Streaming
from iekd.errors import EnvironmentMissingError, InputError
from iekd.models.preprocessing import Preprocessing

HOW = Preprocessing(size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), crop_fraction=0.875)
CLASSES = ("cat", "dög", 'quo"te')
MOST = 8
CALLS = 10_000
TOLERANCE = {"openvino-bf16": 2e-2, "onnxruntime-cuda": 1e-3, "onnxruntime-tensorrt": 1e-3, "tensorrt": 1e-3}
"""Relative to the largest logit, where it is not 1e-5: bfloat16 has 8 bits, TF32 has 11."""
MARKS = {
    "onnxruntime-cuda": [pytest.mark.gpu],
    "onnxruntime-tensorrt": [pytest.mark.gpu, pytest.mark.tensorrt],
    "tensorrt": [pytest.mark.gpu, pytest.mark.tensorrt],
}
ONNX_BACKENDS = [
    pytest.param(name, marks=MARKS.get(name, [])) for name in BACKENDS if name.startswith(("onnxruntime", "openvino"))
]
ENGINE = pytest.param("tensorrt", marks=MARKS["tensorrt"])
ALL = [*ONNX_BACKENDS, ENGINE, "torch"]
TIMED = ["openvino", "openvino-bf16", ENGINE]
"""Those that tell the parts of a call apart."""


class Small(nn.Module):
    """Wide enough that two threads share its work."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return Small().eval()


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    return export_onnx(network, path, preprocessing=HOW, classes=CLASSES, name="small")


@pytest.fixture
def opened(network: nn.Module, exported: Path) -> Iterator[Callable[..., Session]]:
    """Opens the same network on any backend; skips, with the reason, where the backend cannot run here."""
    sessions: list[Session] = []

    def open_(name: str, threads: int = 1) -> Session:
        if name == "torch":
            sessions.append(TorchSession(network, (3, 16, 16), threads=threads))
        else:
            try:
                get_backend(name).require()
            except EnvironmentMissingError as error:
                pytest.skip(str(error))
            sessions.append(get_backend(name).load(exported, threads=threads))
        return sessions[-1]

    yield open_
    for session in sessions:
        session.close()


def images(count: int) -> Array:
    return np.random.default_rng(1).standard_normal((count, 3, 16, 16), dtype=np.float32)


def close_enough(name: str, found: Array, expected: Array) -> bool:
    scale = float(np.abs(expected).max())
    return found.shape == expected.shape and float(np.abs(found - expected).max()) <= TOLERANCE.get(name, 1e-5) * scale


def reference(network: nn.Module, batch: Array) -> Array:
    with torch.inference_mode():
        return network(torch.from_numpy(batch)).numpy()


@pytest.mark.parametrize("name", ALL)
def test_same_answers_for_every_batch(opened: Callable[..., Session], network: nn.Module, name: str) -> None:
    session = opened(name)
    assert session.input_shape == (3, 16, 16)
    batch = images(MOST)
    expected = reference(network, batch)
    for count in (*range(1, MOST + 1), 2, 1):
        found = session.run(batch[:count])
        assert found.dtype == np.float32
        assert close_enough(name, found, expected[:count]), (name, count)


@pytest.mark.parametrize("name", ALL)
def test_any_number_of_images_is_answered(opened: Callable[..., Session], network: nn.Module, name: str) -> None:
    session = opened(name)
    least, most = session.batch_range
    assert least == 1
    assert most == (MOST if name == "tensorrt" else None)
    for count in (1, MOST, 2 * MOST + 3):
        assert close_enough(name, logits_of(session, images(count)), reference(network, images(count)))


@pytest.mark.parametrize("name", ALL)
def test_answers_are_the_caller_s(opened: Callable[..., Session], name: str) -> None:
    """Neither are logits of one call overwritten by the next, nor images changed, nor strides misread."""
    session, batch = opened(name), images(4)
    before = batch.copy()
    first = session.run(batch)
    kept = first.copy()
    session.run(-batch)
    assert np.array_equal(first, kept)
    assert np.array_equal(batch, before)
    strided = np.ascontiguousarray(batch.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    assert not strided.flags.c_contiguous
    assert close_enough(name, session.run(strided), kept)
    read_only = batch.copy()
    read_only.flags.writeable = False
    assert close_enough(name, session.run(read_only), kept)


@pytest.mark.parametrize("name", ALL)
def test_wrong_shapes_and_types_are_refused(opened: Callable[..., Session], name: str) -> None:
    session = opened(name)
    good = session.run(images(1))
    for bad in (
        images(1).astype(np.float64),
        images(1).astype(np.uint8),
        images(1)[0],
        images(1)[None],
        images(1)[:, :2],
        images(1)[:0],
        images(1)[:, :, :8],
        images(1).transpose(0, 2, 3, 1),
    ):
        with pytest.raises(InputError, match=r"the (model|engine) takes"):
            session.run(bad)
    assert np.array_equal(session.run(images(1)), good), "a refusal leaves the session as it was"


@pytest.mark.parametrize("name", ALL)
def test_closing_twice_is_harmless(opened: Callable[..., Session], name: str) -> None:
    session = opened(name)
    session.run(images(1))
    session.close()
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.run(images(1))


@pytest.mark.parametrize("name", ALL)
def test_a_session_says_what_it_is(opened: Callable[..., Session], name: str) -> None:
    found = opened(name, threads=2).describe()
    assert {"backend", "provider", "threads"} <= found.keys()
    assert all(found.values())
    assert found["threads"] == ("1 stream" if name == "tensorrt" else "2 threads")


@pytest.mark.parametrize("name", TIMED)
def test_a_timed_call_answers_alike_and_its_parts_fit_into_it(
    opened: Callable[..., Session], tmp_path: Path, name: str
) -> None:
    session, batch = opened(name), images(4)
    assert isinstance(session, TimedSession)
    expected = session.run(batch)
    logits, times = session.timed_run(batch)
    assert close_enough(name, logits, expected)
    assert {"host", "h2d", "compute", "d2h"} <= times.keys() <= {"host", *PARTS}
    assert all(value > 0 for value in times.values())
    assert times["h2d"] + times["compute"] + times["d2h"] <= times["host"]
    found = measure_latency({"x": session}, batch, folder=tmp_path, seconds=0.05, warmup_seconds=0).latency["x"]
    assert found.parts.keys() == times.keys() - {"host"}
    assert found.parts["compute"].median.value < found.median.value


@pytest.mark.parametrize("name", ALL)
def test_memory_stays_flat(opened: Callable[..., Session], name: str) -> None:
    session, batch = opened(name), images(4)
    for _ in range(500):
        session.run(batch)
    before = resident_kib()
    for _ in range(CALLS):
        session.run(batch)
    grown = resident_kib() - before
    assert grown < 1024, f"{grown} KiB in {CALLS} calls: a hundred bytes a call are kept"


@pytest.mark.parametrize("name", ALL)
def test_opening_and_closing_gives_memory_back(opened: Callable[..., Session], name: str) -> None:
    for _ in range(5):
        session = opened(name)
        session.run(images(1))
        session.close()
    before = resident_kib()
    for _ in range(30):
        session = opened(name)
        session.run(images(1))
        session.close()
    assert resident_kib() - before < 30 * 512


def resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


@pytest.mark.parametrize("name", ALL)
def test_threads_are_honoured(opened: Callable[..., Session], name: str) -> None:
    """One thread is alone with the work; a second one gets some of it, however busy the machine is otherwise."""
    if MARKS.get(name):
        pytest.skip("threads are the CPU's")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core: runtimes use no more threads than cores")
    batch, helped = images(256), {}
    for threads in (1, 2):
        session = opened(name, threads=threads)
        session.run(batch)
        helped[threads] = statistics.median(share_of_helpers(session, batch) for _ in range(5))
        session.close()
    assert helped[1] < 0.01, "what the process does beside, such as talking to its peers"
    assert helped[2] > max(0.001, 3 * helped[1])


def share_of_helpers(session: Session, batch: np.ndarray) -> float:
    """Of the processor time of some calls, what other threads than the busiest took."""
    before, spent = cpu_nanoseconds(), [0]
    while sum(spent) < 5e7:  # the kernel enters processor time at its ticks
        session.run(batch)
        spent = sorted(after - before.get(task, 0) for task, after in cpu_nanoseconds().items())
    return sum(spent[:-1]) / sum(spent)


def cpu_nanoseconds() -> dict[str, int]:
    """Processor time of each thread of this process."""
    return {path.parent.name: int(path.read_text().split()[0]) for path in Path("/proc/self/task").glob("*/schedstat")}


def test_torch_threads_last_for_the_call_only(network: nn.Module) -> None:
    seen = []

    class Watching(Small):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(batch)

    before = torch.get_num_threads()
    for threads in (1, 2, 0):
        TorchSession(Watching().eval(), (3, 16, 16), threads=threads).run(images(1))
    assert seen == [1, 2, before]
    assert torch.get_num_threads() == before


def test_torch_leaves_every_module_in_its_mode() -> None:
    network = Small().train()
    network.body[1].eval()  # a frozen batch norm
    first = TorchSession(network, (3, 16, 16)).run(images(2))
    assert network.training
    assert network.body[3].training
    assert not network.body[1].training
    assert np.array_equal(first, TorchSession(network, (3, 16, 16)).run(images(2))), "no dropout"


def test_torch_opens_an_artefact_folder(tmp_path: Path) -> None:
    from iekd.models.checkpoint import Artefact, save_artefact
    from iekd.models.registry import Architecture, build

    how = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, crop_fraction=1)
    architecture = Architecture("timm", "resnet10t")
    network = build(architecture, 3, 32).eval()
    save_artefact(tmp_path / "student", Artefact(network, architecture, CLASSES, how, {}))
    session = get_backend("torch").load(tmp_path / "student", threads=1)
    batch = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    assert close_enough("torch", session.run(batch), reference(network, batch))
    with pytest.raises(InputError, match="not a readable artefact"):
        get_backend("torch").load(tmp_path / "nothing")


@pytest.mark.parametrize("name", ALL)
def test_streams_answer_at_once_and_alike(opened: Callable[..., Session], network: nn.Module, name: str) -> None:
    session = opened(name)
    assert isinstance(session, Streaming)
    inputs = [images(2) * scale for scale in (1.0, -1.0, 0.5)]
    wrong: list[str] = []
    gate = threading.Barrier(len(inputs))

    def work(call: Callable[[Array], Array], batch: Array) -> None:
        expected = reference(network, batch)
        gate.wait()
        for _ in range(50):
            if not close_enough(name, call(batch), expected):
                wrong.append("mixed up")

    calls = session.streams(len(inputs), 2)
    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, inputs, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.streams(2, 2)[0](images(2))


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_bad_files_are_refused(opened: Callable[..., Session], exported: Path, tmp_path: Path, name: str) -> None:
    opened(name)
    backend = get_backend(name)
    with pytest.raises(InputError, match="no ONNX file"):
        backend.load(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(exported.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot open"):
        backend.load(tmp_path / "broken.onnx")
    flat = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["x"], ["y"])],
            "flat",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
    )
    flat.ir_version = 10
    onnx.save(flat, str(tmp_path / "flat.onnx"))
    with pytest.raises(InputError, match="not an image classifier"):
        backend.load(tmp_path / "flat.onnx")


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_a_fixed_batch_is_taken_exactly(
    opened: Callable[..., Session], exported: Path, network: nn.Module, tmp_path: Path, name: str
) -> None:
    opened(name)
    model = onnx.load(str(exported))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, str(tmp_path / "two.onnx"))
    session = get_backend(name).load(tmp_path / "two.onnx", threads=1)
    assert close_enough(name, session.run(images(2)), reference(network, images(2)))
    for count in (1, 3):
        with pytest.raises(InputError, match="exactly 2"):
            session.run(images(count))
        assert close_enough(name, logits_of(session, images(count)), reference(network, images(count)))


class Node:
    def __init__(self, op_type: str) -> None:
        self.op_type = op_type


class Part:
    """One entry of ONNX Runtime's assignment info."""

    def __init__(self, ep_name: str, *operators: str) -> None:
        self.ep_name = ep_name
        self._nodes = [Node(operator) for operator in operators]

    def get_nodes(self) -> list[Node]:
        return self._nodes


class Placed:
    def __init__(self, *parts: Part) -> None:
        self._parts = parts

    def get_provider_graph_assignment_info(self) -> tuple[Part, ...]:
        return self._parts


def test_a_convolution_left_to_the_cpu_is_no_silent_fallback() -> None:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    shapes = Placed(Part(cuda, "Conv", "Relu"), Part(cuda, "Gemm"), Part(cpu, "Shape", "Gather"))
    assert _placement(shapes, cuda) == "2 on CPU, 3 on CUDA"
    for operator in ("Conv", "QLinearConv", "FusedMatMul", "AveragePool", "LayerNormalization"):
        with pytest.raises(EnvironmentMissingError, match=f"does not compute {operator}.*CPU"):
            _placement(Placed(Part(cuda, "Conv"), Part(cpu, operator)), cuda)


def test_the_assignment_info_is_what_this_onnxruntime_gives(exported: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(exported), options, providers=["CPUExecutionProvider"])
    assert _placement(session, "CPUExecutionProvider").endswith(" on CPU")
    with pytest.raises(EnvironmentMissingError, match="Conv"):
        _placement(session, "CUDAExecutionProvider")
