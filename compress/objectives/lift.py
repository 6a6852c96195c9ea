"""The inherit-and-explore lift over any transfer, and the plain transfer that it reduces to.

A part of the student's channels is pulled towards the teacher's code, the rest is pushed away from it, and the task
keeps both useful (Huang et al., CVPR 2021, eq. 4-6).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from iekd.compress.objectives.alignment import alignment
from iekd.compress.objectives.distance import absolute_cosine
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.objectives.split import channel_relevance, divide, split_channels
from iekd.compress.objectives.transfer import Transfer, at_size
from iekd.errors import unknown_name
from iekd.models.taps import TapShape

FORMS = ("distance", "cosine", "cka")


class Weights(NamedTuple):
    """Weights of a transfer's terms, with nothing left open."""

    inherit: float
    explore: float
    transfer: float


class InheritExplore(nn.Module):
    """One pair of taps: the transfer's teacher side, shared, and one student head a part.

    Args:
        transfer: how codes are made and compared.
        size: spatial size at which they are.
        student: shape of the student's tap.
        weights: of the terms.
        settings: split and form of the exploration.
        lifted: False for the plain transfer: all channels inherit, and the term is named ``transfer``.

    Raises:
        InputError: unknown split or form, or a split that leaves a part empty.
    """

    inherit_index: Tensor
    explore_index: Tensor

    def __init__(
        self,
        transfer: Transfer,
        size: tuple[int, int],
        student: TapShape,
        weights: Weights,
        settings: ObjectiveSettings,
        *,
        lifted: bool,
    ) -> None:
        super().__init__()
        if settings.explore_form not in FORMS:
            raise unknown_name("form of exploration", settings.explore_form, FORMS)
        self.transfer, self.size, self.weights, self.settings, self.lifted = transfer, size, weights, settings, lifted
        inherit, explore = split_channels(
            student.channels, settings.inherit_fraction if lifted else 1.0, settings.split, settings.seed
        )
        self.register_buffer("inherit_index", inherit)
        self.register_buffer("explore_index", explore)
        self.heads = nn.ModuleDict(
            {part: self._head(part, len(index)) for part, index in self._indices().items() if len(index)}
        )
        self._settled = len(self.heads) < 2 or settings.split != "relevance"
        self.register_load_state_dict_post_hook(_settle)  # type: ignore[no-untyped-call]

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Estimate from a probe batch: the transfer's own quantities, and the split where it is by relevance.

        Args:
            student: its maps (B, C, h, w).
            teacher: its maps of the same images.
        """
        self.transfer.prepare(at_size(teacher, self.size))
        if not self._settled:
            relevance = channel_relevance(at_size(student, self.size), self.record(teacher))
            inherit, explore = divide(relevance.argsort(descending=True, stable=True), self.settings.inherit_fraction)
            self.inherit_index.copy_(inherit)
            self.explore_index.copy_(explore)
            self._settled = True

    def record(self, teacher: Tensor) -> Tensor:
        """The code of the teacher's maps (B, C, H, W)."""
        return self.transfer.record(at_size(teacher, self.size))

    def parts(self, student: Tensor) -> dict[str, Tensor]:
        """The student's channels (B, C, h, w) at the common size, by part; parts without channels are left out."""
        student = at_size(student, self.size)
        indices = self._indices()
        if self.settings.split != "natural":
            student = student.index_select(1, torch.cat(list(indices.values())))
        # Split rather than selected one by one: the gradient is then put together in the maps' own memory format.
        channels = torch.split(student, [len(index) for index in indices.values()], 1)
        return {part: own for part, own in zip(indices, channels, strict=True) if part in self.heads}

    def answers(self, student: Tensor) -> dict[str, Tensor]:
        """What the heads make of the parts, each shaped like the code; the bare channels where they explore by CKA."""
        return {part: self.heads[part](channels) for part, channels in self.parts(student).items()}

    def forward(self, student: Tensor, code: Tensor) -> dict[str, Tensor]:
        """Weighted terms for the student's maps (B, C, h, w): ``inherit`` and ``explore``, or ``transfer``."""
        if not self._settled:
            raise RuntimeError("a split by relevance needs prepare() with a probe batch first")
        answers = self.answers(student)
        terms = {}
        if "inherit" in answers:
            name, weight = ("inherit", self.weights.inherit) if self.lifted else ("transfer", self.weights.transfer)
            terms[name] = weight * self.transfer.distance(code, answers["inherit"]).mean()
        if "explore" in answers:
            terms["explore"] = self.weights.explore * self._exploration(code, answers["explore"])
        return terms

    def _exploration(self, code: Tensor, answer: Tensor) -> Tensor:
        if self.settings.explore_form == "cosine":
            return absolute_cosine(code, answer).mean()
        if self.settings.explore_form == "cka":
            return alignment(code, answer)
        distance = self.transfer.distance(code, answer)
        margin = self.settings.explore_margin
        return -(distance if margin is None else distance.clamp(max=margin)).mean()

    def _head(self, part: str, channels: int) -> nn.Module:
        # A head that learns can meet the push by itself and leave the channels as they are; CKA needs none.
        bare = part == "explore" and self.settings.explore_form == "cka"
        return nn.Identity() if bare else self.transfer.head(channels)

    def _indices(self) -> dict[str, Tensor]:
        return {"inherit": self.inherit_index, "explore": self.explore_index}


def _settle(lift: Any, _incompatible: object) -> None:
    """Loaded indices are settled ones."""
    lift._settled = True


class Learners(nn.Module):
    """What the transfers learn from the teacher before distillation, as one module."""

    def __init__(self, lifts: list[InheritExplore]) -> None:
        super().__init__()
        self.sizes = [lift.size for lift in lifts]
        self.parts = nn.ModuleList(learner for lift in lifts if (learner := lift.transfer.learner()) is not None)

    def forward(self, taps: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """One term ``reconstruction`` a tap (B, C, H, W), numbered where there are several."""
        terms = {}
        for number, (part, size, tap) in enumerate(zip(self.parts, self.sizes, taps, strict=True)):
            terms["reconstruction" + suffix(number, len(taps))] = part(at_size(tap, size))
        return terms


def suffix(number: int, count: int) -> str:
    """What tells the terms of several taps apart."""
    return str(number) if count > 1 else ""


@torch.no_grad()
def records(lifts: list[InheritExplore], taps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The teacher's codes of all taps, without gradient."""
    return tuple(lift.record(tap) for lift, tap in zip(lifts, taps, strict=True))
