"""Top-1 accuracy through the file that ships."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from iekd.deploy.backends import Array, Session, logits_of
from iekd.deploy.results import Accuracy, ClassAccuracy
from iekd.deploy.statistics import wilson


def measure_accuracy(
    session: Session, batches: Iterable[tuple[Array, NDArray[np.int64]]], classes: Sequence[str]
) -> tuple[Accuracy, NDArray[np.bool_]]:
    """Accuracy over labelled batches, and right or wrong for each image in order.

    Args:
        session: the model.
        batches: preprocessed images (N, 3, H, W) and class indices (N,), of any size.
        classes: their names.
    """
    answers, labels = [], []
    for images, targets in batches:
        answers.append(logits_of(session, images).argmax(1))
        labels.append(targets)
    target = np.concatenate(labels)
    correct = np.concatenate(answers) == target
    per_class = [
        ClassAccuracy(name=name, correct=int(correct[target == number].sum()), total=int((target == number).sum()))
        for number, name in enumerate(classes)
    ]
    total, right = len(target), int(correct.sum())
    return Accuracy(top1=wilson(right, total), correct=right, total=total, per_class=per_class), correct
