"""More images than a session takes at once: an engine of batch 8 is verified, judged and compared on 64 and on 70."""

from __future__ import annotations

import numpy as np
import pytest

from iekd.compress.quantizers.judge import Judge
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import Array, BatchRange, logits_of
from iekd.deploy.backends.tensorrt import TensorRTSession
from iekd.deploy.device.errors import DeviceInputError
from iekd.deploy.verify import compare, verify

CLASSES = tuple("abcde")


class Engine:
    """Refuses what the device's session refuses; logit k is (k + 1) times an image's first value."""

    input_shape = (1, 2, 2)

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most
        self.batches: list[int] = []

    def run(self, images: Array) -> Array:
        if not self.least <= len(images) <= self.most:
            raise DeviceInputError(f"the engine takes {self.least} to {self.most} images, not {len(images)}.")
        self.batches.append(len(images))
        return images[:, 0, 0, :1] * np.arange(1, 6, dtype=np.float32)


class Whole:
    """The same without a limit."""

    input_shape = (1, 2, 2)
    batch_range: BatchRange = (1, None)

    def run(self, images: Array) -> Array:
        return images[:, 0, 0, :1] * np.arange(1, 6, dtype=np.float32)

    def describe(self) -> dict[str, str]:
        return {}

    def close(self) -> None: ...


def opened(least: int = 1, most: int = 8) -> tuple[TensorRTSession, Engine]:
    engine = Engine(least, most)
    return TensorRTSession(engine), engine  # type: ignore[arg-type]


def images(count: int) -> Array:
    """Of both signs: the top class is the last of a positive image and the first of a negative one."""
    return np.random.default_rng(0).normal(size=(count, 1, 2, 2)).astype(np.float32)


def labels(batch: Array) -> np.ndarray:
    return np.where(batch[:, 0, 0, 0] > 0, 4, 0)


@pytest.mark.parametrize(("least", "most", "sizes"), [(1, 8, [8, 8, 4]), (8, 8, [8, 8, 8]), (3, 6, [6, 6, 6, 3])])
def test_images_are_answered_in_calls_that_the_engine_takes(least: int, most: int, sizes: list[int]) -> None:
    session, engine = opened(least, most)
    assert session.batch_range == (least, most)
    assert np.array_equal(logits_of(session, images(20)), Whole().run(images(20)))
    assert engine.batches == sizes


@pytest.mark.parametrize("least", [1, 8])
def test_a_file_is_verified_on_more_images_than_its_engine_takes(least: int) -> None:
    session, _ = opened(least)
    found = verify(session, Whole(), images(64), name="student")
    assert (found.images, found.top1_agreement, found.largest_difference) == (64, 1.0, 0.0)
    assert compare(session, Whole(), images(64), reference="student.onnx").images == 64
    assert compare(Whole(), session, images(64), reference="student.onnx").images == 64


@pytest.mark.parametrize("least", [1, 8])
def test_accuracy_counts_each_image_once(least: int) -> None:
    session, engine = opened(least)
    batches = [(images(64), labels(images(64))), (images(70)[64:], 4 - labels(images(70)[64:]))]
    found, correct = measure_accuracy(session, batches, CLASSES)
    assert (found.correct, found.total) == (64, 70)
    assert correct.tolist() == [True] * 64 + [False] * 6
    assert max(engine.batches) == 8


def test_the_judge_of_candidates_keeps_one_answer_an_image() -> None:
    session, _ = opened(8)
    accuracy, logits = Judge((images(70), labels(images(70)))).accuracy(session)
    assert accuracy.correct == accuracy.total == 70
    assert np.array_equal(logits, Whole().run(images(70)))
