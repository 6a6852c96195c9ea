"""TensorRT's log and progress, handed to a :class:`Watch`.  Imported only once TensorRT has been found."""

from __future__ import annotations

import threading
from types import TracebackType

import tensorrt as trt

from .engine_watch import Watch
from .errors import DeviceError
from .explain import explain

_LETTERS = {
    trt.ILogger.Severity.INTERNAL_ERROR: "F",
    trt.ILogger.Severity.ERROR: "E",
    trt.ILogger.Severity.WARNING: "W",
    trt.ILogger.Severity.INFO: "I",
}


class _Logger(trt.ILogger):  # type: ignore[misc]
    """Passes on what TensorRT says to the journals that listen."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._lock = threading.Lock()
        self._listening: tuple[Journal, ...] = ()

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from any thread; never waits for one that begins or ends to listen."""
        for journal in dict.fromkeys(self._listening):  # once each, however many threads are in its block
            journal.log(severity, msg)

    def begin(self, journal: Journal) -> None:
        """``journal`` listens."""
        with self._lock:
            self._listening = (*self._listening, journal)

    def end(self, journal: Journal) -> None:
        """It listens no more, where as many ended as began."""
        with self._lock:
            left = list(self._listening)
            left.remove(journal)
            self._listening = tuple(left)


LOGGER = _Logger()
"""The one of this process: TensorRT keeps to the first that it is given, and ignores those of later objects."""


class Journal:
    """Keeps what TensorRT says while this listens, in ``with journal:``; verbose lines are left out.

    TensorRT does not say which of its objects a line is about, so two that listen at once hear the same.

    Args:
        watch: gets the lines, such as ``[E] message``.
        keep: so many lines at most, for journals that live long; all when None.
    """

    def __init__(self, watch: Watch, *, keep: int | None = None) -> None:
        self.watch = watch
        self.keep = keep

    def __enter__(self) -> Journal:
        LOGGER.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        LOGGER.end(self)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """One line; from any thread."""
        letter = _LETTERS.get(severity)
        if letter:
            self.watch.lines.append(f"[{letter}] {msg}")
            if self.keep is not None:
                del self.watch.lines[: -self.keep]

    def failure(self, *more: str) -> DeviceError:
        """What the lines so far, and ``more``, stand for; a journal that lives long then begins anew."""
        error = explain([*self.watch.lines, *more])
        if self.keep is not None:
            self.watch.lines.clear()
        return error


class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
    """Tells how far a build is, and stops it when the watch is cancelled.

    Args:
        watch: is told, and asked.
    """

    def __init__(self, watch: Watch) -> None:
        trt.IProgressMonitor.__init__(self)
        self.watch = watch

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Called by TensorRT, from any thread."""
        self.watch.begin(phase_name, parent_phase, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT, from any thread; False ends the build."""
        return self.watch.step(phase_name, step)

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT, from any thread."""
        self.watch.end(phase_name)
