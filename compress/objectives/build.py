"""An objective by its name."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from iekd.compress.objectives.base import Objective, TeacherRecord
from iekd.compress.objectives.catalogue import NAMES
from iekd.compress.objectives.lift import AutoEncoders, InheritExplore, no_grad_records
from iekd.compress.objectives.logits import distillation_loss
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.errors import unknown_name
from iekd.models.taps import Features, TapShape

__all__ = ["Objective", "ObjectiveSettings", "TeacherRecord", "build_objective", "parse_objective"]


class Composite(Objective):
    """The task's cross-entropy, optionally with a transfer at each tap and a term on the logits.

    Args:
        lifts: one a tap; empty for objectives on logits alone.
        kd: with the softened logits?
        settings: weights.
    """

    def __init__(self, lifts: list[InheritExplore], kd: bool, settings: ObjectiveSettings) -> None:
        super().__init__()
        self.lifts = nn.ModuleList(lifts)
        self._lifts = tuple(lifts)
        self.kd = kd
        self.settings = settings
        self._auto_encoders = [AutoEncoders(lifts)] if lifts else []  # a list: its parts are registered above

    def pretraining(self) -> nn.Module | None:
        """The auto-encoders of the factors."""
        return self._auto_encoders[0] if self._auto_encoders else None

    def record(self, teacher: Features) -> TeacherRecord:
        """Logits and one factor a tap."""
        return TeacherRecord(teacher.logits, no_grad_records(self._lifts, teacher.taps) if self._lifts else ())

    def forward(self, student: Features, teacher: TeacherRecord, targets: Tensor) -> dict[str, Tensor]:
        """``task``, ``kd``, and the lift's terms, numbered where there are several taps."""
        settings = self.settings
        terms = {"task": settings.task_weight * F.cross_entropy(student.logits.float(), targets)}
        if self.kd:
            loss = distillation_loss(student.logits, teacher.logits, settings.temperature)
            terms["kd"] = settings.kd_weight * loss
        for number, lift in enumerate(self._lifts):
            suffix = str(number) if len(self._lifts) > 1 else ""
            for name, term in lift(student.taps[number], teacher.codes[number]).items():
                terms[name + suffix] = term
        return terms

    def train(self, mode: bool = True) -> Composite:
        """The teacher's side stays in eval mode."""
        super().train(mode)
        for lift in self._lifts:
            lift.auto_encoder.train(mode and any(p.requires_grad for p in lift.auto_encoder.parameters()))
        return self


def parse_objective(name: str) -> tuple[str | None, bool]:
    """``ie-ft+kd`` as (feature term or None, with logits?).

    Raises:
        InputError: an unknown part, with the valid ones.
    """
    parts = name.lower().split("+")
    for part in parts:
        if part not in NAMES:
            raise unknown_name("objective", part, NAMES, listed_by="iekd-compress objectives")
    features = [part for part in parts if part not in ("ce", "kd")]
    if len(features) > 1:
        raise unknown_name("combination", name, NAMES, listed_by="iekd-compress objectives")
    return (features[0] if features else None), "kd" in parts


def build_objective(
    name: str,
    *,
    teacher: tuple[TapShape, ...],
    student: tuple[TapShape, ...],
    classes: int,
    settings: ObjectiveSettings,
) -> Objective:
    """The objective of that name, for these taps.

    Args:
        name: parts of ``catalogue.NAMES`` joined by ``+``, such as ``ie-ft+kd``.
        teacher: shapes of the teacher's taps.
        student: shapes of the student's taps, as many.
        classes: of the data.
        settings: weights and choices.

    Raises:
        InputError: an unknown name, or a split that leaves a part empty.
    """
    feature, kd = parse_objective(name)
    lifts = []
    if feature is not None:
        for shapes in zip(teacher, student, strict=True):
            lifts.append(InheritExplore(*shapes, settings, lifted=feature.startswith("ie-")))
    return Composite(lifts, kd, settings)
