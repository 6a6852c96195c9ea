"""Which images calibrate, and which range each method chooses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from iekd.compress.calibration import (
    CALIBRATION_IMAGES,
    JUDGING_IMAGES,
    METHODS,
    Calibration,
    Histogram,
    choose_images,
    choose_numbers,
    choose_range,
    collect_histograms,
)
from iekd.compress.variants import training_images
from iekd.errors import InputError

LABELS = np.array([0] * 60 + [1] * 30 + [2] * 10)


def numbered(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 2, 2), np.float32)


def histogram(values: np.ndarray) -> Histogram:
    reach = float(np.abs(values).max())
    counts = np.histogram(values, 2048, (-reach, reach))[0]
    return Histogram(counts, min(0.0, float(values.min())), float(values.max()))


def test_the_subset_is_balanced_seeded_and_the_same_from_batches() -> None:
    chosen = choose_images(numbered(100), LABELS, count=24, seed=0)[:, 0, 0, 0].astype(int)
    assert np.bincount(LABELS[chosen]).tolist() == [8, 8, 8]
    assert not np.array_equal(chosen, choose_images(numbered(100), LABELS, count=24, seed=1)[:, 0, 0, 0])

    def batches() -> Iterator[np.ndarray]:
        for at in range(0, 100, 7):
            yield numbered(100)[at : at + 7]

    again = choose_images(batches, LABELS, count=24, seed=0)
    assert np.array_equal(again[:, 0, 0, 0], chosen)
    assert again.dtype == np.float32


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match="200 calibration images were asked for, there are 100"):
        choose_images(numbered(100), LABELS, count=200, seed=0)
    with pytest.raises(InputError, match="90 calibration images and 100 labels"):
        choose_images(numbered(90), LABELS, count=50, seed=0)


def test_each_method_chooses_as_its_name_says() -> None:
    """A normal distribution with one far outlier: min-max keeps it, the others trade it for finer steps."""
    values = np.append(np.random.default_rng(0).standard_normal(100_000), 40.0)
    found = {method: choose_range(histogram(values), method) for method in METHODS}
    assert found["minmax"] == (np.float32(values.min()), np.float32(40.0))
    assert found["percentile"][1] == pytest.approx(np.percentile(values, 99.995), abs=0.05)
    for method in ("entropy", "mse"):
        assert 2 < found[method][1] < 39, method


def test_least_squares_beats_every_other_range_at_what_it_is_for() -> None:
    values = np.random.default_rng(0).laplace(size=50_000)

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        return float(((np.round((values.clip(low, high) - low) / step) * step + low - values) ** 2).mean())

    errors = {method: error(*map(float, choose_range(histogram(values), method))) for method in METHODS}
    assert errors["mse"] <= 1.02 * min(errors.values())
    assert errors["mse"] < 0.9 * errors["minmax"]


@pytest.mark.parametrize("method", METHODS)
def test_a_range_holds_zero_and_nothing_that_was_not_seen(method: str) -> None:
    random = np.random.default_rng(0)
    for values in (random.random(1000) + 1, np.zeros(100), random.standard_normal(1000) * 1e-6):
        low, high = choose_range(histogram(values) if values.any() else Histogram(np.ones(2048, int), 0.0, 0.0), method)
        assert low <= 0 <= high
        assert high <= np.float32(values.max())


def double(factor: float) -> onnx.ModelProto:
    value = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 2, 2]) for name in "xy"]
    middle = helper.make_tensor_value_info("m", TensorProto.FLOAT, ["n", 3, 2, 2])
    nodes = [helper.make_node("Mul", ["x", "factor"], ["m"], "a"), helper.make_node("Relu", ["m"], ["y"], "b")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [value], value_info=[middle])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_histograms_count_every_value_once(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((21, 3, 2, 2)).astype(np.float32)
    found = collect_histograms(double(-2), images)
    assert set(found) == {"x", "m", "y"}
    assert {name: int(entry.counts.sum()) for name, entry in found.items()} == dict.fromkeys("xmy", images.size)
    assert (found["m"].lowest, found["m"].highest) == (-2 * images.max(), -2 * images.min())
    assert found["y"].lowest == 0
    ranges = Calibration(double(-2), images).ranges("minmax")
    assert ranges["y"] == (0, -2 * images.min())


def test_a_network_that_is_not_finite_is_refused() -> None:
    images = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
    for factor in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="not finite at"):
            collect_histograms(double(factor), images)


def test_what_calibrates_is_balanced_and_seeded_and_others_decide() -> None:
    targets = np.repeat([0, 1, 2], [900, 60, 40])
    for seed in (0, 1):
        calibrating, judging = choose_numbers(targets, 96, seed)
        assert np.bincount(targets[calibrating]).tolist() == [32, 32, 32]
        assert len(judging) == JUDGING_IMAGES
        assert not set(calibrating) & set(judging)
        assert len(set(targets[calibrating[:16]])) == 3, "layers are ranked on the first ones"
    one, same, other = (set(choose_numbers(targets, 96, seed)[0]) for seed in (0, 0, 1))
    assert one == same != other
    assert len(choose_numbers(targets, None, 0)[0]) == CALIBRATION_IMAGES
    assert [len(part) for part in choose_numbers(targets[:400], 300, 0)] == [300, 100]


class Numbered:
    """Images that tell their number, and which of them were decoded."""

    def __init__(self, targets: np.ndarray) -> None:
        self.targets = targets
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[int, int]:
        self.decoded.append(index)
        return index, int(self.targets[index])


def test_a_run_calibrates_on_balanced_seeded_images_and_others_decide() -> None:
    def drawn(seed: int) -> tuple[list[int], list[int]]:
        source = Numbered(np.repeat([0, 1], [9900, 100]))
        job: Any = SimpleNamespace(
            data=SimpleNamespace(train=source),
            config=SimpleNamespace(seed=seed),
            preprocessing=lambda number: np.full((3, 1, 1), number, np.float32),
        )
        (images, labels), (held_out, others) = training_images(job)
        assert np.bincount(labels).tolist() == [156, 100], "all there are of the rare class"
        assert others.shape == (512,)
        calibrating, judging = (found[:, 0, 0, 0].astype(int).tolist() for found in (images, held_out))
        assert source.decoded == [*calibrating, *judging], "no image but those"
        assert len({*calibrating, *judging}) == 256 + 512
        return calibrating, judging

    assert drawn(0) == drawn(0)
    for one, other in zip(drawn(0), drawn(1), strict=True):
        assert set(one) != set(other)
