"""The inherit-and-explore lift, and the plain transfer that it reduces to.

A part of the student's channels is pulled towards the teacher's factor, the rest is pushed away from it, and the task
keeps both useful (Huang et al., CVPR 2021, eq. 4-6).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from iekd.compress.objectives.distance import factor_distance
from iekd.compress.objectives.factor import AutoEncoder, Encoder, at_size, factor_channels
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.objectives.split import split_channels
from iekd.models.taps import TapShape


class InheritExplore(nn.Module):
    """IE-FT at one pair of taps; with ``inherit_fraction`` 1 it is plain FT.

    Args:
        teacher: shape of the teacher's tap.
        student: shape of the student's tap.
        settings: weights, split, widths.
        lifted: False for the plain transfer: all channels inherit, with ``transfer_weight``.
    """

    inherit_index: Tensor
    explore_index: Tensor

    def __init__(self, teacher: TapShape, student: TapShape, settings: ObjectiveSettings, *, lifted: bool) -> None:
        super().__init__()
        fraction = settings.inherit_fraction if lifted else 1.0
        inherit, explore = split_channels(student.channels, fraction, settings.split, settings.seed)
        self.register_buffer("inherit_index", inherit)
        self.register_buffer("explore_index", explore)
        self.lifted = lifted
        self.settings = settings
        self.size = (teacher.height, teacher.width)
        self.auto_encoder = AutoEncoder(teacher, settings)
        factors = factor_channels(teacher, settings)

        def head(index: Tensor) -> Encoder | None:
            return Encoder(len(index), settings.hidden_channels, factors) if len(index) else None

        self.inherit_head, self.explore_head = head(inherit), head(explore)

    def record(self, tap: Tensor) -> Tensor:
        """The teacher's factor (B, k, H, W) of its tap (B, C, H, W)."""
        factor: Tensor = self.auto_encoder.encoder(tap)
        return factor

    def forward(self, tap: Tensor, factor: Tensor) -> dict[str, Tensor]:
        """Weighted terms for the student's tap (B, C, h, w): ``inherit`` and ``explore``, or ``transfer``."""
        tap = at_size(tap, self.size)
        if not self.lifted:
            assert self.inherit_head is not None
            return {"transfer": self.settings.transfer_weight * factor_distance(factor, self.inherit_head(tap))}
        terms = {}
        if self.inherit_head is not None:
            inherited = self.inherit_head(tap.index_select(1, self.inherit_index))
            terms["inherit"] = self.settings.inherit_weight * factor_distance(factor, inherited)
        if self.explore_head is not None:
            explored = self.explore_head(tap.index_select(1, self.explore_index))
            terms["explore"] = -self.settings.explore_weight * factor_distance(factor, explored)
        return terms


class AutoEncoders(nn.Module):
    """The auto-encoders of all taps, as one module to be trained before distillation."""

    def __init__(self, lifts: Sequence[InheritExplore]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(lift.auto_encoder for lift in lifts)

    def forward(self, taps: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """One reconstruction term a tap (B, C, H, W)."""
        names = ["reconstruction"] if len(taps) == 1 else [f"reconstruction{number}" for number in range(len(taps))]
        return {name: part(tap) for name, part, tap in zip(names, self.parts, taps, strict=True)}

    def train(self, mode: bool = True) -> AutoEncoders:
        """Frozen encoders stay in eval mode: their batch statistics must not move while the student trains."""
        frozen = not any(parameter.requires_grad for parameter in self.parameters())
        super().train(mode and not frozen)
        return self


def no_grad_records(lifts: Sequence[InheritExplore], taps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The teacher's factors of all taps, without gradient, in the encoders' eval mode."""
    with torch.no_grad():
        factors = []
        for lift, tap in zip(lifts, taps, strict=True):
            lift.auto_encoder.eval()
            factors.append(lift.record(tap))
        return tuple(factors)
