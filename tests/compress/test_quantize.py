"""Quantisation end to end: small network in, files of each scheme out, every figure through the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantization_samples import CLASSES, images, labelled, loud_channel, write, write_transformer

from iekd.compress.quantize import Candidate, QuantizeSettings, quantize
from iekd.compress.quantizers import FOR_ATTENTION, SCHEMES, comparison
from iekd.compress.quantizers.candidates import as_accurate, fastest_of, name_layers
from iekd.compress.sensitivity import relative_error
from iekd.deploy.backends import BACKENDS, get_backend
from iekd.deploy.backends.reference import ReferenceSession
from iekd.deploy.benchmark import LatencyRun, measure_latency
from iekd.deploy.export import read_metadata
from iekd.deploy.graph_checks import Graph, float_layers, quantization_problems
from iekd.errors import EnvironmentMissingError, InputError, VerificationError

FEW = QuantizeSettings(calibration_images=32, latency_seconds=0.05, threads=1, max_drop=None)
FAST = QuantizeSettings(**{**FEW.__dict__, "methods": ("minmax", "mse")})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("quantize") / "float.onnx")


def given(path: Path) -> dict[str, object]:
    found, labels = labelled(path, 128)
    return {"images": found[:64], "labels": labels[:64], "held_out": (found[64:], labels[64:])}


def test_the_tensorrt_file_is_symmetric_and_fusable(exported: Path, tmp_path: Path) -> None:
    result = quantize(exported, tmp_path / "q.onnx", scheme="int8-tensorrt", settings=FEW, **given(exported))  # type: ignore[arg-type]
    model = onnx.load(str(result.file))
    assert quantization_problems(model) == []
    assert {node.op_type for node in model.graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    join = next(node for node in model.graph.node if node.op_type == "Add")
    producers = {output: node.op_type for node in model.graph.node for output in node.output}
    assert sorted(producers[name] for name in join.input) == ["Conv", "DequantizeLinear"], "one branch fuses"
    assert read_metadata(result.file).classes == CLASSES
    assert read_metadata(result.file) == read_metadata(exported)
    assert {entry.method for entry in result.candidates} == {"minmax", "entropy", "percentile", "mse"}
    assert result.chosen.accuracy == max(entry.accuracy for entry in result.candidates)
    held_out, labels = given(exported)["held_out"]  # type: ignore[misc]
    answers = get_backend("onnxruntime").load(result.file, threads=1).run(held_out).argmax(1)
    assert result.after.correct == int((answers == labels).sum()), "measured through the file that ships"
    assert (result.before.top1.value, result.float_latency_ms) == (1.0, None)
    assert result.after.top1.value > 0.9
    assert json.loads(json.dumps(result.to_json()))["chosen"]["recipe"] == "ort-s8s8"


def test_the_latency_of_x86_files_is_measured(exported: Path, tmp_path: Path) -> None:
    result = quantize(exported, tmp_path / "q.onnx", scheme="int8-x86-onnxruntime", settings=FAST, **given(exported))  # type: ignore[arg-type]
    assert result.after.top1.value > 0.9
    assert result.float_latency_ms is not None
    assert result.chosen.latency_ms is not None
    assert result.chosen in result.candidates
    recipes = sorted({*SCHEMES["int8-x86-onnxruntime"].recipes} - {*FOR_ATTENTION})
    assert sorted({entry.recipe for entry in result.candidates}) == recipes
    timed = [entry.recipe for entry in result.candidates if entry.latency_ms is not None]
    assert sorted(timed) == recipes, "the latencies that decided are kept, one a recipe"


def test_every_file_is_written_and_judged_once(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judging takes most of the time where there are many images to judge by."""
    judged: list[object] = []
    real = comparison.Judge.accuracy
    monkeypatch.setattr(
        comparison.Judge, "accuracy", lambda self, session: judged.append(session) or real(self, session)
    )
    result = quantize(exported, tmp_path / "q.onnx", scheme="int8-tensorrt", settings=FAST, **given(exported))
    assert len(judged) == 1 + len(result.candidates), "the float network and each candidate"


