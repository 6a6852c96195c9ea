"""Several teachers: the mean of their logits and of their codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.objectives.transfer import Transfer, at_size
from iekd.errors import InputError
from iekd.models.taps import Features, Tapped, TapShape


class EnsembleTeacher(nn.Module):
    """Several tapped teachers that answer as one, and can stand wherever a :class:`Tapped` teacher does.

    At each tap the teachers' maps are averaged down to the smallest and laid side by side, channel after channel;
    ``build_objective(ensemble=...)`` takes them apart again.

    Raises:
        InputError: no teacher, or teachers with different numbers of taps.
    """

    def __init__(self, teachers: Sequence[Tapped]) -> None:
        super().__init__()
        if len({len(teacher.stages) for teacher in teachers}) != 1:
            raise InputError("an ensemble needs teachers with the same number of taps, and at least one.")
        self.teachers = nn.ModuleList(teachers)

    def forward(self, images: Tensor) -> Features:
        """Mean logits, and joint taps, of a batch (B, 3, H, W)."""
        answers = [teacher(images) for teacher in self.teachers]
        logits = torch.stack([answer.logits.float() for answer in answers]).mean(0)
        return Features(logits, tuple(_joined(maps) for maps in zip(*(answer.taps for answer in answers), strict=True)))

    @property
    def stages(self) -> tuple[int, ...]:
        """Stage numbers of the joint taps: the first teacher's."""
        stages: tuple[int, ...] = self.teachers[0].stages  # type: ignore[assignment]
        return stages

    @property
    def names(self) -> tuple[str, ...]:
        """Of these stages."""
        names: tuple[str, ...] = self.teachers[0].names  # type: ignore[assignment]
        return names

    def members(self, image_size: int) -> tuple[tuple[TapShape, ...], ...]:
        """Each teacher's tap shapes."""
        return tuple(teacher.shapes(image_size) for teacher in self.teachers)  # type: ignore[operator]

    def shapes(self, image_size: int) -> tuple[TapShape, ...]:
        """The joint taps' shapes."""
        return tuple(
            TapShape(
                sum(shape.channels for shape in shapes),
                min(shape.height for shape in shapes),
                min(shape.width for shape in shapes),
            )
            for shapes in zip(*self.members(image_size), strict=True)
        )


def _joined(maps: Sequence[Tensor]) -> Tensor:
    size = (min(tap.shape[-2] for tap in maps), min(tap.shape[-1] for tap in maps))
    return torch.cat([at_size(tap, size) for tap in maps], dim=1)


class EnsembleTransfer(Transfer):
    """The mean of several teachers' codes, each of unit L2 norm, so that none outweighs the others.

    Args:
        teacher: shape of the joint tap.
        members: one transfer a teacher, in the order of the tap's channels.
        settings: as for the members.

    Raises:
        InputError: the members' codes differ in shape.
    """

    def __init__(self, teacher: TapShape, members: Sequence[Transfer], settings: ObjectiveSettings) -> None:
        super().__init__(teacher, settings)
        shapes = {member.code_shape for member in members}
        if len(shapes) != 1:
            raise InputError(
                f"the teachers' codes differ in shape ({', '.join(map(str, sorted(shapes)))}) and have no mean.",
                "Use ft, which brings teachers of any width to the same factors, or teachers of one width.",
            )
        self.members = nn.ModuleList(members)
        self.code_shape = members[0].code_shape
        self.channels = [member.teacher.channels for member in members]

    def learner(self) -> nn.Module | None:
        """The members' learners side by side."""
        learners = [member.learner() for member in self._members()]
        found = [learner for learner in learners if learner is not None]
        return _SideBySide(found, self.channels) if found else None

    def prepare(self, tap: Tensor) -> None:
        """Each member from its own channels."""
        for member, own in zip(self._members(), torch.split(tap, self.channels, dim=1), strict=True):
            member.prepare(own)

    def remark(self) -> str:
        """What the members have to say, each line once."""
        return " ".join(dict.fromkeys(filter(None, (member.remark() for member in self._members()))))

    def record(self, tap: Tensor) -> Tensor:
        """The mean code (B, ...)."""
        codes = []
        for member, own in zip(self._members(), torch.split(tap, self.channels, dim=1), strict=True):
            code = member.record(own).float()
            codes.append(F.normalize(code.flatten(1), dim=1).view_as(code))
        return torch.stack(codes).mean(0)

    def head(self, channels: int) -> nn.Module:
        """That of the first member; all make answers of the same shape."""
        return self._members()[0].head(channels)

    def distance(self, code: Tensor, answer: Tensor) -> Tensor:
        """That of the members."""
        return self._members()[0].distance(code, answer)

    def _members(self) -> list[Transfer]:
        return list(self.members)  # type: ignore[arg-type]


class _SideBySide(nn.Module):
    """Learners of the members, each on its own channels; the mean of their losses."""

    def __init__(self, parts: Sequence[nn.Module], channels: list[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.channels = channels

    def forward(self, tap: Tensor) -> Tensor:
        losses = [part(own) for part, own in zip(self.parts, torch.split(tap, self.channels, dim=1), strict=True)]
        return torch.stack(losses).mean()
