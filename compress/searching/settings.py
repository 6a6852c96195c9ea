"""What a search is asked for beside the settings of its runs, checked before anything is measured or trained."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iekd.compress.config import RunConfig
from iekd.compress.data import ImageData
from iekd.compress.measure import require_backend
from iekd.compress.objectives.catalogue import is_mutual
from iekd.compress.precisions import require_quantizers
from iekd.compress.searching import space as spaces
from iekd.compress.searching.space import Space
from iekd.compress.targets import TARGETS
from iekd.errors import InputError
from iekd.models.checkpoint import read_description
from iekd.models.ensemble import member_names
from iekd.models.registry import is_artefact, resolve


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What a search has beside the settings of its runs."""

    prunes: str | None = None
    """Shares to remove, joined by commas.  None: 0, 0.3, 0.5, 0.7."""
    sizes: str | None = None
    """Input sizes, pixels, joined by commas.  None: the one that suits teacher and data."""
    trials: int = 12
    """Short recoveries, over all workers."""
    short_epochs: int | None = None
    """Epochs of each.  None: a quarter of the full schedule."""
    winners: int = 3
    """Networks that get the full schedule."""
    storage: str | None = None
    """Database that workers on several machines share, as SQLAlchemy writes it.  None: a journal in the folder."""


def check(config: RunConfig, own: SearchSettings) -> None:
    """Refuse what cannot be searched.

    Raises:
        InputError: an objective, a count, a limit or a teacher that cannot be used.
        EnvironmentMissingError: the target's runtime, or what makes its precisions, is not installed.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(
            "a search is not spread over the processes of torchrun or accelerate.",
            "Give the same command several times instead: the searches share what is to be trained.",
        )
    if is_mutual(config.objective):
        raise InputError(
            f"{config.objective} trains both networks together: no teacher can be shared by all students.",
            "Choose another objective; `iekd-compress objectives` lists them.",
        )
    for flag, value in (("--trials", own.trials), ("--winners", own.winners), ("--short-epochs", own.short_epochs)):
        if value is not None and value < 1:
            raise InputError(f"{flag} {value} is not a count.", "Give at least 1.")
    if config.max_latency is not None and TARGETS[config.target].on_board:
        raise InputError(
            f"--max-latency cannot be judged here: what runs on a {config.target} is measured there.",
            "Give --min-retained alone, and measure what is found on the board: iekd-compress deploy.",
        )
    for name in member_names(config.teacher):
        if not is_artefact(name):
            resolve(name)
    require_backend(config)
    require_quantizers(config)


def space_of(
    config: RunConfig, own: SearchSettings, students: tuple[str, ...], settings: dict[str, Any], data: ImageData
) -> Space:
    """All candidates that the settings allow.

    Raises:
        InputError: a share or a size is given both as one and as a list, or is not one.
    """
    if own.prunes is not None and settings.get("prune") is not None:
        raise InputError("both --prune and --prunes given.", "Give one of them.")
    if own.sizes is not None and config.image_size is not None:
        raise InputError("both --image-size and --sizes given.", "Give one of them.")
    prunes = spaces.parse_shares(own.prunes) if own.prunes is not None else spaces.PRUNES
    if settings.get("prune") is not None:
        prunes = (config.prune,)
    sizes = (
        spaces.parse_sizes(own.sizes) if own.sizes is not None else (config.image_size or _usual_size(config, data),)
    )
    return Space(students, prunes, sizes)


def _usual_size(config: RunConfig, data: ImageData) -> int:
    teacher = member_names(config.teacher)[0]
    return int(read_description(Path(teacher))["preprocessing"]["size"]) if is_artefact(teacher) else data.default_size