def test_attention_may_stay_in_float(tmp_path: Path) -> None:
    """Its products have no weights that eight bits would make smaller, and cost two quantisations each."""
    source, scheme = write_transformer(tmp_path / "float.onnx"), "int8-x86-onnxruntime"
    settings = QuantizeSettings(**{**FEW.__dict__, "methods": ("minmax",)})
    tried = quantize(source, tmp_path / "all.onnx", scheme=scheme, settings=settings, **given(source))  # type: ignore[arg-type]
    assert {entry.recipe for entry in tried.candidates} == set(SCHEMES[scheme].recipes)
    settings = QuantizeSettings(**{**settings.__dict__, "recipes": FOR_ATTENTION})
    result = quantize(source, tmp_path / "q.onnx", scheme=scheme, settings=settings, **given(source))  # type: ignore[arg-type]
    graph = Graph(onnx.load(str(result.file)))
    products = graph.products_of_activations()
    assert len(products) == 2
    assert float_layers(graph.model) == tuple(node.name for node in products)
    readers = {
        node.op_type for node in graph.nodes if any(graph.made_by(name, "QuantizeLinear") for name in node.input)
    }
    assert readers == {"DequantizeLinear"}
    quantized = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    assert len(quantized) == len({name for node in graph.layers() for name in node.input[:1]}) - 2, "inputs alone"


@pytest.mark.parametrize("recipe", SCHEMES["int8-x86-onnxruntime"].recipes)
def test_no_x86_file_can_overflow_16_bits(exported: Path, tmp_path: Path, recipe: str) -> None:
    """Whatever processor made it: without VNNI two products of uint8 and int8 are added in 16 bits, which saturate."""
    settings = QuantizeSettings(**{**FAST.__dict__, "recipes": (recipe,), "methods": ("minmax",)})
    result = quantize(
        exported, tmp_path / "q.onnx", scheme="int8-x86-onnxruntime", settings=settings, **given(exported)
    )  # type: ignore[arg-type]
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(str(result.file)).graph.initializer]
    signed = [values.astype(int) for values in weights if values.dtype == np.int8]  # and zero points, of one value
    assert all(255 * 2 * abs(values).max() < 2**15 for values in signed)
    assert bool([values for values in signed if values.size > 1]) == ("s7" in recipe)
    held_out, _ = given(exported)["held_out"]  # type: ignore[misc]
    fast, exact = get_backend("onnxruntime").load(result.file, threads=1), ReferenceSession(result.file, threads=1)
    assert relative_error(fast.run(held_out), exact.run(held_out)) < 1e-4


@pytest.mark.skipif("openvino" not in BACKENDS, reason="this version has no OpenVINO backend")
def test_openvino_s_own_format_carries_the_metadata(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="needs the extra `quantize`")
    settings = QuantizeSettings(**{**FAST.__dict__, "recipes": ("nncf",), "calibration_images": 8})
    result = quantize(exported, tmp_path / "q.onnx", scheme="int8-openvino", settings=settings, **given(exported))  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.bin", "q.xml"]
    assert result.file == tmp_path / "q.xml"
    assert read_metadata(result.file) == read_metadata(exported)
    held_out, labels = given(exported)["held_out"]  # type: ignore[misc]
    answers = get_backend("openvino").load(result.file, threads=1).run(held_out).argmax(1)
    assert result.after.correct == int((answers == labels).sum())
    assert "FakeQuantize" in result.file.read_text()


def test_what_an_earlier_call_made_in_the_other_format_does_not_stay(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="needs the extra `quantize`")

    def names(recipe: str, output: str = "q.onnx") -> list[str]:
        settings = QuantizeSettings(**{**FAST.__dict__, "recipes": (recipe,), "calibration_images": 8})
        quantize(exported, tmp_path / output, scheme="int8-openvino", settings=settings, **given(exported))  # type: ignore[arg-type]
        return sorted(path.name for path in tmp_path.iterdir())

    assert names("nncf") == ["q.bin", "q.xml"]
    assert names("ort-u8s7") == ["q.onnx"]
    assert names("nncf") == ["q.bin", "q.xml"]
    for name in ("own.xml", "own.bin"):
        (tmp_path / name).write_text("of the user's own")
    assert names("ort-u8s7", "own.onnx") == ["own.bin", "own.onnx", "own.xml", "q.bin", "q.xml"]


