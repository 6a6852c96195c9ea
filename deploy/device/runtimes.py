"""From a model's ONNX file to a session of the runtime that the user chose; never to another."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .manifest import sha256_of
from .measure import Session
from .onnx_session import OnnxSession
from .parts import require_onnxruntime, require_tensorrt

RUNTIMES = ("tensorrt", "onnxruntime")


def require(runtime: str) -> str:
    """The version of ``runtime``.

    Raises:
        MissingPartError: it is not on this board.
    """
    module = require_tensorrt() if runtime == "tensorrt" else require_onnxruntime()
    return str(module.__version__)


def open_session(
    runtime: str, onnx: Path, cache: Path, *, threads: int, say: Callable[[str], None]
) -> tuple[Session, dict[str, Any] | None]:
    """A session of ``onnx``, and what is known of its engine (None where the runtime has none).

    Args:
        runtime: of ``RUNTIMES``.
        onnx: the model.
        cache: folder of built engines; TensorRT builds only what is not there.
        threads: for ONNX Runtime; 0 for its default.
        say: is told what goes on.

    Raises:
        DeviceError: the file is not what the runtime takes, or the engine cannot be built.
        MissingPartError: the runtime is not on this board.
    """
    require(runtime)
    if runtime == "onnxruntime":
        return OnnxSession(onnx, threads=threads), None
    from .engine import BuildSettings, build_engine
    from .session import EngineSession

    start = time.perf_counter()
    plan = build_engine(onnx, BuildSettings(), cache, log=say)
    seconds = time.perf_counter() - start
    engine = {
        "file": plan.name,
        "sha256": sha256_of(plan),
        "bytes": plan.stat().st_size,
        "seconds": round(seconds, 3),
    }
    return EngineSession(plan, cuda_graph=True), engine
