"""NVIDIA's modelopt: FP8 Q/DQ graphs, which no other library here makes.  A graph only: no CPU computes in FP8."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from iekd.compress.calibration import Calibration
from iekd.deploy.quiet import quiet
from iekd.errors import EnvironmentMissingError

INSTALL = "pip install nvidia-modelopt requests onnx-graphsurgeon lief"
"""Not ``nvidia-modelopt[onnx]``: that pins older releases of onnx and onnxruntime-gpu, and shadows onnxruntime."""


class Fp8:
    """See :class:`iekd.compress.quantizers.Quantizer`.  FP8 ranges are modelopt's: the largest value."""

    suffix = ".onnx"
    methods = ("max",)

    def __init__(self, calibration: Calibration) -> None:
        _require()
        self._calibration = calibration

    def write(self, path: Path, method: str, kept_float: Collection[str] = ()) -> None:
        """See :class:`iekd.compress.quantizers.Quantizer`."""
        import onnx
        from modelopt.onnx.quantization import quantize

        source = path.with_name(f"{path.stem}-float.onnx")
        onnx.save(self._calibration.model, str(source))
        with quiet(logging.CRITICAL), _quantizer_kept():
            quantize(
                str(source),
                quantize_mode="fp8",
                calibration_data={self._calibration.model.graph.input[0].name: self._calibration.images},
                calibration_method=method,
                calibration_eps=["cpu"],
                nodes_to_exclude=[f"{re.escape(name)}$" for name in kept_float],  # it takes them for patterns
                high_precision_dtype="fp32",
                output_path=str(path),
            )


def _require() -> None:
    try:
        with quiet(logging.CRITICAL):
            import modelopt.onnx.quantization  # noqa: F401
    except ImportError as error:
        lacks = f"{error.name} is missing" if error.name else str(error).splitlines()[0]  # modelopt raises its own
        raise EnvironmentMissingError(f"nvidia-modelopt is not installed whole ({lacks}).", INSTALL) from error


@contextlib.contextmanager
def _quantizer_kept() -> Iterator[None]:
    """Undo what modelopt does to ONNX Runtime's quantiser, which INT8 files are made with in the same process.

    It replaces methods of its classes and entries of its registries, and never puts them back.
    """
    importlib.import_module("onnxruntime.quantization")  # modelopt would import it, and it has to be seen before that
    modules = [module for name, module in sys.modules.items() if name.startswith("onnxruntime.quantization")]
    values = [value for module in modules for value in vars(module).values()]
    owners: list[ModuleType | type] = [*modules, *(value for value in values if _is_quantizer_class(value))]
    attributes = [(owner, dict(vars(owner))) for owner in owners]
    tables = [(value, dict(value)) for value in values if isinstance(value, dict)]
    try:
        yield
    finally:
        for owner, before in attributes:
            for name in [name for name in vars(owner) if name not in before]:
                delattr(owner, name)
            for name, value in before.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)
        for table, entries in tables:
            table.clear()
            table.update(entries)


def _is_quantizer_class(value: Any) -> bool:
    return isinstance(value, type) and value.__module__.startswith("onnxruntime.quantization")
