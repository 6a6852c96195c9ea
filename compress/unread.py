"""Settings of the method that the user gave and the objective does not read: told, so that nobody waits for them."""

from __future__ import annotations

from iekd.compress.config import RunConfig, flag, setting_defaults
from iekd.compress.objectives.catalogue import OBJECTIVES, Entry, is_mutual

_LIFT = ("inherit_weight", "explore_weight", "explore_margin", "explore_form", "inherit_fraction", "split")
_TRANSFERS = ("factor_epochs", "factor_channels", "hidden_channels")
_FROM_A_FINISHED_TEACHER = ("teacher_epochs", "factor_epochs")
"""Of what is learned before the student trains: mutual learning has no such time."""
_OF_TERMS = ("kd_weight", "temperature", "logit_options", "transfer_weight", *_LIFT, *_TRANSFERS, "mutual_transfer")


def unread_settings(config: RunConfig) -> tuple[str, ...]:
    """Names of the settings with a value of their own that no term of the objective reads; of an unknown one, none."""
    names = config.objective.lower().split("+")
    if not OBJECTIVES.keys() >= set(names):
        return ()
    terms = [OBJECTIVES[name] for name in names]
    read = {name for term in terms for name in _read_by(term, config)}
    possible: tuple[str, ...] = _OF_TERMS
    if is_mutual(config.objective):
        read -= set(_FROM_A_FINISHED_TEACHER)
        possible = tuple(dict.fromkeys((*_OF_TERMS, *_FROM_A_FINISHED_TEACHER)))
    defaults = setting_defaults()
    defaults |= {"teacher_epochs": (None, 0)}  # a settled configuration says 0 of a teacher that is not trained before
    return tuple(
        name for name in possible if name not in read and not _is_default(getattr(config, name), defaults[name])
    )


def _is_default(value: object, default: object) -> bool:
    return value in default if isinstance(default, tuple) else value == default


def unread_note(config: RunConfig) -> tuple[str, ...]:
    """One line for the user, or none."""
    names = unread_settings(config)
    return (f"--objective {config.objective} does not read {', '.join(map(flag, names))}.",) if names else ()


def _read_by(term: Entry, config: RunConfig) -> tuple[str, ...]:
    if term.kind == "logits":
        return ("kd_weight", "temperature", *(("logit_options",) if term.options else ()))
    if term.kind == "transfer":
        return ("transfer_weight", *_TRANSFERS)
    if term.kind == "lift":
        return (*_LIFT, *_TRANSFERS, *_where_all_inherits(config))
    if term.kind == "mutual":
        lifting = (*_LIFT, *_TRANSFERS, "mutual_transfer", *_where_all_inherits(config))
        return ("kd_weight", "temperature", *(lifting if "inherit_weight" in term.defaults else ()))
    return ()


def _where_all_inherits(config: RunConfig) -> tuple[str, ...]:
    """A lift without exploration is the plain transfer, by its weight."""
    return ("transfer_weight",) if config.inherit_fraction == 1 else ()
