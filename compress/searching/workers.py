"""Workers that share a search: which of them holds a trial, and is it still there?"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BEAT = 20.0
"""Seconds between two signs of life."""
SILENCE = 600.0
"""Seconds without a sign after which a trial counts as abandoned."""


def this_worker() -> str:
    """Name of this process, as a trial holds it: ``HOST:PROCESS``."""
    return f"{socket.gethostname()}:{os.getpid()}"


@contextlib.contextmanager
def signs_of_life(show: Callable[[int], None]) -> Iterator[None]:
    """While the block runs, call ``show`` with growing numbers from a thread: one epoch may take hours."""
    ended = threading.Event()

    def run() -> None:
        number = 0
        while not ended.wait(BEAT):
            number += 1
            with contextlib.suppress(Exception):  # one sign is missed; an error that lasts meets the trial at its end
                show(number)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Watch:
    """Tells the trials whose worker is gone.

    Of a worker on this machine the process is looked for; one elsewhere is known by its signs of life alone.  These are
    compared with one another and never with a clock, because machines' clocks differ.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, float]] = {}

    def is_abandoned(self, trial: Any) -> bool:
        """Is nobody working on this running trial any more?"""
        host, _, process = str(trial.user_attrs.get("worker", "")).rpartition(":")
        if host == socket.gethostname() and not Path(f"/proc/{process}").exists():
            return True
        sign, now = trial.user_attrs.get("sign"), time.monotonic()
        if trial.number not in self._seen or self._seen[trial.number][0] != sign:
            self._seen[trial.number] = sign, now
        return now - self._seen[trial.number][1] > SILENCE
