"""What a run's settings say of its objective: which layers it reads, what it is made with, for these two networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from iekd.compress.config import RunConfig
from iekd.compress.objectives.base import Objective
from iekd.compress.objectives.build import build_objective, taps_for
from iekd.compress.objectives.catalogue import is_mutual
from iekd.compress.objectives.ensemble import EnsembleTeacher
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.trainer import seed_everything
from iekd.models.ensemble import Ensemble
from iekd.models.taps import Tapped

Teacher = Tapped | EnsembleTeacher


class Taps(NamedTuple):
    """Stages to tap, by number or name."""

    teacher: tuple[int | str, ...]
    student: tuple[int | str, ...]


def taps_of(config: RunConfig) -> Taps:
    """Where the objective reads the networks."""
    return Taps(taps_for(config.objective, config.teacher_taps), taps_for(config.objective, config.taps))


def tap_teacher(network: nn.Module, taps: Sequence[int | str], size: int) -> Teacher:
    """The teacher with its taps, for images of ``size`` pixels; an ensemble's members are tapped each."""
    if isinstance(network, Ensemble):
        return EnsembleTeacher([Tapped(member, taps, size) for member in network.members])
    return Tapped(network, taps, size)


def objective_settings(config: RunConfig) -> ObjectiveSettings:
    """The objective's part of the settings; what is None there keeps the objective's own default."""
    own = {field.name for field in dataclasses.fields(ObjectiveSettings)}
    given = {key: value for key, value in dataclasses.asdict(config).items() if key in own and value is not None}
    return ObjectiveSettings(**given)


def later_config(config: RunConfig) -> RunConfig:
    """What trains the student after its distillation: the same; after learning together, the answers of the finished
    teacher, which no longer learns."""
    return dataclasses.replace(config, objective="kd") if is_mutual(config.objective) else config


def make_objective(config: RunConfig, teacher: Teacher, student: Tapped, size: int, classes: int) -> Objective:
    """The objective that the settings name, for these networks and images of ``size`` pixels; seeded.

    Raises:
        InputError: see :func:`build_objective`.
    """
    seed_everything(config.seed, "objective-init", 0)
    return build_objective(
        config.objective,
        teacher=teacher.shapes(size),
        student=student.shapes(size),
        classes=classes,
        settings=objective_settings(config),
        ensemble=teacher.members(size) if isinstance(teacher, EnsembleTeacher) else (),
    )
