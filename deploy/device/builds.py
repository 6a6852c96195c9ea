"""Builds that took the whole process with them, remembered on disk.

What wants more memory than the board has, the kernel kills without a word; nothing can be told until the next start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import OutOfMemoryError
from .explain import SWAP
from .files import read_object, write_json

FILE = "building.json"
MOST = 2
"""Builds of one precision that may be killed before it is left out once."""
KILLED = "killed, most likely by the kernel for want of memory"
_LESS = f"Give run.py --max-batch 1, and a smaller --workspace or --level.  {SWAP}"


class Builds:
    """The builds of one run in one output folder.

    A precision whose build was killed comes last, when the engines of the others are on disk.  Killed again it is left
    out once, so that the others are measured; the start after that tries it again, for there may be more memory then.

    Args:
        folder: of the run's output; only one run at a time works there.
        of: what the builds hang on, as JSON; kills are remembered for the same again, and not for other settings.
    """

    def __init__(self, folder: Path, of: Any) -> None:
        self._path, self._of = folder / FILE, of
        self.killed: dict[str, int] = {}
        """How often the build of a precision ended with the process."""
        before = read_object(self._path)
        if before.get("of") == of:
            self.killed.update(before["killed"])
            if before["building"]:
                self.killed[before["building"]] = self.killed.get(before["building"], 0) + 1

    def in_order(self, precisions: Iterable[str], say: Callable[[str], None]) -> list[str]:
        """``precisions`` as given, but last those whose build was killed, which ``say`` is told."""
        for name, times in self.killed.items():
            if times < MOST:
                say(f"{name}: building it was {KILLED}; it is built last this time.  {_LESS}")
        return sorted(precisions, key=lambda name: self.killed.get(name, 0))

    @contextlib.contextmanager
    def of(self, precision: str) -> Iterator[None]:
        """A build; what is written of it stays only where the process ends within.

        Raises:
            OutOfMemoryError: it was killed again; it is left out.
        """
        if self.killed.get(precision, 0) >= MOST:
            self.killed[precision] = MOST - 1
            self._write(None)
            raise OutOfMemoryError(f"building it was {KILLED}, and again when it was tried last.", _LESS)
        self._write(precision)
        try:
            yield
            self.killed.pop(precision, None)
        finally:
            self._write(None)

    def _write(self, building: str | None) -> None:
        write_json(self._path, {"of": self._of, "building": building, "killed": self.killed})
