"""What a training keeps between epochs: its history, and the checkpoints that it goes on from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from iekd.errors import RunFolderError
from iekd.files import atomic_file

Figures = dict[str, float]
_FRESH_SCALER = {"scale": 2.0**16, "_growth_tracker": 0}
"""How torch's gradient scaler for ``fp16`` starts."""


@dataclass
class History:
    """What was logged, one value an epoch and quantity; also the record of how far training has come."""

    figures: dict[str, list[float | None]] = field(default_factory=dict)
    """None in epochs that lacked the quantity, such as a loss term of a teacher that waited throughout."""

    @property
    def epochs(self) -> int:
        """Finished epochs."""
        return len(next(iter(self.figures.values()), []))

    def append(self, figures: Figures) -> None:
        """Add one epoch."""
        before = self.epochs
        for name in figures:
            self.figures.setdefault(name, [None] * before)
        for name, values in self.figures.items():
            values.append(figures.get(name))


def load_best(task: nn.Module, folder: Path) -> None:
    """Put the weights of the best epoch into ``task``."""
    task.load_state_dict(_read(folder / "best.pt")["task"])


def save(folder: Path, task: nn.Module, optimizer: Any, history: History, scaler: Any) -> None:
    """Write ``last.pt``, and ``best.pt`` where no epoch before was as accurate as the last one."""
    accuracies = [value for value in history.figures.get("accuracy", []) if value is not None]
    state = {
        "task": task.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": json.dumps(history.figures),
        "scaler": {} if scaler is None else scaler.state_dict(),
    }
    if accuracies and accuracies[-1] >= max(accuracies):
        _write(folder / "best.pt", {"task": state["task"], "history": state["history"]})
    _write(folder / "last.pt", state)


def _write(path: Path, state: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's zip writer reports a full disk as a RuntimeError
            if "write" not in str(error) and "enforce fail" not in str(error):
                raise
            raise OSError(28, str(error)) from error


def _read(path: Path) -> dict[str, Any]:
    """On the processor, from where it is copied to the network's device: not every name of a device can be read to."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RunFolderError(
            f"checkpoint {path} is damaged ({type(error).__name__}).", "Delete it and start again."
        ) from error
    return state


def resume(path: Path, task: nn.Module, optimizer: Any, accelerator: Accelerator) -> History:
    """Put what ``path`` holds, if it is there, into the task, the optimiser and the accelerator's scaler.

    Raises:
        RunFolderError: it is damaged, or of another training.
    """
    state = _read(path) if path.exists() else {}
    if accelerator.scaler is not None:  # of the whole run: what the stage before left of it must not reach this one
        known = state.get("scaler") or {**accelerator.scaler.state_dict(), **_FRESH_SCALER}
        accelerator.scaler.load_state_dict(known)
    if not state:
        return History()
    try:
        task.load_state_dict(state["task"])
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:  # of the optimiser, whose groups were parted otherwise
        raise RunFolderError(
            f"checkpoint {path} is of another training than this one: it was left by another version.",
            "Delete it: this training begins anew.",
        ) from error
    return History(json.loads(state["history"]))