def test_dear_layers_stay_in_float_until_the_limit_holds(tmp_path: Path) -> None:
    source = write(tmp_path / "loud.onnx", loud_channel(1000.0))
    settings = QuantizeSettings(**{**FEW.__dict__, "methods": ("minmax",)})
    lossy = quantize(source, tmp_path / "a.onnx", scheme="int8-tensorrt", settings=settings, **given(source))  # type: ignore[arg-type]
    assert lossy.drop > 0.05, "or there is nothing to mend"
    settings = QuantizeSettings(**{**settings.__dict__, "max_drop": 0.04})
    mended = quantize(source, tmp_path / "b.onnx", scheme="int8-tensorrt", settings=settings, **given(source))  # type: ignore[arg-type]
    assert mended.drop <= 0.04
    assert 1 <= len(mended.kept_float) <= 3
    assert mended.kept_float == tuple(cost.layer for cost in mended.sensitivity[: len(mended.kept_float)])
    producers = {output: node for node in onnx.load(str(mended.file)).graph.node for output in node.output}
    for node in onnx.load(str(mended.file)).graph.node:
        if node.name in mended.kept_float:
            assert all(name not in producers or "Dequantize" not in producers[name].op_type for name in node.input[1:])


def test_what_is_told_of_a_file_with_layers_in_float_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[LatencyRun] = []

    def measure(*sessions: Any, **how: Any) -> LatencyRun:
        runs.append(measure_latency(*sessions, **how))
        return runs[-1]

    monkeypatch.setattr(comparison, "measure_latency", measure)
    source = write(tmp_path / "loud.onnx", loud_channel(1000.0))
    changes = {"methods": ("minmax",), "recipes": ("ort-u8s7",), "max_drop": 0.04}
    settings = QuantizeSettings(**{**FEW.__dict__, **changes})
    made = quantize(source, tmp_path / "q.onnx", scheme="int8-x86-onnxruntime", settings=settings, **given(source))  # type: ignore[arg-type]
    (full,) = made.candidates
    assert made.kept_float, "or there is nothing to tell apart"
    assert made.chosen.accuracy == made.after.top1.value > full.accuracy
    assert made.chosen.error < full.error
    first, last = ({name: latency.median.value for name, latency in run.latency.items()} for run in runs)
    assert full.latency_ms == first["ort-u8s7"]
    assert (made.float_latency_ms, made.chosen.latency_ms) == (last["float32"], last["ort-u8s7"])


def test_layers_are_ranked_as_the_scheme_wants_its_files_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Recorded(ReferenceSession):
        def __init__(self, path: Path, *, threads: int = 0) -> None:
            opened.append(path.name)
            super().__init__(path, threads=threads)

    monkeypatch.setattr(comparison, "ReferenceSession", Recorded)
    source = write(tmp_path / "loud.onnx", loud_channel(1000.0))
    settings = QuantizeSettings(**{**FEW.__dict__, "methods": ("minmax",), "max_drop": 0.04})
    made = quantize(source, tmp_path / "q.onnx", scheme="int8-tensorrt", settings=settings, **given(source))  # type: ignore[arg-type]
    assert opened.count("trial.onnx") == len(made.sensitivity) + 1, "each layer's file, and the float one"


def test_a_limit_that_only_guides_is_not_enforced(tmp_path: Path) -> None:
    source = write(tmp_path / "loud.onnx", loud_channel(1000.0))
    changes = {"methods": ("minmax",), "max_drop": 0.04, "enforce": False}
    settings = QuantizeSettings(**{**FEW.__dict__, **changes})
    made = quantize(source, tmp_path / "q.onnx", scheme="int8-tensorrt", settings=settings, **given(source))  # type: ignore[arg-type]
    assert made.drop > 0.04
    assert made.kept_float == ()


