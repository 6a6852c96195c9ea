"""ONNX Runtime's quantiser: Q/DQ graphs with unsigned activations for x86, symmetric ones for TensorRT and OpenVINO."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import onnx

from iekd.compress.calibration import METHODS, Calibration
from iekd.deploy.graph_checks import WEIGHTED, Graph, is_transformer
from iekd.deploy.quiet import quiet
from iekd.errors import EnvironmentMissingError

INSTALL = "pip install 'iekd-compress[cpu]'"
_SYMMETRIC: dict[str, Any] = {
    "ActivationSymmetric": True,
    "AddQDQPairToWeight": True,
    "QuantizeBias": False,
}
_INPUTS_ONLY = "OpTypesToExcludeOutputQuantization"
_WEIGHTS: dict[str, tuple[str, bool]] = {
    "int8": ("QInt8", False),
    "int7": ("QInt8", True),
    "uint8": ("QUInt8", False),
}
"""Type of the weights as the library calls it, and whether they use 7 of its bits."""


class OrtQuantizer:
    """See :class:`iekd.compress.quantizers.Quantizer`.

    Args:
        calibration: model and ranges.
        weights: int8, uint8 about 128, or int7, which is int8 from -64 to 64.
        symmetric: int8 activations with zero point 0, so that a layer and what follows it can be fused, as TensorRT
            wants; else uint8 activations.
        scope: what is quantised.  "all": all operators that ONNX Runtime can, which it computes fastest in most
            convolutional networks; "layers": those that multiply alone, which transformers need to keep their accuracy;
            "weights": of these the ones with weights, so that attention, the product of two activations, stays float.
        inputs_only: quantise what goes into a layer and not what comes out of it, which the next layer's input is where
            the two follow one another.
    """

    suffix = ".onnx"
    methods = METHODS

    def __init__(
        self,
        calibration: Calibration,
        *,
        weights: str,
        symmetric: bool = False,
        scope: Literal["all", "layers", "weights"] = "all",
        inputs_only: bool = False,
    ) -> None:
        _require()
        self._calibration = calibration
        self._symmetric, self._weights, self._inputs_only = symmetric, weights, inputs_only
        self._model: onnx.ModelProto = onnx.shape_inference.infer_shapes(calibration.model)
        self._graph = Graph(self._model)
        left = {node.name for node in self._graph.products_of_activations()} if scope == "weights" else set()
        self._layers = {node.name for node in self._graph.layers()} - left
        self._others = list(self._graph.nodes) if scope == "all" else []
        if symmetric and not is_transformer(self._model):
            self._others = self._graph.residual_additions()

    def write(self, path: Path, method: str, kept_float: Collection[str] = ()) -> None:
        """See :class:`iekd.compress.quantizers.Quantizer`."""
        model = self._quantized(method, kept_float)
        if self._symmetric:
            _free_fusable_branches(model)
        onnx.save(model, str(path))

    def _quantized(self, method: str, kept_float: Collection[str]) -> onnx.ModelProto:
        from onnxruntime.quantization import QDQQuantizer, QuantType
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        operators = sorted({*QDQRegistry, *QLinearOpsRegistry})
        options: dict[str, Any] = {"WeightSymmetric": True}  # ONNX Runtime's convolution takes one zero point a layer
        if self._symmetric:
            options |= _SYMMETRIC
        if self._inputs_only:
            options[_INPUTS_ONLY] = operators
        weight_type, reduced = _WEIGHTS[self._weights]
        layers = self._layers - set(kept_float)
        if not layers:
            return copy.deepcopy(self._calibration.model)
        others = (node for node in self._others if node.name not in self._layers)
        wanted = [*layers, *(node.name for node in others if not self._graph.left_in_float(node, kept_float))]
        with quiet():
            quantizer = QDQQuantizer(
                copy.deepcopy(self._model),
                per_channel=True,
                reduce_range=reduced,
                weight_qType=QuantType[weight_type],
                activation_qType=QuantType.QInt8 if self._symmetric else QuantType.QUInt8,
                tensors_range=self._tensors_range(method),
                nodes_to_quantize=sorted(wanted),
                nodes_to_exclude=[],
                op_types_to_quantize=operators,
                extra_options=options,
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        model: onnx.ModelProto = quantizer.model.model
        return model

    def _tensors_range(self, method: str) -> Any:
        from onnxruntime.quantization import CalibrationMethod, TensorData, TensorsData

        ranges = self._calibration.ranges(method)
        data = {name: TensorData(lowest=low, highest=high) for name, (low, high) in ranges.items()}
        return TensorsData(CalibrationMethod.MinMax, data)


def _free_fusable_branches(model: onnx.ModelProto) -> None:
    """Leave one input of each residual addition in float: that of the layer which TensorRT fuses with the addition.

    TensorRT documentation, "Q/DQ Layer-Placement Recommendations": "Quantize the residual input in skip-connections".
    The other input comes straight from a layer, has no other reader, and stays in that layer's registers.
    """
    graph = Graph(model)
    for addition in graph.residual_additions():
        if not all(graph.made_by(name, "DequantizeLinear") for name in addition.input):
            continue
        for at, name in enumerate(addition.input):
            quantize = graph.producer[graph.producer[name].input[0]]
            source = quantize.input[0]
            if graph.made_by(source, *WEIGHTED) and len(graph.consumers[source]) == 1:
                addition.input[at] = source
                if len(graph.consumers[name]) == 1:
                    model.graph.node.remove(graph.producer[name])
                    model.graph.node.remove(quantize)
                break
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


def _require() -> None:
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissingError("ONNX Runtime is not installed.", INSTALL) from error
