"""Accuracy when every weight is a little wrong: a flat minimum keeps it, a sharp one does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from iekd.deploy.results import NoiseLevel

BATCH = 128


@contextlib.contextmanager
def noisy_weights(network: nn.Module, relative_std: float, seed: int) -> Iterator[None]:
    """Add Gaussian noise to the weights for the length of a block, and put back the same bits afterwards.

    Each weight tensor of two or more dimensions (convolutions, linear layers, embeddings) gets noise of
    ``relative_std`` times its own standard deviation.  Normalisation layers, their running statistics, and biases are
    left alone: scaled to their own spread, which may be next to nothing, their noise would mean something else.

    Args:
        network: is changed in place.
        relative_std: 0 changes nothing.
        seed: of the noise; drawn on the CPU, so that it is the same on every device.
    """
    weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    kept = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for weight in weights:
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight.add_(noise * (relative_std * weight.std(correction=0)))
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)


def accuracy_under_noise(
    network: nn.Module, images: Tensor, labels: Tensor, levels: Sequence[float], seeds: int
) -> list[NoiseLevel]:
    """Top-1 accuracy at each level, for ``seeds`` noises each; without noise once.

    Args:
        network: in eval mode, on any device.
        images: preprocessed (N, 3, H, W).
        labels: class indices (N,).
        levels: relative standard deviations.
        seeds: how many noises; 2 or more.
    """
    found = []
    for level in levels:
        accuracies = []
        for seed in range(seeds if level else 1):
            with noisy_weights(network, level, seed):
                accuracies.append(accuracy(network, images, labels))
        spread = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
        found.append(
            NoiseLevel(relative_std=level, accuracies=accuracies, mean=float(np.mean(accuracies)), spread=spread)
        )
    return found


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy on preprocessed images (N, 3, H, W) with class indices (N,)."""
    device = next(network.parameters()).device
    answers = torch.cat([network(batch.to(device)).argmax(1).cpu() for batch in torch.split(images, BATCH)])
    return float((answers == labels).double().mean())
