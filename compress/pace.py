"""Parameters that learn at a rate of their own, in the optimiser of all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn


class Pace(NamedTuple):
    """Parameters, and what their learning rate is a multiple of the others' by."""

    parameters: Iterable[nn.Parameter]
    factor: float


def set_pace(optimizer: Any, pace: Pace) -> None:
    """Part the optimiser's groups: those of ``pace`` get its factor as ``lr_scale``, which the training loop heeds."""
    if pace.factor == 1:
        return
    chosen = {id(parameter) for parameter in pace.parameters}
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        own = [parameter for parameter in group["params"] if id(parameter) in chosen]
        others = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        for parameters, factor in ((others, 1.0), (own, pace.factor)):
            if parameters:
                optimizer.add_param_group({**group, "params": parameters, "lr_scale": factor})
