"""The main job where there is a GPU: it trains there, resumes, and its file answers like the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import command, settings

from iekd import run

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def _device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")


@pytest.mark.parametrize("objective", ["ie-ft+kd", "ie-dml", "switokd"])
def test_the_main_job_runs_on_the_gpu(tmp_path: Path, objective: str) -> None:
    torch.cuda.reset_peak_memory_stats()
    report = run(**settings(out=str(tmp_path / "run"), objective=objective))
    assert torch.cuda.max_memory_allocated() > 1 << 20
    again = run(**settings(out=str(tmp_path / "run"), objective=objective))
    assert again.student.accuracy == report.student.accuracy


def test_doctor_names_the_gpu() -> None:
    assert torch.cuda.get_device_name().removeprefix("NVIDIA ") in command("doctor").stdout
