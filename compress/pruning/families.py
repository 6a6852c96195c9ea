"""What a network's kind asks of pruning: classifiers stay whole, attention needs care, the rest needs none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iekd.errors import InputError

LAYERS = (nn.Conv2d, nn.Linear)
"""The layers whose output channels can be removed; norms, depthwise layers and gates follow them."""


@dataclass(frozen=True)
class Attention:
    """A self-attention layer of timm's common form, whose heads can be narrowed or removed.

    Its ``qkv`` projection puts out 3 x heads x head_dim channels, in that order.
    """

    name: str
    module: Any
    head_dim: int
    """Before anything is removed."""

    @property
    def heads(self) -> int:
        """Number of heads."""
        return int(self.module.num_heads)

    @torch.no_grad()
    def settle(self, *, whole_heads: bool) -> None:
        """After the projections were cut: correct the layer's own figures, and keep its softmax as sharp as it was.

        Scores are divided by sqrt(head_dim), which may be smaller now; the query weights make up for it, so that
        removing channels whose products are zero changes nothing.
        """
        width = int(self.module.proj.in_features)
        if width == self.module.attn_dim:
            return
        head_dim = self.head_dim if whole_heads else width // self.heads
        self.module.num_heads, self.module.head_dim, self.module.attn_dim = width // head_dim, head_dim, width
        self.module.scale = head_dim**-0.5
        for tensor in (self.module.qkv.weight, self.module.qkv.bias):
            if tensor is not None:
                tensor[:width] *= (head_dim / self.head_dim) ** 0.5


@dataclass(frozen=True)
class Family:
    """What of a network may be removed.

    Attributes:
        outputs: the layers that put out the logits; their outputs stay.
        attention: layers whose heads can be cut, by their ``qkv`` projection.
        only_within: where not None, remove only channels that live and die inside one of these sets of layers.
    """

    outputs: list[nn.Module]
    attention: dict[nn.Module, Attention]
    only_within: list[set[nn.Module]] | None

    def whole(self, network: nn.Module) -> list[nn.Module]:
        """The layers of ``network`` that lose no output channel, whatever else would go with it."""
        if self.only_within is None:
            return self.outputs
        inside = set().union(*self.only_within)
        return self.outputs + [m for m in network.modules() if isinstance(m, LAYERS) and m not in inside]


def inspect_family(network: nn.Module, image: Tensor) -> Family:
    """Find out what of ``network`` may be removed.

    Where a layer ties widths together in a way that cannot be narrowed (attention in windows, with rotary positions
    or shared keys; depthwise layers that put out several channels for each input), the width between blocks has to
    stay, and only the hidden layers of MLPs and gates (``fc1`` to ``fc2``) can be pruned.

    Args:
        network: an image classifier.
        image: (1, 3, H, W), what it takes.

    Raises:
        InputError: there is such a layer and no such MLP; the message names the layer.
    """
    attention: dict[nn.Module, Attention] = {}
    rigid: list[str] = []
    for name, module in network.named_modules():
        if _is_common_attention(module):
            attention[module.qkv] = Attention(name, module, int(module.head_dim))
        elif isinstance(getattr(module, "num_heads", None), int) or _multiplies_channels(module):
            rigid.append(name)
    outputs = _output_layers(network, image)
    if not rigid:
        return Family(outputs, attention, None)
    hidden = [_hidden_layers(module) for module in network.modules() if _is_mlp(module)]
    if not hidden:
        kind = type(network.get_submodule(rigid[0])).__name__
        raise InputError(
            f"{type(network).__name__} cannot be pruned: {kind} at '{rigid[0]}' fixes the widths around it, and there "
            "is no MLP with fc1 and fc2.",
            "Choose another student; docs/decisions/pruning.md lists the families that work.",
        )
    return Family(outputs, {}, hidden)


def _multiplies_channels(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels < module.out_channels


def _is_common_attention(module: nn.Module) -> bool:
    from timm.models.vision_transformer import Attention as TimmAttention  # type: ignore[attr-defined]

    return (
        type(module) is TimmAttention
        and hasattr(module, "attn_dim")  # timm before 1.0.23 derives widths from the tokens' and cannot be narrowed
        and all(isinstance(getattr(module, part, nn.Identity()), nn.Identity) for part in ("q_norm", "k_norm", "norm"))
        and getattr(module, "gate", None) is None
    )


def _is_mlp(module: nn.Module) -> bool:
    return isinstance(getattr(module, "fc1", None), nn.Module) and isinstance(getattr(module, "fc2", None), nn.Module)


def _hidden_layers(mlp: nn.Module) -> set[nn.Module]:
    """The layers of an MLP whose outputs stay inside it: all but those of ``fc2``."""
    inner: Iterable[nn.Module] = mlp.modules()
    return set(inner) - set(mlp.fc2.modules())  # type: ignore[union-attr]


def _output_layers(network: nn.Module, image: Tensor) -> list[nn.Module]:
    """The classifier, or classifiers, as timm names them; for other networks the layer that runs last."""
    if hasattr(network, "get_classifier"):
        found = network.get_classifier()  # type: ignore[operator]
        classifiers = found if isinstance(found, tuple) else (found,)
        layers: list[nn.Module] = [
            layer for classifier in classifiers for layer in classifier.modules() if isinstance(layer, LAYERS)
        ]
        if layers:
            return layers
    order: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, _inputs, _output: order.append(module))
        for module in network.modules()
        if isinstance(module, LAYERS)
    ]
    try:
        network(image)
    finally:
        for handle in handles:
            handle.remove()
    return order[-1:]