def test_a_limit_that_cannot_be_met_writes_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "float.onnx")
    found = given(source)
    settings = QuantizeSettings(**{**FEW.__dict__, "methods": ("minmax",), "max_drop": -1.0})
    with pytest.raises(VerificationError, match="no share of layers in float makes up for it"):
        quantize(source, tmp_path / "q.onnx", scheme="int8-tensorrt", settings=settings, **found)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]


def test_fp8_leaves_the_quantiser_of_int8_as_it_was(tmp_path: Path) -> None:
    """modelopt replaces parts of ONNX Runtime's quantiser; a search goes on to the next network's INT8 after FP8."""
    from onnxruntime.quantization import calibrate
    from onnxruntime.quantization.registry import QDQRegistry

    source = write(tmp_path / "float.onnx", width=32)
    parts = (calibrate.HistogramCollector.collect_value, calibrate.CalibraterBase.__init__, dict(QDQRegistry))
    settings = QuantizeSettings(**{**FEW.__dict__, "methods": ("percentile",), "max_drop": None})
    for name, scheme in (("a", "int8-tensorrt"), ("fp8", "fp8-tensorrt"), ("b", "int8-tensorrt")):
        quantize(source, tmp_path / f"{name}.onnx", scheme=scheme, settings=settings, **given(source))  # type: ignore[arg-type]
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert parts == (calibrate.HistogramCollector.collect_value, calibrate.CalibraterBase.__init__, dict(QDQRegistry))


def test_an_fp8_graph_computes_what_the_float_network_does(tmp_path: Path) -> None:
    source = write(tmp_path / "float.onnx", width=32)
    result = quantize(source, tmp_path / "q.onnx", scheme="fp8-tensorrt", settings=FEW, **given(source))  # type: ignore[arg-type]
    kinds = {tensor.data_type for tensor in onnx.load(str(result.file)).graph.initializer}
    assert TensorProto.FLOAT8E4M3FN in kinds
    assert 0 < result.chosen.error < 0.02
    layers = [node.name for node in onnx.load(str(source)).graph.node if node.op_type in ("Conv", "Gemm")]
    assert set(result.kept_float) < set(layers), "named, and not all of them"
    assert read_metadata(result.file) == read_metadata(source)


def test_the_reference_session_computes_the_same(exported: Path) -> None:
    session = ReferenceSession(exported, threads=1)
    assert np.abs(session.run(images(5)) - get_backend("onnxruntime").load(exported).run(images(5))).max() < 1e-4
    with pytest.raises(InputError, match="the model takes"):
        session.run(images(5)[:, :2])
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.run(images(5))


@pytest.mark.parametrize("scheme", ["fp16", "bf16"])
def test_casts_go_through_the_same_function(exported: Path, tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("onnxconverter_common", reason="needs the extra `quantize`")
    result = quantize(exported, tmp_path / "c.onnx", scheme=scheme, settings=FEW, **given(exported))  # type: ignore[arg-type]
    assert result.drop <= 0.02
    assert read_metadata(result.file) == read_metadata(exported)


def test_bad_input_is_refused_in_one_line(exported: Path, tmp_path: Path) -> None:
    found = given(exported)

    def refused(source: Path, match: str, scheme: str = "int8-tensorrt", **changes: object) -> None:
        settings = QuantizeSettings(**{**FAST.__dict__, **changes})
        with pytest.raises(InputError, match=match) as caught:
            quantize(source, tmp_path / "q.onnx", scheme=scheme, settings=settings, **found)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "q.onnx").exists()

    refused(exported, "500 calibration images were asked for, there are 64", calibration_images=500)
    refused(exported, "unknown quantisation scheme 'int8-tensort'", scheme="int8-tensort")
    refused(exported, "jetson-orin has no fp8", scheme="fp8-tensorrt", target="jetson-orin")
    refused(exported, "unknown layer 'nothing'", keep_float=("nothing",))
    refused(exported, "unknown recipe of this scheme 'nncf'", recipes=("nncf",))
    done = quantize(exported, tmp_path / "done.onnx", scheme="int8-tensorrt", settings=FAST, **found)  # type: ignore[arg-type]
    refused(done.file, "is quantised already")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 16, 16]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "r.onnx")
    refused(tmp_path / "r.onnx", "has nothing to quantise")


