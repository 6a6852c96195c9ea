"""Clipping of gradients: each group of parameters by a norm of its own, and how often it was needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Group = Sequence[nn.Parameter]
"""Parameters whose gradients are clipped together."""


def clip_groups(task: nn.Module, apart: Sequence[Group] = ()) -> list[Group]:
    """All of ``task``'s parameters: those of ``apart`` in their groups, and the others as one.

    Networks that would each have an optimiser go apart: under one norm a steep gradient of one slows the other.
    """
    taken = {id(parameter) for group in apart for parameter in group}
    rest = [parameter for parameter in task.parameters() if id(parameter) not in taken]
    return [group for group in (*apart, rest) if group]


def clip(groups: Sequence[Group], limit: float) -> Tensor:
    """Scale each group's gradients down to norm ``limit``; returns 1 where any was longer, else 0, on their device.

    It does not wait for the device.  Infinite norms do not count: in ``fp16`` a step that overflowed is not taken.
    """
    learning = [group for group in groups if any(parameter.grad is not None for parameter in group)]
    norms = torch.stack([nn.utils.clip_grad_norm_(group, limit) for group in learning])
    return ((norms > limit) & norms.isfinite()).any().float()
