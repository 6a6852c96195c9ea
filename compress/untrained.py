"""A network as the user named it, before it has learned anything."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from iekd.models.checkpoint import read_description
from iekd.models.ensemble import member_names
from iekd.models.registry import Architecture, build, check_classes, ensemble_of, is_artefact, resolve


def untrained(given: str | nn.Module, classes: int, size: int) -> nn.Module:
    """The network with fresh weights; one that was given as an object is given back.

    Raises:
        InputError: unknown model, or one that does not fit images of ``size`` pixels or so many classes.
    """
    if isinstance(given, nn.Module):
        check_classes(given, type(given).__name__, classes, size)
        return given
    return build(architecture_of(given), classes, size)


def architecture_of(given: str) -> Architecture:
    """What a name, an artefact's folder, or several of them joined by commas stand for."""
    parts = member_names(given)
    if len(parts) > 1:
        return ensemble_of([architecture_of(part) for part in parts])
    if is_artefact(given):
        return Architecture(**json.loads(json.dumps(read_description(Path(given))["architecture"])))
    return resolve(given)
