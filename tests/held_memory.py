"""Memory that failed calls held: is it free again at once, without waiting for the garbage collector?"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator


class Memory:
    """Stands for a builder's or an engine's."""


class Memories:
    """Counts what is still held."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[Memory] = weakref.WeakSet()

    def take(self) -> Memory:
        """For a local variable of the call that fails."""
        memory = Memory()
        self._all.add(memory)
        return memory

    @property
    def held(self) -> int:
        """How many are."""
        return len(self._all)


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """What is freed here, is freed by its last reference going."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
