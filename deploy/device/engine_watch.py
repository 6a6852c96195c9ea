"""A long call that can be watched and cancelled: it runs in a thread of its own, the caller's thread waits and reports.

TensorRT builds inside one call that takes minutes and may call back from any thread.  Python delivers Ctrl-C only to
the main thread, between two bytecodes; so the main thread must not be the one inside that call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
Progress = Callable[[float, str], None]
"""Called with the share done (0 to 1, never falling) and the name of the present phase."""
Log = Callable[[str], None]
"""Called with each line of TensorRT's log, such as ``[W] message``."""

_POLL_SECONDS = 0.1


class Watch:
    """What the working thread leaves for the waiting one.  Its methods may be called from any thread."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._share, self._phase = 0.0, ""

    def begin(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins, inside the present step of ``parent``."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))
            self._phase = name
            self._update()

    def step(self, name: str, number: int) -> bool:
        """Step ``number``, counted from 0, is done.  False when the work should stop."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = number + 1
            self._update()
        return not self.cancelled.is_set()

    def end(self, name: str) -> None:
        """The phase is over."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None and phase.parent not in self._phases:
                self._share = max(self._share, 1.0)
            self._update()

    def progress(self) -> tuple[float, str]:
        """Share done and present phase."""
        with self._lock:
            return self._share, self._phase

    def _update(self) -> None:
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        if roots:
            self._share = max(self._share, min(1.0, self._share_of(roots[0])))

    def _share_of(self, name: str) -> float:
        phase = self._phases[name]
        inner = [other for other, child in self._phases.items() if child.parent == name and other != name]
        begun = sum(self._share_of(other) for other in inner) / len(inner) if inner else 0.0
        return min(1.0, (phase.done + begun) / phase.steps)


class _Phase:
    def __init__(self, parent: str | None, steps: int) -> None:
        self.parent, self.steps, self.done = parent, steps, 0


def run_watched(
    work: Callable[[Watch], Result], watch: Watch, *, progress: Progress | None = None, log: Log | None = None
) -> Result:
    """What ``work(watch)`` returns or raises; ``progress`` and ``log`` are called in the caller's thread.

    Ctrl-C, or anything that a callback raises, asks the work to stop, waits until it has, and is raised then.
    """
    outcome: list[Result] = []
    failure: list[BaseException] = []

    begun, finished = threading.Event(), threading.Event()

    def body() -> None:
        begun.set()
        try:
            if not watch.cancelled.is_set():  # Ctrl-C may have come while the thread was being started
                outcome.append(work(watch))
        except BaseException as error:  # whatever it is, it belongs to the caller
            failure.append(error)
        finally:
            finished.set()

    thread = threading.Thread(target=body, name="engine-build", daemon=True)
    reported = _Reported()
    try:
        thread.start()
        while not finished.wait(_POLL_SECONDS):  # Thread.join, once interrupted, takes a running thread for a dead one
            reported.forward(watch, progress, log)
        reported.forward(watch, progress, log)
    except BaseException:
        watch.cancelled.set()
        if begun.is_set():
            finished.wait()
        failure.clear()  # as below
        raise
    if failure:
        raise failure.pop()  # kept in a local, it would keep itself by its traceback, and all that the build held
    return outcome[0]


class _Reported:
    """How far the caller has been told."""

    def __init__(self) -> None:
        self.lines = 0
        self.progress: tuple[float, str] = (0.0, "")

    def forward(self, watch: Watch, progress: Progress | None, log: Log | None) -> None:
        while log is not None and self.lines < len(watch.lines):
            self.lines += 1
            log(watch.lines[self.lines - 1])
        now = watch.progress()
        if progress is not None and now != self.progress:
            self.progress = now
            progress(*now)
