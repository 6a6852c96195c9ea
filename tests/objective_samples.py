"""Made-up answers of a teacher and a student, and objectives for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iekd.compress.objectives import Objective, ObjectiveSettings, build_objective
from iekd.models.taps import Features, TapShape

TEACHER, STUDENT = (TapShape(16, 4, 4),), (TapShape(12, 4, 4),)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numeric_gradient(value: Callable[[Any], float], at: Any) -> Any:
    """Central differences of a function of an array."""
    gradient, step = np.zeros_like(at), 1e-6
    for index in np.ndindex(at.shape):
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * step
            gradient[index] += sign * value(moved) / (2 * step)
    return gradient


def objective(
    name: str,
    classes: int = 5,
    teacher: tuple[TapShape, ...] = TEACHER,
    student: tuple[TapShape, ...] = STUDENT,
    **changes: Any,
) -> Objective:
    """An objective of that name, with what it learns from the teacher frozen as it came."""
    torch.manual_seed(0)
    made = build_objective(
        name, teacher=teacher, student=student, classes=classes, settings=ObjectiveSettings(**changes)
    )
    pretraining = made.pretraining()
    if pretraining is not None:
        pretraining.requires_grad_(False)
    return made


def features(taps: tuple[TapShape, ...], batch: int, classes: int, seed: int, dtype: torch.dtype) -> Features:
    """Logits and taps of a network that was never run, with gradient."""
    logits = randn(batch, classes, seed=seed).to(dtype).requires_grad_()
    maps = tuple(randn(batch, *tap, seed=seed + 1 + n).to(dtype).requires_grad_() for n, tap in enumerate(taps))
    return Features(logits, maps)


class Says(nn.Module):
    """A tapped network that gives one answer, whatever it is shown."""

    stages = (0,)

    def __init__(self, answer: Features) -> None:
        super().__init__()
        self.answer = answer

    @property
    def network(self) -> Says:
        """What is tapped: itself."""
        return self

    def shapes(self, image_size: int) -> tuple[TapShape, ...]:
        """Of the answer's taps, whatever the size."""
        return tuple(TapShape(*tap.shape[1:]) for tap in self.answer.taps)

    def classes(self, image_size: int) -> int:
        """Of the answer's logits."""
        return self.answer.logits.shape[1]

    def forward(self, images: Tensor) -> Features:
        """The answer."""
        return self.answer


def answers(
    batch: int = 8,
    classes: int = 5,
    dtype: torch.dtype = torch.float32,
    teacher: tuple[TapShape, ...] = TEACHER,
    student: tuple[TapShape, ...] = STUDENT,
) -> tuple[Features, Features, Tensor]:
    """Student, teacher (without gradient) and targets."""
    theirs = features(teacher, batch, classes, 20, dtype)
    theirs = Features(theirs.logits.detach(), tuple(tap.detach() for tap in theirs.taps))
    return features(student, batch, classes, 0, dtype), theirs, torch.arange(batch) % classes
