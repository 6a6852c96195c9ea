"""NVIDIA's modelopt: FP8 Q/DQ graphs, which no other library here makes.  A graph only: no CPU computes in FP8."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

from iekd.compress.calibration import Calibration
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
        with _quiet():
            quantize(
                str(source),
                quantize_mode="fp8",
                calibration_data={self._calibration.model.graph.input[0].name: self._calibration.images},
                calibration_method=method,
                calibration_eps=["cpu"],
                nodes_to_exclude=list(kept_float),
                high_precision_dtype="fp32",
                output_path=str(path),
            )


def _require() -> None:
    try:
        with _quiet():
            import modelopt.onnx.quantization  # noqa: F401
    except ImportError as error:
        lacks = f"{error.name} is missing" if error.name else str(error).splitlines()[0]  # modelopt raises its own
        raise EnvironmentMissingError(f"nvidia-modelopt is not installed whole ({lacks}).", INSTALL) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's log off the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
