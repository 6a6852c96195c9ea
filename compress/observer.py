"""What a running job tells whoever watches it: the command line's progress bars, a notebook, a test."""

from __future__ import annotations


class Observer:
    """Every hook is a no-op; override those that matter."""

    def stage_started(self, name: str, total: int | None) -> None:
        """A stage begins; ``total`` counts its steps where they are known."""

    def stage_advanced(self, name: str, done: int, detail: str) -> None:
        """``done`` steps of the stage are finished; ``detail`` is one short line of figures."""

    def epoch_finished(self, name: str, epoch: int, figures: dict[str, float]) -> None:
        """An epoch of a training stage is finished and its checkpoint is on disk; epochs count from 0."""

    def stage_finished(self, name: str, seconds: float, note: str, reused: bool) -> None:
        """A stage is finished and on disk; ``reused`` when an earlier run had done it."""

    def note(self, text: str) -> None:
        """One line that the user should read: a fallback taken, a warning."""
