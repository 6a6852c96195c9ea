"""Is an ONNX file of the shape that TensorRT runs fast?  Read off the graph; no engine is built here.

What is asked for, and where it comes from:

- operators of NVIDIA's published list only (:mod:`iekd.deploy.tensorrt_operators`);
- symmetric quantisation, one scale for each activation, one for each output channel of a weight, Q and DQ in pairs
  (TensorRT documentation, "Working with Quantized Types");
- residual additions with Q/DQ on at least one input, none between a layer and its activation function
  (the same, "Q/DQ Layer-Placement Recommendations");
- no layer left in float that nobody asked for, above all no float classifier.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from iekd.deploy.openvino_format import refuse_openvino
from iekd.deploy.tensorrt_operators import OPERATORS
from iekd.errors import InputError, VerificationError

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply: what quantisation is about."""
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
LOW_PRECISION = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
FLOAT_INSTEAD = "Give the float32 ONNX file that it was made from, such as RUN/student.onnx."
_ACTIVATIONS = ("Relu", "Clip", "HardSwish", "Sigmoid", "HardSigmoid", "Gelu", "LeakyRelu", "Tanh", "Mish")
_SIGNED = (TensorProto.INT8, TensorProto.FLOAT8E4M3FN)


class Graph:
    """An ONNX graph with what its checks look up: producers, consumers, constants, ranks."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.producer = {output: node for node in self.nodes for output in node.output}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        graph = onnx.shape_inference.infer_shapes(model).graph
        self.types = {info.name: info.type.tensor_type for info in (*graph.value_info, *graph.input, *graph.output)}

    def rank(self, name: str) -> int | None:
        """Number of dimensions of a tensor, None where unknown."""
        found = self.types.get(name)
        return len(found.shape.dim) if found is not None and found.HasField("shape") else None

    def made_by(self, name: str, *operators: str) -> bool:
        """Is the tensor the output of one of these operators?"""
        return name in self.producer and self.producer[name].op_type in operators

    def array(self, name: str) -> np.ndarray | None:
        """The value of a constant, None of anything else."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def is_weight(self, name: str) -> bool:
        """A constant, or a constant behind Q and DQ."""
        while self.made_by(name, "QuantizeLinear", "DequantizeLinear"):
            name = self.producer[name].input[0]
        return name in self.constants

    def layers(self) -> list[NodeProto]:
        """The nodes that multiply, in order."""
        return [node for node in self.nodes if node.op_type in WEIGHTED]

    def products_of_activations(self) -> list[NodeProto]:
        """The layers without weights, as in attention."""
        return [node for node in self.layers() if not any(self.is_weight(name) for name in node.input[:2])]

    def next_layers(self, node: NodeProto) -> frozenset[str]:
        """Names of the layers that read what ``node`` writes, with no other layer in between."""
        found, seen, waiting = set(), set(), list(node.output)
        while waiting:
            name = waiting.pop()
            for reader in self.consumers.get(name, []):
                if reader.op_type in WEIGHTED:
                    found.add(reader.name)
                elif reader.output[0] not in seen:
                    seen.add(reader.output[0])
                    waiting += reader.output
        return frozenset(found)

    def left_in_float(self, node: NodeProto, kept_float: Collection[str]) -> bool:
        """Is the node in float because it is named, or because all layers that read it are?"""
        following = self.next_layers(node)
        return node.name in kept_float or bool(following and following <= set(kept_float))

    def separates_activation(self, node: NodeProto) -> bool:
        """Is the node a QuantizeLinear between a layer, with its bias, and the layer's activation function?"""
        name = node.input[0]
        if self.made_by(name, "Add") and any(self.is_weight(other) for other in self.producer[name].input):
            name = next((other for other in self.producer[name].input if not self.is_weight(other)), name)
        return (
            node.op_type == "QuantizeLinear"
            and self.made_by(name, *WEIGHTED)
            and any(
                activation.op_type in _ACTIVATIONS
                for other in self.consumers.get(node.output[0], [])
                for activation in self.consumers.get(other.output[0], [])
            )
        )

    def residual_additions(self) -> list[NodeProto]:
        """Additions of two feature maps (N, C, H, W); biases and the token additions of transformers are none."""
        return [
            node
            for node in self.nodes
            if node.op_type == "Add"
            and self.rank(node.output[0]) == 4
            and not any(self.is_weight(name) for name in node.input)
        ]


def is_quantized(model: onnx.ModelProto) -> bool:
    """Does the graph hold any quantised operator?"""
    return any(node.op_type in QUANTIZED for node in model.graph.node)


def is_transformer(model: onnx.ModelProto) -> bool:
    """Does the network normalise over channels, as transformers and their kin do?

    Its residual paths stay in float: what is added to them is normalised before a layer reads it.
    """
    return any(node.op_type == "LayerNormalization" for node in model.graph.node)


