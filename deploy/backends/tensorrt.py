"""TensorRT, on an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path

from iekd.deploy.backends import Array, Session
from iekd.deploy.device.engine import BuildSettings, this_machine
from iekd.deploy.device.session import EngineSession
from iekd.deploy.engine import build, domain_errors
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

    def load(self, path: Path, *, threads: int = 0) -> Session:
        """See :class:`iekd.deploy.backends.Backend`; ``threads`` means nothing to a GPU."""
        self.require()
        if not path.is_file():
            raise InputError(f"no engine or ONNX file at {path}.", "Check the path.")
        engine = build(path, self.settings).path if path.suffix == ".onnx" else path
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
    def most(self) -> int:
        """The largest batch."""
        return self._session.most

    def run(self, images: Array) -> Array:
        """See :class:`iekd.deploy.backends.Session`."""
        with domain_errors():
            return self._session.run(images)

    def timed_run(self, images: Array) -> tuple[Array, dict[str, float]]:
        """See :meth:`iekd.deploy.device.session.EngineSession.timed_run`."""
        with domain_errors():
            return self._session.timed_run(images)

    def throughput(self, images: Array, *, streams: int = 2, seconds: float = 3.0) -> float:
        """See :meth:`iekd.deploy.device.session.EngineSession.throughput`."""
        with domain_errors():
            return self._session.throughput(images, streams=streams, seconds=seconds)

    def describe(self) -> dict[str, str]:
        """See :class:`iekd.deploy.backends.Session`."""
        return self._session.describe()

    def close(self) -> None:
        """See :class:`iekd.deploy.backends.Session`."""
        self._session.close()


TENSORRT = TensorRT()
