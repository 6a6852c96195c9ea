"""Waiting threads go to sleep soon, unless the environment says otherwise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from small import environment_of

from iekd.compress.host_threads import SPINS

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "busy_machine.py"
OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
TRAIN = ["--teacher", "none", "--student", "none"]


def environment(**given: str) -> dict[str, str]:
    return {key: value for key, value in environment_of().items() if key not in OWN} | given


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PyTorch has GNU's OpenMP on Linux")
@pytest.mark.parametrize(
    ("arguments", "given", "spins"),
    [
        (TRAIN, {}, str(SPINS)),
        (["teacher", *TRAIN], {}, str(SPINS)),
        (["search", *TRAIN, "--max-latency", "1ms"], {}, str(SPINS)),
        (TRAIN, {"GOMP_SPINCOUNT": "77"}, "77"),
        (TRAIN, {"OMP_WAIT_POLICY": "passive"}, "0"),
        (["export", "none"], {}, "300000"),
    ],
)
def test_commands_that_train_say_so_before_the_library_is_loaded(
    arguments: list[str], given: dict[str, str], spins: str, tmp_path: Path
) -> None:
    """The library tells what it goes by; the commands end with a line, since there are no such networks."""
    command = f"import sys; from iekd.compress.cli import main; sys.argv = ['iekd-compress', *{arguments}]; main()"
    told = subprocess.run(
        [sys.executable, "-c", command],
        env=environment(OMP_DISPLAY_ENV="verbose", **given),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 2, told.stderr
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", told.stderr)) == {spins}  # scikit-learn brings another copy


def test_the_benchmark_compares_both_alone_and_beside_other_work() -> None:
    tiny = ("--students", "tiny_networks:student", "--size", "16", "--batch", "8", "--steps", "1", "--rounds", "1")
    told = subprocess.run(
        [sys.executable, str(BENCHMARK), *tiny, "--threads", "1"],
        env=environment(PYTHONPATH=str(BENCHMARK.parents[1] / "tests")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    rows = told.stdout.splitlines()
    assert rows[0].startswith("tiny_networks:student, alone: ")
    assert rows[1].startswith("tiny_networks:student, beside a busy process: ")
    assert re.fullmatch(r"RESULT worst_alone=\d+\.\d+ worst_busy=\d+\.\d+", rows[-1])
