"""Each count of a graph's shape, on graphs small enough to count by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from iekd.deploy.graph_checks import Graph
from iekd.deploy.graph_shape import count_macs, graph_shape
from iekd.errors import VerificationError

SCALE = np.float32(0.1)


class Draft:
    """A graph in the making: images (batch, 4, 8, 8), each step named after what it does."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def step(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = value
        return name

    def pair(self, source: str, kind: str = "int8", zero: int = 0, scales: int = 1, axis: int = 0) -> str:
        """Q and DQ; the scale has one value, or ``scales`` of them along ``axis``."""
        values = np.full(scales, SCALE) if scales > 1 else np.array(SCALE)
        grid = (self.constant(f"{source}_s", values), self.constant(f"{source}_z", np.full_like(values, zero, kind)))
        how = {"axis": axis} if scales > 1 else {}
        self.step("QuantizeLinear", source, *grid, name=f"{source}_q", **how)
        return self.step("DequantizeLinear", f"{source}_q", *grid, name=f"{source}_d", **how)

    def conv(self, source: str, name: str, *, weight: str | None = None, channels: int = 4) -> str:
        weight = weight or self.constant(f"{name}_w", np.ones((channels, 4, 3, 3), np.float32))
        return self.step("Conv", source, weight, name=name, pads=[1, 1, 1, 1])

    def quantized_conv(self, source: str, name: str, *, scales: int = 4, kind: str = "int8") -> str:
        raw = self.constant(f"{name}_w", np.ones((4, 4, 3, 3), np.float32))
        return self.conv(self.pair(source, kind), name, weight=self.pair(raw, "int8", scales=scales))

    def model(self, output: str, shape: tuple[int | str, ...] = ("batch", 4, 8, 8)) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "drawn",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 4, 8, 8])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        return model


def test_pairs_types_and_scales_are_counted() -> None:
    draft = Draft()
    first = draft.quantized_conv("images", "first", scales=4, kind="uint8")
    found = graph_shape(draft.model(draft.quantized_conv(first, "second", scales=1)))
    assert (found.quantize, found.dequantize) == (4, 4)
    assert found.activation_types == ("int8", "uint8")
    assert found.weight_types == ("int8",)
    assert (found.per_channel, found.per_tensor) == (1, 1)
    assert found.zero_points_are_zero


@pytest.mark.parametrize(("zero", "zeros"), [(0, True), (128, False)])
def test_a_zero_point_is_seen(zero: int, zeros: bool) -> None:
    draft = Draft()
    found = graph_shape(draft.model(draft.conv(draft.pair("images", "uint8", zero), "conv")))
    assert found.zero_points_are_zero is zeros


def test_weights_that_are_stored_as_whole_numbers_count() -> None:
    draft = Draft()
    weight = draft.constant("w", np.ones((4, 4, 3, 3), np.uint8))
    grid = (draft.constant("s", np.full(4, SCALE)), draft.constant("z", np.full(4, 128, np.uint8)))
    weight = draft.step("DequantizeLinear", weight, *grid, name="w_d", axis=0)
    found = graph_shape(draft.model(draft.conv(draft.pair("images"), "conv", weight=weight)))
    assert (found.quantize, found.dequantize) == (1, 2)
    assert (found.weight_types, found.per_channel, found.zero_points_are_zero) == (("uint8",), 1, False)
    assert found.eight_bit_macs == 1


def test_the_share_of_multiplications_counts_layers_with_two_quantized_inputs() -> None:
    draft = Draft()
    whole = draft.quantized_conv("images", "whole")
    half = draft.conv(draft.pair(whole), "half")
    pointwise = draft.constant("narrow_w", np.ones((4, 4, 1, 1), np.float32))
    found = graph_shape(draft.model(draft.step("Conv", half, pointwise, name="narrow")))
    assert found.eight_bit_macs == pytest.approx(9 / (9 + 9 + 1))


def test_weights_may_be_turned_on_their_way() -> None:
    """torchao's matrices are."""
    draft = Draft()
    raw = draft.constant("w", np.ones((5, 8), np.float32))
    turned = draft.step("Transpose", draft.pair(raw, scales=5), name="turned", perm=[1, 0])
    found = graph_shape(draft.model(draft.step("MatMul", draft.pair("images"), turned, name="m"), ("batch", 4, 8, 5)))
    assert (found.eight_bit_macs, found.per_channel, found.weight_types) == (1, 1, ("int8",))


