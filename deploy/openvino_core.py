"""OpenVINO's runtime, once a process, and the signal stack that it takes.

OpenVINO's CPU plugin gives the thread that loads it a signal stack of its own and, when it is unloaded, puts back the
one that it found.  Of two plugins that are not unloaded in the reverse order the second puts back that of the first,
which is gone: the next signal that a handler takes, such as the end of a loader's worker, then ends the process
(docs/log.md).  So all of ours is one plugin, which stays, and others are undone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator
from typing import Any


@functools.cache
def core() -> Any:
    """The process's own ``openvino.Core``.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    import openvino

    return openvino.Core()


class SignalStack(ctypes.Structure):
    """``stack_t`` of Linux: where, flags, bytes."""

    _fields_ = [("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def signal_stack() -> SignalStack:
    """That of this thread."""
    found = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Afterwards this thread has the signal stack that it had: for code that loads and drops plugins of its own."""
    if sys.platform != "linux":
        yield
        return
    before = signal_stack()
    try:
        yield
    finally:
        ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)
