"""From what the user wrote to a network: aliases, timm names, earlier artefacts, and functions of the user's own."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from iekd.errors import InputError, unknown_name
from iekd.models import cifar as cifar  # registers its networks with timm
from iekd.models.aliases import ALIASES
from iekd.models.ensemble import SEPARATOR, Ensemble, member_names
from iekd.models.pruned import Changes, apply_changes

_FUNCTION = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


@dataclass(frozen=True)
class Architecture:
    """How to build a network again, in a form that fits into JSON.

    Attributes:
        kind: ``timm``, ``function`` (``package.module:function``), ``ensemble`` (of ``arguments['members']``), or
            ``object`` (a module that the caller built).
        name: the timm name, the function, or the class.
        arguments: keyword arguments beside the class count.
        pruned: widths that differ from the architecture's own; empty for a network that was not pruned.
    """

    kind: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    pruned: Changes = field(default_factory=dict)


def is_artefact(text: str) -> bool:
    """Is this the path of an earlier artefact rather than a name?"""
    return (Path(text) / "model.json").is_file()


def resolve(text: str) -> Architecture:
    """The architecture that a name stands for.

    Raises:
        InputError: no such model, with close matches.
    """
    if SEPARATOR in text:
        return ensemble_of([resolve(part) for part in member_names(text)])
    if _FUNCTION.match(text):
        return Architecture("function", text)
    name = ALIASES.get(text, text)
    if timm.is_model(name.split(".")[0]):
        return Architecture("timm", name)
    if os.sep in text or text.startswith("."):
        raise InputError(
            f"no artefact at '{text}': it has no model.json.",
            "Give a folder that an earlier run wrote, such as RUN/student.",
        )
    raise unknown_name("model", text, {*ALIASES, *timm.list_models()}, listed_by="iekd-compress models")


def ensemble_of(members: list[Architecture]) -> Architecture:
    """The architecture of networks that answer together."""
    name = SEPARATOR.join(member.name for member in members)
    return Architecture("ensemble", name, {"members": [asdict(member) for member in members]})


def build(architecture: Architecture, classes: int, image_size: int) -> nn.Module:
    """A network of ``classes`` outputs with fresh weights and, where it was pruned, the widths that pruning left.

    Raises:
        InputError: the function cannot be imported or does not build a classifier of that many classes, or the
            architecture does not take images of this size.
    """
    if architecture.kind == "timm":
        network = _build_timm(architecture, classes, image_size)
    elif architecture.kind == "function":
        network = _build_by_function(architecture, classes)
    elif architecture.kind == "ensemble":
        members = [Architecture(**member) for member in architecture.arguments["members"]]
        network = Ensemble([build(member, classes, image_size) for member in members])
    else:
        raise InputError(
            f"{architecture.name} was given as a Python object, which no file can rebuild.",
            "Give it as package.module:function, or pass the object to iekd.run again.",
        )
    apply_changes(network, architecture.pruned)
    check_classes(network, architecture.name, classes, image_size)
    return network


def timm_arguments(name: str, image_size: int) -> dict[str, Any]:
    """Arguments that a timm model needs for this image size: transformers of fixed size must be told."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    fixed = config is not None and config.fixed_input_size and config.input_size[-1] != image_size
    return {"img_size": image_size} if fixed else {}


def _build_timm(architecture: Architecture, classes: int, image_size: int) -> nn.Module:
    arguments = {**timm_arguments(architecture.name, image_size), **architecture.arguments}
    try:
        network: nn.Module = timm.create_model(architecture.name, num_classes=classes, **arguments)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise InputError(
            f"timm cannot build {architecture.name} for images of {image_size} pixels: {_first_line(error)}.",
            "Try another --image-size (a multiple of 32) or another model.",
        ) from error
    return network


def _build_by_function(architecture: Architecture, classes: int) -> nn.Module:
    function = load_function(architecture.name)
    accepts = inspect.signature(function).parameters
    takes_classes = "num_classes" in accepts or any(p.kind is p.VAR_KEYWORD for p in accepts.values())
    network = function(**({"num_classes": classes} if takes_classes else {}), **architecture.arguments)
    if not isinstance(network, nn.Module):
        raise InputError(f"{architecture.name} returned {type(network).__name__}, not a torch.nn.Module.")
    return network


def load_function(target: str) -> Callable[..., Any]:
    """The callable behind ``package.module:function``; the current folder is searched as well."""
    module_name, _, attribute = target.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"cannot import '{module_name}' ({error}).", "Run from the folder that holds it, or install it."
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise unknown_name(f"function in {module_name}", attribute, names)
    return function  # type: ignore[no-any-return]


@torch.no_grad()
def check_classes(network: nn.Module, name: str, classes: int, image_size: int) -> None:
    """Run one blank image through ``network``.

    Raises:
        InputError: it does not take such an image or does not answer with ``classes`` logits.
    """
    training = network.training
    network.eval()
    parameter = next(network.parameters())
    try:
        logits = network(torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"{name} does not take images of {image_size} x {image_size} pixels: {_first_line(error)}.",
            "Give another --image-size.",
        ) from error
    finally:
        network.train(training)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (1, classes):
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(
            f"{name} answers one image with {shape} instead of (1, {classes}).",
            f"It must be a classifier of the data's {classes} classes; a function may take num_classes.",
        )


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, buffers not counted."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def count_macs(network: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of one image, as torch's flop counter sees them (convolutions and matrix products)."""
    from torch.utils.flop_counter import FlopCounterMode

    # the counter stumbles over views of parameters that want gradients, such as a class token that is expanded
    twin = copy.deepcopy(network).requires_grad_(False).eval()
    parameter = next(twin.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    with FlopCounterMode(display=False) as counter:
        twin(image)
    return int(counter.get_total_flops()) // 2


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
