"""Taps: where in a network a representation is read, named by stage rather than by layer path.

timm's ``forward_intermediates`` gives stage maps and logits in one forward, for convolutional networks and transformers
alike (tokens folded to a map).  A network without it (the user's own) is tapped by forward hooks on its own modules.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from iekd.errors import InputError


class Features(NamedTuple):
    """What a tapped network says of a batch."""

    logits: Tensor
    """(B, classes)"""
    taps: tuple[Tensor, ...]
    """One map (B, C, H, W) a tap, from the input's end to the output's."""


class TapShape(NamedTuple):
    """Shape of one tap for one image."""

    channels: int
    height: int
    width: int


class Tapped(nn.Module):
    """A network whose forward returns logits and the maps of chosen stages.

    The deployed network is ``self.network``, untouched: tapping adds no parameter and no computation.

    Args:
        network: an image classifier.
        taps: stage numbers, negative from the end (``-1``: the last map before pooling); for a network without
            ``forward_intermediates``, numbers among the modules that put out a map.

    Raises:
        InputError: the network lacks a tap asked for.
    """

    def __init__(self, network: nn.Module, taps: tuple[int, ...] = (-1,)) -> None:
        super().__init__()
        self.network = network
        self.native = hasattr(network, "forward_intermediates") and hasattr(network, "forward_head")
        self.available = _stages(network) if self.native else _map_modules(network)
        chosen = {_resolve(tap, len(self.available), type(network).__name__) for tap in taps}
        self.stages = tuple(sorted(chosen))

    def forward(self, images: Tensor) -> Features:
        """Logits and taps of a batch (B, 3, H, W)."""
        if self.native:
            final, maps = self.network.forward_intermediates(  # type: ignore[operator]
                images, indices=list(self.stages), output_fmt="NCHW"
            )
            return Features(self.network.forward_head(final), tuple(maps))  # type: ignore[operator]
        return self._forward_hooked(images)

    def _forward_hooked(self, images: Tensor) -> Features:
        seen: dict[str, Tensor] = {}
        modules = dict(self.network.named_modules())
        names = [self.available[stage] for stage in self.stages]

        handles = []
        for name in names:

            def keep(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                seen[name] = output

            handles.append(modules[name].register_forward_hook(keep))
        try:
            logits = self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        return Features(logits, tuple(_as_map(seen[name]) for name in names))

    @torch.no_grad()
    def shapes(self, image_size: int) -> tuple[TapShape, ...]:
        """The shape of each tap for one image of ``image_size`` pixels."""
        training = self.training
        self.eval()
        parameter = next(self.parameters())
        image = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
        taps = self(image).taps
        self.train(training)
        return tuple(TapShape(*tap.shape[1:]) for tap in taps)


def _resolve(tap: int, available: int, network: str) -> int:
    if not -available <= tap < available:
        raise InputError(
            f"{network} has no tap {tap}.", f"Valid: 0 to {available - 1}, or -{available} to -1 counted from the end."
        )
    return tap % available


def _stages(network: nn.Module) -> tuple[str, ...]:
    info = getattr(network, "feature_info", None)
    if not info:
        raise InputError(f"{type(network).__name__} names no feature stages.", "Choose another network.")
    entries = info if isinstance(info, list) else info.info
    return tuple(str(entry["module"]) for entry in entries)


@torch.no_grad()
def _map_modules(network: nn.Module) -> tuple[str, ...]:
    """Names of the modules that put out a map, in the order in which they run, seen on one 64 x 64 image."""
    order: list[str] = []
    handles = []
    for name, module in network.named_modules():
        if name and not isinstance(module, (nn.Identity, nn.Dropout)):

            def note(_module: nn.Module, _inputs: object, output: object, name: str = name) -> None:
                if isinstance(output, Tensor) and output.dim() in (3, 4) and output[0, 0].numel() > 1:
                    order.append(name)

            handles.append(module.register_forward_hook(note))
    training = network.training
    network.eval()
    try:
        parameter = next(network.parameters())
        network(torch.zeros(1, 3, 64, 64, device=parameter.device, dtype=parameter.dtype))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    if not order:
        raise InputError(
            f"{type(network).__name__} has no module whose output is a feature map.", "Use `--objective kd` for it."
        )
    return tuple(dict.fromkeys(order))


def _as_map(output: Tensor) -> Tensor:
    """Tokens (B, N, C) as a map (B, C, h, w), the leading class or register tokens left out; a map as it is."""
    if output.dim() == 4:
        return output
    side = int(output.shape[1] ** 0.5)
    tokens = output[:, output.shape[1] - side * side :]
    return tokens.transpose(1, 2).reshape(output.shape[0], -1, side, side)
