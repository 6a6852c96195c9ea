"""The peak of the learning rate where the settings leave it open.

Measured with AdamW at batches of 64, gradients clipped to norm 5, from scratch (docs/results.md, "The learning rate of
a short training"): the fewer the steps, the larger they have to be.  A network without batch normalisation, as
transformers are, does not bear that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

PRETRAINED = 3e-4
SCRATCH = 2e-3
"""For ``LONG`` steps and more."""
LONG = 5000
SHORT = 8e-3
"""For a sixteenth of ``LONG`` and fewer."""
UNNORMALIZED = 1e-3
"""From scratch without batch normalisation, whatever the steps."""


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
    norms = [module for module in network().modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return UNNORMALIZED if origin == "scratch" else PRETRAINED
    if any(norm.running_mean is not None and norm.running_mean.any() for norm in norms):
        return PRETRAINED  # it has seen images
    return min(SHORT, SCRATCH * math.sqrt(max(1.0, LONG / max(1, steps))))
