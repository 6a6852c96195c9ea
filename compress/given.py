"""What identifies networks that a name alone does not: objects, files of weights, artefacts that may be made anew."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from iekd.compress.config import RunConfig
from iekd.files import sha256_of
from iekd.models.ensemble import member_names
from iekd.models.registry import is_artefact


def networks_given(config: RunConfig, teacher: str | nn.Module, student: str | nn.Module) -> dict[str, str]:
    """SHA-256 of what was given for each role, where it is more than a name; a run must not go on with another."""
    weights = {"teacher": config.teacher_weights, "student": config.student_weights}
    found = {role: _digest(given, weights[role]) for role, given in (("teacher", teacher), ("student", student))}
    return {role: digest for role, digest in found.items() if digest}


def _digest(given: str | nn.Module, weights: str) -> str:
    if isinstance(given, nn.Module):
        return digest_of(given)
    folders = [Path(name) for name in member_names(given) if is_artefact(name)]
    files = [folder / "model.safetensors" for folder in folders]
    if not folders and weights not in ("auto", "hub", "scratch"):
        files = [Path(weights)]
    return " ".join(sha256_of(file)[:16] for file in files if file.is_file())


def digest_of(network: nn.Module) -> str:
    """Of all names, types, shapes and values of a network's state."""
    found = hashlib.sha256(type(network).__qualname__.encode())
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            whole = value.detach().cpu().contiguous()
            found.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
            found.update(whole.flatten().view(torch.uint8).numpy().tobytes() if whole.numel() else b"")
    return found.hexdigest()[:16]
