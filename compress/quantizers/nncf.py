"""NNCF on OpenVINO: what Intel's own quantiser makes of the network, in OpenVINO's own format (.xml with .bin).

The ONNX form of the same quantisation runs up to 20 % slower in OpenVINO (docs/decisions/quantisers.md).
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from iekd.compress.calibration import Calibration
from iekd.deploy.graph_checks import is_transformer
from iekd.deploy.openvino_core import core, signal_stack_kept
from iekd.deploy.openvino_format import LAYERS, SUFFIX, write_entries
from iekd.deploy.quiet import quiet
from iekd.errors import EnvironmentMissingError

INSTALL = "pip install 'iekd-compress[quantize]'"
_NOT_COMPUTED = ("Constant", "Parameter", "Result")


class Nncf:
    """See :class:`iekd.compress.quantizers.Quantizer`.

    Args:
        calibration: model and images.
        preset: NNCF's: performance (symmetric activations), or mixed; its one method.
    """

    suffix = SUFFIX

    def __init__(self, calibration: Calibration, *, preset: str) -> None:
        _require()
        self._calibration = calibration
        self._transformer = is_transformer(calibration.model)
        self.methods = (preset,)

    def write(self, path: Path, method: str, kept_float: Collection[str] = ()) -> None:
        """See :class:`iekd.compress.quantizers.Quantizer`."""
        import nncf
        import openvino
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

        model = self._float_model()
        images = self._calibration.images
        ignored = _left_in_float(model, set(kept_float))
        with quiet(), signal_stack_kept():
            quantized = nncf.quantize(
                model,
                nncf.Dataset([image[np.newaxis] for image in images]),
                preset=nncf.QuantizationPreset(method),
                model_type=nncf.ModelType.TRANSFORMER if self._transformer else None,
                subset_size=len(images),
                ignored_scope=nncf.IgnoredScope(names=ignored) if ignored else None,
                advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),  # 7-bit weights
            )
        entries = {entry.key: entry.value for entry in self._calibration.model.metadata_props}
        write_entries(quantized, {**entries, "precision": "int8"})
        openvino.save_model(quantized, str(path), compress_to_fp16=False)

    def _float_model(self) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "float.onnx"
            onnx.save(self._calibration.model, str(file))
            return core().read_model(file).clone()


def _left_in_float(model: Any, kept_float: set[str]) -> list[str]:
    """Names of the operators that stay in float: the layers asked for, and what nothing but those reads.

    NNCF quantises additions and poolings of its own accord, and what a layer in float is given would be rounded there.
    The rule is :meth:`iekd.deploy.graph_checks.Graph.left_in_float`, read off OpenVINO's graph, since operators that
    OpenVINO takes apart have names there that the ONNX graph does not know.
    """
    layers, following = _layers_and_readers(model)
    ignored = []
    for operator in model.get_ordered_ops():
        name = operator.get_friendly_name()
        if operator.get_type_name() in _NOT_COMPUTED:
            continue
        readers = following[name]
        if _onnx_name(name) in layers:  # the addition of its bias goes with the layer, whatever reads it
            readers = set()
        if _onnx_name(name) in kept_float or (readers and readers <= kept_float):
            ignored.append(name)
    return ignored


def _layers_and_readers(model: Any) -> tuple[set[str], dict[str, set[str]]]:
    """ONNX names of the layers; and for each operator those that read it with no other layer in between."""
    layers = {_onnx_name(one.get_friendly_name()) for one in model.get_ops() if one.get_type_name() in LAYERS}
    following: dict[str, set[str]] = {}
    for operator in reversed(model.get_ordered_ops()):
        found: set[str] = set()
        for reader in (target.get_node() for output in operator.outputs() for target in output.get_target_inputs()):
            name = reader.get_friendly_name()
            found |= {_onnx_name(name)} if reader.get_type_name() in LAYERS else following[name]
        following[operator.get_friendly_name()] = found
    return layers, following


def _onnx_name(friendly: str) -> str:
    """OpenVINO splits a layer with bias in two: NAME/WithoutBiases, and NAME, which adds the bias."""
    return friendly.removesuffix("/WithoutBiases")


def _require() -> None:
    os.environ.setdefault("NNCF_CI", "1")  # no telemetry
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nncf  # noqa: F401
            import openvino  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissingError("NNCF and OpenVINO are not installed.", INSTALL) from error
