"""What the tests on a GPU are made of, tried without one: conversions, comparisons, how ``trtexec`` is read."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import trtexec
from engine_doubles import LAYERS, Workshop
from engine_samples import (
    PRECISIONS,
    UNSEEN,
    answers,
    classifier,
    convert,
    reference,
    require_alike,
    require_engine,
    sample,
)

from iekd.deploy.backends import get_backend
from iekd.errors import EnvironmentMissingError

pytest.importorskip("onnxconverter_common", reason="needs the extra `quantize`")

KINDS = {"fp16": "Half", "bf16": "BFloat16", "int8": "Int8", "fp8": "FP8"}
TYPES = {"fp16": "FLOAT16", "bf16": "BFLOAT16", "int8": "INT8", "fp8": "FLOAT8E4M3FN"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("float") / "classifier.onnx")


@pytest.fixture(scope="module", params=PRECISIONS)
def made(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A precision and its file."""
    try:
        return request.param, convert(source, request.param, tmp_path_factory.mktemp(request.param))
    except EnvironmentMissingError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    workshop = Workshop()
    workshop.install(monkeypatch)
    return workshop


def test_the_classifier_tells_its_images_apart(source: Path) -> None:
    found = answers(get_backend("onnxruntime").load(source)).argmax(1)
    assert (found == sample(UNSEEN, seed=2)[1]).mean() > 0.97
    assert np.bincount(found).min() >= 16


def test_a_converted_file_holds_its_precision_and_answers_like_the_network(
    made: tuple[str, Path], source: Path
) -> None:
    precision, file = made
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in onnx.load(str(file)).graph.initializer}
    assert TYPES[precision] in kinds
    require_alike(answers(reference(file, precision)), answers(get_backend("onnxruntime").load(source)), precision)


def test_an_engine_that_answers_like_its_file_passes(made: tuple[str, Path], shop: Workshop, tmp_path: Path) -> None:
    precision, file = made
    shop.layers = copy.deepcopy(LAYERS)
    shop.layers["Layers"][0]["Weights"]["Type"] = KINDS[precision]
    require_engine(file, precision, tmp_path / "engines")
    assert shop.built == [file.stem]


def test_an_engine_that_left_its_precision_does_not(source: Path, shop: Workshop, tmp_path: Path) -> None:
    file = convert(source, "int8", tmp_path)
    with pytest.raises(AssertionError, match="fp16"):
        require_engine(file, "int8", tmp_path / "engines")


def test_an_engine_that_computes_something_else_does_not(source: Path) -> None:
    expected = answers(get_backend("onnxruntime").load(source))
    with pytest.raises(AssertionError, match="off by"):
        require_alike(np.roll(expected, 1, axis=0), expected, "fp8")
    close = np.tile(np.array([1, 0.99, 0, 0], np.float32), (100, 1))
    swapped = close.copy()
    swapped[:10, :2] = close[:10, 1::-1]
    with pytest.raises(AssertionError, match="the same class for 90"):
        require_alike(swapped, close, "fp8")


PRINTED = """[11/26/2026-10:00:00] [I] === Inference Options ===
[11/26/2026-10:00:00] [I] Duration: 3s (+ 500ms warm up)
[11/26/2026-10:00:00] [I] Sleep time: 0ms
[11/26/2026-10:00:00] [I] Idle time: 0ms
[11/26/2026-10:00:00] [I] Inference Streams: 1
[11/26/2026-10:00:00] [I] ExposeDMA: Disabled
[11/26/2026-10:00:00] [I] Data transfers: Disabled
[11/26/2026-10:00:00] [I] Spin-wait: Enabled
[11/26/2026-10:00:00] [I] Multithreading: Disabled
[11/26/2026-10:00:00] [I] CUDA Graph: Enabled
[11/26/2026-10:00:05] [I] Latency: min = 0.9 ms, max = 2 ms, mean = 1.5 ms, median = 1.5 ms, percentile(90%) = 1.9 ms
[11/26/2026-10:00:05] [I] GPU Compute Time: min = 0.25 ms, max = 0.5 ms, mean = 0.3 ms, median = 0.275 ms
[11/26/2026-10:00:05] [I] GPU Compute Time: the GPU latency to execute the kernels for a query.
"""
"""The layout of trtexec's own sources; figures made up."""


def test_what_trtexec_prints_is_read() -> None:
    assert trtexec.conditions(PRINTED) == trtexec.CONDITIONS
    assert trtexec.median_compute(PRINTED) == 0.275
    other = PRINTED.replace("Data transfers: Disabled", "Data transfers: Enabled")
    assert trtexec.conditions(other) != trtexec.CONDITIONS, "defaults of another version are noticed"
    assert trtexec.conditions("") == {}
    with pytest.raises(ValueError, match="no GPU Compute Time"):
        trtexec.median_compute(PRINTED.replace("GPU Compute Time: min", "Enqueue Time: min"))


def test_trtexec_is_told_everything_that_versions_disagree_on() -> None:
    command = trtexec.command("trtexec", Path("a.engine"), "images:8x3x32x32")
    assert command[:3] == ["trtexec", "--loadEngine=a.engine", "--shapes=images:8x3x32x32"]
    assert {"--noDataTransfers", "--useSpinWait", "--useCudaGraph", "--infStreams=1"} <= set(command)
    assert "--warmUp=500" in command, "milliseconds"
    assert "--duration=3" in command, "seconds"
