"""``--prune`` is a share; ``--prune-goal`` says of what: MACs, channels, or the latency measured here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from iekd.compress.config import RunConfig
from iekd.compress.measure import threads
from iekd.compress.pruning.goals import Goal, LatencyShare, Macs, Ratio
from iekd.compress.pruning.latency import latency_beside, onnx_latency
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
    how = _clock(config.target, threads(config), image_size=image_size, classes=classes)
    return LatencyShare(1 - share, latency_beside(network.cpu().eval(), **how))


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
    return onnx_latency(**_clock(name, threads, image_size=image_size, classes=classes))


def _clock(name: str, threads: int, **of_files: int) -> dict[str, Any]:
    """How a file for the target ``name`` is measured here.

    Raises:
        InputError: see :func:`target_latency`.
    """
    target = TARGETS[name]
    if target.on_board:
        raise InputError(
            f"the latency of a file for {name} is measured on the board, not where it is pruned.",
            "Prune by a share of the MACs, and measure with `iekd-compress deploy`.",
        )
    return {"backend": target.backend, "threads": threads, "seconds": SECONDS, **of_files}
