"""How much a channel matters: torch-pruning's importances, by the names that the literature uses."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from iekd.compress.pruning.graph import Scorer
from iekd.errors import InputError, unknown_name

CRITERIA = {
    "group-norm": "L2 norm over all layers that share the channel (Fang et al., DepGraph, CVPR 2023)",
    "magnitude": "L2 norm of the channel in one layer of those that share it (Li et al., ICLR 2017, with L1)",
    "bn-scale": "batch normalisation's scale (Liu et al., Network Slimming, ICCV 2017); other layers stay whole",
    "taylor": "weight times gradient over labelled batches (Molchanov et al., CVPR 2019)",
}


def make_scorer(name: str, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]] | None) -> Scorer:
    """The criterion of that name for ``network``.

    Args:
        name: one of ``CRITERIA``.
        network: ``taylor`` leaves its gradients here.
        batches: images (B, 3, H, W) and labels (B,); what ``taylor`` judges by, and needed by it alone.

    Raises:
        InputError: unknown criterion, or one that this network or call does not allow.
    """
    if name not in CRITERIA:
        raise unknown_name("pruning criterion", name, CRITERIA)
    from torch_pruning.pruner import importance

    if name == "taylor":
        _accumulate_gradients(network, batches)
        scorer: Scorer = importance.GroupTaylorImportance(normalizer=None)
    elif name == "bn-scale":
        _require_batch_normalisation(network)
        scorer = importance.BNScaleImportance(normalizer=None)
    else:
        reduction = "first" if name == "magnitude" else "mean"
        scorer = importance.GroupMagnitudeImportance(p=2, group_reduction=reduction, normalizer=None)
    return scorer


def _require_batch_normalisation(network: nn.Module) -> None:
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return
    others = ((name, type(module).__name__) for name, module in network.named_modules())
    name, kind = next(((name, kind) for name, kind in others if "Norm" in kind), ("", ""))
    instead = f": what normalises, '{name}' first, is {kind}" if name else " and no other normalisation"
    raise InputError(
        f"criterion bn-scale needs batch normalisation, and {type(network).__name__} has no BatchNorm layer{instead}.",
        "Choose group-norm or taylor.",
    )


def _accumulate_gradients(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]] | None) -> None:
    """Leave the cross-entropy's gradient, summed over ``batches``, in the parameters; norms keep their statistics."""
    network.eval().requires_grad_(True)
    network.zero_grad(set_to_none=True)
    device, count = next(network.parameters()).device, 0
    for images, targets in batches or ():
        F.cross_entropy(network(images.to(device)), targets.to(device)).backward()  # type: ignore[no-untyped-call]
        count += 1
    if count == 0:
        raise InputError("criterion taylor needs labelled batches.", "Give batches=, or choose group-norm.")
    for parameter in network.parameters():
        if parameter.grad is None:  # not used by this network's forward
            parameter.grad = parameter.new_zeros(parameter.shape)
