"""Engines on a real GPU with the real TensorRT: built, cached, run, refitted, timed."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trtexec
from engine_samples import PRECISIONS, classifier, convert, require_engine

from iekd.deploy.backends import get_backend
from iekd.deploy.benchmark import warm_up
from iekd.deploy.device.engine import BuildSettings
from iekd.deploy.device.inspector import inspect_engine
from iekd.deploy.device.session import EngineSession
from iekd.deploy.engine import build, check_precision
from iekd.deploy.throughput import measure_throughput
from iekd.errors import EnvironmentMissingError, InputError

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

SHAPE, CLASSES = (3, 32, 32), 10


@pytest.fixture(scope="module", autouse=True)
def _device() -> None:
    try:
        get_backend("tensorrt").require()
    except EnvironmentMissingError as reason:
        pytest.skip(reason.message)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional classifier with an open batch."""
    import onnx as library
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    sizes = {"w1": (16, 3, 3, 3), "w2": (32, 16, 3, 3), "w3": (32, CLASSES)}
    weights = [
        numpy_helper.from_array(random.normal(0, 0.2, size).astype(np.float32), name) for name, size in sizes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["images", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
        helper.make_node("Flatten", ["d"], ["e"], name="flat"),
        helper.make_node("MatMul", ["e", "w3"], ["logits"], name="head"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *SHAPE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "student", [images], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    library.checker.check_model(model, full_check=True)
    path = tmp_path_factory.mktemp("model") / "student.onnx"
    path.write_bytes(model.SerializeToString())
    return path


SETTINGS = BuildSettings(batch=(1, 4, 8), tf32=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).normal(size=(batch, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("batch", range(1, 9))
def test_the_engine_agrees_with_onnx_runtime(onnx: Path, cache: Path, batch: int) -> None:
    reference = get_backend("onnxruntime").load(onnx)
    with EngineSession(build(onnx, SETTINGS, cache=cache).path) as session:
        for _ in range(3):  # plain, captured, launched
            np.testing.assert_allclose(session.run(images(batch)), reference.run(images(batch)), rtol=1e-3, atol=1e-4)
        assert session.describe()["cuda graph"] == "captured"


def test_the_second_build_is_a_cache_hit(onnx: Path, cache: Path) -> None:
    first = build(onnx, SETTINGS, cache=cache)
    log: list[str] = []
    second = build(onnx, SETTINGS, cache=cache, log=log.append)
    assert first == second
    assert log == [f"[I] {first.path.name} is in the cache."]
    layers = inspect_engine(first.path)
    assert layers["layers"] > 0, layers
    assert layers["devices"] == {"GPU": layers["layers"]}


def test_a_stripped_plan_answers_alike(onnx: Path, cache: Path) -> None:
    full = build(onnx, SETTINGS, cache=cache)
    stripped = build(onnx, replace(SETTINGS, strip_plan=True), cache=cache)
    assert stripped.manifest.engine_bytes < full.manifest.engine_bytes
    with EngineSession(full.path) as a, EngineSession(stripped.path) as b:
        np.testing.assert_allclose(a.run(images(4)), b.run(images(4)), rtol=1e-3, atol=1e-4)


def test_wrong_images_are_refused(onnx: Path, cache: Path) -> None:
    session = get_backend("tensorrt").load(build(onnx, SETTINGS, cache=cache).path)
    for wrong in (images(9), images(1).astype(np.float64), images(1)[:, :1]):
        with pytest.raises(InputError):
            session.run(wrong)
    session.close()


def test_an_unsupported_operator_is_named(onnx: Path, tmp_path: Path) -> None:
    import onnx as library

    model = library.load(str(onnx))
    model.graph.node[1].op_type = "NoSuchOperator"
    path = tmp_path / "strange.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="NoSuchOperator"):
        build(path, SETTINGS, cache=tmp_path / "engines")


def test_several_streams_overlap(onnx: Path, cache: Path, tmp_path: Path) -> None:
    session = get_backend("tensorrt").load(build(onnx, SETTINGS, cache=cache).path)
    found = measure_throughput(session, images(16), trace=tmp_path / "t.npz", batch=8, streams=2, seconds=0.5)
    session.close()
    trace = np.load(tmp_path / "t.npz")
    assert found.images_per_second.value > 0
    assert set(trace["stream"]) == {0, 1}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_computes_in_the_precision_of_its_file(precision: str, cache: Path, tmp_path: Path) -> None:
    try:
        check_precision(precision)
        file = convert(classifier(tmp_path / "classifier.onnx"), precision, tmp_path)
    except (InputError, EnvironmentMissingError) as reason:  # this GPU has it not, or its library is not installed
        pytest.skip(str(reason))
    require_engine(file, precision, cache)


def test_compute_agrees_with_trtexec(onnx: Path, cache: Path) -> None:
    """Both: one stream, one CUDA graph, a warm-up by time, three seconds.  Ours copies too; ``compute`` is without."""
    found = shutil.which("trtexec") or shutil.which("/usr/src/tensorrt/bin/trtexec")
    if found is None:
        pytest.skip("no trtexec here")
    engine = build(onnx, SETTINGS, cache=cache).path
    command = trtexec.command(found, engine, f"images:8x{'x'.join(map(str, SHAPE))}")
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    assert trtexec.conditions(answer.stdout) == trtexec.CONDITIONS, answer.stdout[:4000]
    times = []
    with EngineSession(engine, cuda_graph=True) as session:
        warm_up(session.run, [images(8)], trtexec.WARMUP_SECONDS)
        assert session.describe()["cuda graph"] == "captured"
        end = time.perf_counter() + trtexec.SECONDS
        while time.perf_counter() < end:
            times.append(session.timed_run(images(8))[1]["compute"])
    assert float(np.median(times)) == pytest.approx(trtexec.median_compute(answer.stdout), rel=0.05)
