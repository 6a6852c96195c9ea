"""Whole runs for TensorRT on a double of it (``engine_doubles.py``), and what they told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small import settings

import iekd
from iekd.compress.observer import Observer

PRECISIONS = ("fp16", "bf16", "int8")
GIVEN = {
    "teacher": "tiny_networks:teacher",
    "student": "tiny_networks:student",
    "tap": "4",
    "epochs": 1,
    "factor_epochs": 1,
    "bench_seconds": 0.05,
    "val_limit": 20,
    "qat": "never",
    "target": "tensorrt",
}
NAMES = {"teacher", "student", *(f"student-{name}" for name in PRECISIONS)}


class Told(Observer):
    def __init__(self) -> None:
        self.steps: list[tuple[int, str]] = []
        self.total: int | None = None
        self.notes: list[str] = []
        self.done: dict[str, bool] = {}

    def stage_started(self, name: str, total: int | None) -> None:
        if name == "engines":
            self.total = total

    def stage_advanced(self, name: str, done: int, detail: str) -> None:
        if name == "engines":
            self.steps.append((done, detail))

    def stage_finished(self, name: str, seconds: float, note: str, reused: bool) -> None:
        self.done[name] = reused

    def note(self, text: str) -> None:
        self.notes.append(text)


def go_on(folder: Path, **changes: Any) -> Told:
    told = Told()
    iekd.run(**settings(**{**GIVEN, "precision": "best", "max_drop": 1.0, **changes}, out=str(folder)), observer=told)
    return told
