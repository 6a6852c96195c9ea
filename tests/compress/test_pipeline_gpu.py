"""The main job where there is a GPU: it trains there, resumes, and its file answers like the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import command, settings

from iekd import run
from iekd.compress.observer import Observer

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


class StopAfter(Observer):
    """Leaves the student's training after its first epoch."""

    def epoch_finished(self, name: str, epoch: int, figures: dict[str, float]) -> None:
        if name == "student":
            raise KeyboardInterrupt


def test_fp16_goes_on_with_its_loss_scale(tmp_path: Path) -> None:
    """The scale, and the steps since it last changed; the weights of two trainings on a GPU differ by rounding."""
    given = settings(mixed_precision="fp16", epochs=3)
    run(**given, out=str(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(**given, out=str(tmp_path / "cut"), observer=StopAfter())
    run(**given, out=str(tmp_path / "cut"))
    kept = [torch.load(tmp_path / name / "checkpoints/student/last.pt")["scaler"] for name in ("whole", "cut")]
    assert kept[0] == kept[1]
    assert kept[0]["_growth_tracker"] > 0


def test_doctor_names_the_gpu() -> None:
    assert torch.cuda.get_device_name().removeprefix("NVIDIA ") in command("doctor").stdout
