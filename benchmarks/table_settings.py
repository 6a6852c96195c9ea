"""What a row of the table of methods hangs on beside its name and seed; kept, so that no other passes for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iekd.compress.objectives import is_mutual
from iekd.compress.objectives.catalogue import reads_before_activation
from iekd.errors import RunFolderError
from iekd.files import sha256_of, write_json
from iekd.models.taps import BEFORE

if TYPE_CHECKING:
    import argparse

    from table_bench import Recipe

Settings = dict[str, Any]
"""By name, as JSON gives them back."""

STATES = ("last.pt", "lane.safetensors")
"""Files from which a training that was cut goes on."""
RECORD = "settings.json"
"""Beside them: what they hang on."""
_STAGES = "stages"
"""What every row read before OD read maps before an activation, when rows did not say it."""
_OF_THE_TEACHER = ("teacher_epochs", "teacher_limit")
_OF_ROWS = ("student", "settings", "epochs", "factor_epochs", "held_out")
_OF_FINISHED_ROWS = ("data", "teacher", "student", "size", "settings", "teacher_weights", "reads", "held_out")
"""What still counts where nothing is trained."""


def needs_teacher(row: str) -> bool:
    """Does the row look at a finished teacher?"""
    objective = row.partition("@")[0]
    return objective != "ce" and not is_mutual(objective)


def weights_of_teacher(folder: Path) -> str:
    """The beginning of the SHA-256 of the teacher's weights, or ``none`` where there is no teacher yet."""
    weights = folder / "teacher" / "weights.safetensors"
    return sha256_of(weights)[:12] if weights.exists() else "none"


def settings_of(arguments: argparse.Namespace, recipe: Recipe, name: str, weights: str) -> Settings:
    """What a training hangs on.

    Args:
        arguments: the command line.
        recipe: of the command.
        name: a row, ``teacher``, or ``factors-...``, which carry the settings of their encoders in their name.
        weights: see :func:`weights_of_teacher`; they stand for how the teacher was trained.
    """
    keys = ("data", "teacher", "student", "size", "precision", "compile", "held_out")
    given = {key: getattr(arguments, key) for key in keys}
    found = {**given, "settings": " ".join(arguments.set), **dataclasses.asdict(recipe)}
    dropped: tuple[str, ...] = _OF_THE_TEACHER
    if name == "teacher":
        dropped = _OF_ROWS
    elif name.startswith("factors-"):
        dropped = (*_OF_THE_TEACHER, "settings", "epochs", "held_out")
    kept = {key: value for key, value in found.items() if key not in dropped}
    if name != "teacher" and needs_teacher(name):
        kept["teacher_weights"] = weights
    kept["reads"] = BEFORE if reads_before_activation(name.partition("@")[0]) else _STAGES
    settings: Settings = json.loads(json.dumps(kept))
    return settings


def refuse_other_rows(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Raise unless every row in the folder was made under what this command says; rows that do not say are told of.

    Raises:
        RunFolderError: a row of other settings.
    """
    looks = arguments.likeness or arguments.unfinished
    weights, silent = weights_of_teacher(arguments.out), []
    for file in sorted((arguments.out / "rows").glob("*.json")):
        found = json.loads(file.read_text())
        if "made_under" not in found:
            silent.append(file.stem)
        made = found.get("made_under", {key: found[key] for key in ("epochs", "settings") if key in found})
        compared = {key: value for key, value in made.items() if not looks or key in _OF_FINISHED_ROWS}
        _require_same(file, compared, settings_of(arguments, recipe, found["row"], weights))
    if silent:
        print(f"made by an older version, which kept epochs and --set alone of the settings: {', '.join(silent)}")


def claim(state: Path, settings: Settings) -> None:
    """Keep beside a training's state what it hangs on, or raise where a state of other settings would go on.

    Args:
        state: the training's folder.
        settings: what it hangs on now.

    Raises:
        RunFolderError: what was left there is of other settings.
    """
    record = state / RECORD
    if any((state / name).exists() for name in STATES):
        if record.exists():
            _require_same(state, json.loads(record.read_text()), settings)
        else:
            print(f"{state}: left by an older version, which did not say under what settings; it goes on under these.")
    state.mkdir(parents=True, exist_ok=True)
    write_json(record, settings)


def _require_same(place: Path, made: Settings, now: Settings) -> None:
    made = {"reads": _STAGES, "compile": False, "held_out": None, **made}  # what older versions did not say
    differs = [f"{name} {value}, now {now.get(name)}" for name, value in made.items() if now.get(name) != value]
    if differs:
        raise RunFolderError(
            f"{place} was made under other settings: {'; '.join(differs)}.", "Give those, or another --out."
        )
