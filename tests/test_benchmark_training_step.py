"""What a training step costs: the benchmark runs for any objective, form and size."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import training_step


@pytest.mark.parametrize(
    ("objective", "form", "size"),
    [("ie-ft+kd", "distance", 32), ("ie-ft", "cka", 32), ("ie-vkd+kd", "cosine", 40), ("kd", "distance", 32)],
)
def test_a_step_is_measured(
    objective: str, form: str, size: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = ["--teacher", "cifar_resnet20", "--student", "cifar_resnet20", "--batch", "8", "--rounds", "2"]
    own = ["--objective", objective, "--explore-form", form, "--size", str(size), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["training_step.py", *networks, *own])
    threads = torch.get_num_threads()
    try:
        training_step.main()
    finally:
        torch.set_num_threads(threads)
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()] == ["bare", "live", "cached", "RESULT"]
    found = re.search(r"RESULT iekd_over_bare=(\d\.\d+)", told)
    assert found is not None
    assert float(found[1]) > 0
