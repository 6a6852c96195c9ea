"""Does the exported file compute what the network computes?"""

from __future__ import annotations

import numpy as np

from iekd.deploy.backends import Array, Session
from iekd.deploy.results import Verification
from iekd.errors import VerificationError

TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit.  Float32 runtimes differ by 1e-6 to 1e-4."""


def verify(
    exported: Session, reference: Session, images: Array, *, name: str, tolerance: float = TOLERANCE
) -> Verification:
    """Compare two sessions on real images, in batches of every size that matters: one, and the whole.

    Args:
        exported: the file that ships.
        reference: the network it was made from.
        images: preprocessed validation images (N, 3, H, W).
        name: for the message.
        tolerance: relative.

    Raises:
        VerificationError: logits differ by more, or the top class differs where it is not a tie within the tolerance.
    """
    expected = reference.run(images)
    actual = exported.run(images)
    alone = exported.run(images[:1])
    scale = max(float(np.abs(expected).max()), 1e-6)
    difference = float(np.abs(expected - actual).max())
    difference = max(difference, float(np.abs(expected[:1] - alone).max()))
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
    return Verification(
        images=len(images),
        largest_difference=difference,
        relative_difference=difference / scale,
        top1_agreement=float(agree.mean()),
        tolerance=tolerance,
    )


def _real_disagreement(expected: Array, agree: np.ndarray, slack: float) -> bool:
    """Is there an image whose top class differs although its two best logits are further apart than rounding?"""
    if agree.all():
        return False
    best = np.sort(expected[~agree], axis=1)[:, -2:]
    return bool((best[:, 1] - best[:, 0] > 2 * slack).any())
