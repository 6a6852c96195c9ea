"""``--prune`` is a share; ``--prune-goal`` says of what: MACs, channels, or the latency measured here."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from iekd.compress.config import RunConfig
from iekd.compress.measure import threads
from iekd.compress.pruning.goals import Goal, Latency, Macs, Ratio
from iekd.compress.pruning.latency import onnx_latency
from iekd.compress.targets import TARGETS
from iekd.errors import InputError

SECONDS = 0.5
"""Measured for each width that is tried: a median that bisects."""


def goal_of_share(config: RunConfig, share: float, network: nn.Module, image_size: int, classes: int) -> Goal:
    """The goal that leaves ``1 - share`` of what ``network`` has.

    Args:
        config: what is counted, and for ``latency`` target and threads.
        share: to remove, 0 < share < 1.
        network: as it is before this pruning.
        image_size: height and width of its input, pixels.
        classes: how many logits it puts out.

    Raises:
        InputError: a latency is asked for that this machine cannot measure.
    """
    if config.prune_goal == "channels":
        return Ratio(share)
    if config.prune_goal == "macs":
        return Macs(share)
    measure = target_latency(config.target, threads(config), image_size=image_size, classes=classes)
    return Latency((1 - share) * measure(network.cpu().eval()), measure)


def target_latency(name: str, threads: int, *, image_size: int, classes: int) -> Callable[[nn.Module], float]:
    """Median milliseconds of a network's exported file on the runtime of the target ``name``.

    Args:
        name: one of ``TARGETS``.
        threads: of the session.
        image_size: height and width of the input, pixels.
        classes: how many logits are put out.

    Raises:
        InputError: the target is a board, whose latency is not this machine's.
    """
    target = TARGETS[name]
    if target.on_board:
        raise InputError(
            f"the latency of a file for {name} is measured on the board, not where it is pruned.",
            "Prune by a share of the MACs, and measure with `iekd-compress deploy`.",
        )
    return onnx_latency(
        image_size=image_size, classes=classes, backend=target.backend, threads=threads, seconds=SECONDS
    )
