"""A pruned network, described so that another process can build it again without pruning anything.

A pruned network is its unpruned twin with some widths changed.  What changed, module by module, is plain JSON: numbers
such as ``out_channels``, ``groups`` or ``head_dim``, and the shapes of the weights.  Nothing of the criterion, the data
or the pruning library is needed to read it, and pruning again only changes widths that are already named.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn

from iekd.errors import InputError

Changes: TypeAlias = dict[str, dict[str, Any]]
"""By module name (empty for the network itself): ``attributes`` with their new values, ``shapes`` of its tensors."""


def describe_changes(before: nn.Module, after: nn.Module) -> Changes:
    """What has to change in ``before`` to give the widths of ``after``; both have the same modules."""
    changes: Changes = {}
    originals = dict(before.named_modules())
    for name, module in after.named_modules():
        attributes = _changed_attributes(originals[name], module)
        shapes = _changed_shapes(originals[name], module)
        if attributes or shapes:
            changes[name] = {"attributes": attributes, "shapes": shapes}
    return changes


def merge_changes(earlier: Changes, later: Changes) -> Changes:
    """Both changes as one: what ``later`` names replaces what ``earlier`` named."""
    merged: Changes = {}
    for name in {**earlier, **later}:
        parts = [changes[name] for changes in (earlier, later) if name in changes]
        merged[name] = {
            key: {entry: value for part in parts for entry, value in part[key].items()}
            for key in ("attributes", "shapes")
        }
    return merged


@torch.no_grad()
def apply_changes(network: nn.Module, changes: Changes) -> None:
    """Give ``network`` the described widths, in place; each tensor keeps its leading entries.

    Args:
        network: as its architecture builds it, or already of these widths.
        changes: what :func:`describe_changes` found.

    Raises:
        InputError: the description is of another architecture, or damaged.
    """
    modules = dict(network.named_modules())
    for name, change in changes.items():
        try:
            _change(modules[name], change)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"the description of pruned widths does not fit {type(network).__name__} at "
                f"'{name or 'the network itself'}' ({type(error).__name__}: {error}).",
                "Use the timm version that the model was pruned with, or prune it again.",
            ) from error


def _change(module: nn.Module, change: dict[str, Any]) -> None:
    for key, value in change["attributes"].items():
        current = vars(module)[key]
        if not _is_plain(current) or not _is_plain(value):
            raise ValueError(f"{key} is not a number or a list of numbers")
        setattr(module, key, tuple(value) if isinstance(current, tuple) else value)
    for key, shape in change["shapes"].items():
        tensor = _tensors(module)[key]
        if len(shape) != tensor.dim() or any(new > old for new, old in zip(shape, tensor.shape, strict=True)):
            raise ValueError(f"{key} has shape {tuple(tensor.shape)}, which cannot be cut to {tuple(shape)}")
        cut = tensor[tuple(slice(0, size) for size in shape)].clone()
        if isinstance(tensor, nn.Parameter):
            cut = nn.Parameter(cut, requires_grad=tensor.requires_grad)
        setattr(module, key, cut)


def _changed_attributes(before: nn.Module, after: nn.Module) -> dict[str, Any]:
    known = vars(before)
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in vars(after).items()
        if key in known and not key.startswith("_") and key != "training" and _is_plain(value) and value != known[key]
    }


def _changed_shapes(before: nn.Module, after: nn.Module) -> dict[str, list[int]]:
    originals = _tensors(before)
    return {key: list(tensor.shape) for key, tensor in _tensors(after).items() if tensor.shape != originals[key].shape}


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's own parameters and buffers."""
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return dict(own)


def _is_plain(value: object) -> bool:
    """A number, a sequence of plain values, or a table of them (timm's ``feature_info``)."""
    if isinstance(value, (tuple, list)):
        return all(_is_plain(entry) or _is_row(entry) for entry in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_row(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, (str, int, float)) for entry in value.values())
