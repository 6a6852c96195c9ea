"""The held-out images that decide between candidates, and what a file makes of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import Array, BatchRange, Session, logits_of
from iekd.deploy.results import Accuracy
from iekd.errors import InputError

BATCH = 64


class Judge:
    """The held-out images, and what a session makes of them."""

    def __init__(self, held_out: tuple[Array, NDArray[np.int64]]) -> None:
        self.images, self.labels = held_out
        if not len(self.images) or len(self.images) != len(self.labels):
            raise InputError(
                f"there are {len(self.images)} held-out images and {len(self.labels)} labels.",
                "Give one label an image.",
            )

    def accuracy(self, session: Session) -> tuple[Accuracy, Array]:
        """Accuracy, and all logits (M, classes)."""
        recorder = _Recorder(session)
        starts = range(0, len(self.images), BATCH)
        batches = ((self.images[at : at + BATCH], self.labels[at : at + BATCH]) for at in starts)
        accuracy, _ = measure_accuracy(recorder, batches, ())
        return accuracy, np.concatenate(recorder.answers)


class _Recorder:
    """A session that keeps what it answered."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.input_shape = session.input_shape
        self.batch_range: BatchRange = (1, None)
        self.answers: list[Array] = []

    def run(self, images: Array) -> Array:
        """See :class:`iekd.deploy.backends.Session`."""
        self.answers.append(logits_of(self._session, images))
        return self.answers[-1]

    def describe(self) -> dict[str, str]:
        """See :class:`iekd.deploy.backends.Session`."""
        return self._session.describe()

    def close(self) -> None:
        """See :class:`iekd.deploy.backends.Session`."""
        self._session.close()
