"""The one teacher of a search for each input size: trained by whichever worker needs it first, shared by all runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from iekd.compress.config import RunConfig
from iekd.compress.data import ImageData
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.compress.plan import make_plan
from iekd.compress.rehearsal import rehearse
from iekd.errors import InputError
from iekd.models.checkpoint import read_description


class Teachers:
    """The teachers of a search.

    Args:
        config: of the search.
        data: what all of its runs see.
        students: that its candidates are, in the order in which they are tried out.
        observer: is told how their training goes on.
    """

    def __init__(self, config: RunConfig, data: ImageData, students: Sequence[str], observer: Observer) -> None:
        self.config, self.data, self.students, self.observer = config, data, students, observer

    def of_size(self, size: int) -> Path:
        """The artefact of the teacher for images of this many pixels; it is trained now if need be."""
        out = self._run_folder(size)
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{out}.lock"):
            if not (out / "teacher" / "model.json").is_file():
                config = self.config_of(size)
                run_stages(config, config.teacher, config.student, self.data, self.observer, until="teacher")
        return out / "teacher"

    def shared_by(self, size: int) -> Path:
        """The folder of what all runs under the teacher of this size have in common."""
        return self._run_folder(size) / "shared"

    def accuracy_at(self, size: int) -> float:
        """Of the teacher of this size, 0..1.

        Raises:
            InputError: it is right about no validation image.
        """
        accuracy = float(read_description(self.of_size(size))["facts"]["accuracy"])
        if accuracy <= 0:
            raise InputError("the teacher answers no validation image correctly.", "Train it for longer.")
        return accuracy

    def config_of(self, size: int) -> RunConfig:
        """Settings of the run that trains the teacher alone.

        A run tries out both of its networks before it trains either: this one names the first student that could
        follow.  The others are tried out by their own runs.

        Raises:
            InputError: none could; what the first one lacks.
        """
        errors = []
        for student in self.students:
            config = dataclasses.replace(
                self.config,
                student=student,
                prune=0.0,
                precision="fp32",
                qat=qat_for("fp32", self.config),
                image_size=size,
                out=str(self._run_folder(size)),
            )
            try:
                plan = make_plan(config, self.data, config.teacher, student, Observer())
                rehearse(config, plan, len(self.data.classes), config.teacher, student)
            except InputError as error:
                errors.append(error)
            else:
                return config
        raise errors[0]

    def _run_folder(self, size: int) -> Path:
        return self.config.folder / "teachers" / f"{size}px"


def qat_for(precision: str, config: RunConfig) -> str:
    """The setting ``qat`` of a run in this precision: ``always`` is refused where no int8 is made."""
    return "never" if precision == "fp32" and config.qat == "always" else config.qat
