"""Training in two processes at once, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small import arguments

from iekd.deploy.report import read_report


@pytest.mark.slow
def test_two_processes_train_one_student(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    flags = arguments(out="run", device="cpu", prune=0.3)  # the recovery reads the factors' checkpoint again
    answer = subprocess.run(
        [*program, "-m", "iekd.compress.cli", *flags],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    report = read_report(tmp_path / "run" / "report.json")
    assert report.fingerprint.extra["training"] == "cpu, 2 process(es), float32"
    assert report.student.accuracy.total == 60
    assert answer.stdout.count("Train the teacher") == 2, (
        "one process speaks: once when it starts, once when it is done"
    )
