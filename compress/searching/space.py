"""What is searched: which students, how much of them is pruned, at which input size."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from iekd.errors import InputError
from iekd.files import sha256_of
from iekd.models.aliases import ALIASES, STUDENTS
from iekd.models.registry import is_artefact, load_function, resolve

PRUNES = (0.0, 0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Candidate:
    """One network to train.  Its precisions cost no training and are all made from it.

    Attributes:
        student: as the user could have named it.
        prune: share of it to remove, as ``--prune-goal`` counts.
        size: height and width of the input, pixels.
    """

    student: str
    prune: float
    size: int

    @property
    def name(self) -> str:
        """Of its run folder, and in tables."""
        student = re.sub(r"[^\w.]+", "_", self.student.rstrip("/")).strip("_")
        return f"{student}-p{self.percent.zfill(2)}-{self.size}px"

    @property
    def percent(self) -> str:
        """How much of it is to go, to the last digit given: two shares must not read, or be kept, as one."""
        return f"{(100 * Decimal(str(self.prune))).normalize():f}"

    @property
    def title(self) -> str:
        """In sentences."""
        pruned = f", {self.percent}% pruned" if self.prune else ""
        return f"{self.student}{pruned}, {self.size} pixels"

    def to_json(self) -> dict[str, Any]:
        """JSON types alone; also what Optuna chooses."""
        return asdict(self)


@dataclass(frozen=True)
class Space:
    """All candidates."""

    students: tuple[str, ...]
    prunes: tuple[float, ...]
    sizes: tuple[int, ...]

    def candidates(self) -> list[Candidate]:
        """In the order of the lists."""
        return [Candidate(s, p, size) for s in self.students for size in self.sizes for p in self.prunes]


def parse_students(text: str | None) -> tuple[str, ...]:
    """Names, aliases, artefacts and functions joined by commas; a pattern such as ``mobilenetv3_small_*`` is timm's.

    An alias stands for its family: every alias that begins with it, each in all its widths.  None stands for all
    students of the list, as wide as they are there.

    Raises:
        InputError: an unknown name, or a pattern that matches nothing.
    """
    if text is None:
        return tuple(dict.fromkeys(family.timm_name for family in STUDENTS))
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found += _students(part)
    if not found:
        raise InputError(f"--student '{text}' names no student.", "Give names joined by commas, or leave it out.")
    names = [_file_name(name) for name in dict.fromkeys(found)]
    if len(set(names)) < len(names):
        raise InputError(f"two students of '{text}' would share a folder.", "Rename one of their folders.")
    return tuple(dict.fromkeys(found))


def parse_shares(text: str) -> tuple[float, ...]:
    """``0,0.3,0.5`` as shares to remove.

    Raises:
        InputError: not numbers in [0, 1).
    """
    try:
        shares = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        shares = ()
    if not shares or not all(0 <= share < 1 for share in shares):
        raise InputError(f"--prunes '{text}' is not a list of shares.", "Give numbers from 0 to below 1: 0,0.3,0.5.")
    return shares


def parse_sizes(text: str) -> tuple[int, ...]:
    """``32,64`` as heights of the input, pixels.

    Raises:
        InputError: not whole numbers of at least 8.
    """
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 8:
        raise InputError(f"--sizes '{text}' is not a list of input sizes.", "Give pixels, at least 8: 64,96.")
    return sizes


def identity_of(student: str) -> str:
    """What the latency of ``student`` hangs on beside its name: the code or the widths behind it."""
    if is_artefact(student):
        return sha256_of(Path(student) / "model.json")
    if resolve(student).kind == "function":
        load_function(student)  # imports its module
        file = getattr(sys.modules[student.partition(":")[0]], "__file__", None)
        return sha256_of(Path(file)) if file else ""
    return ""


def _students(part: str) -> Sequence[str]:
    if any(character in part for character in "*?["):
        import timm

        matches: list[str] = timm.list_models(part)
        if not matches:
            raise InputError(f"no timm model matches '{part}'.", "`iekd-compress models 'mobilenet*'` searches them.")
        return matches
    family = [name for own in STUDENTS if own.alias.startswith(part) for name in (own.timm_name, *own.widths)]
    if part in ALIASES and family:
        return list(dict.fromkeys(family))
    if not is_artefact(part):
        resolve(part)
    return [part]


def _file_name(student: str) -> str:
    return Candidate(student, 0.0, 8).name