def test_four_bits_are_not_eight() -> None:
    draft = Draft()
    raw = draft.constant("w", np.ones((4, 4, 3, 3), np.float32))
    model = draft.model(draft.conv(draft.pair("images"), "conv", weight=draft.pair(raw, "int8", scales=4)))
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "w_z")
    zero.CopyFrom(helper.make_tensor("w_z", TensorProto.INT4, [4], [0, 0, 0, 0]))
    model.opset_import[0].version = 21
    found = graph_shape(model)
    assert (found.weight_types, found.eight_bit_macs) == (("int4",), 0)


def test_multiplications_of_each_operator() -> None:
    draft = Draft()
    grouped = draft.constant("g_w", np.ones((8, 2, 3, 3), np.float32))
    draft.step("Conv", "images", grouped, name="grouped", group=2, pads=[1, 1, 1, 1], strides=[2, 2])
    upwards = draft.constant("u_w", np.ones((8, 3, 2, 2), np.float32))
    draft.step("ConvTranspose", "grouped", upwards, name="upwards", strides=[2, 2])
    draft.step("Flatten", "upwards", name="flat")
    draft.step("Gemm", "flat", draft.constant("c_w", np.ones((10, 192), np.float32)), name="classify", transB=1)
    draft.step("MatMul", "images", draft.step("Transpose", "images", name="turned", perm=[0, 1, 3, 2]), name="attend")
    draft.step("ReduceMean", "attend", name="mean", keepdims=0)
    graph = Graph(draft.model(draft.step("Add", "classify", "mean", name="sum"), ("batch", 10)))
    assert graph.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    with pytest.raises(VerificationError, match="does not follow"):
        count_macs(graph, graph.producer["grouped"])
    graph.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = Graph(graph.model)
    macs = {node.name: count_macs(graph, node) for node in graph.layers()}
    assert macs == {
        "grouped": 8 * 4 * 4 * (2 * 9),
        "upwards": 8 * 4 * 4 * (3 * 4),
        "classify": 192 * 10,
        "attend": 4 * 8 * 8 * 8,
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("between", [False, True])
def test_a_pair_before_the_activation_function_is_seen(between: bool, bias: bool) -> None:
    draft = Draft()
    made = draft.conv("images", "conv")
    if bias:
        made = draft.step("Add", made, draft.constant("b", np.ones((1, 4, 1, 1), np.float32)), name="biased")
    if between:
        found = graph_shape(draft.model(draft.step("Relu", draft.pair(made), name="relu")))
    else:
        found = graph_shape(draft.model(draft.pair(draft.step("Relu", made, name="relu"))))
    assert found.before_activation == int(between)
    assert any("lies between a layer" in problem for problem in found.problems) is between


@pytest.mark.parametrize("quantized", [0, 1, 2])
def test_residual_additions_by_their_quantized_inputs(quantized: int) -> None:
    draft = Draft()
    ends = [draft.conv("images", "conv"), "images"]
    ends = [draft.pair(end) if number < quantized else end for number, end in enumerate(ends)]
    found = graph_shape(draft.model(draft.step("Add", *ends, name="sum")))
    assert (found.additions, found.additions_one, found.additions_both) == (1, quantized == 1, quantized == 2)


def test_foreign_operators_are_named_and_refused() -> None:
    draft = Draft()
    draft.step("BitShift", draft.constant("n", np.ones(1, np.uint8)), "n", name="shift", direction="LEFT")
    found = graph_shape(draft.model(draft.conv("images", "conv")))
    assert found.foreign == ("BitShift",)
    assert "BitShift" in found.problems[0]


def test_a_graph_as_tensorrt_wants_it_has_no_problem() -> None:
    draft = Draft()
    inner = draft.step("Relu", draft.quantized_conv("images", "first"), name="relu")
    joined = draft.step("Add", draft.quantized_conv(inner, "second"), "images_d", name="sum")
    found = graph_shape(draft.model(joined))
    assert found.problems == ()
    assert (found.eight_bit_macs, found.before_activation, found.additions_one) == (1, 0, 1)
