"""Processes of their own that need not import torch again: each is forked from one that has, and computed nothing yet.

A command takes seconds to import what it needs, and the suite starts some two hundred.  What comes out is what a shell
would see: exit status, standard output and standard error of a process.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock


def run_forked(
    work: Callable[..., Any], *args: Any, environment: Mapping[str, str], cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Call a function of an importable module in a new process.

    Variables that are read while modules are imported have the values of the first call: the rest comes too late.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        given = (work, args, dict(environment), cwd or Path.cwd(), streams)
        with mock.patch.dict(os.environ, environment, clear=True):
            process = forking().Process(target=_child, args=given)
            process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(work.__name__, timeout, *(stream.read_bytes() for stream in streams))
        return subprocess.CompletedProcess(args, process.exitcode, *(stream.read_text() for stream in streams))


def run_script(path: Path, *args: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a Python script, such as a benchmark, in a process of its own."""
    return run_forked(_script, path, args, environment=environment, timeout=600)


def _script(path: Path, args: Sequence[str]) -> None:
    sys.argv = [str(path), *args]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


@functools.cache
def forking() -> ForkServerContext:
    """Of :mod:`multiprocessing`, for processes that a test watches itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    here = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    with mock.patch.dict(os.environ, PYTHONPATH=here):
        forkserver.ensure_running()
    return context


def _child(
    work: Callable[..., Any], args: Sequence[Any], environment: dict[str, str], cwd: Path, streams: Sequence[Path]
) -> None:
    for number, stream in zip((1, 2), streams, strict=True):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    work(*args)
