"""Networks of a few hundred parameters, for tests that train one for every objective."""

from __future__ import annotations

from torch import nn


def _network(classes: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


def teacher(num_classes: int) -> nn.Module:
    """The wider one."""
    return _network(num_classes, 8)


def student(num_classes: int) -> nn.Module:
    """The narrower one; tap 4 is its last map."""
    return _network(num_classes, 4)


def prunable(num_classes: int) -> nn.Module:
    """One that keeps multiples of eight channels when it is pruned."""
    return _network(num_classes, 32)
