"""ONNX Runtime, on the CPU, on CUDA or through its TensorRT provider."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iekd.deploy.backends import Array, BatchRange, Session, check_images
from iekd.deploy.openvino_format import refuse_openvino
from iekd.errors import EnvironmentMissingError, InputError

CPU_PROVIDER = "CPUExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
COMPUTE = ("Conv", "Gemm", "MatMul", "Attention", "Pool", "Normalization")
"""Parts of the names of the operators that cost time; ONNX Runtime may keep arithmetic on shapes on the CPU."""


@dataclass(frozen=True)
class OnnxRuntime:
    """Opens ONNX files with one execution provider; never falls back to another."""

    provider: str
    install: str
    """The pip command that brings the provider."""

    def load(self, path: Path, *, threads: int = 0, batch: int = 1) -> Session:
        """See :class:`iekd.deploy.backends.Backend`; the TensorRT provider builds for the batches that it is given."""
        self.require()
        refuse_openvino(path, "ONNX Runtime", "Add --backend openvino, or give the ONNX file.")
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
        if self.provider == TENSORRT_PROVIDER and not _tensorrt_is_here():
            raise EnvironmentMissingError(
                f"this ONNX Runtime has the {self.provider}, but TensorRT's own library (libnvinfer) is not here.",
                "pip install tensorrt",
            )


class OnnxSession:
    """One ONNX file in one ONNX Runtime session.

    Args:
        path: the file; one input (N, C, H, W), one output (N, classes).
        provider: ONNX Runtime's name of it.
        threads: intra-op threads; 0 for the runtime's default.

    Raises:
        InputError: damaged, or not an image classifier.
        EnvironmentMissingError: the provider could not start, or does not compute the network.
    """

    def __init__(self, path: Path, provider: str, threads: int) -> None:
        import onnxruntime

        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), _options(provider, threads), providers=[provider]
            )
        except Exception as error:
            raise InputError(
                f"ONNX Runtime cannot open {path}: {' '.join(str(error).split())[:200]}", "Export the model again."
            ) from error
        if self._session.get_providers()[0] != provider:
            raise EnvironmentMissingError(
                f"{provider} did not start; ONNX Runtime fell back to {self._session.get_providers()[0]}.",
                "See `iekd-compress doctor` for what is missing.",
            )
        self._nodes = "" if provider == CPU_PROVIDER else _placement(self._session, provider)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
            raise InputError(
                f"{path} is not an image classifier with one input (N, C, H, W): its input is {shape}.",
                "Give a file that iekd-compress exported, or one of that form.",
            )
        self.input_shape: tuple[int, int, int] = (shape[1], shape[2], shape[3])
        self._input, self._output = inputs[0].name, outputs[0].name
        self._fixed = shape[0] if isinstance(shape[0], int) else None
        self.batch_range: BatchRange = (self._fixed or 1, self._fixed)
        self._provider, self._threads, self._version = provider, threads, onnxruntime.__version__

    def run(self, images: Array) -> Array:
        """See :class:`iekd.deploy.backends.Session`."""
        session = self._session
        if session is None:
            raise InputError("this session is closed.", "Load the file again.")
        check_images(images, self.input_shape, fixed=self._fixed)
        logits: Array = session.run([self._output], {self._input: np.ascontiguousarray(images)})[0]
        return logits

    def streams(self, count: int, batch: int) -> list[Callable[[Array], Array]]:
        """See :class:`iekd.deploy.throughput.Streaming`: ONNX Runtime's own call may be made from several threads."""
        return [self.run] * count

    def describe(self) -> dict[str, str]:
        """See :class:`iekd.deploy.backends.Session`."""
        found = {
            "backend": f"ONNX Runtime {self._version}",
            "provider": _short(self._provider),
            "threads": f"{self._threads or 'default'} threads",
        }
        return {**found, "nodes": self._nodes} if self._nodes else found

    def close(self) -> None:
        """See :class:`iekd.deploy.backends.Session`."""
        self._session = None


def _options(provider: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if provider != CPU_PROVIDER:
        # CUDA and cuDNN may lie in pip packages, where only this call finds them.
        onnxruntime.preload_dlls()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _placement(session: Any, provider: str) -> str:
    """How many nodes each provider took, in words; a fallback must not pass for the device.

    Raises:
        EnvironmentMissingError: an operator that costs time is left to another provider.
    """
    counts: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(nodes)
        strays = sorted({node.op_type for node in nodes if any(name in node.op_type for name in COMPUTE)})
        if part.ep_name != provider and strays:
            raise EnvironmentMissingError(
                f"{provider} does not compute {', '.join(strays)}: ONNX Runtime left it to {part.ep_name}.",
                "Use the backend 'onnxruntime', or export the model in a precision that the device supports.",
            )
    return ", ".join(f"{number} on {_short(name)}" for name, number in sorted(counts.items()))


def _tensorrt_is_here() -> bool:
    """Can NVIDIA's library be loaded?  GPU builds of ONNX Runtime name their TensorRT provider with and without it."""
    with contextlib.suppress(ImportError):
        import tensorrt  # noqa: F401  (loads the library from its wheel, where a bare name would not find it)
    for major in (10, 11):
        with contextlib.suppress(OSError):
            ctypes.CDLL(f"libnvinfer.so.{major}")
            return True
    return False


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


CPU = OnnxRuntime(CPU_PROVIDER, "pip install 'iekd-compress[cpu]'")
CUDA = OnnxRuntime("CUDAExecutionProvider", "pip install 'iekd-compress[gpu]'")
TENSORRT = OnnxRuntime(TENSORRT_PROVIDER, "pip install 'iekd-compress[gpu]'")
