"""The peak of the learning rate where the settings leave it open.

Measured with AdamW at batches of 64, gradients clipped to norm 5, from scratch (docs/results.md, "The learning rate of
a short training"): the fewer the steps, the larger they have to be.  A transformer does not bear that, and what has no
normalisation at all is not trusted to.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from iekd.models.ensemble import Ensemble

PRETRAINED = 3e-4
SCRATCH = 2e-3
"""For ``LONG`` steps and more."""
LONG = 5000
SHORT = 8e-3
"""For a sixteenth of ``LONG`` and fewer."""
DELICATE = 1e-3
"""From scratch of transformers and of networks without normalisation, whatever the steps."""

RULE = {"rule for the learning rate": "by the number of steps"}
"""Of :func:`peak_rate`, for what compares trainings that were begun at different times."""
EARLIER_RULE = {"rule for the learning rate": "the same for all lengths"}
"""Of what does not name its rule: 2e-3 from scratch."""


def peak_rate(network: Callable[[], nn.Module], origin: str, steps: int) -> float:
    """Of a training of ``steps`` steps.

    What a Python function or object gives may be trained or not: its batch normalisations know.

    Args:
        network: builds what is trained; not called where its weights are known to be trained.
        origin: of its first weights, as :func:`iekd.compress.teacher.decide_weights` says it.
        steps: of the whole training.
    """
    if origin not in ("scratch", "object"):
        return PRETRAINED
    return _peak_of(network(), origin, steps)


def _peak_of(network: nn.Module, origin: str, steps: int) -> float:
    if isinstance(network, Ensemble):  # one rate for all: the gentlest that a member needs
        return min(_peak_of(member, origin, steps) for member in network.members)
    modules = list(network.modules())
    batch_norms = [module for module in modules if isinstance(module, _BatchNorm)]
    if any(norm.running_mean is not None and norm.running_mean.any() for norm in batch_norms):
        return PRETRAINED  # it has seen images
    if origin == "object" and not batch_norms:
        return PRETRAINED  # nothing tells
    if not (batch_norms or _is_plain_and_normalized(modules)):
        return DELICATE
    return min(SHORT, SCRATCH * math.sqrt(max(1.0, LONG / max(1, steps))))


def _is_plain_and_normalized(modules: list[nn.Module]) -> bool:
    """As ConvNeXt is, and a transformer is not."""
    attends = any("attention" in type(module).__name__.lower() for module in modules)
    return not attends and any(isinstance(module, nn.LayerNorm | nn.GroupNorm) for module in modules)
