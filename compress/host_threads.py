"""Threads of the host that wait for one another, and for how long they spin before they sleep.

PyTorch divides each operation among OpenMP's threads, which wait for the slowest, thousands of times in a step.  GNU's
library lets them spin 300,000 times before they sleep (libgomp manual, "GOMP_SPINCOUNT").  Beside another process
the slowest often has no core: one that only waits is using it, and a step takes many times as long.
docs/results.md has what that costs, and what the limit costs where nothing else runs.  It is for commands that train:
a call of one image takes two fifths longer with it, and `bench` measures PyTorch as it comes.
"""

from __future__ import annotations

import os

SPINS = 1000
"""What the library takes by itself where there are more threads than cores and it is told to wait actively."""
_OWN_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def waiting_threads_sleep() -> None:
    """Let OpenMP's threads sleep soon.  Has to come before PyTorch is imported; what the environment says stands."""
    if not any(name in os.environ for name in _OWN_SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
