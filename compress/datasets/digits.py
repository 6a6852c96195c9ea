"""The default data: 1,797 handwritten digits of 8 x 8 pixels that scikit-learn brings along.

They are the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (doi:10.24432/C50P49): counts of ink pixels in 4 x 4 blocks, so values from 0 to 16.
"""

from __future__ import annotations

import numpy as np

from iekd.compress.datasets.raw import RawData
from iekd.compress.datasets.source import ArraySource, Subset
from iekd.compress.datasets.splits import stratified_split

IMAGE_SIZE = 64
_VAL_FRACTION = 0.2
_SPLIT_SEED = 0


def load_digits() -> RawData:
    """The digits, grey levels as RGB, with always the same fifth of each class held out."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    classes = tuple(str(name) for name in bunch.target_names)
    whole = ArraySource(np.repeat(grey[..., None], 3, axis=3), bunch.target, "digits")
    train, val = stratified_split(whole.targets, _VAL_FRACTION, _SPLIT_SEED, classes)
    return RawData("digits", classes, Subset(whole, train), Subset(whole, val), IMAGE_SIZE, "digits")
