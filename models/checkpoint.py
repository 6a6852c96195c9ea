"""Artefacts: a trained network as a folder that needs nothing else to come back.

``model.json`` holds the architecture, classes and preprocessing, ``model.safetensors`` the weights; no pickle anywhere.
"""

from __future__ import annotations

import argparse
import copy
import json
import pickle
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from iekd.errors import InputError
from iekd.files import atomic_folder, disk_errors, refuse_output_folder, refuse_unwritable, sha256_of
from iekd.models.preprocessing import Preprocessing
from iekd.models.pruned import apply_changes
from iekd.models.registry import Architecture, build

FORMAT = 2
"""2: the architecture of a pruned network names its widths; a reader of format 1 would not build them."""
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_WEIGHTS = "model.safetensors"
_DESCRIPTION = "model.json"


@dataclass(frozen=True)
class Artefact:
    """A network with what is needed to use it."""

    network: nn.Module
    architecture: Architecture
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    facts: dict[str, Any]
    """What is known of it, such as its accuracy; free-form, JSON types."""


def save_artefact(folder: Path, artefact: Artefact, *, beside: tuple[str, ...] = ()) -> None:
    """Write an artefact, atomically: ``folder`` afterwards holds the whole of it, or what it held before.

    Args:
        folder: missing, empty, or an artefact, which is replaced.
        artefact: what to write.
        beside: names of further files that may be there, and are deleted.

    Raises:
        InputError: ``folder`` is or holds something else, which would be lost.
    """
    refuse_foreign(folder, beside=beside)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in artefact.network.state_dict().items()}
    with atomic_folder(folder) as temporary:
        with disk_errors(folder):
            try:
                save_file(_without_aliases(state), temporary / _WEIGHTS)
            except SafetensorError as error:  # safetensors reports a full disk as an error of its own
                raise OSError(28, str(error)) from error
        description = {
            "format": FORMAT,
            "architecture": asdict(artefact.architecture),
            "classes": list(artefact.classes),
            "preprocessing": json.loads(artefact.preprocessing.to_json()),
            "weights_sha256": sha256_of(temporary / _WEIGHTS),
            "facts": artefact.facts,
        }
        (temporary / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def refuse_foreign(folder: Path, *, beside: tuple[str, ...] = ()) -> None:
    """Refuse to write an artefact where anything but an artefact would be deleted.

    A damaged one may be replaced: only the names of its files count.

    Args:
        folder: where one is to be written.
        beside: names of further files that may be deleted.

    Raises:
        InputError: ``folder`` is a file, or holds an entry of another name.
    """
    refuse_output_folder(folder)
    if folder.is_dir():  # another takes its place
        refuse_unwritable(folder, folder.resolve().parent)
    foreign = {entry.name for entry in folder.iterdir()} - {_WEIGHTS, _DESCRIPTION, *beside} if folder.is_dir() else ()
    if foreign:
        raise InputError(
            f"{folder} holds '{min(foreign)}', which is no part of an artefact: writing one there would delete it.",
            "Move it away, or give another folder.",
        )


def refuse_target(folder: Path, source: Path) -> None:
    """Refuse a folder of the user's own for an artefact that is made from another; asked before anything is computed.

    Args:
        folder: where it is to be written: missing, empty, or an artefact.
        source: the artefact that is read.

    Raises:
        InputError: something else would be lost, ``source`` among it, or ``folder`` cannot be replaced as a whole.
    """
    refuse_output_folder(folder, source)
    refuse_foreign(folder)
    if folder.is_dir() and any(folder.iterdir()) and not _is_described(folder):
        raise InputError(
            f"{folder} is not empty and is no artefact: its files would be deleted.", "Give another folder."
        )
    if folder.resolve() == Path.cwd() or folder.is_mount():
        raise InputError(
            f"{folder} is a mount point or the working directory, which nothing can take the place of.",
            "Give a folder in it.",
        )


def _is_described(folder: Path) -> bool:
    """Is its ``model.json`` one of ours, of any version?  Other programs write files of this name."""
    try:
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(description, dict) and description.keys() >= {"format", "architecture", "weights_sha256"}


def read_description(folder: Path) -> dict[str, Any]:
    """The content of an artefact's ``model.json``.

    Raises:
        InputError: not an artefact, damaged, or written by a newer version.
    """
    file = folder / _DESCRIPTION
    try:
        description: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} is not a readable artefact ({error}).", "Give a folder that a run wrote."
        ) from error
    if description.get("format", 0) > FORMAT:
        raise InputError(f"{folder} was written by a newer version of iekd-compress.", "Update with pip install -U.")
    return description


