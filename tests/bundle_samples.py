"""A small real bundle for tests: a classifier that tells dark from light squares, by design and not by training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from iekd.deploy.bundle import write_bundle
from iekd.deploy.export import export_onnx
from iekd.models.preprocessing import Preprocessing

CLASSES = ("dark", "light <&>")
PREPROCESSING = Preprocessing(size=16, crop_fraction=0.8)


class Brightness(nn.Module):
    """The mean of all inputs against zero: what lies below is dark."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
            self.head.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.mean((2, 3)))


def sample_models(folder: Path) -> dict[str, Path]:
    """The classifier in "two precisions": the same network exported under two names."""
    return {
        precision: export_onnx(
            Brightness(), folder / f"{precision}.onnx", preprocessing=PREPROCESSING, classes=CLASSES, name="brightness"
        )
        for precision in ("fp32", "fp16")
    }


def sample_images(count: int = 40, wrong: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Dark and light squares with labels, of which ``wrong`` are wrong on purpose."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 2
    pixels = random.normal(np.where(labels, 200, 50)[:, None, None, None], 10, (count, 16, 16, 3))
    labels = labels.copy()
    labels[:wrong] = 1 - labels[:wrong]
    return pixels.clip(0, 255).astype(np.uint8), labels.astype(np.int64)


def sample_bundle(folder: Path, models: Mapping[str, Path] | None = None, **settings: Any) -> Path:
    """A whole bundle, ``folder/student.bundle.zip``."""
    images, labels = sample_images()
    host = {"device": "a host", "models": {"fp32": {"accuracy": 0.95, "median_ms": 0.5}}}
    return write_bundle(
        folder / "student.bundle.zip", models or sample_models(folder), images, labels, **{"host": host, **settings}
    )


def stop_before_latency(run: Any, arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Start ``run.py`` and stop it between accuracy and latency; what is returned grows with each model's accuracy."""
    counted: list[int] = []
    genuine = run.answers

    def counting(*given: Any) -> Any:
        counted.append(1)
        return genuine(*given)

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "answers", counting)
    with monkeypatch.context() as patch:
        patch.setattr(run, "measure_latency", stop)
        assert run.main(arguments, folder) == 130
    return counted
