"""Memory, streams, events and graphs of CUDA, as objects with ``close()``; whoever makes one closes it."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cuda import Cuda

_NON_BLOCKING = 1
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_CAPTURE_THREAD_LOCAL = 1


class _Resource:
    """Something of CUDA's behind a pointer, given back once."""

    _destroy = ""

    def __init__(self, cuda: Cuda, pointer: int) -> None:
        self.cuda = cuda
        self.pointer = pointer

    def close(self) -> None:
        """Give it back; calling it twice is harmless."""
        pointer, self.pointer = self.pointer, 0
        if pointer:
            self.cuda.call(self._destroy, pointer)


class DeviceBuffer(_Resource):
    """Device memory of ``nbytes`` bytes."""

    _destroy = "cudaFree"

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        super().__init__(cuda, cuda.handle("cudaMalloc", nbytes))
        self.nbytes = nbytes


class PinnedBuffer(_Resource):
    """Page-locked host memory, as a flat numpy array; only such memory is copied without a detour.

    Args:
        cuda: the runtime.
        count: of elements.
        dtype: of an element.
    """

    _destroy = "cudaFreeHost"

    def __init__(self, cuda: Cuda, count: int, dtype: np.dtype[Any]) -> None:
        nbytes = count * dtype.itemsize
        super().__init__(cuda, cuda.handle("cudaMallocHost", nbytes))
        memory = memoryview((ctypes.c_char * nbytes).from_address(self.pointer))
        self.array: NDArray[Any] = np.frombuffer(memory, dtype=dtype, count=count)
        """Must not be used after ``close()``."""


class Event(_Resource):
    """A point in a stream, with its time."""

    _destroy = "cudaEventDestroy"

    def __init__(self, cuda: Cuda) -> None:
        super().__init__(cuda, cuda.handle("cudaEventCreateWithFlags", 0))

    def record(self, stream: Stream) -> None:
        """Put the event behind what the stream holds."""
        self.cuda.call("cudaEventRecord", self.pointer, stream.pointer)

    def synchronize(self) -> None:
        """Wait until the stream has passed the event."""
        self.cuda.call("cudaEventSynchronize", self.pointer)

    def since(self, earlier: Event) -> float:
        """Milliseconds between two events that have passed."""
        milliseconds = c_float()
        self.cuda.call("cudaEventElapsedTime", ctypes.byref(milliseconds), earlier.pointer, self.pointer)
        return float(milliseconds.value)


class Graph(_Resource):
    """A captured piece of a stream, ready to be launched at once."""

    _destroy = "cudaGraphExecDestroy"

    def __init__(self, cuda: Cuda, graph: int) -> None:
        try:
            super().__init__(cuda, cuda.handle("cudaGraphInstantiateWithFlags", graph, 0))
        finally:
            cuda.call("cudaGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        """Put the captured work into the stream."""
        self.cuda.call("cudaGraphLaunch", self.pointer, stream.pointer)


class Stream(_Resource):
    """An order of work on the device, independent of the default stream."""

    _destroy = "cudaStreamDestroy"

    def __init__(self, cuda: Cuda) -> None:
        super().__init__(cuda, cuda.handle("cudaStreamCreateWithFlags", _NON_BLOCKING))

    def upload(self, to: DeviceBuffer, source: PinnedBuffer, nbytes: int) -> None:
        """Begin to copy ``nbytes`` from the host."""
        self.cuda.call("cudaMemcpyAsync", to.pointer, source.pointer, nbytes, _HOST_TO_DEVICE, self.pointer)

    def download(self, to: PinnedBuffer, source: DeviceBuffer, nbytes: int) -> None:
        """Begin to copy ``nbytes`` to the host."""
        self.cuda.call("cudaMemcpyAsync", to.pointer, source.pointer, nbytes, _DEVICE_TO_HOST, self.pointer)

    def synchronize(self) -> None:
        """Wait until all of it is done."""
        self.cuda.call("cudaStreamSynchronize", self.pointer)

    def begin_capture(self) -> None:
        """From here on, work is recorded instead of done."""
        self.cuda.call("cudaStreamBeginCapture", self.pointer, _CAPTURE_THREAD_LOCAL)

    def end_capture(self) -> Graph:
        """The work recorded since ``begin_capture``.

        Raises:
            DeviceError: something in it cannot be captured; the stream is usable again.
        """
        graph = c_void_p()
        self.cuda.call("cudaStreamEndCapture", self.pointer, ctypes.byref(graph))
        return Graph(self.cuda, graph.value or 0)

    def abandon_capture(self) -> None:
        """End a capture whose content is not wanted; never raises, as a broken capture is why it is called."""
        graph = c_void_p()
        failed = self.cuda.code_of("cudaStreamEndCapture", self.pointer, ctypes.byref(graph))
        if graph.value and not failed:
            self.cuda.code_of("cudaGraphDestroy", graph.value)
