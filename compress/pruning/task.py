"""One network to be pruned: what may be cut in it, and attempts at cutting it, each on a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iekd.compress.pruning.criteria import make_scorer
from iekd.compress.pruning.families import LAYERS, Family, inspect_family
from iekd.compress.pruning.graph import Cut, Dimension, find_dimensions, naming_the_layer, remove
from iekd.errors import InputError
from iekd.models.registry import count_macs


@dataclass(frozen=True)
class Attempt:
    """A pruned network, what was removed, and its multiply-accumulates."""

    network: nn.Module
    cuts: list[Cut]
    macs: int


@dataclass(frozen=True)
class PruningTask:
    """The network that is to be pruned, with what every attempt needs."""

    network: nn.Module
    image: Tensor
    logits: torch.Size
    macs: int

    @classmethod
    def of(cls, network: nn.Module, image_size: int) -> PruningTask:
        """Check that ``network`` answers an image of that size, and count."""
        parameter = next(network.parameters(), None)
        if parameter is None:
            raise InputError(f"nothing to prune in {type(network).__name__}: it has no weights.")
        image = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
        logits = _logits(network, image)
        return cls(network, image, logits.shape, count_macs(copy.deepcopy(network), image_size))

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.network).__name__

    def dimensions(
        self, criterion: str, batches: Iterable[tuple[Tensor, Tensor]] | None, *, whole_heads: bool
    ) -> list[Dimension]:
        """All that may be cut, scored; see :func:`iekd.compress.pruning.graph.find_dimensions`.

        Raises:
            InputError: there is nothing, or the network cannot be pruned.
        """
        twin = copy.deepcopy(self.network).eval()
        scorer = make_scorer(criterion, twin, batches)
        family = inspect_family(twin, self.image)
        found = find_dimensions(twin, self.image, family, scorer, whole_heads=whole_heads)
        if not found:
            raise self._nothing_to_prune(criterion, _inner_layers(twin, family))
        return found

    def _nothing_to_prune(self, criterion: str, layers: list[str]) -> InputError:
        """The error that names the first layer that was no use, or says which kind of layer is missing."""
        if not layers:
            reason = "it has no convolution and no linear layer beside the classifier"
        elif criterion == "bn-scale":
            reason = f"no batch normalisation follows '{layers[0]}', nor any other layer beside the classifier"
        else:
            reason = f"criterion {criterion} ranks no channels of '{layers[0]}', nor of any other layer"
        return InputError(
            f"nothing to prune in {self.name}: {reason}.", "Choose another criterion, or another student."
        )

    def attempt(self, cuts: list[Cut]) -> Attempt:
        """A copy of the network without what ``cuts`` name, in the modes of the original, and checked.

        Raises:
            InputError: a layer cannot be pruned; the message names it.
        """
        if not cuts:
            return Attempt(copy.deepcopy(self.network), cuts, self.macs)
        twin = copy.deepcopy(self.network).eval()
        attention = inspect_family(twin, self.image).attention.values()
        remove(twin, self.image, cuts)
        for layer in attention:
            layer.settle(whole_heads=any(cut.dimension.whole_blocks for cut in cuts))
        logits = _logits(twin, self.image)
        if logits.shape != self.logits:
            raise InputError(
                f"{self.name} cannot be pruned: it would put out {tuple(logits.shape)} instead of "
                f"{tuple(self.logits)} logits.",
                "Choose another student.",
            )
        macs = count_macs(twin, self.image.shape[-1])
        _restore_modes(self.network, twin)
        return Attempt(twin, cuts, macs)


def _inner_layers(network: nn.Module, family: Family) -> list[str]:
    """Names of the layers that could be cut but for the criterion."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, LAYERS) and not any(module is output for output in family.outputs)
    ]


@torch.no_grad()
def _logits(network: nn.Module, image: Tensor) -> Tensor:
    """The answer to one image, statistics untouched; an error names the layer."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with naming_the_layer(network):
            logits: Tensor = network(image)
    finally:
        for module, training in modes.items():
            module.training = training
    return logits


def _restore_modes(original: nn.Module, pruned: nn.Module) -> None:
    """Training mode, frozen parameters and gradients as in ``original``: tracing had to change them."""
    modules, parameters = dict(original.named_modules()), dict(original.named_parameters())
    for name, module in pruned.named_modules():
        module.training = modules[name].training
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(parameters[name].requires_grad)
        parameter.grad = None


@torch.no_grad()
def refresh_facts(original: nn.Module, pruned: nn.Module, image: Tensor) -> None:
    """Correct timm's own notes of widths (``num_features``, ``feature_info``, ...): ``reset_classifier`` reads them."""
    if not hasattr(pruned, "forward_features") or not hasattr(pruned, "get_classifier"):
        return
    facts: Any = pruned
    twins = [copy.deepcopy(network).eval() for network in (original, pruned)]
    before, after = (twin.forward_features(image) for twin in twins)  # type: ignore[operator]
    width = getattr(facts, "num_features", None)
    if isinstance(before, Tensor) and width in before.shape[1:]:
        new = after.shape[1:][before.shape[1:].index(width)]
        for name in ("num_features", "embed_dim"):
            if getattr(facts, name, None) == width:
                setattr(facts, name, new)
    classifier = facts.get_classifier()
    if isinstance(getattr(facts, "head_hidden_size", None), int) and isinstance(classifier, nn.Linear):
        facts.head_hidden_size = classifier.in_features
    if isinstance(getattr(facts, "feature_info", None), list) and hasattr(facts, "forward_intermediates"):
        maps = twins[1].forward_intermediates(image, intermediates_only=True, output_fmt="NCHW")  # type: ignore[operator]
        if len(maps) == len(facts.feature_info):
            facts.feature_info = [
                {**entry, "num_chs": entry_map.shape[1]}
                for entry, entry_map in zip(facts.feature_info, maps, strict=True)
            ]
