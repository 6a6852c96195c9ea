"""What a transfer is: a way to compare a teacher's and a student's map at one pair of taps.

The teacher's side gives a *code*, the student's side (or a part of its channels) an *answer* of the same shape, and a
bounded distance compares the two.  The lift (``lift.py``) turns any of them into its inherit-and-explore form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from iekd.models.taps import TapShape

if TYPE_CHECKING:
    from typing_extensions import Self

    from iekd.compress.objectives.settings import ObjectiveSettings


class Transfer(nn.Module):
    """One pair of taps.  Subclasses set ``code_shape`` and override the rest.

    Args:
        teacher: shape of the teacher's map as the methods below get it: its spatial size is already the smaller of
            the teacher's and the student's.
        settings: widths and the like.

    Raises:
        InputError: this transfer cannot work at such a tap.
    """

    code_shape: tuple[int, ...]
    """Shape of one image's code."""
    furthest: float = 4.0
    """What :meth:`distance` cannot exceed."""

    def __init__(self, teacher: TapShape, settings: ObjectiveSettings) -> None:
        super().__init__()
        self.teacher = teacher

    def learner(self) -> nn.Module | None:
        """A module around the teacher's side to be trained before distillation, or None.

        Its forward takes the teacher's map (B, C, H, W) and returns a scalar.  What only the training needs, such as a
        decoder, belongs to it alone, so that it is dropped with it.
        """
        return None

    def prepare(self, tap: Tensor) -> None:
        """Estimate what is estimated from the teacher's maps (B, C, H, W) rather than trained."""

    def remark(self) -> str:
        """A line that the user should read, of what :meth:`prepare` found; may be empty."""
        return ""

    def record(self, tap: Tensor) -> Tensor:
        """The code (B, ...) of the teacher's map (B, C, H, W), of a size that half precision holds."""
        raise NotImplementedError

    def head(self, channels: int) -> nn.Module:
        """A module from a part (B, channels, H, W) of the student's map to an answer shaped like the code."""
        raise NotImplementedError

    def distance(self, code: Tensor, answer: Tensor) -> Tensor:
        """One distance a sample (B,), bounded whatever the answer."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """A frozen teacher's side stays in eval mode: its statistics must not move while the student trains."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))


def at_size(tap: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (B, C, h, w) averaged down to a spatial size that is no larger than its own."""
    return tap if tap.shape[-2:] == size else F.adaptive_avg_pool2d(tap, size)


def common_shape(teacher: TapShape, student: TapShape) -> TapShape:
    """The teacher's channels at the smaller of both spatial sizes: maps are averaged down, never interpolated up."""
    return TapShape(teacher.channels, min(teacher.height, student.height), min(teacher.width, student.width))
