"""One measurement of latency at a time on this machine: two at once would disturb each other, unseen."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from iekd.compress.data import default_cache_dir


@contextlib.contextmanager
def one_measurement(note: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold this machine's lock for the length of a block.

    Args:
        note: is told, in a line, when another process's measurement has to be waited for, or cannot be.
    """
    lock = _acquired(note)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def lock_file() -> Path:
    """In the user's cache, which machines may share: each has its own."""
    return default_cache_dir() / f"measuring-{socket.gethostname()}.lock"


def _acquired(note: Callable[[str], None]) -> FileLock | None:
    """The lock; None where the cache takes no file, for a run that could be measured does not end for want of it."""
    try:
        lock_file().parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_file())
        try:
            lock.acquire(timeout=0)
        except Timeout:
            note("Waiting for another measurement on this machine.")
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # a read-only cache, a file system without locks
        note(f"No lock for this machine's measurements ({error}): another one may disturb this one.")
        return None
    return lock
