"""From an ONNX file to an engine in the cache."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable
from pathlib import Path

from .cuda import Cuda
from .engine_cache import Built, Identity, Machine, cached_engine, onnx_sha256, write_whole
from .engine_settings import BuildSettings
from .engine_watch import Log, Progress, Watch, run_watched
from .errors import DeviceError, DeviceInputError
from .trt_version import require_tensorrt

__all__ = ["BuildSettings", "build_engine", "dla_cores", "this_machine"]

Builder = Callable[[Path, BuildSettings, bytes, Watch], Built]
"""Builds an engine: the ONNX file, settings, the timing cache so far, and what watches."""


def build_engine(
    onnx: Path, settings: BuildSettings, cache: Path, *, progress: Progress | None = None, log: Log | None = None
) -> Path:
    """The engine for ``onnx`` on this machine, out of the cache or built into it.

    The network is always strongly typed: each layer computes in the type that the file gives it.  Ctrl-C stops the
    build within a step of TensorRT's and leaves the cache as it was.

    Args:
        onnx: an image classifier, one input (N, C, H, W), one output (N, classes).
        settings: how to build.
        cache: folder of engines.
        progress: called with the share done and the phase, in the caller's thread.
        log: called with each line of TensorRT's log and of the cache's, in the caller's thread.

    Raises:
        DeviceInputError: the file or a setting cannot be used; an unsupported operator is named with its node.
        DeviceMissingError: no GPU, no TensorRT or one older than 10.3.
        OutOfMemoryError: the build needs more memory.
        BuildError: TensorRT gave up for another reason; its log lies beside the cache.
        DeviceError: the cache cannot be written.
    """
    settings.check()
    if not onnx.is_file():
        raise DeviceInputError(f"no ONNX file at {onnx}.", "Check the path.")
    identity = Identity(onnx_sha256(onnx), this_machine(), settings.as_dict())
    return build_into(onnx, settings, cache, identity, _tensorrt_builder(), progress=progress, log=log)


def build_into(
    onnx: Path,
    settings: BuildSettings,
    cache: Path,
    identity: Identity,
    builder: Builder,
    *,
    progress: Progress | None = None,
    log: Log | None = None,
) -> Path:
    """:func:`build_engine` with a given machine and a given builder."""

    def build(timing: bytes) -> Built:
        watch = Watch()
        try:
            return run_watched(lambda w: builder(onnx, settings, timing, w), watch, progress=progress, log=log)
        except DeviceError as error:
            path = cache / f"{onnx.stem}-{identity.key}.log"
            with contextlib.suppress(DeviceError):  # a full disk must not hide why the build failed
                write_whole(path, "\n".join([*watch.lines, ""]).encode())
                error.hint = f"{error.hint}  Log: {path}".strip()
            raise

    return cached_engine(cache, onnx, identity, build, log=log)


def this_machine(cuda: Cuda | None = None) -> Machine:
    """What engines built here are bound to.

    Raises:
        DeviceMissingError: no TensorRT or one older than 10.3, no CUDA runtime, or no GPU.
    """
    version = require_tensorrt()
    device = (cuda or Cuda()).device()
    return Machine(
        tensorrt=version,
        gpu=device.name,
        sm=device.sm,
        driver=device.driver,
        platform=f"{platform.system()} {platform.machine()}",
    )


def dla_cores() -> int:
    """How many Deep Learning Accelerators this device has.

    Raises:
        DeviceMissingError: no TensorRT or one older than 10.3, or no GPU.
    """
    require_tensorrt()
    from .trt_runtime import dla_cores as probe

    return probe()


def _tensorrt_builder() -> Builder:
    from .trt_build import build  # needs TensorRT, which require_tensorrt has found by now

    return build
