"""Which of a run's files are measured."""

from __future__ import annotations

from dataclasses import dataclass

from iekd.compress.job import Job
from iekd.compress.targets import TARGETS
from iekd.compress.variants import read_variants

ROLES = ("teacher", "student")
UNPRUNED = "unpruned"
"""The student as it was before pruning; measured beside the others to tell what that gained, and never ships."""


@dataclass(frozen=True)
class File:
    """A file that is measured."""

    name: str
    path: str
    """Relative to the run folder."""
    precision: str


def exported_files(job: Job) -> list[File]:
    """The teacher, the student and, unless they are for a board, the student's other precisions."""
    files = [File(role, f"{role}.onnx", "fp32") for role in ROLES]
    if not TARGETS[job.config.target].on_board:
        files += [File(variant.name, variant.file, variant.precision) for variant in read_variants(job.folder)]
    return files


def unpruned_file(job: Job) -> File | None:
    """The student before pruning, where there was any; a run that an earlier version began has no such file."""
    file = File(UNPRUNED, f"{UNPRUNED}.onnx", "fp32")
    return file if job.config.prune and (job.folder / file.path).is_file() else None
