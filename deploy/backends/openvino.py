"""OpenVINO, for x86 edge boxes: reads the same ONNX files, and those in its own format.

On a processor with AMX or AVX512-BF16 OpenVINO computes float32 files in bfloat16 unless told otherwise.  The
precision lies in the file here: ``openvino`` computes what the file says, ``openvino-bf16`` says by its name that it
does not.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iekd.deploy.backends import Array, BatchRange, Session, check_images
from iekd.deploy.openvino_core import core
from iekd.deploy.openvino_format import INSTALL, is_openvino, weights_beside
from iekd.errors import EnvironmentMissingError, InputError

KEPT_SHAPES = 4
"""Compiled networks that a session keeps, one for each batch size: fixed shapes run 2 to 4 % faster than dynamic ones
(docs/log.md), and a data set needs two, the batch and its remainder."""


@dataclass(frozen=True)
class OpenVino:
    """Opens ONNX and .xml files on the CPU, computing float32 layers in ``precision``."""

    precision: str
    """OpenVINO's name: f32 or bf16.  Layers that the file quantises stay int8."""

    def require(self) -> None:
        """See :class:`iekd.deploy.backends.Backend`."""
        try:
            capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        except ImportError as error:
            raise EnvironmentMissingError("OpenVINO is not installed.", INSTALL) from error
        if self.precision == "bf16" and "BF16" not in capabilities:
            raise EnvironmentMissingError("this processor has no bfloat16.", "Use the backend 'openvino'.")

    def load(self, path: Path, *, threads: int = 0, batch: int = 1) -> Session:
        """See :class:`iekd.deploy.backends.Backend`."""
        self.require()
        if is_openvino(path):
            weights_beside(path)
        elif not path.is_file():
            raise InputError(f"no ONNX file at {path}.", "Check the path.")
        return OpenVinoSession(path, self.precision, threads)


class OpenVinoSession:
    """One file, compiled for one request in flight, anew for each batch size that it meets.

    Args:
        path: the file; one input (N, C, H, W), one output (N, classes).
        precision: of float32 layers, see :class:`OpenVino`.
        threads: 0 for the runtime's default.

    Raises:
        InputError: damaged, or not an image classifier.
    """

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        import openvino

        try:
            self._model: Any = core().read_model(path)
        except Exception as error:
            raise InputError(
                f"OpenVINO cannot open {path}: {' '.join(str(error).split())[:200]}", "Export the model again."
            ) from error
        shape = self._model.inputs[0].partial_shape
        sides = list(shape)[1:] if len(self._model.inputs) == 1 and shape.rank == 4 else []
        if not sides or any(side.is_dynamic for side in sides):
            raise InputError(
                f"{path} is not an image classifier with one input (N, C, H, W): its input is {shape}.",
                "Give a file that iekd-compress exported, or one of that form.",
            )
        channels, height, width = (int(side.get_length()) for side in sides)
        self.input_shape: tuple[int, int, int] = (channels, height, width)
        self._fixed = None if shape[0].is_dynamic else int(shape[0].get_length())
        self.batch_range: BatchRange = (self._fixed or 1, self._fixed)
        self._precision, self._threads, self._version = precision, threads, openvino.__version__
        self._requests: OrderedDict[int, _Request] = OrderedDict()

    def run(self, images: Array) -> Array:
        """See :class:`iekd.deploy.backends.Session`."""
        check_images(images, self.input_shape, fixed=self._fixed)
        return self._request(len(images)).run(images)

    def timed_run(self, images: Array) -> tuple[Array, dict[str, float]]:
        """See :class:`iekd.deploy.benchmark.TimedSession`.

        ``h2d`` is handing over the images and ``d2h`` copying the logits; ``compute`` is OpenVINO's own clock of the
        request, which benchmark_app reports.  What ``host`` has beyond them is the Python binding.
        """
        begun = time.perf_counter()
        check_images(images, self.input_shape, fixed=self._fixed)
        request = self._request(len(images))
        handing = time.perf_counter()
        request.hand_over(images)
        handed = time.perf_counter()
        request.compute()
        computed = time.perf_counter()
        logits = request.logits()
        ended = time.perf_counter()
        seconds = {"h2d": handed - handing, "d2h": ended - computed, "host": ended - begun}
        return logits, {**{name: value * 1e3 for name, value in seconds.items()}, "compute": request.milliseconds}

    def streams(self, count: int, batch: int) -> list[Callable[[Array], Array]]:
        """See :class:`iekd.deploy.throughput.Streaming`: compiled once for throughput, one request a stream."""
        compiled = self._compile(batch, PERFORMANCE_HINT="THROUGHPUT", NUM_STREAMS=count)
        return [_Request(compiled).run for _ in range(count)]

    def describe(self) -> dict[str, str]:
        """See :class:`iekd.deploy.backends.Session`."""
        return {
            "backend": f"OpenVINO {self._version.partition('-')[0]}",
            "provider": f"CPU {self._precision}",
            "threads": f"{self._threads or 'default'} threads",
        }

    def close(self) -> None:
        """See :class:`iekd.deploy.backends.Session`."""
        self._model = None
        self._requests.clear()

    def _request(self, batch: int) -> _Request:
        if batch not in self._requests:
            self._requests[batch] = _Request(self._compile(batch, PERFORMANCE_HINT="LATENCY", NUM_STREAMS=1))
            if len(self._requests) > KEPT_SHAPES:
                self._requests.popitem(last=False)
        self._requests.move_to_end(batch)
        return self._requests[batch]

    def _compile(self, batch: int, **hints: str | int) -> Any:
        if self._model is None:
            raise InputError("this session is closed.", "Load the file again.")
        twin = self._model.clone()
        twin.reshape([batch, *self.input_shape])
        settings = {"INFERENCE_PRECISION_HINT": self._precision, **hints}
        if self._threads:
            settings["INFERENCE_NUM_THREADS"] = self._threads
        return core().compile_model(twin, "CPU", settings)


class _Request:
    """One request of a network compiled for a fixed shape.

    Its three steps, called one by one, cost a quarter of a millisecond less a call than ``infer(images)``, which sorts
    out what it was given each time (docs/log.md).
    """

    def __init__(self, compiled: Any) -> None:
        import openvino

        self._tensor = openvino.Tensor
        self._request = compiled.create_infer_request()
        self._answer: Array = self._request.get_output_tensor().data  # of a fixed shape, so it stays where it is
        self._images: Array | None = None

    def run(self, images: Array) -> Array:
        """Logits (N, classes) of checked images."""
        self.hand_over(images)
        self.compute()
        return self.logits()

    def hand_over(self, images: Array) -> None:
        """Let the request read the images where they lie; OpenVINO takes none that are read-only or strided."""
        self._images = images if images.flags.carray else images.copy()
        self._request.set_input_tensor(self._tensor(self._images, shared_memory=True))

    def compute(self) -> None:
        """Run the network."""
        self._request.infer(share_outputs=True)

    def logits(self) -> Array:
        """A copy, for the request writes over its own next time."""
        copy: Array = self._answer.copy()
        return copy

    @property
    def milliseconds(self) -> float:
        """Of the last ``compute``, by OpenVINO's own clock."""
        return float(self._request.latency)


EXACT = OpenVino("f32")
BF16 = OpenVino("bf16")
