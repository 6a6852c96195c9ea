"""Structural pruning: whole channels, hidden units and heads go, and what is left is a smaller dense network.

The criterion says which, the scope how layers share the loss, the goal how far.  Families and choices:
docs/decisions/pruning.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iekd.compress.pruning.goals import Goal, Latency, LatencyShare, Macs, Ratio, Trial, least_ratio
from iekd.compress.pruning.graph import Cut
from iekd.compress.pruning.task import Attempt, PruningTask, refresh_facts
from iekd.compress.pruning.widths import choose_cuts
from iekd.deploy.results import Interval
from iekd.errors import InputError, unknown_name
from iekd.models.checkpoint import load_artefact, refuse_target, save_artefact
from iekd.models.pruned import Changes, describe_changes, merge_changes
from iekd.models.registry import Architecture, count_parameters

SCOPES = ("uniform", "global")
HEADS = ("narrow", "remove")

__all__ = ["Latency", "LatencyShare", "Macs", "PruneResult", "Ratio", "describe_gain", "prune", "prune_artefact"]


@dataclass(frozen=True)
class PruneResult:
    """A pruned network and what was done.

    Attributes:
        network: a new network; the one that was given is as it was.
        changes: the widths that differ from the given network's.
        history: criterion, scope, goal, ratio, trials and the widths of each dimension before and after; JSON types.
        macs_before: multiply-accumulates of one image.
        macs_after: the same, pruned.
        parameters_before: their number.
        parameters_after: the same, pruned.
    """

    network: nn.Module
    changes: Changes
    history: dict[str, Any]
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int

    @property
    def macs(self) -> tuple[int, int]:
        """Before and after."""
        return self.macs_before, self.macs_after

    @property
    def parameters(self) -> tuple[int, int]:
        """Before and after."""
        return self.parameters_before, self.parameters_after

    def architecture(self, before: Architecture) -> Architecture:
        """How to build the pruned network again, given how the unpruned (or less pruned) one is built."""
        return dataclasses.replace(before, pruned=merge_changes(before.pruned, self.changes))


def prune(
    network: nn.Module,
    *,
    image_size: int,
    goal: Goal,
    criterion: str = "group-norm",
    scope: str = "uniform",
    round_to: int = 8,
    heads: str = "narrow",
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> PruneResult:
    """Prune a copy of ``network``; the classifier's outputs always stay.

    The pruned network has lost accuracy and has to be trained again (docs/decisions/pruning.md compares how).

    Args:
        network: an image classifier, in any state of training; already pruned ones prune again.
        image_size: height and width of its input, pixels.
        goal: :class:`Ratio`, or :class:`Macs`, :class:`Latency` or :class:`LatencyShare`, which look for the smallest
            ratio that meets them.
        criterion: a name of :data:`iekd.compress.pruning.criteria.CRITERIA`.
        scope: ``uniform``: the same share of every layer; ``global``: the least important channels wherever they are.
        round_to: widths that change become multiples of it, such as 8, 16 or 32.
        heads: attention heads are each made narrower (``narrow``), or whole ones go (``remove``).
        batches: normalised images (B, 3, H, W) and labels (B,), for criterion ``taylor``.

    Raises:
        InputError: a value out of range, a network that cannot be pruned (the layer is named), nothing to prune, or
            a goal that cannot be met.
    """
    _check_choices(scope, round_to, heads)
    task = PruningTask.of(network, image_size)
    with torch.enable_grad():
        dimensions = task.dimensions(criterion, batches, whole_heads=heads == "remove")
    trials: list[dict[str, float]] = []

    def attempt(ratio: float) -> Trial[Attempt]:
        made = task.attempt(choose_cuts(dimensions, ratio, scope, round_to))
        figure = goal.measure(made.network) if isinstance(goal, Latency | LatencyShare) else float(made.macs)
        trials.append({"ratio": ratio, "macs": made.macs, "figure": figure})
        return Trial(ratio, made, figure)

    chosen = _reach(task, goal, attempt)
    if not chosen.result.cuts:
        raise InputError(
            f"nothing to prune in {task.name}: at ratio {chosen.ratio:g} no width changes "
            f"({len(dimensions)} prunable widths, rounded to {round_to}).",
            "Raise the goal, or round less (--prune-round-to, or --round-to of the command prune).",
        )
    pruned = chosen.result.network
    refresh_facts(network, pruned, task.image)
    history = {
        "criterion": criterion,
        "scope": scope,
        "goal": _describe_goal(goal),
        "round_to": round_to,
        "heads": heads,
        "ratio": chosen.ratio,
        "trials": trials,
        "widths": {cut.dimension.layer: _widths(cut) for cut in chosen.result.cuts},
    }
    return PruneResult(
        network=pruned,
        changes=describe_changes(network, pruned),
        history=history,
        macs_before=task.macs,
        macs_after=chosen.result.macs,
        parameters_before=count_parameters(network),
        parameters_after=count_parameters(pruned),
    )


def prune_artefact(source: Path, target: Path, *, goal: Goal, **options: Any) -> PruneResult:
    """Prune the network in one artefact into another, which is a student like any (``--student TARGET``).

    Args:
        source: an artefact, such as ``RUN/student``.
        target: where the pruned one goes, in the place of an artefact that is there; its facts hold the history of
            every pruning so far, and no accuracy.
        goal: as in :func:`prune`.
        options: the other arguments of :func:`prune`, but for the image size, which the artefact knows.

    Raises:
        InputError: as :func:`prune` does, ``source`` is not a readable artefact, or ``target`` holds anything else than
            an artefact, is ``source``, or lies in or around it.
    """
    refuse_target(target, source)
    artefact = load_artefact(source)
    result = prune(artefact.network, image_size=artefact.preprocessing.size, goal=goal, **options)
    pruned = dataclasses.replace(
        artefact,
        network=result.network,
        architecture=result.architecture(artefact.architecture),
        facts={"pruning": [*artefact.facts.get("pruning", []), result.history]},
    )
    save_artefact(target, pruned)
    return result


def describe_gain(
    macs: tuple[int, int], parameters: tuple[int, int], before: Interval, after: Interval, speedup: Interval
) -> str:
    """One line on what pruning gained; it says so where that is no speed.

    Args:
        macs: multiply-accumulates of one image, before and after.
        parameters: their number, before and after.
        before: median latency of the network that was given, milliseconds.
        after: the same, pruned.
        speedup: before / after with its interval, from one interleaved run.
    """
    counts = (
        f"MACs {macs[0] / 1e6:.1f} -> {macs[1] / 1e6:.1f} M ({macs[1] / macs[0]:.0%} left), "
        f"parameters {parameters[0] / 1e6:.2f} -> {parameters[1] / 1e6:.2f} M"
    )
    times = f"latency {before.value:.3g} -> {after.value:.3g} ms"
    factor = f"{speedup.value:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"
    if speedup.low > 1:
        return f"{factor} times faster: {times}; {counts}"
    return f"not faster ({factor} times the speed): {times}, although {counts}"


def _reach(task: PruningTask, goal: Goal, attempt: Callable[[float], Trial[Attempt]]) -> Trial[Attempt]:
    """The trial that meets ``goal`` with the least pruning."""
    if isinstance(goal, Ratio):
        return attempt(goal.value)
    if isinstance(goal, Macs):
        limit, unit, figure_before = (1 - goal.fewer) * task.macs, "MACs", float(task.macs)
    elif isinstance(goal, LatencyShare):
        limit, unit, figure_before = goal.left, "of its latency", 1.0
    else:
        limit, unit, figure_before = goal.milliseconds, "ms", goal.measure(task.network)
    if figure_before <= limit:
        raise InputError(
            f"nothing to prune in {task.name}: it takes {figure_before:.3g} {unit} already, the goal is {limit:.3g}.",
            "Set a lower goal.",
        )
    best, most = least_ratio(attempt, limit)
    if best is None:
        raise InputError(
            f"{task.name} cannot be pruned to {limit:.3g} {unit}: at the most (ratio {most.ratio:g}) it takes "
            f"{most.figure:.3g}, unpruned {figure_before:.3g}.",
            "Set a higher goal, or choose a smaller student.",
        )
    return best


def _widths(cut: Cut) -> list[int]:
    """Channels before and after."""
    dimension = cut.dimension
    return [dimension.channels, dimension.channels - len(dimension.indices(list(cut.units)))]


def _describe_goal(goal: Goal) -> dict[str, float]:
    if isinstance(goal, Ratio):
        return {"ratio": goal.value}
    if isinstance(goal, Macs):
        return {"fewer_macs": goal.fewer}
    return {"latency_left": goal.left} if isinstance(goal, LatencyShare) else {"milliseconds": goal.milliseconds}


def _check_choices(scope: str, round_to: int, heads: str) -> None:
    if scope not in SCOPES:
        raise unknown_name("pruning scope", scope, SCOPES)
    if heads not in HEADS:
        raise unknown_name("way to prune attention heads", heads, HEADS)
    if round_to < 1:
        raise InputError(f"channels cannot be rounded to multiples of {round_to}.", "Give 1, 8, 16 or 32.")