def test_a_missing_library_names_the_command(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "modelopt", None)
    with pytest.raises(EnvironmentMissingError, match="pip install nvidia-modelopt requests"):
        quantize(exported, tmp_path / "q.onnx", scheme="fp8-tensorrt", settings=FAST, **given(exported))  # type: ignore[arg-type]


@pytest.mark.parametrize(("scheme", "recipe"), [("int8-tensorrt", "ort-s8s8"), ("int8-openvino", "nncf")])
def test_a_library_that_quantises_nothing_ships_nothing(
    exported: Path, tmp_path: Path, scheme: str, recipe: str
) -> None:
    """All layers kept by name: what modelopt does by itself with layers of few channels."""
    if recipe == "nncf":
        pytest.importorskip("nncf", reason="needs the extra `quantize`")
    layers = tuple(node.name for node in onnx.load(str(exported)).graph.node if node.op_type in ("Conv", "Gemm"))
    changes = {"keep_float": layers, "methods": ("minmax",), "recipes": (recipe,)}
    settings = QuantizeSettings(**{**FAST.__dict__, **changes})
    with pytest.raises(VerificationError, match="left every layer of the network in float"):
        quantize(exported, tmp_path / "q.onnx", scheme=scheme, settings=settings, **given(exported))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_choice_is_accuracy_first_then_latency_then_likeness() -> None:
    def chosen(
        *entries: tuple[float, float, float], before: float = 0.99, images: int = 10_000, max_drop: float | None = None
    ) -> int:
        candidates = [Candidate(str(number), "m", *entry) for number, entry in enumerate(entries)]
        return int(fastest_of(as_accurate(candidates, before, images, max_drop)).recipe)

    assert chosen((0.99, 0.1, 1.0), (0.98, 0.0, 0.5)) == 0, "a point of accuracy is worth more than speed"
    assert chosen((0.99, 0.1, 1.0), (0.9895, 0.2, 0.5)) == 1, "a twentieth of a point is not"
    assert chosen((0.99, 0.1, 0.505), (0.99, 0.2, 0.5)) == 0, "as fast, and closer to the float network"
    assert chosen((1.0, 0.1, 1.0), (0.99, 0.2, 0.5)) == 1, "right where the float32 file errs: no merit"
    assert chosen((0.99, 0.1, 1.0), (0.985, 0.2, 0.5), images=200) == 1, "one image tells no two files apart"
    assert chosen((0.99, 0.1, 1.0), (0.98, 0.2, 0.5), images=200) == 0, "two do"
    pair = ((0.982, 0.1, 1.0), (0.978, 0.2, 0.5))
    assert chosen(*pair, images=200, max_drop=0.01) == 0, "the faster one misses the limit, the other keeps it"
    assert chosen(*pair, images=200, max_drop=0.02) == 1, "both keep it"
    assert chosen(*pair, images=200, max_drop=0.001) == 1, "neither does"


def test_of_many_layers_the_first_are_named() -> None:
    assert name_layers(["a"]) == "1 layer stays in float: a"
    assert name_layers("abcde") == "5 layers stay in float: a, b, c and 2 more"


def test_images_may_be_given_in_batches(exported: Path, tmp_path: Path) -> None:
    found = given(exported)
    whole = np.asarray(found["images"])
    settings = QuantizeSettings(**{**FAST.__dict__, "methods": ("minmax",)})
    results = [
        quantize(
            exported,
            tmp_path / f"{name}.onnx",
            scheme="int8-tensorrt",
            settings=settings,
            **{**found, "images": source},  # type: ignore[arg-type]
        )
        for name, source in (("a", whole), ("b", lambda: iter((whole[:30], whole[30:]))))
    ]
    assert results[0].file.read_bytes() == results[1].file.read_bytes()
    assert len(images(3)) == 3
