"""An objective composed of the task's cross-entropy, a transfer at each tap, and terms on the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from iekd.compress.objectives.base import Objective, TeacherRecord
from iekd.compress.objectives.lift import InheritExplore, Learners, records, suffix
from iekd.errors import InputError
from iekd.models.taps import Features


class LogitTerm(NamedTuple):
    """A function of (student, teacher, targets, temperature), with its weight and temperature."""

    function: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    weight: float
    temperature: float


class Composite(Objective):
    """The sum that the objective's name spells out.

    Args:
        lifts: one a tap; empty for objectives on logits alone.
        logit_terms: by name.
        task_weight: of the cross-entropy.
    """

    def __init__(self, lifts: list[InheritExplore], logit_terms: Mapping[str, LogitTerm], task_weight: float) -> None:
        super().__init__()
        self.lifts = nn.ModuleList(lifts)
        self._lifts = lifts
        self.logit_terms = dict(logit_terms)
        self.task_weight = task_weight

    def pretraining(self) -> nn.Module | None:
        """What the transfers learn from the teacher's taps; None where they learn nothing."""
        learners = Learners(self._lifts)
        return learners if len(learners.parts) else None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Estimate margins and splits from one probe batch."""
        for number, lift in enumerate(self._lifts):
            lift.prepare(student.taps[number], teacher.taps[number])

    def remarks(self) -> tuple[str, ...]:
        """Of the transfers, each once."""
        return tuple(dict.fromkeys(filter(None, (lift.transfer.remark() for lift in self._lifts))))

    def record(self, teacher: Features) -> TeacherRecord:
        """Logits, and one code a tap."""
        for lift in self._lifts:
            lift.transfer.eval()
        return TeacherRecord(teacher.logits, records(self._lifts, teacher.taps) if self._lifts else ())

    def forward(self, student: Features, teacher: TeacherRecord, targets: Tensor) -> dict[str, Tensor]:
        """``task``, the logit terms, and the lifts' terms, numbered where there are several taps."""
        terms = {"task": self.task_weight * F.cross_entropy(student.logits.float(), targets)}
        for name, term in self.logit_terms.items():
            _require_same_classes(student.logits, teacher.logits)
            terms[name] = term.weight * term.function(student.logits, teacher.logits, targets, term.temperature)
        for number, lift in enumerate(self._lifts):
            for name, value in lift(student.taps[number], teacher.codes[number]).items():
                terms[name + suffix(number, len(self._lifts))] = value
        return terms


def _require_same_classes(student: Tensor, teacher: Tensor) -> None:
    if student.shape[1] != teacher.shape[1]:
        raise InputError(
            f"the teacher has {teacher.shape[1]} classes, the student {student.shape[1]}: logits cannot be compared.",
            "Fine-tune the teacher to the data's classes.",
        )
