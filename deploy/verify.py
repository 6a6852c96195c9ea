"""Does the exported file compute what the network computes?"""

from __future__ import annotations

import numpy as np

from iekd.deploy.backends import Array, Session, logits_of
from iekd.deploy.results import Verification
from iekd.errors import VerificationError

TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit.  Float32 runtimes differ by 1e-6 to 1e-4."""


def verify(
    exported: Session, reference: Session, images: Array, *, name: str, tolerance: float = TOLERANCE
) -> Verification:
    """Compare two sessions on real images, in batches of every size that matters: one, and as many as they take.

    Args:
        exported: the file that ships.
        reference: the network it was made from.
        images: preprocessed validation images (N, 3, H, W).
        name: for the message.
        tolerance: relative.

    Raises:
        VerificationError: logits differ by more, or the top class differs where it is not a tie within the tolerance.
    """
    expected, actual = logits_of(reference, images), logits_of(exported, images)
    found = _differences(expected, actual, logits_of(exported, images[:1]))
    difference, scale = found.largest_difference, _scale(expected)
    agree = expected.argmax(1) == actual.argmax(1)
    if (
        not np.isfinite(actual).all()
        or difference > tolerance * scale
        or _real_disagreement(expected, agree, tolerance * scale)
    ):
        raise VerificationError(
            f"the exported {name} differs from the PyTorch network by {difference:.3g} "
            f"({difference / scale:.2g} of the largest logit; {tolerance:g} is allowed) "
            f"and agrees on {agree.mean():.1%} of {len(images)} images.",
            "The run stops here: a file that computes something else must not ship.",
        )
    return found.model_copy(update={"tolerance": tolerance})


def compare(exported: Session, other: Session, images: Array, *, reference: str) -> Verification:
    """How far a file of another precision is from the float32 one: told, not judged, for its accuracy is.

    Args:
        exported: the file.
        other: the float32 one.
        images: preprocessed validation images (N, 3, H, W).
        reference: name of the other.
    """
    found = _differences(logits_of(other, images), logits_of(exported, images), logits_of(exported, images[:1]))
    return found.model_copy(update={"reference": reference})


def _differences(expected: Array, actual: Array, alone: Array) -> Verification:
    difference = max(float(np.abs(expected - actual).max()), float(np.abs(expected[:1] - alone).max()))
    return Verification(
        images=len(expected),
        largest_difference=difference,
        relative_difference=difference / _scale(expected),
        top1_agreement=float((expected.argmax(1) == actual.argmax(1)).mean()),
        tolerance=None,
    )


def _scale(logits: Array) -> float:
    return max(float(np.abs(logits).max()), 1e-6)


def _real_disagreement(expected: Array, agree: np.ndarray, slack: float) -> bool:
    """Is there an image whose top class differs although its two best logits are further apart than rounding?"""
    if agree.all():
        return False
    best = np.sort(expected[~agree], axis=1)[:, -2:]
    return bool((best[:, 1] - best[:, 0] > 2 * slack).any())
