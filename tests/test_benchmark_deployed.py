"""The comparison of what ships: it runs through to its last line, goes on, and says what it missed."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import run_script
from small import environment_of

pytest.importorskip("optuna", reason="needs the extra `search`")
TESTS = Path(__file__).parent
BENCHMARKS = TESTS.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from deployed_latency import kept_elsewhere  # noqa: E402

SEARCH = (
    *("--prunes", "0", "--trials", "2", "--winners", "1", "--epochs", "2", "--short-epochs", "1", "--tap", "4"),
    *("--teacher-epochs", "1", "--factor-epochs", "1", "--views", "2", "--lr", "0.02", "--batch-size", "32"),
    *("--train-limit", "96", "--val-limit", "60", "--precision", "fp32", "--bench-seconds", "0.05"),
)


def deployed(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    networks = ("--teacher", "tiny_networks:teacher", "--students", "tiny_networks:student,tiny_networks:teacher")
    settings = ("--size", "16", "--threads", "1", "--seconds", "0.2", "--out", str(folder / "out"))
    paths = {"PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}", "XDG_CACHE_HOME": str(folder / "cache")}
    script = BENCHMARKS / "deployed_latency.py"
    return run_script(script, *networks, *settings, *flags, environment=environment_of(**paths))


@pytest.mark.slow
def test_it_searches_once_and_measures_each_time(tmp_path: Path) -> None:
    first = deployed(tmp_path, "--", *SEARCH)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "iekd-compress search --teacher tiny_networks:teacher" in first.stdout
    lines = first.stdout.splitlines()
    assert lines[-1].startswith("RESULT speedup=")
    assert " retained=" in lines[-1]
    (speedup,) = [line for line in lines if line.startswith("speedup ")]
    assert speedup.endswith("MISSED")  # no tiny network is twenty times faster than the other
    again = deployed(tmp_path, "--", *SEARCH)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "iekd-compress search" not in again.stdout
    assert again.stdout.splitlines()[-1].startswith("RESULT speedup=")
    with open(tmp_path / "out" / "deployed_latency.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2
    assert rows[0]["retained"] == rows[1]["retained"]
    assert float(rows[0]["teacher_ms"]) > 0
    assert rows[0]["images"] == "60"


@pytest.mark.slow
def test_a_search_that_cannot_start_ends_the_benchmark_with_its_status(tmp_path: Path) -> None:
    result = deployed(tmp_path, "--", "--trials", "0")
    assert result.returncode == 2
    assert "--trials 0" in result.stderr
    assert "RESULT" not in result.stdout


def test_the_luck_of_the_choice_is_seen_on_images_that_it_was_not_made_on() -> None:
    """Of many files that all keep 97 %, some keep 99 % on any one half of the images; on the other half they do not."""
    teacher = np.ones(400, dtype=bool)
    files = list(np.random.default_rng(0).random((300, 400)) < 0.97)
    latencies = list(np.random.default_rng(1).random(300))
    assert max(right.mean() for right in files) > 0.985
    assert kept_elsewhere(teacher, files, latencies) == pytest.approx(0.97, abs=0.005)


def test_the_fastest_file_that_keeps_the_limit_is_taken() -> None:
    teacher = np.ones(100, dtype=bool)
    good, fast_but_bad, slow = teacher.copy(), np.arange(100) % 2 == 0, teacher.copy()
    assert kept_elsewhere(teacher, [good, fast_but_bad, slow], [2.0, 1.0, 3.0]) == 1.0
    assert kept_elsewhere(teacher, [fast_but_bad], [1.0]) == pytest.approx(0.5, abs=0.01)
