"""Before hours of training: can these two networks be tapped there, and trained with this objective?"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from iekd.compress.config import RunConfig
from iekd.compress.objectives.alignment import FEWEST_IMAGES
from iekd.compress.objectives.build import parse_objective
from iekd.compress.objectives.catalogue import is_mutual
from iekd.compress.objectives.mutual import build_mutual
from iekd.compress.plan import Plan
from iekd.compress.precisions import grids_to_train, require_quantizers
from iekd.compress.prune import prune
from iekd.compress.pruning.share import goal_of_share
from iekd.compress.quantizers.simulated import Simulated
from iekd.compress.run_objective import Teacher, later_config, make_objective, objective_settings, tap_teacher, taps_of
from iekd.compress.unread import unread_settings
from iekd.compress.untrained import untrained
from iekd.errors import InputError
from iekd.models.checkpoint import load_artefact, load_state, read_weights
from iekd.models.ensemble import Ensemble, member_names
from iekd.models.registry import check_classes
from iekd.models.taps import Tapped


def rehearse(config: RunConfig, plan: Plan, classes: int, teacher: str | nn.Module, student: str | nn.Module) -> None:
    """Build both networks, their taps and the objective, untrained, prune as will be pruned, and drop it all again.

    Raises:
        InputError: unknown objective or tap, a split that leaves a part empty, a term that so few classes do not allow,
            a precision that the target has not, a student that cannot be pruned so often and so far.
        EnvironmentMissingError: a library that the precision needs.
    """
    require_quantizers(config)
    if not is_mutual(config.objective):
        parse_objective(config.objective)  # a misspelt name need not wait for networks
    _check_fewest_images(config)
    size = plan.image_size
    networks = [untrained(given, classes, size) for given in (teacher, student)]
    if isinstance(networks[1], Ensemble):
        raise InputError(f"the student is one network, not those of '{student}'.", "Name one.")
    origins = (plan.teacher_origin, config.teacher_weights), (plan.student_origin, config.student_weights)
    for given, network, (origin, weights) in zip((teacher, student), networks, origins, strict=True):
        _check_weights(config, given, network, origin, weights, classes, size)
    _check_named_taps(config, networks, size)
    _check_lone_images(config, networks, size)
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
    later = later_config(config)
    tapped: Teacher = tap_teacher(networks[0], taps_of(later).teacher, size)
    for network in (networks[1], *_prunings(config, networks[1], size, classes)):
        make_objective(later, tapped, Tapped(network, taps_of(later).student, size), size, classes)


def _check_weights(
    config: RunConfig, given: str | nn.Module, network: nn.Module, origin: str, weights: str, classes: int, size: int
) -> None:
    """Weights that the user names have to fit the network and the images: those of the student come hours later."""
    members = list(network.members) if isinstance(network, Ensemble) else [network]
    if origin == "file":
        state = read_weights(Path(weights))
        for member in members:
            load_state(member, state, weights, adapt_head=config.adapt_head)
    elif origin == "artefact" and isinstance(given, str):
        for name in member_names(given):
            check_classes(load_artefact(Path(name)).network, name, classes, size)


def _check_named_taps(config: RunConfig, networks: list[nn.Module], size: int) -> None:
    """A stage that the user names must be there even where the objective reads logits alone: ``diagnose`` looks at it.

    The last stage, which nobody named, need not: such an objective takes networks that have no maps at all.
    """
    if taps_of(config).student:
        return  # they are tapped anyway
    if len(config.teacher_taps) != len(config.taps):
        raise InputError(
            f"--teacher-tap names {len(config.teacher_taps)} stages and --tap {len(config.taps)}.",
            "Name as many of each; --teacher-tap is as --tap where it is not given.",
        )
    for taps, network in zip((config.teacher_taps, config.taps), networks, strict=True):
        if taps != (-1,):
            tap_teacher(network, taps, size)


def _check_fewest_images(config: RunConfig) -> None:
    """Likeness is that of several images: with fewer a batch has none, and nothing would explore."""
    explores = "explore_form" not in unread_settings(config) and config.inherit_fraction < 1
    if config.explore_form == "cka" and explores and config.batch_size < FEWEST_IMAGES:
        raise InputError(
            f"--explore-form cka compares the images of a batch, and --batch-size {config.batch_size} has too few.",
            f"Give --batch-size {FEWEST_IMAGES} or more, or --explore-form cosine.",
        )


def _check_lone_images(config: RunConfig, networks: list[nn.Module], size: int) -> None:
    """Batch normalisation of a map of one pixel needs more than one image to have a variance."""
    if config.batch_size > 1:
        return
    for role, network in zip(("teacher", "student"), networks, strict=True):
        twin = copy.deepcopy(network).train()  # its statistics would move
        try:
            with torch.no_grad():
                twin(torch.zeros(1, 3, size, size, device=next(twin.parameters()).device))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"--batch-size 1: a map of the {role} has one pixel at {size} x {size}, and batch normalisation needs "
                "more than one value.",
                "Give --batch-size 2 or more, or larger images.",
            ) from error


def _prunings(config: RunConfig, student: nn.Module, size: int, classes: int) -> list[nn.Module]:
    """What each step of the pruning would leave of the student; nothing where there is none."""
    if not config.prune:
        return []
    network = _with_distinct_scales(student)
    # taylor ranks the same layers, by gradients that mean nothing before training
    criterion = "group-norm" if config.prune_criterion == "taylor" else config.prune_criterion
    found = []
    for step in range(config.prune_steps):
        try:
            network = prune(
                network,
                image_size=size,
                goal=goal_of_share(config, config.prune_share, network, size, classes),
                criterion=criterion,
                scope=config.prune_scope,
                round_to=config.round_to,
            ).network
        except InputError as error:
            raise InputError(f"pruning step {step + 1} of {config.prune_steps}: {error.message}", error.hint) from error
        found.append(network)
    return found


@torch.no_grad()
def _with_distinct_scales(network: nn.Module) -> nn.Module:
    """A copy whose normalisations scale each channel otherwise: fresh scales are all alike, or 0, and rank nothing."""
    twin = copy.deepcopy(network)
    for name, parameter in twin.named_parameters():
        if name.endswith("weight") and parameter.dim() == 1:
            parameter.copy_(torch.linspace(0.5, 1.5, len(parameter)))
    return twin
