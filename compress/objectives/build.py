"""An objective by its name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from iekd.compress.objectives.base import Objective, TeacherRecord
from iekd.compress.objectives.catalogue import (
    OBJECTIVES,
    Entry,
    reads_before_activation,
    reads_maps,
    valid_names,
)
from iekd.compress.objectives.composite import Composite, LogitTerm
from iekd.compress.objectives.ensemble import EnsembleTransfer
from iekd.compress.objectives.lift import InheritExplore, Weights
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.objectives.transfer import Transfer, common_shape
from iekd.errors import InputError, unknown_name
from iekd.models.taps import TapShape, before

__all__ = [
    "Objective",
    "ObjectiveSettings",
    "TeacherRecord",
    "build_objective",
    "make_lift",
    "parse_objective",
    "taps_for",
]

_LISTED_BY = "iekd-compress objectives"


class Parsed(NamedTuple):
    """What an objective's name asks for."""

    feature: Entry | None
    """A transfer or a lift."""
    logits: tuple[Entry, ...]


def parse_objective(name: str) -> Parsed:
    """``ie-ft+kd`` as its terms.

    Raises:
        InputError: an unknown term, with the valid ones; two transfers; a mode of mutual learning.
    """
    entries = []
    for part in name.lower().split("+"):
        if part not in OBJECTIVES:
            raise unknown_name("objective", part, OBJECTIVES, in_words=valid_names())
        entries.append(OBJECTIVES[part])
    mutual = [entry.name for entry in entries if entry.kind == "mutual"]
    if mutual and len(entries) == 1:
        raise InputError(
            f"{mutual[0]} trains two networks together; what is asked for here has a finished teacher.",
            "Use it in a run (`iekd-compress --objective ...`) or, from Python, build_mutual.",
        )
    if mutual:
        raise InputError(
            f"{mutual[0]} trains two networks together and has no finished teacher; it stands alone, not in '{name}'.",
            "Give it as the whole objective.",
        )
    twice = [entry.name for entry in entries if entries.count(entry) > 1]
    if twice:
        raise InputError(f"'{name}' has {twice[0]} twice.", "Write it once; --kd-weight makes it heavier.")
    features = [entry for entry in entries if entry.kind in ("transfer", "lift")]
    if len(features) > 1:
        raise InputError(
            f"'{name}' has several transfers: {', '.join(entry.name for entry in features)}.",
            f"Choose one, such as ie-ft+kd.  `{_LISTED_BY}` lists them.",
        )
    return Parsed(features[0] if features else None, tuple(entry for entry in entries if entry.kind == "logits"))


def build_objective(
    name: str,
    *,
    teacher: tuple[TapShape, ...],
    student: tuple[TapShape, ...],
    classes: int,
    settings: ObjectiveSettings,
    ensemble: Sequence[tuple[TapShape, ...]] = (),
) -> Objective:
    """The objective of that name, for these taps.

    Args:
        name: terms of ``catalogue.OBJECTIVES`` joined by ``+``, such as ``ie-ft+kd``.
        teacher: shapes of the teacher's taps.
        student: shapes of the student's taps, as many.
        classes: of the data.
        settings: weights and choices.
        ensemble: shapes of each teacher's taps, where the teacher is an :class:`EnsembleTeacher` (its ``members``).

    Raises:
        InputError: an unknown name, a term that these taps or so few classes do not allow, or a split that leaves a
            part empty.
    """
    parsed = parse_objective(name)
    lifts = []
    if parsed.feature is not None:
        require_as_many(teacher, student)
        for number, shapes in enumerate(zip(teacher, student, strict=True)):
            lifts.append(make_lift(parsed.feature, *shapes, settings, tuple(shape[number] for shape in ensemble)))
    require_known_options(parsed.logits, settings)
    terms = {entry.name: _logit_term(entry, settings, classes) for entry in parsed.logits}
    return Composite(lifts, terms, settings.task_weight)


def make_lift(
    entry: Entry,
    teacher: TapShape,
    student: TapShape,
    settings: ObjectiveSettings,
    members: tuple[TapShape, ...] = (),
) -> InheritExplore:
    """The transfer of ``entry``, lifted or plain, at one pair of taps.

    Raises:
        InputError: see :func:`build_objective`.
    """
    shape = common_shape(teacher, student)
    kind: type[Transfer] = load(entry)
    if members:
        narrowest = min(member.channels for member in members) // 2
        alike = replace(settings, factor_channels=max(1, min(settings.factor_channels, narrowest)))
        transfers = [kind(member._replace(height=shape.height, width=shape.width), alike) for member in members]
        transfer: Transfer = EnsembleTransfer(shape, transfers, settings)
    else:
        transfer = kind(shape, settings)
    weights = Weights(*(resolved(entry, settings, f"{field}_weight") for field in Weights._fields))
    if settings.inherit_fraction == 1 and settings.inherit_weight is None:
        weights = weights._replace(inherit=weights.transfer)  # nothing explores: a lift is then the plain transfer
    return InheritExplore(transfer, shape[1:], student, weights, settings, lifted=entry.kind == "lift")


def taps_for(name: str, taps: Sequence[int | str]) -> tuple[int | str, ...]:
    """Where this objective, a valid one, reads a network that is to be read at ``taps``.

    That is nowhere if it reads logits alone, so that it takes any network.
    """
    if not reads_maps(name):
        return ()
    return tuple(before(tap) for tap in taps) if reads_before_activation(name) else tuple(taps)


def require_as_many(teacher: Sequence[TapShape], student: Sequence[TapShape]) -> None:
    """Raise InputError unless the two networks have equally many taps."""
    if len(teacher) != len(student):
        raise InputError(
            f"{len(teacher)} taps of the teacher against {len(student)} of the student.", "Name as many of each."
        )


def load(entry: Entry) -> Any:
    """The class or function that a catalogue entry names."""
    module, _, attribute = entry.target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def resolved(entry: Entry, settings: ObjectiveSettings, field: str) -> float:
    """A setting, or the entry's default where it is left open."""
    value = getattr(settings, field)
    return float(entry.defaults[field] if value is None else value)


def require_known_options(terms: Sequence[Entry], settings: ObjectiveSettings) -> None:
    """Raise InputError where ``logit_options`` names what none of these terms has."""
    known = {name: value for entry in terms for name, value in entry.options.items()}
    for name in parse_options(settings.logit_options):
        if not known:
            raise InputError(
                f"--logit-options '{settings.logit_options}': no term of this objective has options of its own.",
                f"Leave it out.  `{_LISTED_BY}` lists those that have.",
            )
        if name not in known:
            raise unknown_name("option of a logit term", name, known)


def parse_options(text: str) -> dict[str, float]:
    """``beta=8,alpha=1`` as numbers by name.

    Raises:
        InputError: something else.
    """
    found = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise InputError(
                f"--logit-options '{text}' is not a list of values.", "Give name=number, such as beta=8,alpha=1."
            ) from None
    return found


def _logit_term(entry: Entry, settings: ObjectiveSettings, classes: int) -> LogitTerm:
    if classes < entry.fewest_classes:
        raise InputError(
            f"{entry.name} needs {entry.fewest_classes} classes or more, the data has {classes}: {entry.why}.",
            "Use kd instead.",
        )
    own = {name: value for name, value in parse_options(settings.logit_options).items() if name in entry.options}
    function = partial(load(entry), **{**entry.options, **own})
    return LogitTerm(function, resolved(entry, settings, "kd_weight"), resolved(entry, settings, "temperature"))