def own_copy(network: nn.Module) -> nn.Module:
    """A copy of a network that belongs to somebody else.

    Raises:
        InputError: it holds what cannot be copied.
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise InputError(
            f"{type(network).__name__} cannot be copied ({' '.join(str(error).split())[:120]}).",
            "Give it as package.module:function, or without what cannot be copied, such as kept outputs.",
        ) from error


def load_artefact(folder: Path, network: nn.Module | None = None) -> Artefact:
    """Read an artefact back, exactly.

    Args:
        folder: where :func:`save_artefact` wrote it.
        network: the network to load into a copy of, for those that no file can rebuild.

    Raises:
        InputError: not an artefact, damaged, of a newer version, or not of this network.
    """
    description = read_description(folder)
    architecture = Architecture(**description["architecture"])
    preprocessing = Preprocessing.from_json(json.dumps(description["preprocessing"]))
    classes = tuple(description["classes"])
    weights = folder / _WEIGHTS
    if not weights.is_file() or sha256_of(weights) != description["weights_sha256"]:
        raise InputError(f"{weights} is missing or damaged: its SHA-256 does not fit model.json.", "Make it again.")
    if network is None:
        network = build(architecture, len(classes), preprocessing.size)
    else:
        network = own_copy(network)
        apply_changes(network, architecture.pruned)
    load_state(network, load_file(weights), str(folder))
    return Artefact(network, architecture, classes, preprocessing, description["facts"])


def read_weights(file: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors``, ``.pt`` or ``.pth`` file; wrappers of training scripts are opened.

    Averaged weights go before those they are the average of, as in timm.

    Raises:
        InputError: missing, unreadable, or without weights.
    """
    try:
        state = load_file(file) if file.suffix == ".safetensors" else _load_pickle(file)
    except FileNotFoundError as error:
        raise InputError(f"no weights at {file}.", "Check the path.") from error
    except pickle.UnpicklingError as error:
        kind = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise InputError(
            f"cannot read weights from {file}: it holds objects beside tensors{f' ({kind[1]})' if kind else ''}.",
            "Save the state dict alone: torch.save(network.state_dict(), FILE).",
        ) from error
    except Exception as error:
        raise InputError(
            f"cannot read weights from {file}: {str(error).splitlines()[0]}",
            "Give a .safetensors file, or a .pth with a plain state dict.",
        ) from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise InputError(f"{file} holds a {type(state).__name__} and no weights by name.", "Save state_dict().")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    tensors.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
    if not tensors:
        keys = ", ".join(map(str, list(state)[:6]))
        raise InputError(f"{file} holds no weights; its keys are: {keys}.", "Save the state_dict() alone.")
    return tensors


def _load_pickle(file: Path) -> Any:
    """Tensors and plain values, and the settings that timm's and torchvision's training scripts keep beside them."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(file, "cpu", weights_only=True)


def load_state(network: nn.Module, state: dict[str, Tensor], source: str, *, adapt_head: bool = False) -> None:
    """Load ``state`` whole.

    Args:
        network: where to load.
        state: names and tensors.
        source: where they came from, for messages.
        adapt_head: leave the classifier's fresh weights where only its class count differs.

    Raises:
        InputError: names or shapes differ, saying which.
    """
    own = network.state_dict()
    state = _unwrapped(state, own)
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or foreign:
        example = f"lacks {missing[0]}" if missing else f"has {foreign[0]}"
        raise InputError(
            f"{source} holds weights of another architecture: it {example} "
            f"({len(missing)} names missing, {len(foreign)} foreign).",
            "Name the model that these weights were trained with.",
        )
    differing = [name for name in own if own[name].shape != state[name].shape]
    if differing and all(_is_head(own, state, name) for name in differing):
        if not adapt_head:
            name = differing[-1]
            raise InputError(
                f"{source} was trained for {state[name].shape[0]} classes, the data has {own[name].shape[0]}.",
                "Add --adapt-head to keep the body and train a new classifier.",
            )
        state = {**state, **{name: own[name] for name in differing}}
    elif differing:
        name = differing[0]
        raise InputError(
            f"{source} holds weights of another architecture: {name} is {tuple(state[name].shape)}, "
            f"the model needs {tuple(own[name].shape)}.",
            "Name the model, and the image size, that these weights were trained with.",
        )
    network.load_state_dict(state)


def _unwrapped(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` without what DataParallel, torch.compile and Lightning put before every name, where it does not fit."""
    for _ in _WRAPPERS:
        for prefix in _WRAPPERS:
            if state.keys() != own.keys() and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_head(own: dict[str, Tensor], state: dict[str, Tensor], name: str) -> bool:
    """Does this entry differ in nothing but the class count, its first dimension?"""
    last = list(own)[-1].rpartition(".")[0]
    return name.rpartition(".")[0] == last and own[name].shape[1:] == state[name].shape[1:]


def _without_aliases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory, as tied weights do, written once each: safetensors refuses shared storage."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in state.items():
        pointer = tensor.data_ptr()
        plain[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return plain
