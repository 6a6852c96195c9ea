"""The contract between an objective and the trainer.

An objective owns everything that distillation trains beside the student, and nothing of the student itself: dropping it
leaves the plain network.  It looks at the teacher only through a :class:`TeacherRecord`, which is small enough to be
kept on disk and read back instead of running the teacher again.

The order of calls: :meth:`Objective.pretraining` and its training, :meth:`Objective.prepare`, then
:meth:`Objective.record` and :meth:`Objective.forward` in every step.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from iekd.models.taps import Features


class TeacherRecord(NamedTuple):
    """What the frozen teacher says of a batch, in the compact form that the objective needs."""

    logits: Tensor
    """(B, classes), float32"""
    codes: tuple[Tensor, ...]
    """One compact tensor (B, ...) a tap, of a size that half precision holds; none for objectives on logits alone."""


class Objective(nn.Module):
    """A distillation objective.  Subclasses override what differs; the rest are documented no-ops."""

    def pretraining(self) -> nn.Module | None:
        """A module to be trained on the teacher's taps before distillation, or None.

        Its forward takes a tuple of taps (B, C, H, W) and returns named loss terms (scalars), which the trainer
        minimises; afterwards its parameters are frozen.
        """
        return None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Settle what is estimated from data rather than trained: a split by relevance, OD's margins.

        Called once, after pre-training and before the first :meth:`record`, without gradient, in eval mode.  A resumed
        run calls it again; the checkpoint's values, loaded afterwards, take precedence.

        Args:
            student: the untrained (or pre-trained) student's answer to one probe batch, best of 128 images or more.
            teacher: the teacher's answer to the same images.
        """

    def remarks(self) -> tuple[str, ...]:
        """Lines that the user should read, of what :meth:`prepare` found."""
        return ()

    def record(self, teacher: Features) -> TeacherRecord:
        """Reduce the teacher's answer to what :meth:`forward` needs.  Called without gradient, in eval mode."""
        return TeacherRecord(teacher.logits, ())

    def forward(self, student: Features, teacher: TeacherRecord, targets: Tensor) -> dict[str, Tensor]:
        """Named, weighted, scalar loss terms whose sum is minimised; ``task`` is the cross-entropy on the labels.

        Args:
            student: logits and taps of the student, with gradient.
            teacher: record of the same views of the same images.
            targets: class indices (B,), int64.
        """
        raise NotImplementedError
