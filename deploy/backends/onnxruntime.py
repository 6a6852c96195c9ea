"""ONNX Runtime, on the CPU or on CUDA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iekd.deploy.backends import Array, Session, check_images
from iekd.errors import EnvironmentMissingError, InputError


@dataclass(frozen=True)
class OnnxRuntime:
    """Opens ONNX files with one execution provider; never falls back to another."""

    provider: str
    install: str
    """The pip command that brings the provider."""

    def load(self, path: Path, *, threads: int = 0) -> Session:
        """See :class:`iekd.deploy.backends.Backend`."""
        self.require()
        if not path.is_file():
            raise InputError(f"no ONNX file at {path}.", "Check the path.")
        return OnnxSession(path, self.provider, threads)

    def require(self) -> None:
        """See :class:`iekd.deploy.backends.Backend`."""
        try:
            import onnxruntime
        except ImportError as error:
            raise EnvironmentMissingError("ONNX Runtime is not installed.", self.install) from error
        available = onnxruntime.get_available_providers()
        if self.provider not in available:
            raise EnvironmentMissingError(
                f"this ONNX Runtime has no {self.provider} (it has {', '.join(available)}).",
                f"pip uninstall -y onnxruntime && {self.install}",
            )


class OnnxSession:
    """One ONNX file in one ONNX Runtime session.

    Args:
        path: the file; one input (N, C, H, W), one output (N, classes).
        provider: ONNX Runtime's name of it.
        threads: intra-op threads; 0 for the runtime's default.

    Raises:
        InputError: damaged, or not an image classifier.
        EnvironmentMissingError: the provider could not start.
    """

    def __init__(self, path: Path, provider: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:
            raise InputError(
                f"ONNX Runtime cannot open {path}: {' '.join(str(error).split())[:200]}", "Export the model again."
            ) from error
        if self._session.get_providers()[0] != provider:
            raise EnvironmentMissingError(
                f"{provider} did not start; ONNX Runtime fell back to {self._session.get_providers()[0]}.",
                "See `iekd-compress doctor` for what is missing.",
            )
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
            raise InputError(
                f"{path} is not an image classifier with one input (N, C, H, W): its input is {shape}.",
                "Give a file that iekd-compress exported, or one of that form.",
            )
        self.input_shape: tuple[int, int, int] = (shape[1], shape[2], shape[3])
        self._input, self._output = inputs[0].name, outputs[0].name
        self._most = shape[0] if isinstance(shape[0], int) else None
        self._provider, self._threads, self._version = provider, threads, onnxruntime.__version__

    def run(self, images: Array) -> Array:
        """See :class:`iekd.deploy.backends.Session`."""
        if self._session is None:
            raise InputError("this session is closed.", "Load the file again.")
        check_images(images, self.input_shape, self._most)
        logits: Array = self._session.run([self._output], {self._input: np.ascontiguousarray(images)})[0]
        return logits

    def describe(self) -> dict[str, str]:
        """See :class:`iekd.deploy.backends.Session`."""
        return {
            "backend": f"ONNX Runtime {self._version}",
            "provider": self._provider.removesuffix("ExecutionProvider"),
            "threads": f"{self._threads or 'default'} threads",
        }

    def close(self) -> None:
        """See :class:`iekd.deploy.backends.Session`."""
        self._session = None


CPU = OnnxRuntime("CPUExecutionProvider", "pip install 'iekd-compress[cpu]'")
CUDA = OnnxRuntime("CUDAExecutionProvider", "pip install 'iekd-compress[gpu]'")
