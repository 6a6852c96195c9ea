"""Which channels have to go together, found and removed by torch-pruning; nothing else imports it but the criteria.

torch-pruning's own pruners are passed over on purpose: they round widths down, leave a layer whole where that gives
zero, and cannot hold a layer above a least width in global ranking.  Its dependency graph and its importances are used.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iekd.compress.pruning.families import LAYERS, Family
from iekd.errors import InputError

Scorer = Callable[[Any], "Tensor | None"]
"""From a group of torch-pruning's to a score for each of its channels, or None where the criterion says nothing."""


@dataclass(frozen=True)
class Dimension:
    """Channels of several layers that can be removed only together, such as all that a residual path joins.

    The unit of removal is the same channel of every block (groups of a convolution, heads of attention), or a whole
    block; with one block it is the channel.

    Attributes:
        layer: name of a layer that has this dimension.
        output: is it the layer's output or its input?
        blocks: equal parts that the channels fall into.
        whole_blocks: remove whole blocks?
        scores: importance of each unit, (units,); their mean is 1.
        heads: are the blocks attention heads?
    """

    layer: str
    output: bool
    blocks: int
    whole_blocks: bool
    scores: Tensor
    channels: int
    heads: bool

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.scores)

    def indices(self, units: list[int]) -> list[int]:
        """The channels that make up these units."""
        width = self.channels // self.blocks
        if self.whole_blocks:
            return [unit * width + channel for unit in units for channel in range(width)]
        return sorted(block * width + unit for unit in units for block in range(self.blocks))


@dataclass(frozen=True)
class Cut:
    """Channels to remove from one dimension."""

    dimension: Dimension
    units: tuple[int, ...]


def find_dimensions(
    network: nn.Module, image: Tensor, family: Family, scorer: Scorer, *, whole_heads: bool
) -> list[Dimension]:
    """All dimensions of ``network`` that may be cut and that the criterion can score.

    Args:
        network: the network itself is left as it is.
        image: (1, 3, H, W), what it takes.
        family: what may be removed.
        scorer: the criterion.
        whole_heads: remove whole attention heads rather than channels of each.

    Raises:
        InputError: the network cannot be followed; the message names the layer.
    """
    graph = _build(network, image)
    names = {module: name for name, module in network.named_modules()}
    found = []
    whole = family.whole(network)  # not even looked at: some of their groups (CoAtNet) take minutes and gigabytes
    with quiet():
        for group in graph.get_all_groups(ignored_layers=whole, root_module_types=list(LAYERS)):
            cut = [entry.dep.target.module for entry in group if graph.is_out_channel_pruning_fn(entry.dep.handler)]
            if not _permitted(cut, family):
                continue
            qkv = next((module for module in cut if module in family.attention), None)
            if qkv is not None:
                group = _from_projection(graph, group, family.attention[qkv].module.proj)
            blocks = family.attention[qkv].heads if qkv is not None else _blocks(graph, group)
            try:
                scores = None if blocks == 0 else scorer(group)
            except (RuntimeError, IndexError) as error:  # its layers do not have the shapes that the graph inferred
                raise cannot_prune(network, names[group[0].dep.target.module], error) from error
            if scores is None:
                continue
            root = group[0].dep
            found.append(
                Dimension(
                    layer=names[root.target.module],
                    output=graph.is_out_channel_pruning_fn(root.handler),
                    blocks=blocks,
                    whole_blocks=qkv is not None and whole_heads,
                    scores=_unit_scores(scores, blocks, qkv is not None and whole_heads, names[root.target.module]),
                    channels=len(scores),
                    heads=qkv is not None,
                )
            )
    return found


def remove(network: nn.Module, image: Tensor, cuts: list[Cut]) -> None:
    """Remove what ``cuts`` name from ``network``, in place.

    Raises:
        InputError: a layer cannot be pruned; the message names it.
    """
    graph = _build(network, image)
    for cut in cuts:
        module = network.get_submodule(cut.dimension.layer)
        pruner = graph.get_pruner_of_module(module)
        function = pruner.prune_out_channels if cut.dimension.output else pruner.prune_in_channels
        try:
            with quiet():
                group = graph.get_pruning_group(module, function, cut.dimension.indices(list(cut.units)))
                if not graph.check_pruning_group(group):
                    raise ValueError("nothing would be left of a layer that depends on it")
                group.prune(record_history=False)
        except Exception as error:
            raise cannot_prune(network, cut.dimension.layer, error) from error


def cannot_prune(network: nn.Module, layer: str, error: Exception) -> InputError:
    """The error that names the layer where pruning fails."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(
        f"{type(network).__name__} cannot be pruned at layer '{layer or 'the network itself'}': {reason.rstrip('.')}.",
        "Choose another student; docs/decisions/pruning.md lists the families that work.",
    )


@contextlib.contextmanager
def naming_the_layer(network: nn.Module) -> Iterator[None]:
    """Turn an error inside a forward of ``network`` into one that names the innermost layer that was running."""
    running: list[str] = []
    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _m, _i, name=name: running.append(name)))
        handles.append(module.register_forward_hook(lambda _m, _i, _o: (running.pop(), None)[1]))
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError, AttributeError, KeyError) as error:
        raise cannot_prune(network, running[-1] if running else "", error) from error
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch-pruning's warnings and prints off the terminal; errors still raise."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _build(network: nn.Module, image: Tensor) -> Any:
    """The dependency graph, traced through autograd: every parameter must ask for a gradient, or it is not seen."""
    import torch_pruning

    network.requires_grad_(True)
    with quiet(), torch.enable_grad(), naming_the_layer(network):
        return torch_pruning.DependencyGraph().build_dependency(network, image)


def _permitted(cut: list[Any], family: Family) -> bool:
    if any(module in family.outputs for module in cut):
        return False
    layers = {module for module in cut if isinstance(module, LAYERS)}
    return family.only_within is None or any(layers <= inside for inside in family.only_within)


def _from_projection(graph: Any, group: Any, projection: nn.Module) -> Any:
    """The attention's group seen from the input of its output projection, where a head is one run of channels."""
    for entry in group:
        if entry.dep.target.module is projection and graph.is_in_channel_pruning_fn(entry.dep.handler):
            return graph.get_pruning_group(projection, entry.dep.handler, list(range(projection.in_features)))
    raise ValueError("the attention's projections are not connected")


def _blocks(graph: Any, group: Any) -> int:
    """Equal parts that all layers of the group agree on; 0 where they do not."""
    counts = {1}
    for entry in group:
        module, output = entry.dep.target.module, graph.is_out_channel_pruning_fn(entry.dep.handler)
        if isinstance(module, nn.Conv2d) and 1 < module.groups < max(module.in_channels, module.out_channels):
            counts.add(module.groups)
        elif isinstance(module, nn.GroupNorm) and output and module.num_groups > 1:
            counts.add(module.num_groups)
    most = max(counts)
    return most if all(most % count == 0 for count in counts) else 0


def _unit_scores(scores: Tensor, blocks: int, whole_blocks: bool, layer: str) -> Tensor:
    if not torch.isfinite(scores).all():
        raise InputError(
            f"the importance of '{layer}' is not finite.", "Its weights or gradients are damaged: train it again."
        )
    table = scores.detach().float().cpu().reshape(blocks, -1)
    units = table.mean(dim=1 if whole_blocks else 0)
    return units / units.mean().clamp(min=torch.finfo(torch.float32).tiny)
