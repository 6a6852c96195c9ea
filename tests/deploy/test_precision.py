"""16-bit files, and the graphs that TensorRT wants: made on a small network, read off and run on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantization_samples import CLASSES, Residual, images, write

from iekd.deploy import precision
from iekd.deploy.backends import get_backend
from iekd.deploy.export import read_metadata
from iekd.deploy.graph_checks import cast_problems, operator_problems, quantization_problems
from iekd.deploy.tensorrt_operators import OPERATORS
from iekd.errors import InputError, VerificationError

pytest.importorskip("onnxconverter_common", reason="needs the extra `quantize`")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("precision") / "float.onnx")


def overflowing(network: Residual) -> None:
    """Values of about 1e6 between two layers, as a network without normalisation may have."""
    network.expand.weight *= 1e6
    network.expand.bias *= 1e6
    network.depthwise.weight /= 1e6


@pytest.mark.parametrize(("name", "kind", "largest"), [("fp16", 10, 4e-3), ("bf16", 16, 4e-2)])
def test_a_cast_file_says_the_same_and_keeps_what_travels(
    exported: Path, tmp_path: Path, name: str, kind: int, largest: float
) -> None:
    result = precision.cast_onnx(exported, tmp_path / "cast.onnx", precision=name, images=images(64))
    model = onnx.load(str(result.file))
    assert {tensor.data_type for tensor in model.graph.initializer} <= {kind, TensorProto.INT64}
    assert [node.op_type for node in model.graph.node].count("Cast") == 2, "at the input and at the output"
    assert (result.kept_float, result.top1_agreement) == ((), 1.0)
    assert 0 < result.relative_difference < largest
    assert read_metadata(result.file) == read_metadata(exported)
    assert read_metadata(result.file).classes == CLASSES
    assert {entry.key: entry.value for entry in model.metadata_props}["precision"] == name


def test_emulation_rounds_as_often_as_the_file(exported: Path, tmp_path: Path) -> None:
    """One layer by hand: the convolution's inputs rounded to FP16, and its output."""
    file = precision.cast_onnx(exported, tmp_path / "cast.onnx", precision="fp16", images=images(8)).file
    exact = get_backend("onnxruntime").load(exported).run(images(8))
    twin = precision.open_emulated(file).run(images(8))
    differences = np.abs(twin - exact)
    assert twin.dtype == np.float32
    assert np.array_equal(twin, twin.astype(np.float16).astype(np.float32)), "the output is a rounded value"
    assert 0 < differences.max() < 0.01 * np.abs(exact).max()


def test_what_overflows_stays_in_float32(tmp_path: Path) -> None:
    source = write(tmp_path / "loud.onnx", overflowing)
    result = precision.cast_onnx(source, tmp_path / "cast.onnx", precision="fp16", images=images(64))
    assert result.largest > 65504
    kept = {node.op_type for node in onnx.load(str(source)).graph.node if node.name in result.kept_float}
    assert kept == {"Conv", "Relu"}
    assert len(result.kept_float) == 3, "the loud layer, its activation function and the layer that reads it"
    assert result.top1_agreement == 1.0
    assert precision.cast_onnx(source, tmp_path / "b.onnx", precision="bf16", images=images(8)).kept_float == ()


def test_large_and_small_weights_are_rounded_and_not_cut(tmp_path: Path) -> None:
    """The library's own limits are 10,000 and 1e-7, which it puts in the place of what lies beyond."""

    def spread(network: Residual) -> None:
        network.stem.weight[0] = 0
        network.stem.weight[0, 0, 1, 1] = 11_000
        network.stem.weight[1] *= 1e-8 / network.stem.weight[1].abs().max()
        network.expand.weight[:, 0] /= 1e5
        network.last.weight[:, 0] /= 1e5

    source = write(tmp_path / "spread.onnx", spread)
    result = precision.cast_onnx(source, tmp_path / "cast.onnx", precision="fp16", images=images(8))
    exact, cast = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(file)).graph.initializer}
        for file in (
            source,
            precision.cast_onnx(source, tmp_path / "all.onnx", precision="fp16", images=images(8), force=True).file,
        )
    )
    assert result.file.is_file()
    weights = {name for name, value in exact.items() if value.dtype == np.float32}
    assert max(np.abs(exact[name]).max() for name in weights) == 11_000
    for name in weights:
        assert np.array_equal(cast[name], exact[name].astype(np.float16)), name


def test_without_the_check_it_overflows_and_nothing_is_written(tmp_path: Path) -> None:
    source = write(tmp_path / "loud.onnx", overflowing)
    with pytest.raises(VerificationError, match=r"overflows in fp16: \d+ of 64 images.*bf16"):
        precision.cast_onnx(source, tmp_path / "cast.onnx", precision="fp16", images=images(64), force=True)
    assert not (tmp_path / "cast.onnx").exists()


def test_bad_files_are_refused(exported: Path, tmp_path: Path) -> None:
    cast = precision.cast_onnx(exported, tmp_path / "cast.onnx", precision="fp16", images=images(4)).file
    with pytest.raises(InputError, match="cast to 16 bits already"):
        precision.cast_onnx(cast, tmp_path / "b.onnx", precision="bf16", images=images(4))
    with pytest.raises(InputError, match="unknown precision 'fp4'"):
        precision.cast_onnx(exported, tmp_path / "b.onnx", precision="fp4", images=images(4))
    (tmp_path / "broken.onnx").write_bytes(b"\1\2\3")
    with pytest.raises(InputError, match="not an ONNX file"):
        precision.cast_onnx(tmp_path / "broken.onnx", tmp_path / "b.onnx", precision="fp16", images=images(4))
    with pytest.raises(InputError, match="no ONNX file"):
        precision.cast_onnx(tmp_path / "none.onnx", tmp_path / "b.onnx", precision="fp16", images=images(4))


