"""Runs small enough for a test: real stages on real digits, a few seconds each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from processes import run_forked

SETTINGS: dict[str, Any] = {
    "teacher": "resnet10t",
    "student": "test_efficientnet",
    "image_size": 32,
    "train_limit": 128,
    "val_limit": 60,
    "batch_size": 32,
    "teacher_epochs": 1,
    "epochs": 2,
    "factor_epochs": 2,
    "teacher_weights": "scratch",
    "student_weights": "scratch",
    "bench_seconds": 0.2,
    "min_retained": 0.01,
}
PROGRAM = [sys.executable, "-m", "iekd.compress.cli"]


def settings(**changes: Any) -> dict[str, Any]:
    """``SETTINGS`` with changes."""
    return {**SETTINGS, **changes}


def search_settings(out: Path, **changes: Any) -> dict[str, Any]:
    """Of a search among networks of a few hundred parameters; limits, shares and sizes are to be added."""
    tiny = settings(
        teacher="tiny_networks:teacher",
        student="tiny_networks:student,tiny_networks:teacher",
        tap="4",
        train_limit=96,
        views=2,
        bench_seconds=0.05,
        factor_epochs=1,
        lr=0.02,
        precision="fp32",
        out=str(out),
        min_retained=None,
        image_size=None,
    )
    return {**tiny, **changes}


def arguments(**changes: Any) -> list[str]:
    """The same as command-line arguments."""
    return as_flags(settings(**changes))


def as_flags(given: dict[str, Any]) -> list[str]:
    """Settings as command-line arguments."""
    flags = []
    for key, value in given.items():
        name = "--" + key.replace("_", "-")
        if value is True:
            flags.append(name)
        elif value is not None:
            flags += [name, str(value)]
    return flags


def command(*args: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``iekd-compress`` in a process of its own, away from any model hub unless ``environment`` names one."""
    env = environment_of(**environment)
    if environment:  # which may be read while modules are imported
        return subprocess.run([*PROGRAM, *args], capture_output=True, text=True, cwd=cwd, env=env, timeout=300)
    return run_forked(_main, args, environment=env, cwd=cwd)


def _main(args: tuple[str, ...]) -> None:
    from iekd.compress.cli import main

    sys.argv = ["iekd-compress", *args]
    main()


def environment_of(**changes: str) -> dict[str, str]:
    """Of such a process; a change to nothing takes the variable out."""
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        **changes,
    }
    return {name: value for name, value in env.items() if value}


def refused(result: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    """Assert that a command ended with one line on stderr that holds ``words``, and no traceback."""
    assert result.returncode == code, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]
