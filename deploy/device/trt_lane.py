"""One lane of inference: an execution context, its stream, its buffers and its CUDA graph.

A session has one; overlapping several is what throughput is made of.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import tensorrt as trt
from numpy.typing import NDArray

from .cuda import Cuda
from .cuda_stream import DeviceBuffer, Event, Graph, PinnedBuffer, Stream
from .errors import DeviceError, OutOfMemoryError
from .trt_logger import Journal
from .trt_runtime import Binding, Shape

Images = NDArray[np.float32]


class Lane:
    """Runs batches of an engine, one at a time.

    Args:
        cuda: the runtime.
        engine: of one input and one output.
        images: the input.
        logits: the output.
        journal: TensorRT's log.
        cuda_graph: launch the whole network at once where it can be captured.
    """

    def __init__(
        self,
        cuda: Cuda,
        engine: trt.ICudaEngine,
        images: Binding,
        logits: Binding,
        journal: Journal,
        *,
        cuda_graph: bool,
    ) -> None:
        self._images, self._logits, self._journal = images, logits, journal
        self._opened: list[Any] = []
        self._cuda = cuda
        self._graph: Graph | None = None
        self._wants_graph = cuda_graph
        self.graph_state = "not captured yet" if cuda_graph else "off"
        """What ``describe`` says of the CUDA graph: captured, off, or why not."""
        self._shape: Shape = ()
        self._warm = False
        try:
            with journal:
                self._open(cuda, engine)
        except BaseException:
            self.close()
            raise

    def _open(self, cuda: Cuda, engine: trt.ICudaEngine) -> None:
        context: trt.IExecutionContext | None = engine.create_execution_context()
        if context is None:
            raise OutOfMemoryError("the GPU's memory does not hold another context.", "Use fewer streams.")
        self._context: trt.IExecutionContext | None = context
        self.stream = self._keep(Stream(cuda))
        if not context.set_optimization_profile_async(0, self.stream.pointer):
            raise self._journal.failure()
        self._host_in, self._device_in = self._buffers(cuda, self._images)
        self._host_out, self._device_out = self._buffers(cuda, self._logits)
        self._events = [self._keep(Event(cuda)) for _ in range(4)]
        for binding, buffer in ((self._images, self._device_in), (self._logits, self._device_out)):
            if not context.set_tensor_address(binding.name, buffer.pointer):
                raise self._journal.failure()
        self.stream.synchronize()

    def _keep(self, resource: Any) -> Any:
        self._opened.append(resource)
        return resource

    def _buffers(self, cuda: Cuda, binding: Binding) -> tuple[PinnedBuffer, DeviceBuffer]:
        count = int(np.prod(binding.largest))
        pinned = self._keep(PinnedBuffer(cuda, count, binding.dtype))
        return pinned, self._keep(DeviceBuffer(cuda, count * binding.dtype.itemsize))

    def run(self, images: Images) -> Images:
        """Logits (N, classes) of a checked batch (N, C, H, W)."""
        self.submit(images)
        return self.collect()

    def submit(self, images: Images) -> None:
        """Begin a batch; ``collect`` must follow before the next."""
        self._fill(images)
        self.stream.upload(self._device_in, self._host_in, self._bytes_in)
        self._launch()
        self.stream.download(self._host_out, self._device_out, self._bytes_out)

    def collect(self) -> Images:
        """Wait for the batch begun, and copy its logits out of the pinned buffer."""
        self.stream.synchronize()
        count = len(self._rows) * self._logits.largest[1]
        return self._host_out.array[:count].reshape(len(self._rows), -1).astype(np.float32)

    def timed(self, images: Images) -> tuple[Images, dict[str, float]]:
        """:meth:`run`, with the milliseconds that :meth:`session.EngineSession.timed_run` tells of."""
        begun = time.perf_counter()
        self._fill(images)
        before, uploaded, computed, downloaded = self._events
        before.record(self.stream)
        self.stream.upload(self._device_in, self._host_in, self._bytes_in)
        uploaded.record(self.stream)
        enqueue = time.perf_counter()
        self._launch()
        enqueued = time.perf_counter()
        computed.record(self.stream)
        self.stream.download(self._host_out, self._device_out, self._bytes_out)
        downloaded.record(self.stream)
        logits = self.collect()
        host = time.perf_counter() - begun
        return logits, {
            "h2d": uploaded.since(before),
            "compute": computed.since(uploaded),
            "d2h": downloaded.since(computed),
            "enqueue": (enqueued - enqueue) * 1e3,
            "host": host * 1e3,
        }

    def _fill(self, images: Images) -> None:
        """Put a batch into the pinned buffer, and tell TensorRT its shape where that is new."""
        if images.shape != self._shape:
            self._reshape(images.shape)
        self._rows = range(len(images))
        self._bytes_in = images.size * self._images.dtype.itemsize
        self._bytes_out = len(images) * self._logits.largest[1] * self._logits.dtype.itemsize
        np.copyto(self._host_in.array[: images.size].reshape(images.shape), images, casting="same_kind")

    def _reshape(self, shape: Shape) -> None:
        """A graph is bound to the shape that it was captured with, and to a context left as it was."""
        self._drop_graph()
        context: trt.IExecutionContext | None = self._context
        with self._journal:
            if context is None or not context.set_input_shape(self._images.name, shape):
                raise self._journal.failure()
        self._shape, self._warm = shape, False

    def _launch(self) -> None:
        """Put the network into the stream: as a graph where there is one, captured on the second call of a shape.

        TensorRT must have run a shape once before it can be captured; and a shape that never comes back, such as the
        last batch of a data set, is not worth a capture.
        """
        if self._graph is None and self._wants_graph and self._warm:
            self._capture()
        if self._graph is not None:
            self._graph.launch(self.stream)
        else:
            self._enqueue()
        self._warm = True

    def _enqueue(self) -> None:
        context: trt.IExecutionContext | None = self._context
        with self._journal:
            if context is None or not context.execute_async_v3(self.stream.pointer):
                raise self._journal.failure("[E] the engine did not run")

    def _capture(self) -> None:
        """Capture the network, or go on without for good and say why."""
        self.stream.synchronize()
        self.stream.begin_capture()
        try:
            self._enqueue()
            self._graph = self.stream.end_capture()
        except DeviceError as error:
            self.stream.abandon_capture()
            self._wants_graph = False
            self.graph_state = f"not possible: {error.message}"
        else:
            self.graph_state = "captured"

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self.stream.synchronize()
            self._graph.close()
            self._graph = None

    def close(self) -> None:
        """Give back memory, stream and context; calling it twice is harmless."""
        self._drop_graph()
        self._context = None
        while self._opened:
            self._opened.pop().close()
