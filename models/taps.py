"""Taps: where in a network a representation is read, named by stage rather than by layer path.

timm's ``forward_intermediates`` gives stage maps and logits in one forward, for convolutional networks and transformers
alike (tokens folded to a map).  A network without it (the user's own) is tapped by forward hooks on its own modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from iekd.errors import InputError
from iekd.models.stages import PROBE_SIZE, blank_image, ending_activation, map_modules, named_stages

AUTO = "auto"
"""The last stage whose map has more than one position; the last of all where none has."""

BEFORE = "before:"
"""Put before a stage's number or name: its map before the activation that ends it, where one does."""


def before(tap: int | str) -> str:
    """That tap with ``BEFORE`` in front, which it may have already."""
    name = str(tap)
    return name if name.startswith(BEFORE) else f"{BEFORE}{name}"


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


class Read(NamedTuple):
    """What one tap reads."""

    stage: int
    """Number, from 0."""
    activation: str = ""
    """Name of the module whose input is read; empty: the stage's own map."""


class Tapped(nn.Module):
    """A network whose forward returns logits and the maps of chosen stages.

    The deployed network is ``self.network``, untouched: tapping adds no parameter and no computation.

    Args:
        network: an image classifier.
        taps: stages by number, negative from the end (``-1``: the last map before pooling), by name, or ``AUTO``; of a
            network without ``forward_intermediates``, the modules that put out a map.  With ``BEFORE`` in front, the
            map before the activation that ends the stage.  Without any tap nothing is asked of the network but its
            logits.
        image_size: height and width of the images to come: some networks take no others.

    Attributes:
        available: names of the stages that can be tapped, from the input's end to the output's.
        reads: what the taps read, in the same order, each tap once.

    Raises:
        InputError: the network lacks a tap asked for, or cannot be tapped.
    """

    def __init__(self, network: nn.Module, taps: Sequence[int | str] = (-1,), image_size: int = PROBE_SIZE) -> None:
        super().__init__()
        self.network = network
        self.native = hasattr(network, "forward_intermediates") and hasattr(network, "forward_head")
        self.available: tuple[str, ...] = ()
        self.reads: tuple[Read, ...] = ()
        if taps:
            self.available = named_stages(network) if self.native else map_modules(network, image_size)
            reads = dict(self._read(tap, image_size) for tap in taps)
            self.reads = tuple(reads[key] for key in sorted(reads))

    @property
    def stages(self) -> tuple[int, ...]:
        """Numbers of the stages that are read, a number a tap."""
        return tuple(read.stage for read in self.reads)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the taps."""
        return tuple(f"{BEFORE if read.activation else ''}{self.available[read.stage]}" for read in self.reads)

    def forward(self, images: Tensor) -> Features:
        """Logits and taps of a batch (B, 3, H, W)."""
        if not self.reads:
            return Features(self.network(images), ())
        early = {self.available[read.stage]: read.activation for read in self.reads if read.activation}
        with _before_activations(self.network, early) as before:
            logits, maps = self._forward_native(images) if self.native else self._forward_hooked(images)
        taps = (before[self.available[read.stage]] if read.activation else maps[read.stage] for read in self.reads)
        return Features(logits, tuple(taps))

    def _forward_native(self, images: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        stages, network = (
            sorted(set(self.stages)),
            cast("Any", self.network),
        )  # timm's methods, which `native` asked for
        final, maps = network.forward_intermediates(images, indices=stages, output_fmt="NCHW")
        return network.forward_head(final), dict(zip(stages, maps, strict=True))

    def _forward_hooked(self, images: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        seen: dict[int, Tensor] = {}
        modules = dict(self.network.named_modules())
        handles = []
        for stage in set(self.stages):

            def keep(_module: nn.Module, _inputs: object, output: Tensor, stage: int = stage) -> None:
                seen[stage] = output.clone()  # what follows may work in place, as `nn.ReLU(inplace=True)` does

            handles.append(modules[self.available[stage]].register_forward_hook(keep))
        try:
            logits = self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        return logits, {stage: _as_map(output) for stage, output in seen.items()}

    @torch.no_grad()
    def shapes(self, image_size: int) -> tuple[TapShape, ...]:
        """The shape of each tap for one image of ``image_size`` pixels."""
        with blank_image(self.network, image_size) as image:
            return tuple(TapShape(*tap.shape[1:]) for tap in self(image).taps)

    @torch.no_grad()
    def classes(self, image_size: int) -> int:
        """How many classes there are logits for, seen on one image of ``image_size`` pixels."""
        with blank_image(self.network, image_size) as image:
            return int(self.network(image).shape[1])

    def _read(self, tap: int | str, image_size: int) -> tuple[tuple[int, bool], Read]:
        """What a tap reads, and by what it is told from others and sorted."""
        name = str(tap)
        if not name.startswith(BEFORE):
            stage = self._stage(tap, image_size)
            return (stage, True), Read(stage)
        name = name.removeprefix(BEFORE)
        stage = self._stage(int(name) if name.removeprefix("-").isdigit() else name, image_size)
        return (stage, False), Read(stage, ending_activation(self.network, self.available[stage], image_size))

    def _stage(self, tap: int | str, image_size: int) -> int:
        """The number, from 0, of a stage asked for by number or name."""
        count = len(self.available)
        if tap == AUTO:
            return self._last_with_positions(image_size)
        if isinstance(tap, int) and -count <= tap < count:
            return tap % count
        if tap in self.available:
            return self.available.index(str(tap))
        raise InputError(
            f"{type(self.network).__name__} has no tap {tap}.",
            f"Valid: 0 to {count - 1}, -{count} to -1 counted from the end, {AUTO}, or by name: "
            f"{', '.join(filter(None, self.available))}; with {BEFORE} in front, the map before the stage's last "
            f"activation.  --tap names the student's, --teacher-tap the teacher's.",
        )

    def _last_with_positions(self, image_size: int) -> int:
        """What ``AUTO`` stands for; all stages are tapped for it once."""
        self.reads = tuple(Read(stage) for stage in range(len(self.available)))
        shapes = self.shapes(image_size)
        wide = [stage for stage, shape in enumerate(shapes) if shape.height * shape.width > 1]
        return wide[-1] if wide else len(shapes) - 1


@contextmanager
def _before_activations(network: nn.Module, endings: dict[str, str]) -> Iterator[dict[str, Tensor]]:
    """What each stage's last activation got, by the stage's name, filled as the network runs.

    A stage's is what its activation got last before the stage ended: the same module may work elsewhere, too.
    Activations do not work in place meanwhile: what they got must outlive them.

    Args:
        network: as it runs.
        endings: names of stages and of the activations that end them.
    """
    got: dict[str, Tensor] = {}
    before: dict[str, Tensor] = {}
    handles, in_place = [], []
    for stage, activation in endings.items():

        def note(_module: nn.Module, inputs: tuple[Tensor, ...], activation: str = activation) -> None:
            got[activation] = inputs[0]

        def keep(
            _module: nn.Module, _inputs: object, _output: object, stage: str = stage, activation: str = activation
        ) -> None:
            before[stage] = got[activation]

        module = network.get_submodule(activation)
        handles.append(module.register_forward_pre_hook(note))
        handles.append(network.get_submodule(stage).register_forward_hook(keep))
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # to torch any attribute may be a tensor or a module
            in_place.append(module)
    try:
        yield before
    finally:
        for handle in handles:
            handle.remove()
        for module in in_place:
            module.inplace = True  # type: ignore[assignment]  # likewise


def _as_map(output: Tensor) -> Tensor:
    """Tokens (B, N, C) as a map (B, C, h, w), the leading class or register tokens left out; a map as it is."""
    if output.dim() == 4:
        return output
    side = int(output.shape[1] ** 0.5)
    tokens = output[:, output.shape[1] - side * side :]
    return tokens.transpose(1, 2).reshape(output.shape[0], -1, side, side)