def float_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the layers without a quantised input, in order."""
    graph = Graph(model)
    return tuple(
        node.name
        for node in graph.layers()
        if not any(graph.made_by(name, "DequantizeLinear") for name in node.input[:2])
    )


def load_float(path: Path) -> onnx.ModelProto:
    """A float32 ONNX model.

    Raises:
        InputError: missing, not ONNX, OpenVINO's own format, quantised already, or cast to a lower precision already.
    """
    refuse_openvino(path, "quantisation", FLOAT_INSTEAD)
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        raise InputError(f"no ONNX file at {path}.", "Check the path.") from error
    except Exception as error:
        raise InputError(f"{path} is not an ONNX file.", "Give a file that iekd-compress exported.") from error
    if is_quantized(model):
        raise InputError(f"{path} is quantised already.", "Give the float32 file that it was made from.")
    if any(tensor.data_type in LOW_PRECISION for tensor in model.graph.initializer):
        raise InputError(f"{path} is cast to 16 bits already.", "Give the float32 file that it was made from.")
    return model


def operator_problems(model: onnx.ModelProto) -> list[str]:
    """One sentence for each operator that TensorRT's parser does not read."""
    return [
        f"{node.op_type}{f' of domain {node.domain}' if node.domain else ''} (node {node.name}) is not on NVIDIA's list"
        for node in model.graph.node
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS
    ]


def require_tensorrt_operators(model: onnx.ModelProto) -> None:
    """Raise VerificationError, naming the first three nodes, unless TensorRT's parser reads every operator."""
    if problems := operator_problems(model):
        raise VerificationError(
            f"TensorRT would not read the file: {_first_three(problems)}.",
            "Choose another student, or a target that runs no engine, such as cpu.",
        )


def quantization_problems(model: onnx.ModelProto, kept_float: Collection[str] = ()) -> list[str]:
    """One sentence for each place where a Q/DQ graph is not what TensorRT wants.

    Args:
        model: with QuantizeLinear and DequantizeLinear.
        kept_float: names of the layers that are in float on purpose.
    """
    graph = Graph(model)
    problems = []
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            problems += _pair_problems(graph, node)
    for node in graph.layers():
        problems += _layer_problems(graph, node, kept_float)
    for node in () if is_transformer(model) else graph.residual_additions():
        quantized = any(graph.made_by(name, "DequantizeLinear") for name in node.input)
        if not quantized and not graph.left_in_float(node, kept_float):
            problems.append(f"the residual addition {node.name} has no quantised input")
    return problems


def cast_problems(model: onnx.ModelProto, kept_float: Collection[str] = ()) -> list[str]:
    """One sentence for each Cast inside a 16-bit graph, other than beside the layers kept in float on purpose.

    Casts belong at the input and at the output; anywhere else they cost a pass over memory, as a float head does.
    """
    graph = Graph(model)
    ends = {entry.name for entry in (*model.graph.input, *model.graph.output)}
    problems = []
    for node in graph.nodes:
        if node.op_type != "Cast" or graph.types[node.output[0]].elem_type not in (*LOW_PRECISION, TensorProto.FLOAT):
            continue
        beside = [graph.producer[node.input[0]]] if node.input[0] in graph.producer else []
        beside += graph.consumers.get(node.output[0], [])
        if not ends & {node.input[0], node.output[0]} and not any(other.name in kept_float for other in beside):
            problems.append(f"Cast {node.name} lies inside the network, before {[other.name for other in beside][-1]}")
    return problems


def tensorrt_problems(model: onnx.ModelProto, kept_float: Collection[str] = ()) -> list[str]:
    """One sentence for each reason why TensorRT would not run the graph as it is meant."""
    problems = operator_problems(model)
    return problems + (
        quantization_problems(model, kept_float) if is_quantized(model) else cast_problems(model, kept_float)
    )


def require_tensorrt_graph(model: onnx.ModelProto, kept_float: Collection[str] = ()) -> None:
    """Raise VerificationError, naming the first three problems, unless TensorRT can run the graph as it is meant."""
    if problems := tensorrt_problems(model, kept_float):
        raise VerificationError(
            f"the graph is not one for TensorRT: {_first_three(problems)}.",
            "Keep these layers in float, or choose another precision.",
        )


def _first_three(problems: list[str]) -> str:
    return "; ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")


def _pair_problems(graph: Graph, node: NodeProto) -> list[str]:
    found = []
    scale = graph.array(node.input[1])
    zero = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if scale is None or not (np.isfinite(scale).all() and (scale > 0).all()):
        return [f"{node.name} has no constant positive scale"]
    if zero is None or graph.constants[node.input[2]].data_type not in _SIGNED:
        found.append(f"{node.name} is not of a signed 8-bit type")
    elif zero.astype(np.float32).any():
        found.append(f"{node.name} has a zero point that is not 0")
    if scale.size > 1 and not graph.is_weight(node.input[0]):
        found.append(f"{node.name} has a scale for each channel of an activation")
    others = graph.consumers.get(node.output[0], [])
    if node.op_type == "QuantizeLinear" and {other.op_type for other in others} != {"DequantizeLinear"}:
        found.append(f"{node.name} is not followed by a DequantizeLinear")
    if graph.separates_activation(node):
        found.append(f"{node.name} lies between a layer and its activation function, which then cannot be fused")
    return found


def _layer_problems(graph: Graph, node: NodeProto, kept_float: Collection[str]) -> list[str]:
    quantized = [graph.made_by(name, "DequantizeLinear") for name in node.input[:2]]
    if node.name in kept_float:
        return []
    if not all(quantized):
        return [f"the layer {node.name} is {'half ' if any(quantized) else 'not '}quantised"]
    if not graph.is_weight(node.input[1]):
        return []
    scale = graph.array(graph.producer[node.input[1]].input[1])
    eight_bit_float = graph.constants[graph.producer[node.input[1]].input[2]].data_type == TensorProto.FLOAT8E4M3FN
    if scale is not None and scale.size == 1 and not eight_bit_float:
        return [f"the weights of {node.name} have one scale for all channels"]
    return []
