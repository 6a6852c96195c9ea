"""What a quantised ONNX graph looks like: how much of it is computed in 8 bits, on which grid, and where Q/DQ stands.

:mod:`iekd.deploy.graph_checks` says what is wrong with a graph for TensorRT; this page counts, so that files of
different libraries can be compared (benchmarks/quantiser_graphs.py).  Nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import onnx
from onnx import NodeProto, TensorProto

from iekd.deploy.graph_checks import Graph, operator_problems, tensorrt_problems
from iekd.errors import VerificationError

_PAIR = ("QuantizeLinear", "DequantizeLinear")
_MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
"""Change no value: runtimes move Q and DQ past them, and fold them into weights."""
_EIGHT_BITS = ("INT8", "UINT8", "FLOAT8E4M3FN")


@dataclass(frozen=True)
class GraphShape:
    """Counts of one graph."""

    quantize: int
    dequantize: int
    activation_types: tuple[str, ...]
    """Of the values between Q and DQ, such as int8; weights and biases not among them."""
    zero_points_are_zero: bool
    """Of activations and weights, biases too."""
    weight_types: tuple[str, ...]
    per_channel: int
    """Layers whose weights have a scale for each channel."""
    per_tensor: int
    """Layers whose weights have one scale."""
    eight_bit_macs: float
    """Share of the multiplications of Conv, Gemm and MatMul whose two inputs come from a DequantizeLinear of 8 bits,
    at most turned or reshaped on the way, 0..1."""
    before_activation: int
    """Q/DQ pairs between a layer and its activation function, which TensorRT then does not fuse."""
    additions: int
    """Of two feature maps (N, C, H, W)."""
    additions_one: int
    """Those with exactly one quantised input, as TensorRT wants them."""
    additions_both: int
    foreign: tuple[str, ...]
    """Operators that are not on NVIDIA's list, by name."""
    problems: tuple[str, ...]
    """All that :func:`iekd.deploy.graph_checks.require_tensorrt_graph` would complain of, no layer left in float."""


def graph_shape(model: onnx.ModelProto) -> GraphShape:
    """Count what is in a graph; its first input's first dimension is the batch.

    Raises:
        VerificationError: the shape of a layer does not follow from the graph.
    """
    graph = Graph(_one_image(model))
    pairs = [node for node in graph.nodes if node.op_type in _PAIR]
    scales = [graph.array(node.input[1]) for node in _weight_pairs(graph)]
    quantized = [
        sum(graph.made_by(name, "DequantizeLinear") for name in node.input) for node in graph.residual_additions()
    ]
    return GraphShape(
        quantize=sum(node.op_type == "QuantizeLinear" for node in pairs),
        dequantize=sum(node.op_type == "DequantizeLinear" for node in pairs),
        activation_types=_names(_type(graph, node) for node in pairs if not graph.is_weight(node.input[0])),
        zero_points_are_zero=not any(_zero_point(graph, node) for node in pairs),
        weight_types=_names(_type(graph, node) for node in _weight_pairs(graph)),
        per_channel=sum(scale is not None and scale.size > 1 for scale in scales),
        per_tensor=sum(scale is not None and scale.size == 1 for scale in scales),
        eight_bit_macs=_eight_bit_macs(graph),
        before_activation=sum(graph.separates_activation(node) for node in pairs),
        additions=len(quantized),
        additions_one=quantized.count(1),
        additions_both=quantized.count(2),
        foreign=_names(problem.partition(" ")[0] for problem in operator_problems(model)),
        problems=tuple(tensorrt_problems(model)),
    )


def count_macs(graph: Graph, node: NodeProto) -> int:
    """Multiplications of a layer for the batch that the graph's shapes say.

    Raises:
        VerificationError: its shapes do not follow from the graph.
    """
    first, second = (_dims(graph, node, name) for name in node.input[:2])
    if node.op_type == "ConvTranspose":
        return prod(first) * prod(second[1:])
    answers = prod(_dims(graph, node, node.output[0]))
    if node.op_type == "Conv":
        return answers * prod(second[1:])
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return answers * (first[0] if turned else first[-1])


def _one_image(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for a batch of one, with the shapes that follow from that; what the file said of shapes is left out."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.value_info[:]
    twin.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(twin, data_prop=True)
    return inferred


def _eight_bit_macs(graph: Graph) -> float:
    macs = {id(node): count_macs(graph, node) for node in graph.layers()}
    whole = sum(macs.values())
    eight = sum(macs[id(node)] for node in graph.layers() if all(_in_8_bits(graph, name) for name in node.input[:2]))
    return eight / whole if whole else 0.0


def _in_8_bits(graph: Graph, name: str) -> bool:
    found = _dequantized_by(graph, name)
    return found is not None and _type(graph, found).upper() in _EIGHT_BITS


def _dequantized_by(graph: Graph, name: str) -> NodeProto | None:
    """The DequantizeLinear that a tensor comes from, at most turned or reshaped since."""
    while graph.made_by(name, *_MOVES):
        name = graph.producer[name].input[0]
    return graph.producer[name] if graph.made_by(name, "DequantizeLinear") else None


def _weight_pairs(graph: Graph) -> list[NodeProto]:
    """The DequantizeLinear of each layer's weights, where they are quantised."""
    found = (_dequantized_by(graph, node.input[1]) for node in graph.layers())
    return [node for node in found if node is not None and graph.is_weight(node.input[0])]


def _type(graph: Graph, node: NodeProto) -> str:
    """Of the quantised values on a Q's output or a DQ's input, as ONNX calls it, in small letters."""
    name = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
    if name in graph.constants:
        number = graph.constants[name].data_type
    else:
        number = graph.types[name].elem_type if name in graph.types else TensorProto.UNDEFINED
    return str(TensorProto.DataType.Name(number)).lower()


def _zero_point(graph: Graph, node: NodeProto) -> bool:
    """Is there one that is not 0?  A node without one has 0."""
    if len(node.input) < 3 or not node.input[2]:
        return False
    value = graph.array(node.input[2])
    return value is None or bool(value.astype("float32").any())


def _dims(graph: Graph, node: NodeProto, name: str) -> list[int]:
    if name in graph.constants:
        return list(graph.constants[name].dims)
    found = graph.types.get(name)
    dims = [] if found is None else [dim.dim_value for dim in found.shape.dim]
    if not dims or not all(dims):
        raise VerificationError(
            f"the shape of {name} (node {node.name}) does not follow from the graph.", "Simplify the file first."
        )
    return dims


def _names(found: Iterator[str]) -> tuple[str, ...]:
    return tuple(sorted(set(found)))
