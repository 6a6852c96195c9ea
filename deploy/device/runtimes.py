"""From a model's ONNX file to a session of the runtime that the user chose; never to another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine_settings import BuildSettings
from .errors import DeviceError
from .inspector import describe, inspect_engine
from .manifest import sha256_of
from .measure import Session
from .onnx_session import OnnxSession
from .parts import require_onnxruntime, require_tensorrt

RUNTIMES = ("tensorrt", "onnxruntime")


def require(runtime: str) -> str:
    """The version of ``runtime``.

    Raises:
        DeviceMissingError: it is not on this board.
    """
    module = require_tensorrt() if runtime == "tensorrt" else require_onnxruntime()
    return str(module.__version__)


class _Tenths:
    """Tells each new tenth of a build, which may take minutes, and not its hundreds of steps."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self._what, self._say, self._told = what, say, 0

    def __call__(self, share: float, phase: str) -> None:
        tenth = int(10 * share)
        if tenth > self._told:
            self._told = tenth
            self._say(f"{self._what} {tenth * 10} %")


@dataclass(frozen=True)
class Ready:
    """What a session is opened of."""

    runtime: str
    file: Path
    """The model, or the engine built of it."""
    engine: dict[str, Any] | None = None
    """What is known of the engine; None where the runtime has none."""


def prepare(runtime: str, onnx: Path, cache: Path, *, settings: BuildSettings, say: Callable[[str], None]) -> Ready:
    """Build the engine of ``onnx`` where the runtime has engines; nothing stays in the device's memory.

    Args:
        runtime: of ``RUNTIMES``.
        onnx: the model.
        cache: folder of built engines; TensorRT builds only what is not there.
        settings: of the build.
        say: is told what goes on.

    Raises:
        DeviceError: the engine cannot be built.
        DeviceMissingError: the runtime is not on this board.
    """
    require(runtime)
    if runtime == "onnxruntime":
        return Ready(runtime, onnx)
    from .engine import build_engine

    start = time.perf_counter()
    plan = build_engine(onnx, settings, cache, progress=_Tenths(f"{onnx.stem}: building", say))
    seconds = time.perf_counter() - start
    engine: dict[str, Any] = {
        "file": plan.name,
        "sha256": sha256_of(plan),
        "bytes": plan.stat().st_size,
        "seconds": round(seconds, 3),
        "layers": inspect_engine(plan),
    }
    say(f"{onnx.stem}: {describe(engine['layers'], dla=settings.dla_core is not None)}")
    return Ready(runtime, plan, engine)


def accelerator_note(runtime: str) -> str | None:
    """The command that measures on a Deep Learning Accelerator, where a probe finds one.

    It is not measured unasked: it takes engines of its own, and is there to spare the GPU more than to be faster.
    """
    if runtime != "tensorrt":
        return None
    from .engine import dla_cores

    try:
        found = dla_cores()
    except DeviceError as error:  # not worth the run: the engines are built
        return f"No word on Deep Learning Accelerators: {error}"
    if not found:
        return None
    them = f"{found} Deep Learning Accelerator{'s' if found > 1 else ''}"
    return (
        f"This board has {them}: python3 run.py --dla 0 --output on-dla measures there.  Look at fp16: what an "
        "accelerator does not take runs on the GPU all the same, as all of fp32 does and Q/DQ of int8 may."
    )


def open_session(ready: Ready, *, threads: int) -> Session:
    """A session of what was prepared.

    Args:
        ready: by :func:`prepare`.
        threads: for ONNX Runtime; 0 for its default.

    Raises:
        DeviceError: the file is not what the runtime takes, or the device's memory does not hold it.
    """
    if ready.runtime == "onnxruntime":
        return OnnxSession(ready.file, threads=threads)
    from .session import EngineSession

    return EngineSession(ready.file, cuda_graph=True)
