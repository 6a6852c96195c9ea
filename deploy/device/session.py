"""An engine, loaded and ready to answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .cuda import Cuda
from .engine import this_machine
from .engine_cache import check_engine
from .engine_watch import Watch
from .errors import DeviceInputError

if TYPE_CHECKING:
    from .trt_lane import Lane

Images = NDArray[np.float32]


class EngineSession:
    """One engine on one GPU: pinned buffers, one stream, and a CUDA graph where the network can be captured.

    Reusable, not thread-safe.

    Args:
        path: the engine; its manifest, which must lie beside it, is checked before TensorRT sees the file.
        cuda_graph: launch the network as one graph; ``describe()["cuda graph"]`` says whether that was possible.

    Raises:
        DeviceInputError: missing, damaged, or built for another GPU, platform or TensorRT.
        DeviceMissingError: no GPU, or no TensorRT.
        OutOfMemoryError: the GPU's memory does not hold it.
    """

    def __init__(self, path: Path, *, cuda_graph: bool = True) -> None:
        self._cuda = Cuda()
        self._machine = this_machine(self._cuda)
        self._manifest = check_engine(path, self._machine)
        from .trt_logger import Journal  # these need TensorRT, which this_machine has found by now
        from .trt_runtime import bindings, load_engine

        self._journal = Journal(Watch(), keep=200)
        with self._journal:
            self._runtime, self._engine = load_engine(path, self._manifest, self._journal)
        self._images, self._logits = bindings(self._engine)
        self._cuda_graph = cuda_graph
        self._more: list[Lane] = []
        self._lane: Lane | None = self._new_lane()

    def _new_lane(self) -> Lane:
        from .trt_lane import Lane

        return Lane(self._cuda, self._engine, self._images, self._logits, self._journal, cuda_graph=self._cuda_graph)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width that the engine is tuned for."""
        _, channels, height, width = self._images.usual
        return channels, height, width

    @property
    def least(self) -> int:
        """The smallest batch."""
        return self._images.smallest[0]

    @property
    def most(self) -> int:
        """The largest batch."""
        return self._images.largest[0]

    def run(self, images: Images) -> Images:
        """Logits (N, classes), float32, of a float32 batch (N, C, H, W).

        Raises:
            DeviceInputError: the shape or the type of ``images`` is not the engine's, or the session is closed.
        """
        return self._checked(images).run(images)

    def timed_run(self, images: Images) -> tuple[Images, dict[str, float]]:
        """:meth:`run`, and where its time went, in milliseconds.

        ``h2d``, ``compute`` and ``d2h`` are measured by events on the device.  ``enqueue`` is the host's time to hand
        over the network; near ``compute``, it limits.  ``host`` is the whole call, with the copies into and out of
        pinned memory.
        """
        return self._checked(images).timed(images)

    def streams(self, count: int) -> list[Callable[[Images], Images]]:
        """``count`` functions like :meth:`run`, each for one thread, whose batches overlap; valid until :meth:`close`.

        Each has a context, a stream and buffers of its own.

        Raises:
            DeviceInputError: the session is closed.
            OutOfMemoryError: the GPU's memory does not hold that many.
        """
        self._open_lane()
        first = len(self._more)
        for _ in range(count):
            self._more.append(self._new_lane())
        return [partial(self._run_on, lane) for lane in self._more[first:]]

    def _run_on(self, lane: Lane, images: Images) -> Images:
        self._checked(images)
        return lane.run(images)

    def describe(self) -> dict[str, str]:
        """What identifies this session in a report."""
        options = self._manifest.identity.options
        flags = [name for name in ("tf32", "sparse", "strip_plan") if options.get(name)]
        core = options.get("dla_core")
        return {
            "backend": f"TensorRT {self._machine.tensorrt}",
            "provider": self._machine.gpu if core is None else f"{self._machine.gpu}, DLA {core}",
            "threads": "1 stream",
            "cuda graph": self._lane.graph_state if self._lane else "closed",
            "sm": self._machine.sm,
            "driver": self._machine.driver,
            "options": " ".join(flags) or "none",
            "engine": self._manifest.engine_sha256,
        }

    def close(self) -> None:
        """Give back what the session holds; calling it twice is harmless."""
        lane, self._lane = self._lane, None
        while self._more:
            self._more.pop().close()
        if lane is not None:
            lane.close()
            self._engine = self._runtime = None

    def __enter__(self) -> EngineSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, images: Images) -> Lane:
        """The lane, for a batch that it can run."""
        lane = self._open_lane()
        if images.dtype != np.float32:
            raise DeviceInputError(f"the engine takes float32 images, not {images.dtype}.", "Convert them.")
        low, high = self._images.smallest, self._images.largest
        if images.ndim != 4 or not all(a <= n <= b for a, n, b in zip(low, images.shape, high, strict=True)):
            taken = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(low, high, strict=True))
            raise DeviceInputError(
                f"the engine takes images of shape ({taken}), not {images.shape}.", "Preprocess them as the model says."
            )
        return lane

    def _open_lane(self) -> Lane:
        if self._lane is None:
            raise DeviceInputError("this session is closed.", "Load the engine again.")
        return self._lane
