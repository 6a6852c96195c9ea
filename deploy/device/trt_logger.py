"""TensorRT's log and progress, handed to a :class:`Watch`.  Imported only once TensorRT has been found."""

from __future__ import annotations

import tensorrt as trt

from .engine_watch import Watch

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
    """

    def __init__(self, watch: Watch) -> None:
        trt.ILogger.__init__(self)
        self.watch = watch

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from any thread."""
        letter = _LETTERS.get(severity)
        if letter:
            self.watch.lines.append(f"[{letter}] {msg}")


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
