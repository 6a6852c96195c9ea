"""What pruning gained, measured on the files that would ship rather than counted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from iekd.deploy.backends import get_backend
from iekd.deploy.benchmark import LatencyRun, measure_latency
from iekd.deploy.export import export_onnx
from iekd.models.preprocessing import Preprocessing


def measure_networks(
    networks: Mapping[str, nn.Module | bytes],
    *,
    image_size: int,
    classes: int,
    backend: str = "onnxruntime",
    threads: int = 1,
    seconds: float = 1.0,
) -> LatencyRun:
    """Export each network and measure all of them in one interleaved run, one image a call.

    Args:
        networks: by name; of the same input and classes.  Bytes are a file that was exported before.
        image_size: height and width, pixels.
        classes: how many logits they put out.
        backend: a name of :data:`iekd.deploy.backends.BACKENDS` that opens ONNX files.
        threads: of the session.
        seconds: measured for each.
    """
    runtime = get_backend(backend)
    noise = np.random.default_rng(0).standard_normal((16, 3, image_size, image_size)).astype(np.float32)
    sessions = {}
    with tempfile.TemporaryDirectory(prefix="iekd-prune-") as text:
        folder = Path(text)
        try:
            for name, network in networks.items():
                path = folder / f"{name}.onnx"
                path.write_bytes(network if isinstance(network, bytes) else exported(network, image_size, classes))
                sessions[name] = runtime.load(path, threads=threads)
            return measure_latency(sessions, noise, folder=folder, seconds=seconds)
        finally:
            for session in sessions.values():
                session.close()


def exported(network: nn.Module, image_size: int, classes: int) -> bytes:
    """The ONNX file of a network."""
    names = tuple(str(number) for number in range(classes))
    with tempfile.TemporaryDirectory(prefix="iekd-prune-") as text:
        path = Path(text) / "network.onnx"
        export_onnx(network, path, preprocessing=Preprocessing(size=image_size), classes=names, name="network")
        return path.read_bytes()


def onnx_latency(**how: Any) -> Callable[[nn.Module], float]:
    """A measure for the goal :class:`~iekd.compress.pruning.goals.Latency`: median milliseconds of the exported file.

    Args:
        how: as :func:`measure_networks` takes it.
    """

    def measure(network: nn.Module) -> float:
        return measure_networks({"network": network}, **how).latency["network"].median.value

    return measure


def latency_beside(whole: nn.Module, **how: Any) -> Callable[[nn.Module], float]:
    """A measure for :class:`~iekd.compress.pruning.goals.LatencyShare`: median latency of the exported file over that
    of ``whole``, the two interleaved in each measurement.

    Args:
        whole: exported once.
        how: as :func:`measure_networks` takes it.
    """
    file = exported(whole, how["image_size"], how["classes"])

    def measure(network: nn.Module) -> float:
        return 1 / measure_networks({"whole": file, "network": network}, **how).ratio("whole", "network").value

    return measure
