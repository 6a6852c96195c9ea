"""TensorRT's log and progress, handed to a :class:`Watch`.  Imported only once TensorRT has been found."""

from __future__ import annotations

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


class Journal(trt.ILogger):  # type: ignore[misc]
    """Keeps what TensorRT says, verbose lines left out.

    Args:
        watch: gets the lines, such as ``[E] message``.
        keep: so many lines at most, for journals that live long; all when None.
    """

    def __init__(self, watch: Watch, *, keep: int | None = None) -> None:
        trt.ILogger.__init__(self)
        self.watch = watch
        self.keep = keep

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from any thread."""
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
