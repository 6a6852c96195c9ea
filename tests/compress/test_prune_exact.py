"""Removing channels that compute nothing changes nothing: the check that every dependency was followed rightly."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from iekd.compress.pruning.criteria import make_scorer
from iekd.compress.pruning.families import inspect_family
from iekd.compress.pruning.graph import Cut, _build, find_dimensions, quiet, remove
from iekd.compress.pruning.widths import choose_cuts
from iekd.models.registry import Architecture, build

CASES = [
    ("mobilenetv2_100", "narrow"),
    ("mobilenetv3_large_100", "narrow"),
    ("mobilenetv4_conv_small", "narrow"),
    ("resnet18", "narrow"),
    ("efficientnet_b0", "narrow"),
    ("vit_tiny_patch16_224", "narrow"),
    ("vit_tiny_patch16_224", "remove"),
    ("regnety_002", "narrow"),  # grouped convolutions
]


def random_statistics(network: nn.Module) -> None:
    """Norms as after training, so that a swapped channel shows."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                tensor.data.uniform_(low, low + 1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.uniform_(-0.1, 0.1, generator=generator)


def silence(graph: Any, network: nn.Module, cut: Cut) -> bool:
    """Make the channels of ``cut`` put out zeros; False where layer normalisation would notice their absence."""
    module = network.get_submodule(cut.dimension.layer)
    pruner = graph.get_pruner_of_module(module)
    function = pruner.prune_out_channels if cut.dimension.output else pruner.prune_in_channels
    with quiet():
        group = graph.get_pruning_group(module, function, cut.dimension.indices(list(cut.units)))
    targets = [entry.dep.target.module for entry in group]
    if any(isinstance(target, nn.LayerNorm) for target in targets):
        return False
    for entry in group:
        target = entry.dep.target.module
        puts_out = graph.is_out_channel_pruning_fn(entry.dep.handler)
        if puts_out and isinstance(target, (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)):
            target.weight.data[entry.idxs] = 0
            if target.bias is not None:
                target.bias.data[entry.idxs] = 0
    return True


@pytest.mark.parametrize(("name", "heads"), CASES)
def test_removing_silent_channels_changes_nothing(name: str, heads: str) -> None:
    torch.manual_seed(0)
    network = build(Architecture("timm", name), 5, 64).eval()
    random_statistics(network)
    image = torch.zeros(1, 3, 64, 64)
    whole = heads == "remove"
    scorer = make_scorer("group-norm", network, None)
    dimensions = find_dimensions(network, image, inspect_family(network, image), scorer, whole_heads=whole)
    cuts = choose_cuts(dimensions, 0.4, "uniform", 8)
    graph = _build(network, image)
    silent = [cut for cut in cuts if silence(graph, network, cut)]
    assert len(silent) > 0.9 * len(cuts)
    pruned = copy.deepcopy(network)
    attention = inspect_family(pruned, image).attention.values()
    remove(pruned, image, silent)
    for layer in attention:
        layer.settle(whole_heads=whole)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = network(images), pruned.eval()(images)
    assert expected.std() > 1e-3, "a network that answers nothing would agree with anything"
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert sum(p.numel() for p in pruned.parameters()) < 0.8 * sum(p.numel() for p in network.parameters())
