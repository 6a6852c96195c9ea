"""Memory of the host, kept from one step to the next.

glibc hands a large block back to the system as soon as it is free, and the system clears each page anew when the next
step asks for it.  A training on a processor allocates the same hundreds of MiB in every step:
docs/results.md has what that costs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""
_BLOCK_LIMITS = (1 << 30, 1 << 25)
"""Blocks below this come from the heap, bytes; older versions take no more than the second."""
_KEPT = (1 << 31) - 1
"""Bytes free at the heap's end that it keeps: the most that an int holds."""
_OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Let glibc keep freed blocks for the next step while training on ``device``, and hand them back at the end.

    Nothing happens on another device, under another allocator, or where the environment sets glibc's own variables.
    """
    if device.type != "cpu" or any(name in os.environ for name in _OWN_SETTINGS):
        yield
        return
    _keep()
    try:
        yield
    finally:
        _hand_back()


def _keep() -> None:
    mallopt = _function("mallopt")
    # Set alone, the trim threshold would freeze the other at its initial 128 KiB, where each tensor has fresh pages.
    if mallopt is not None and any(mallopt(_MMAP_THRESHOLD, limit) for limit in _BLOCK_LIMITS):
        mallopt(_TRIM_THRESHOLD, _KEPT)


def _hand_back() -> None:
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
