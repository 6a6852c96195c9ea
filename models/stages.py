"""Which stages a network has, and which activation ends one: seen by running it once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from iekd.errors import InputError

PROBE_SIZE = 64
"""Pixels of the smallest image by which modules that put out a map are told from modules that pool one."""

_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
"""Where modules, or what they derive from, are defined that can end a stage as its activation."""

_LOGITS_ALONE = "Use an objective on logits alone, such as `--objective kd`, or another network."


def named_stages(network: nn.Module) -> tuple[str, ...]:
    """Names of the stages that timm knows of a network, from the input's end to the output's.

    Raises:
        InputError: it names none.
    """
    info = getattr(network, "feature_info", None)
    if not info:
        raise InputError(f"{type(network).__name__} names no feature stages.", _LOGITS_ALONE)
    entries = info if isinstance(info, list) else info.info
    return tuple(str(entry["module"]) for entry in entries)


@torch.no_grad()
def ending_activation(network: nn.Module, stage: str, image_size: int) -> str:
    """Name of the activation whose output is the stage's own, seen on one image; empty where none ends it.

    That is so, too, where the stage's name is that of no module, as in some of timm's networks.
    """
    ends, last = [""], [("", torch.empty(0), 0)]
    handles = []
    modules = dict(network.named_modules())
    if stage not in modules:
        return ""
    for name, module in modules.items():
        if any(kind.__module__ in _ACTIVATIONS for kind in type(module).__mro__):

            def note(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                last[:] = [(name, output, _changes(output))]

            handles.append(module.register_forward_hook(note))

    def compare(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        ((name, seen, changes),) = last
        ends[:] = [name if seen is output and changes == _changes(output) else ""]

    handles.append(modules[stage].register_forward_hook(compare))
    _run_once(network, handles, image_size)
    return ends[0]


def _changes(output: Tensor) -> int:
    """How often a tensor was changed in place: what is added to an activation's output is behind the activation."""
    return getattr(output, "_version", 0)


def map_modules(network: nn.Module, image_size: int) -> tuple[str, ...]:
    """Names of the modules that put out a map, in the order in which they run.

    Seen on one image of the size to come or, where that is small and the network takes others, of ``PROBE_SIZE``: on a
    smaller one the last stage's map has one position, as what is pooled has on any.

    Raises:
        InputError: it takes no such images, or no module puts out a map.
    """
    name = type(network).__name__
    refused: Exception | None = None
    for size in dict.fromkeys((max(image_size, PROBE_SIZE), image_size)):
        try:
            order = _seen_maps(network, size)
            break
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            refused = error
    else:
        raise InputError(
            f"{name} does not take images of {image_size} x {image_size} pixels.", "Give another --image-size."
        ) from refused
    if not order:
        raise InputError(f"{name} has no module whose output is a feature map.", _LOGITS_ALONE)
    return order


@torch.no_grad()
def _seen_maps(network: nn.Module, image_size: int) -> tuple[str, ...]:
    order: list[str] = []
    handles = []
    for name, module in network.named_modules():
        if name and not isinstance(module, (nn.Identity, nn.Dropout)):

            def note(_module: nn.Module, _inputs: object, output: object, name: str = name) -> None:
                if isinstance(output, Tensor) and output.dim() in (3, 4) and output[0, 0].numel() > 1:
                    order.append(name)

            handles.append(module.register_forward_hook(note))
    _run_once(network, handles, image_size)
    return tuple(dict.fromkeys(order))


def _run_once(network: nn.Module, hooks: Sequence[RemovableHandle], image_size: int) -> None:
    """Run the network on one blank image, and take its hooks off again."""
    try:
        with blank_image(network, image_size) as image:
            network(image)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def blank_image(network: nn.Module, image_size: int) -> Iterator[Tensor]:
    """One image (1, 3, H, W) for a network that is in eval mode meanwhile."""
    training = network.training
    network.eval()
    parameter = next(network.parameters())
    try:
        yield torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    finally:
        network.train(training)
