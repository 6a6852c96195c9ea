"""A run that is killed at a given point, as ``kill -9`` does it."""

from __future__ import annotations

import os
import signal
from typing import Any

from iekd import run
from iekd.compress.observer import Observer


class Killer(Observer):
    """Kills its process once ``stage`` is as far as ``at``; an epoch of it where that ends with ``-epoch``."""

    def __init__(self, stage: str, at: int) -> None:
        self.stage, self.at = stage, at

    def stage_advanced(self, name: str, done: int, detail: str) -> None:
        if name == self.stage and done >= self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def epoch_finished(self, name: str, epoch: int, figures: dict[str, float]) -> None:
        if f"{name}-epoch" == self.stage and epoch == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def run_until_killed(settings: dict[str, Any], stage: str, at: int) -> None:
    """A whole run, unless it gets to that point."""
    run(**settings, observer=Killer(stage, at))
