"""Before hours of training: can these two networks be tapped there, and trained with this objective?"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from iekd.compress.config import RunConfig
from iekd.compress.distill import Teacher, make_objective, objective_settings, tap_teacher, taps_of
from iekd.compress.objectives.build import parse_objective
from iekd.compress.objectives.catalogue import is_mutual
from iekd.compress.objectives.mutual import build_mutual
from iekd.compress.plan import Plan
from iekd.compress.prune import Macs, prune
from iekd.compress.quantizers.simulated import Simulated
from iekd.compress.targets import TARGETS
from iekd.compress.variants import grids_to_train, require_quantizers
from iekd.errors import InputError
from iekd.models.checkpoint import read_description
from iekd.models.ensemble import Ensemble, member_names
from iekd.models.registry import Architecture, build, check_classes, ensemble_of, is_artefact, resolve
from iekd.models.taps import Tapped


def rehearse(config: RunConfig, plan: Plan, classes: int, teacher: str | nn.Module, student: str | nn.Module) -> None:
    """Build both networks, their taps and the objective, untrained, and drop them again.

    Raises:
        InputError: unknown objective or tap, a split that leaves a part empty, a term that so few classes do not allow,
            a precision that the target has not, a student that cannot be pruned.
        EnvironmentMissingError: a library that the precision needs.
    """
    require_quantizers(config)
    if not is_mutual(config.objective):
        parse_objective(config.objective)  # a misspelt name need not wait for networks
    size = plan.image_size
    networks = [_untrained(given, classes, size) for given in (teacher, student)]
    if isinstance(networks[1], Ensemble):
        raise InputError(f"the student is one network, not those of '{student}'.", "Name one.")
    taps = taps_of(config)
    own = Tapped(networks[1], taps.student, size)
    for grid in grids_to_train(config):
        Simulated(own, torch.zeros(1, 3, size, size, device=next(own.parameters()).device), grid)
    if is_mutual(config.objective):
        if isinstance(networks[0], Ensemble):
            raise InputError(f"{config.objective} trains two networks, not the ensemble '{teacher}'.", "Name one.")
        pair = (Tapped(networks[0], taps.teacher, size), own)
        settings, transfer = objective_settings(config), config.mutual_transfer
        build_mutual(config.objective, pair, image_size=size, settings=settings, transfer=transfer)
        return
    if config.prune:
        _rehearse_pruning(config, networks[1], size)
    tapped: Teacher = tap_teacher(networks[0], taps.teacher, size)
    make_objective(config, tapped, own, size, classes)


def _rehearse_pruning(config: RunConfig, student: nn.Module, size: int) -> None:
    share = 1 - (1 - config.prune) ** (1 / config.prune_steps)
    scope, rounding = config.prune_scope, TARGETS[config.target].round_to
    prune(student, image_size=size, goal=Macs(share), scope=scope, round_to=rounding)


def _untrained(given: str | nn.Module, classes: int, size: int) -> nn.Module:
    if isinstance(given, nn.Module):
        check_classes(given, type(given).__name__, classes, size)
        return given
    return build(_architecture(given), classes, size)


def _architecture(given: str) -> Architecture:
    parts = member_names(given)
    if len(parts) > 1:
        return ensemble_of([_architecture(part) for part in parts])
    if is_artefact(given):
        return Architecture(**json.loads(json.dumps(read_description(Path(given))["architecture"])))
    return resolve(given)
