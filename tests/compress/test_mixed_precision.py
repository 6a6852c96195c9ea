"""The frozen teacher answers in the run's mixed precision, and a run that was stopped sees the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import settings
from tiny_networks import teacher
from torch import Tensor, nn

from iekd.compress.config_input import make_config
from iekd.compress.job import emulation, make_accelerator
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.deploy import probe
from iekd.errors import EnvironmentMissingError

BATCH = 24
"""Of no other forward: validation takes 60 images at once, the probe 128."""


def distil(
    folder: Path, observer: Observer | None = None, *, until: str = "distill", teacher_epochs: int = 0, **changes: Any
) -> set[tuple[int, torch.dtype]]:
    """Distil a tiny student; returns what the teacher's convolution made: images at once, and type."""
    seen: set[tuple[int, torch.dtype]] = set()

    def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.add((len(output), output.dtype))

    torch.manual_seed(0)
    network = teacher(10)
    network[0].register_forward_hook(note)  # type: ignore[index]
    values = settings(
        out=str(folder), student="tiny_networks:student", tap="4", device="cpu", batch_size=BATCH, **changes
    )
    config = make_config({**values, "teacher": "Sequential", "teacher_epochs": teacher_epochs})
    run_stages(config, network, config.student, config.data, observer or Observer(), until=until)
    return seen


@pytest.mark.parametrize("views", [0, 2])
def test_the_teacher_answers_in_mixed_precision(tmp_path: Path, views: int) -> None:
    seen = distil(tmp_path / "run", mixed_precision="bf16", views=views, objective="ie-ft+kd")
    assert {kind for images, kind in seen if images == BATCH} == {torch.bfloat16}
    assert {kind for images, kind in seen if images == 60} == {torch.float32}, "its accuracy is that of the network"
    kept = [path.name for path in (tmp_path / "run" / "cache").glob("records*")]
    assert len(kept) == min(views, 1)
    assert all(name.startswith("records-bf16-") for name in kept)


def test_accuracy_between_epochs_costs_what_training_does(tmp_path: Path) -> None:
    """Half of an epoch's time on processors and GPUs that are fast in bfloat16 alone; what is reported is float32's."""
    seen = distil(tmp_path / "run", mixed_precision="bf16", until="teacher", teacher_epochs=1)
    assert {kind for images, kind in seen if images == 60} == {torch.bfloat16, torch.float32}


def test_in_float32_nothing_is_cast(tmp_path: Path) -> None:
    seen = distil(tmp_path / "run", mixed_precision="no", objective="kd")
    assert {kind for _, kind in seen} == {torch.float32}


class StopIn(Observer):
    """Leaves the student's training in the middle of an epoch."""

    def stage_advanced(self, name: str, done: int, detail: str) -> None:
        if name == "student" and done == 3:
            raise KeyboardInterrupt


def test_a_stopped_run_keeps_the_same_answers(tmp_path: Path) -> None:
    given = {"mixed_precision": "bf16", "views": 2, "objective": "ie-ft+kd"}
    distil(tmp_path / "whole", **given)
    with pytest.raises(KeyboardInterrupt):
        distil(tmp_path / "cut", StopIn(), **given)
    distil(tmp_path / "cut", **given)
    whole, cut = ({p.name: np.load(p) for p in (tmp_path / run / "cache").rglob("*.npy")} for run in ("whole", "cut"))
    assert len(whole) >= 3
    assert all(np.array_equal(answers, cut[name]) for name, answers in whole.items())
    ours, theirs = (load_file(tmp_path / run / "student" / "model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def about(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine's processor have these instructions."""
    monkeypatch.setattr(probe, "read", lambda path: processor if path == "proc/cpuinfo" else "")


@pytest.mark.parametrize(
    ("processor", "precision", "told"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", "bf16", True),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", "bf16", False),
        ("Features\t: fp asimd bf16\n", "bf16", False),
        ("flags\t\t: fpu avx2\n", "auto", False),
        ("", "bf16", False),  # not Linux: nothing is known
    ],
)
def test_a_processor_that_emulates_bf16_is_told(
    processor: str, precision: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    about(processor, monkeypatch)
    note = emulation(make_accelerator(make_config(settings(device="cpu", mixed_precision=precision))))
    assert (note is not None) == told
    assert not told or "Leave --mixed-precision out" in str(note)


def test_a_run_says_that_it_emulates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about("flags\t\t: fpu avx2\n", monkeypatch)
    notes: list[str] = []
    observer = Observer()
    monkeypatch.setattr(observer, "note", notes.append)
    distil(tmp_path / "run", observer, mixed_precision="bf16", until="teacher")
    assert any("no instructions for BF16" in note for note in notes)


def test_fp16_without_a_gpu_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """Accelerate would train in float32, and the report would say fp16."""
    with pytest.raises(EnvironmentMissingError, match="fp16 trains on a GPU") as told:
        distil(tmp_path / "run", mixed_precision="fp16")
    assert "Leave --mixed-precision out" in told.value.hint
    assert not (tmp_path / "run").exists()
