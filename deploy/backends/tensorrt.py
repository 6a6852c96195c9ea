"""TensorRT, on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from iekd.deploy.backends import Array, BatchRange, Session
from iekd.deploy.device.engine import BuildSettings, this_machine
from iekd.deploy.device.session import EngineSession
from iekd.deploy.engine import build, domain_errors
from iekd.deploy.openvino_format import refuse_openvino
from iekd.errors import InputError


class TensorRT:
    """Opens engines; an ONNX file is first built into the user's engine cache.

    Args:
        settings: of such a build.
        cuda_graph: launch the network as one graph where it can be captured.
    """

    def __init__(self, settings: BuildSettings | None = None, *, cuda_graph: bool = True) -> None:
        self.settings = settings or BuildSettings()
        self.cuda_graph = cuda_graph

    def require(self) -> None:
        """See :class:`iekd.deploy.backends.Backend`."""
        with domain_errors():
            this_machine()

    def load(self, path: Path, *, threads: int = 0, batch: int = 1) -> Session:
        """See :class:`iekd.deploy.backends.Backend`; ``threads`` means nothing to a GPU.

        An ONNX file is built for at least ``batch``; an engine takes what it was built for.
        """
        self.require()
        refuse_openvino(path, "TensorRT", "Give the ONNX file, or measure this one with --backend openvino.")
        if not path.is_file():
            raise InputError(f"no engine or ONNX file at {path}.", "Check the path.")
        engine = build(path, self.settings.covering(batch)).path if path.suffix == ".onnx" else path
        with domain_errors():
            return TensorRTSession(EngineSession(engine, cuda_graph=self.cuda_graph))


class TensorRTSession:
    """A device's session, with the host's errors."""

    def __init__(self, session: EngineSession) -> None:
        self._session = session

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """See :class:`iekd.deploy.backends.Session`."""
        return self._session.input_shape

    @property
    def batch_range(self) -> BatchRange:
        """See :class:`iekd.deploy.backends.Session`."""
        return self._session.least, self._session.most

    def run(self, images: Array) -> Array:
        """See :class:`iekd.deploy.backends.Session`."""
        with domain_errors():
            return self._session.run(images)

    def timed_run(self, images: Array) -> tuple[Array, dict[str, float]]:
        """See :class:`iekd.deploy.benchmark.TimedSession`, measured by the device's events."""
        with domain_errors():
            return self._session.timed_run(images)

    @property
    def policy(self) -> str:
        """How a call waits and launches; part of what a latency says of itself."""
        return f"transfers included, cudaStreamSynchronize, CUDA graph {self.describe()['cuda graph']}"

    def streams(self, count: int, batch: int) -> list[Callable[[Array], Array]]:
        """See :class:`iekd.deploy.throughput.Streaming`: a context, a stream and buffers for each."""
        with domain_errors():
            calls = self._session.streams(count)
        return [partial(_in_domain, call) for call in calls]

    def describe(self) -> dict[str, str]:
        """See :class:`iekd.deploy.backends.Session`."""
        return self._session.describe()

    def close(self) -> None:
        """See :class:`iekd.deploy.backends.Session`."""
        self._session.close()


def _in_domain(call: Callable[[Array], Array], images: Array) -> Array:
    with domain_errors():
        return call(images)


TENSORRT = TensorRT()
