"""``build --precision best`` past the point where TensorRT is needed: conversions, builds and engines are doubles."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundle_samples import CLASSES, sample_images, sample_models
from held_memory import Memories, no_collector
from PIL import Image

from iekd.compress import engines
from iekd.compress.engines import Choice, build_engines
from iekd.deploy.backends import Array, get_backend
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.device.errors import OutOfMemoryError
from iekd.deploy.engine import BuildSettings, BuiltEngine, domain_errors
from iekd.errors import EnvironmentMissingError, IekdError, InputError, VerificationError

SECONDS = {"fp32": 0.004, "fp16": 0.001, "bf16": 0.002, "int8": 0.0003, "fp8": 0.003}
NO_MODELOPT = EnvironmentMissingError("nvidia-modelopt is not installed whole.", "pip install nvidia-modelopt")
NO_MEMORY = EnvironmentMissingError("the memory did not suffice to build the engine.")


class Engine:
    """Tells dark from light, in the time of its precision; ``wrong`` ones the other way round."""

    input_shape = (3, 16, 16)

    def __init__(self, precision: str, wrong: bool, batch_range: tuple[int, int]) -> None:
        self.precision, self.wrong, self.batch_range = precision, wrong, batch_range
        self.batches: list[int] = []
        self.closed = False

    def run(self, images: Array) -> Array:
        least, most = self.batch_range
        if not least <= len(images) <= most:
            raise InputError(f"the engine takes {least} to {most} images, not {len(images)}.")
        self.batches.append(len(images))
        time.sleep(SECONDS[self.precision])
        light = images.mean((1, 2, 3)) * (-1 if self.wrong else 1)
        return np.stack([-light, light], axis=1)

    def describe(self) -> dict[str, str]:
        return {"backend": "a double"}

    def close(self) -> None:
        self.closed = True


def squares(count: int, wrong: int = 0) -> Any:
    """As ``load_data`` has them."""
    pixels, labels = sample_images(count, wrong)
    pairs = [(Image.fromarray(image), int(label)) for image, label in zip(pixels, labels, strict=True)]
    return SimpleNamespace(train=pairs, val=pairs, classes=CLASSES, in_memory=True)


class Workshop:
    """What each step does for each precision; ``refuse`` raises there."""

    def __init__(self) -> None:
        self.refuse: dict[tuple[str, str], IekdError] = {}
        self.wrong: set[str] = set()
        self.batch_range = (1, 8)
        self.opened: list[Engine] = []
        self.told: list[str] = []
        self.data = squares(40)

    def _step(self, step: str, precision: str) -> None:
        if (step, precision) in self.refuse:
            raise self.refuse[(step, precision)]

    def check_precision(self, precision: str) -> None:
        self._step("check", precision)

    def convert(self, model: Path, precision: str, data: Any, folder: Path) -> Path:
        self._step("convert", precision)
        return folder / f"{precision}.onnx"

    def build(self, onnx: Path, settings: BuildSettings, **_: Any) -> BuiltEngine:
        self._step("build", onnx.stem)
        return BuiltEngine(onnx.with_suffix(".engine"), None, onnx)  # type: ignore[arg-type]

    def require(self) -> None:
        """As on a machine that has TensorRT."""

    def load(self, path: Path) -> Engine:
        self._step("load", path.stem)
        self.opened.append(Engine(path.stem, path.stem in self.wrong, self.batch_range))
        return self.opened[-1]

    def get_backend(self, name: str) -> Any:
        return self if name == "tensorrt" else get_backend(name)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    shop = Workshop()
    for name in ("check_precision", "convert", "build", "get_backend"):
        monkeypatch.setattr(engines, name, getattr(shop, name))
    monkeypatch.setattr(engines, "load_data", lambda _, **__: shop.data)
    monkeypatch.setattr(
        engines, "measure_latency", functools.partial(measure_latency, seconds=0.05, warmup_seconds=0.0)
    )
    return shop


@pytest.fixture
def best(shop: Workshop, tmp_path: Path) -> Callable[[], list[Choice]]:
    model = sample_models(tmp_path)["fp32"]
    return lambda: build_engines(model, "best", BuildSettings(), data="squares", folder=tmp_path, tell=shop.told.append)


def test_the_fastest_that_keeps_its_accuracy_comes_first(best: Callable[[], list[Choice]], shop: Workshop) -> None:
    """The engines take 8 images a call, the validation set has 40."""
    shop.wrong = {"int8"}
    found = best()
    assert [choice.precision for choice in found] == ["fp16", "bf16", "fp8", "fp32", "int8"]
    assert [choice.accuracy for choice in found] == [1, 1, 1, 1, 0]
    assert all(choice.median_ms >= 1e3 * SECONDS[choice.precision] for choice in found if choice.median_ms)
    assert {max(engine.batches) for engine in shop.opened} == {8}
    assert all(engine.closed for engine in shop.opened)
    assert shop.told == []


def test_accuracy_is_of_all_images_which_are_never_in_memory_together(
    best: Callable[[], list[Choice]], shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.data = squares(200, wrong=1)
    held: list[int] = []
    genuine = engines.some_arrays

    def some_arrays(source: Any, model: Path, count: int) -> tuple[Any, Any]:
        held.append(count)
        return genuine(source, model, count)

    monkeypatch.setattr(engines, "some_arrays", some_arrays)
    assert [choice.accuracy for choice in best()] == [199 / 200] * len(SECONDS)
    assert held == [64], "for the latency alone"


def test_what_cannot_be_had_is_told_and_the_others_remain(best: Callable[[], list[Choice]], shop: Workshop) -> None:
    shop.refuse = {
        ("check", "bf16"): InputError("bf16 needs a GPU of SM 8.0 or later."),
        ("convert", "int8"): VerificationError("int8 loses 3 % of accuracy."),
        ("convert", "fp8"): NO_MODELOPT,
    }
    assert [choice.precision for choice in best()] == ["fp16", "fp32"]
    assert [line.split(":")[0] for line in shop.told] == [f"{name} is left out" for name in ("bf16", "int8", "fp8")]
    assert shop.told[-1].endswith("pip install nvidia-modelopt")


@pytest.mark.parametrize("step", ["build", "load"])
def test_an_engine_that_is_refused_does_not_take_the_others_along(
    best: Callable[[], list[Choice]], shop: Workshop, step: str
) -> None:
    shop.refuse = {(step, "int8"): NO_MEMORY, (step, "fp8"): InputError("TensorRT does not take it.")}
    assert [choice.precision for choice in best()] == ["fp16", "bf16", "fp32"]
    assert [line.split(":")[0] for line in shop.told] == ["int8 is left out", "fp8 is left out"]
    assert all(engine.closed for engine in shop.opened)


def test_without_a_float32_engine_the_file_s_accuracy_is_the_mark(
    best: Callable[[], list[Choice]], shop: Workshop
) -> None:
    shop.refuse = {("build", "fp32"): NO_MEMORY}
    shop.wrong = {"int8"}
    assert [choice.precision for choice in best()] == ["fp16", "bf16", "fp8", "int8"]


def test_where_nothing_can_be_had_the_last_reason_is_raised(best: Callable[[], list[Choice]], shop: Workshop) -> None:
    shop.refuse = {("build", name): NO_MEMORY for name in SECONDS}
    with pytest.raises(EnvironmentMissingError, match="did not suffice"):
        best()
    assert len(shop.told) == len(SECONDS)


def test_what_a_refused_build_held_is_free_before_the_next_begins(
    best: Callable[[], list[Choice]], shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories, held = Memories(), []

    def build(*_: Any, **__: Any) -> Any:
        held.append(memories.held)
        memory = memories.take()
        with domain_errors():
            raise OutOfMemoryError(f"{memory} did not suffice.")

    monkeypatch.setattr(engines, "build", build)
    with no_collector(), pytest.raises(EnvironmentMissingError, match="did not suffice"):
        best()
    assert held == [0] * len(SECONDS)


def test_engines_of_one_batch_are_measured_at_that_batch(best: Callable[[], list[Choice]], shop: Workshop) -> None:
    shop.batch_range = (16, 16)
    found = best()
    assert found[0].accuracy == 1
    assert {size for engine in shop.opened for size in engine.batches} == {16}


def test_sessions_are_closed_where_measuring_fails(
    best: Callable[[], list[Choice]], shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise InputError("no more.")

    monkeypatch.setattr(engines, "measure_latency", broken)
    with pytest.raises(InputError, match="no more"):
        best()
    assert len(shop.opened) == len(SECONDS)
    assert all(engine.closed for engine in shop.opened)
