"""``--prune`` is a share; ``--prune-goal`` says of what: MACs, channels, or the latency measured here."""

from __future__ import annotations

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
    target = TARGETS[config.target]
    if target.on_board:
        raise InputError(
            f"the latency of a file for {target.name} is measured on the board, not where it is pruned.",
            "Leave --prune-goal at macs, and measure with `iekd-compress deploy`.",
        )
    measure = onnx_latency(
        image_size=image_size, classes=classes, backend=target.backend, threads=threads(config), seconds=SECONDS
    )
    return Latency((1 - share) * measure(network.cpu().eval()), measure)
