"""ONNX Runtime on the board's processor, for boards without TensorRT."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError
from .parts import require_onnxruntime

Array = NDArray[np.float32]
PROVIDER = "CPUExecutionProvider"


class OnnxSession:
    """One ONNX file in one ONNX Runtime session on the CPU; the same face as ``session.EngineSession``.

    Args:
        path: the file; one input (N, C, H, W), one output (N, classes).
        threads: 0 for the runtime's default.

    Raises:
        DeviceError: damaged, or not an image classifier.
        DeviceMissingError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        runtime: Any = require_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = runtime.InferenceSession(str(path), options, providers=[PROVIDER])
        except Exception as error:
            raise DeviceError(
                f"ONNX Runtime {runtime.__version__} cannot open {path}: {' '.join(str(error).split())[-200:]}",
                "pip install -U onnxruntime, or export the model again.",
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
            raise DeviceError(f"{path} is not an image classifier with one input (N, C, H, W): its input is {shape}.")
        self.input_shape: tuple[int, int, int] = (shape[1], shape[2], shape[3])
        self.most: int | None = shape[0] if isinstance(shape[0], int) else None
        self._input, self._output = inputs[0].name, outputs[0].name
        self._version, self._threads = str(runtime.__version__), threads

    def run(self, images: Array) -> Array:
        """Logits (N, classes) of a float32 batch (N, C, H, W).

        Raises:
            DeviceError: another shape or type, or the session is closed.
        """
        if self._session is None:
            raise DeviceError("this session is closed.", "Load the file again.")
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != self.input_shape or not len(images):
            shape = ", ".join(map(str, self.input_shape))
            raise DeviceError(f"the model takes float32 (N, {shape}), not {images.dtype} {images.shape}.")
        logits: Array = self._session.run([self._output], {self._input: np.ascontiguousarray(images)})[0]
        return logits

    def timed_run(self, images: Array) -> tuple[Array, dict[str, float]]:
        """Logits, and where the time went in milliseconds; on the CPU there is nothing but the call itself."""
        start = time.perf_counter()
        logits = self.run(images)
        return logits, {"host": (time.perf_counter() - start) * 1e3}

    def describe(self) -> dict[str, str]:
        """What identifies this session in a result."""
        return {
            "backend": f"ONNX Runtime {self._version}",
            "provider": PROVIDER.removesuffix("ExecutionProvider"),
            "threads": f"{self._threads or 'default'} threads",
        }

    def close(self) -> None:
        """Give back what the session holds; calling it twice is harmless."""
        self._session = None