def test_a_precision_that_the_target_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"jetson-orin has no fp8: its GPU is SM 8.7, fp8 needs SM 8.9"):
        precision.check_reachable("fp8", "jetson-orin")
    with pytest.raises(InputError, match="jetson-xavier has no bf16"):
        precision.check_reachable("bf16", "jetson-xavier")
    with pytest.raises(InputError, match="cpu has no fp8"):
        precision.check_reachable("fp8", "cpu")
    with pytest.raises(InputError, match="unknown precision 'int7'"):
        precision.check_reachable("int7", "cpu")
    for name, target in (("fp8", "jetson-thor"), ("int8", "jetson-orin"), ("fp32", "cpu"), ("fp8", "tensorrt")):
        precision.check_reachable(name, target)


def test_the_operators_are_those_that_nvidia_lists() -> None:
    assert len(OPERATORS) == 150
    assert {"Conv", "Gelu", "LayerNormalization", "QuantizeLinear", "HardSwish"} <= OPERATORS
    assert not {"QLinearConv", "ConvInteger", "DynamicQuantizeLinear", "Col2Im"} & OPERATORS


def layer(*, zero: int = 0, kind: int = TensorProto.INT8, channels: int = 2, weight: bool = True) -> onnx.ModelProto:
    """One convolution with Q/DQ around its input and, where asked, its weights."""
    values = [
        numpy_helper.from_array(np.float32(0.1), "scale"),
        helper.make_tensor("zero", kind, [], [zero]),
        numpy_helper.from_array(np.full(channels, 0.1, np.float32).squeeze(), "scales"),
        numpy_helper.from_array(np.zeros(channels, np.int8).squeeze(), "zeros"),
        numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "weight"),
    ]

    def pair(name: str, scale: str, zero_point: str, **axis: int) -> list[onnx.NodeProto]:
        return [
            helper.make_node("QuantizeLinear", [name, scale, zero_point], [f"{name}_q"], f"{name}_Q", **axis),
            helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero_point], [f"{name}_d"], f"{name}_DQ", **axis),
        ]

    nodes = pair("x", "scale", "zero") + (pair("weight", "scales", "zeros", axis=0) if weight else [])
    nodes.append(helper.make_node("Conv", ["x_d", "weight_d" if weight else "weight"], ["y"], "layer"))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, sides, 4, 4])
        for name, sides in zip("xy", (3, 2), strict=True)
    ]
    return helper.make_model(helper.make_graph(nodes, "one", ends[:1], ends[1:], values))


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (layer(zero=3), "x_Q has a zero point that is not 0"),
        (layer(kind=TensorProto.UINT8), "x_Q is not of a signed 8-bit type"),
        (layer(channels=1), "the weights of layer have one scale for all channels"),
        (layer(weight=False), "the layer layer is half quantised"),
    ],
)
def test_every_fault_of_a_quantised_graph_is_named(model: onnx.ModelProto, problem: str) -> None:
    assert problem in quantization_problems(model)


def test_a_sound_quantised_layer_has_no_problem() -> None:
    assert quantization_problems(layer()) == []
    assert operator_problems(layer()) == []
    half = layer(weight=False)
    assert quantization_problems(half, ["layer"]) == [], "in float on purpose"


def test_pairs_that_block_fusion_and_bare_additions_are_named() -> None:
    model = layer()
    model.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["y_q"], "y_Q"),
            helper.make_node("DequantizeLinear", ["y_q", "scale", "zero"], ["y_d"], "y_DQ"),
            helper.make_node("Relu", ["y_d"], ["r"], "activation"),
            helper.make_node("Add", ["r", "y"], ["z"], "join"),
        ]
    )
    model.graph.output[0].name = "z"
    assert quantization_problems(model) == [
        "y_Q lies between a layer and its activation function, which then cannot be fused",
        "the residual addition join has no quantised input",
    ]


def test_foreign_operators_and_inner_casts_are_named(exported: Path, tmp_path: Path) -> None:
    cast = onnx.load(str(precision.cast_onnx(exported, tmp_path / "c.onnx", precision="fp16", images=images(4)).file))
    head = next(node for node in cast.graph.node if node.op_type == "Gemm")
    nodes = [
        helper.make_node("Cast", [head.input[0]], ["wide"], "widen", to=TensorProto.FLOAT),
        helper.make_node("Cast", ["wide"], ["narrow"], "narrow", to=TensorProto.FLOAT16),
    ]
    head.input[0] = "narrow"
    at = list(cast.graph.node).index(head)
    before, after = list(cast.graph.node)[:at], list(cast.graph.node)[at:]
    del cast.graph.node[:]
    cast.graph.node.extend([*before, *nodes, *after])
    assert len(cast_problems(cast)) == 2, "a head of its own precision"
    cast.graph.node[1].op_type = "QLinearConv"
    assert operator_problems(cast) == [f"QLinearConv (node {cast.graph.node[1].name}) is not on NVIDIA's list"]


def test_an_addition_is_in_float_where_all_its_readers_are() -> None:
    model = layer()
    model.graph.node.extend(
        [
            helper.make_node("Add", ["y", "y"], ["z"], "join"),
            helper.make_node("Relu", ["z"], ["r"], "activation"),
            helper.make_node("Conv", ["r", "next_weight"], ["w"], "next"),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "next_weight"))
    model.graph.output[0].name = "w"
    assert quantization_problems(model) == [
        "the layer next is not quantised",
        "the residual addition join has no quantised input",
    ]
    assert quantization_problems(model, ["next"]) == []
