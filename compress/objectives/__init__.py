"""Distillation objectives: transfers, the inherit-and-explore lift over any of them, logit terms, mutual learning.

Names are imported on first use, so that importing the package, or its catalogue, does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iekd.compress.objectives.base import Objective, TeacherRecord
    from iekd.compress.objectives.build import build_objective
    from iekd.compress.objectives.catalogue import OBJECTIVES, Entry, describe_objectives, is_mutual, register
    from iekd.compress.objectives.ensemble import EnsembleTeacher
    from iekd.compress.objectives.mutual import build_mutual
    from iekd.compress.objectives.settings import ObjectiveSettings
    from iekd.compress.objectives.transfer import Transfer

_HOMES = {
    "Objective": "base",
    "TeacherRecord": "base",
    "build_mutual": "mutual",
    "build_objective": "build",
    "OBJECTIVES": "catalogue",
    "Entry": "catalogue",
    "describe_objectives": "catalogue",
    "is_mutual": "catalogue",
    "register": "catalogue",
    "EnsembleTeacher": "ensemble",
    "ObjectiveSettings": "settings",
    "Transfer": "transfer",
}

__all__ = [
    "OBJECTIVES",
    "EnsembleTeacher",
    "Entry",
    "Objective",
    "ObjectiveSettings",
    "TeacherRecord",
    "Transfer",
    "build_mutual",
    "build_objective",
    "describe_objectives",
    "is_mutual",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
