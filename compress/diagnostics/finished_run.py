"""A run that has trained its student, opened to be looked at: what became of the student, and its channels' split."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from iekd.compress.choice import choose
from iekd.compress.config import RunConfig
from iekd.compress.config_input import make_config
from iekd.compress.objectives.catalogue import OBJECTIVES
from iekd.compress.objectives.split import split_channels
from iekd.compress.qat import NAME as QAT
from iekd.compress.run_folder import FORMAT
from iekd.compress.run_objective import later_config, objective_settings
from iekd.compress.variants import FOLDER as VARIANTS
from iekd.compress.variants import QAT_ARTEFACT
from iekd.errors import InputError, RunFolderError
from iekd.files import sha256_of
from iekd.models.checkpoint import Artefact, load_artefact, read_description

_INDEX = re.compile(r"(?:^|\.)lifts\.(?:(?P<network>\d+)\.)?(?P<tap>\d+)\.(?P<part>inherit|explore)_index$")
_SECOND = ("1", None)
"""Of two networks that trained together the student is the second; a student alone has no number."""


class Split(NamedTuple):
    """Which channels of a tap inherit and which explore, int64."""

    inherit: Tensor
    explore: Tensor


class Shipped(NamedTuple):
    """The network from which the student's file was made."""

    artefact: str
    """Its folder in the run: ``student``, ``pruned``, or that of the training for INT8."""
    training: str
    """Name of its last training, under ``checkpoints``."""
    objective: str
    """Of that training."""
    precision: str
    """Of the file; that of the network is float32."""

    @property
    def remark(self) -> str:
        """What tells it from the network that was distilled and from the file that ships; empty where nothing does."""
        pruned = "Diagnosed is the pruned student; parts of its channels are those of its last recovery."
        trained = "Diagnosed is the student as it was trained for INT8, without the simulated quantisation."
        about = {"pruned": pruned, QAT_ARTEFACT: trained}.get(self.artefact, "")
        cast = "" if self.precision == "fp32" else f"The file that ships is {self.precision}, the network float32."
        return " ".join(filter(None, (about, cast)))


def shipped(folder: Path, config: RunConfig) -> Shipped:
    """What ships of a run; before it has measured its files, what would ship in float32."""
    measured = folder / "benchmark" / "benchmark.json"
    file, precision = "student", "fp32"
    if measured.is_file():
        models = json.loads(measured.read_text(encoding="utf-8"))["models"]
        file = choose(config, models)
        precision = models[file]["precision"]
    variant = folder / VARIANTS / f"{file}.json"
    if variant.is_file() and (json.loads(variant.read_text(encoding="utf-8"))["qat"] or {}).get("ships"):
        return Shipped(QAT_ARTEFACT, QAT, later_config(config).objective, precision)
    if config.prune and (folder / "pruned" / "model.json").is_file():
        return Shipped("pruned", f"pruned{config.prune_steps - 1}", later_config(config).objective, precision)
    return Shipped("student", "student", config.objective, precision)


@dataclass(frozen=True)
class FinishedRun:
    """A run's settings and what it made.  Made by :func:`open_run`."""

    folder: Path
    config: RunConfig
    data_digest: str

    @property
    def shipped(self) -> Shipped:
        """What the run's student has become."""
        return shipped(self.folder, self.config)

    def artefact(self, role: str, network: nn.Module | None = None, *, own: bool = True) -> Artefact:
        """The ``teacher``, or the ``student`` that ships; ``network`` for one that the run was given as an object.

        Args:
            role: as above.
            network: as above.
            own: is this the run that is diagnosed, or one that it is held against?

        Raises:
            InputError: it was given as an object, and is not given now.
        """
        place = self.folder / self._place(role)
        if network is None and read_description(place)["architecture"]["kind"] == "object":
            raise InputError(
                f"the {role} of {self.folder} was given as a Python object, which no file can rebuild.",
                "Use iekd.compress.diagnose.diagnose(run, networks={'teacher': ..., 'student': ...}) from Python."
                if own
                else "Compare with a run whose student has a name.",
            )
        found = load_artefact(place, network)
        found.network.eval().requires_grad_(False)
        return found

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the artefacts, by their folders."""
        places = [self._place(role) for role in ("teacher", "student")]
        return {place: sha256_of(self.folder / place) for place in places}

    def _place(self, role: str) -> str:
        return self.shipped.artefact if role == "student" else role

    def splits(self, channels: list[int]) -> list[Split | None]:
        """How the student's last training split its taps of so many channels; None where it did not.

        The checkpoint says what was used.  Where it is gone the settings still do, unless the split came from the data.

        Raises:
            InputError: the split came from the data and the checkpoint is gone.
            RunFolderError: the checkpoint is damaged, or of other taps.
        """
        file = self.folder / "checkpoints" / self.shipped.training / "last.pt"
        if not file.exists():
            return [self._split_by_settings(count, file) for count in channels]
        found = _stored_splits(file)
        if not found:
            return [None] * len(channels)
        if [len(split.inherit) + len(split.explore) for split in found] != channels:
            raise RunFolderError(f"{file} holds the split of other taps than the student's.", "Start the run anew.")
        return [split if len(split.inherit) and len(split.explore) else None for split in found]

    def _split_by_settings(self, channels: int, checkpoint: Path) -> Split | None:
        settings = objective_settings(self.config)
        if not _lifted(self.shipped.objective) or settings.inherit_fraction in (0, 1):
            return None
        if settings.split == "relevance":
            raise InputError(
                f"which channels inherit was estimated from the data and kept in {checkpoint}, which is gone.",
                "Put it back, or train again with --split natural or random.",
            )
        return Split(*split_channels(channels, settings.inherit_fraction, settings.split, settings.seed))


def open_run(folder: Path) -> FinishedRun:
    """Read a run's state.

    Raises:
        RunFolderError: not a run folder, damaged, of a newer version, or its student is not trained yet.
    """
    state = _read_state(folder)
    missing = [stage for stage in ("plan", "distill") if stage not in state["stages"]]
    if missing or not all((folder / role / "model.json").is_file() for role in ("teacher", "student")):
        raise RunFolderError(
            f"{folder} holds a run that has not finished its training.", "Start its command again: it goes on."
        )
    return FinishedRun(folder, make_config(state["config"]), state["identity"]["data"])


def _read_state(folder: Path) -> dict[str, Any]:
    file = folder / "run.json"
    if not file.is_file():
        raise RunFolderError(f"{folder} is not a run folder: it has no run.json.", "Give the --out of a finished run.")
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = int(state["format"])
        _ = state["config"], state["stages"].keys(), state["identity"]["data"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{file} is damaged ({error}).", "Give another run.") from error
    if version > FORMAT:
        raise RunFolderError(f"{folder} was written by a newer iekd-compress.", "pip install -U iekd-compress")
    return state


def _stored_splits(file: Path) -> list[Split]:
    try:
        task: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["task"]
    except Exception as error:
        raise RunFolderError(
            f"checkpoint {file} is damaged ({type(error).__name__}).",
            "Delete it: a natural or random split follows from the settings.",
        ) from error
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in task.items():
        match = _INDEX.search(name)
        if match and match["network"] in _SECOND:
            found.setdefault(int(match["tap"]), {})[match["part"]] = tensor.clone()
    return [Split(**found[tap]) for tap in sorted(found)]


def _lifted(objective: str) -> bool:
    """Does this objective split the student's channels?"""
    if objective.lower() == "ie-dml":
        return True
    return any(term in OBJECTIVES and OBJECTIVES[term].kind == "lift" for term in objective.lower().split("+"))
