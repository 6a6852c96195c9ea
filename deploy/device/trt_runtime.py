"""Loading an engine with TensorRT 10.3 to 11.  Imported only once TensorRT has been found.

TensorRT's objects are annotated where they are made; see ``trt_build``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt

from .engine_cache import Manifest, onnx_sha256
from .engine_watch import Watch
from .errors import DeviceInputError
from .trt_logger import LOGGER, Journal

Shape = tuple[int, ...]
NOTHING_RETURNED = "[E] TensorRT returned nothing, as it does where there is no CUDA-capable device."


@dataclass(frozen=True)
class Binding:
    """The one input or the one output of an engine."""

    name: str
    dtype: np.dtype[Any]
    smallest: Shape
    usual: Shape
    largest: Shape
    """Shapes with the batch; for an output only the largest is known."""


def make_builder(journal: Journal) -> trt.Builder:
    """A builder.

    Raises:
        DeviceMissingError: TensorRT finds no GPU.
    """
    try:
        return trt.Builder(LOGGER)
    except TypeError as error:  # how the bindings say that the library returned nothing
        raise journal.failure(NOTHING_RETURNED) from error


def dla_cores() -> int:
    """How many Deep Learning Accelerators this device has: 2 on most Orins, none on a discrete GPU or on Thor."""
    with Journal(Watch()) as journal:
        builder: trt.Builder = make_builder(journal)
        return int(builder.num_DLA_cores)


def make_runtime(journal: Journal, *, host_code: bool, dla_core: int | None) -> trt.Runtime:
    """A runtime.

    Args:
        journal: TensorRT's log.
        host_code: let engines run code of their own on the host, as version-compatible ones must; only for files whose
            digest has been checked.
        dla_core: the Deep Learning Accelerator of the engines that it loads.

    Raises:
        DeviceMissingError: TensorRT finds no GPU.
    """
    try:
        runtime: trt.Runtime = trt.Runtime(LOGGER)
    except TypeError as error:
        raise journal.failure(NOTHING_RETURNED) from error
    if host_code:
        runtime.engine_host_code_allowed = True
    if dla_core is not None:  # an engine takes the core of the runtime that loads it, not the one that it was built for
        runtime.DLA_core = dla_core
    return runtime


def load_engine(path: Path, manifest: Manifest, journal: Journal) -> tuple[trt.Runtime, trt.ICudaEngine]:
    """A checked engine file, with its weights; the runtime must live as long as the engine.

    Raises:
        DeviceInputError: TensorRT does not take it, or its weights are not to be had.
        DeviceMissingError: TensorRT finds no GPU.
    """
    options = manifest.identity.options
    host_code, dla_core = bool(options.get("version_compatible")), options.get("dla_core")
    runtime: trt.Runtime = make_runtime(journal, host_code=host_code, dla_core=dla_core)
    engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise journal.failure("[E] Engine deserialization failed.")
    if options.get("strip_plan"):
        _refit(engine, manifest, journal)
    return runtime, engine


def _refit(engine: trt.ICudaEngine, manifest: Manifest, journal: Journal) -> None:
    """Put the weights of the ONNX file into a stripped engine."""
    onnx = Path(manifest.onnx)
    if not onnx.is_file() or onnx_sha256(onnx) != manifest.identity.onnx_sha256:
        raise DeviceInputError(
            f"the engine holds no weights, and {onnx}, which has them, is missing or changed.",
            "Put the ONNX file back, or build without strip_plan.",
        )
    refitter: trt.Refitter = trt.Refitter(engine, LOGGER)
    parser: trt.OnnxParserRefitter = trt.OnnxParserRefitter(refitter, LOGGER)
    if not parser.refit_from_file(str(onnx)) or not refitter.refit_cuda_engine():
        raise journal.failure(f"[E] {onnx} could not be put into the engine.")


def bindings(engine: trt.ICudaEngine) -> tuple[Binding, Binding]:
    """Input and output of an image classifier.

    Raises:
        DeviceInputError: it has others.
    """
    names = [str(engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
    if len(inputs) != 1 or len(outputs) != 1 or len(tuple(engine.get_tensor_shape(inputs[0]))) != 4:
        raise DeviceInputError(f"the engine is not an image classifier: {names}.", "Give one input and one output.")
    smallest, usual, largest = (tuple(dims) for dims in engine.get_tensor_profile_shape(inputs[0], 0))
    images = Binding(inputs[0], _numpy_type(engine, inputs[0]), smallest, usual, largest)
    classes = tuple(engine.get_tensor_shape(outputs[0]))[1:]
    if len(classes) != 1 or classes[0] < 1:
        raise DeviceInputError(f"the engine's output is (N, {classes}), not (N, classes).", "Give an image classifier.")
    shape = (largest[0], *classes)
    return images, Binding(outputs[0], _numpy_type(engine, outputs[0]), shape, shape, shape)


def _numpy_type(engine: trt.ICudaEngine, name: str) -> np.dtype[Any]:
    kind: trt.DataType = engine.get_tensor_dtype(name)
    for known, dtype in ((trt.DataType.FLOAT, np.float32), (trt.DataType.HALF, np.float16)):
        if kind == known:
            return np.dtype(dtype)
    raise DeviceInputError(
        f"the engine's {name} is {kind}, not float32 or float16.", "Keep inputs and outputs in float32 when converting."
    )
