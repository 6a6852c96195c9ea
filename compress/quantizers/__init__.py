"""Quantisers of other projects behind one small protocol; which scheme tries which of them is on this page.

None of them is ours.  Why these and not others: docs/decisions/quantisers.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx

from iekd.compress.calibration import Calibration
from iekd.deploy.graph_checks import Graph
from iekd.errors import unknown_name


class Quantizer(Protocol):
    """A way to quantise the model of a calibration: one library, one kind of graph."""

    suffix: str
    """Of the files: .onnx, or .xml for OpenVINO's own format."""
    methods: tuple[str, ...]
    """Calibrations that it can be asked for, of :data:`iekd.compress.calibration.METHODS` or its own."""

    def write(self, path: Path, method: str, kept_float: Collection[str] = ()) -> None:
        """Write the quantised model, with the layers in ``kept_float`` (names of ONNX nodes) left in float."""
        ...


@dataclass(frozen=True)
class Scheme:
    """What a target wants."""

    backend: str
    """Runs the files for the comparison of accuracy, and of latency where ``timed``."""
    recipes: tuple[str, ...]
    """Tried in this order; the best is kept."""
    timed: bool
    """The backend is the target's, so that its latency on this machine decides too."""
    tensorrt: bool
    """The graph must be one that TensorRT runs as meant."""
    precision: str
    library_keeps: bool = False
    """The library may leave layers in float by rules of its own; they are reported as kept."""


SCHEMES = {
    "int8-x86-onnxruntime": Scheme(
        "onnxruntime",
        ("ort-u8s7", "ort-u8s7-layers", "ort-u8s7-weights", "ort-u8u8", "ort-u8u8-layers", "ort-s8s7"),
        True,
        False,
        "int8",
    ),
    "int8-openvino": Scheme(
        "openvino", ("nncf", "nncf-mixed", "ort-u8s7", "ort-u8s7-weights", "ort-s8s7"), True, False, "int8"
    ),
    "int8-tensorrt": Scheme("onnxruntime", ("ort-s8s8",), False, True, "int8"),
    "fp8-tensorrt": Scheme("onnxruntime", ("modelopt-fp8",), False, True, "fp8", library_keeps=True),
}
"""Files for x86 must be right on every x86: where a processor lacks VNNI, products of 8-bit activations with full 8-bit
signed weights overflow 16 bits, and only 7-bit or unsigned weights do not."""

_SYMMETRIC = {"symmetric": True, "scope": "layers", "inputs_only": True}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "ort-u8s7": ("onnxruntime:OrtQuantizer", {"weights": "int7"}),
    "ort-u8s7-layers": ("onnxruntime:OrtQuantizer", {"weights": "int7", "scope": "layers"}),
    "ort-u8s7-weights": ("onnxruntime:OrtQuantizer", {"weights": "int7", "scope": "weights", "inputs_only": True}),
    "ort-u8u8": ("onnxruntime:OrtQuantizer", {"weights": "uint8"}),
    "ort-u8u8-layers": ("onnxruntime:OrtQuantizer", {"weights": "uint8", "scope": "layers"}),
    "ort-s8s7": ("onnxruntime:OrtQuantizer", {"weights": "int7", **_SYMMETRIC}),
    "ort-s8s8": ("onnxruntime:OrtQuantizer", {"weights": "int8", **_SYMMETRIC}),
    "nncf": ("nncf:Nncf", {"preset": "performance"}),
    "nncf-mixed": ("nncf:Nncf", {"preset": "mixed"}),
    "modelopt-fp8": ("modelopt:Fp8", {}),
}
"""Where a quantiser is, and its settings."""
FOR_ATTENTION = ("ort-u8s7-weights",)
"""Recipes that are tried unasked only where a network multiplies activations with one another."""


def recipes_for(scheme: Scheme, model: onnx.ModelProto) -> tuple[str, ...]:
    """Those of the scheme's recipes that are worth a trial with this model."""
    if Graph(model).products_of_activations():
        return scheme.recipes
    return tuple(name for name in scheme.recipes if name not in FOR_ATTENTION)


def make_quantizer(recipe: str, calibration: Calibration) -> Quantizer:
    """The quantiser of that name for the calibration's model.

    Raises:
        EnvironmentMissingError: its library is not installed.
    """
    if recipe not in RECIPES:
        raise unknown_name("recipe", recipe, RECIPES)
    place, settings = RECIPES[recipe]
    module, _, attribute = place.partition(":")
    maker = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    quantizer: Quantizer = maker(calibration, **settings)
    return quantizer
