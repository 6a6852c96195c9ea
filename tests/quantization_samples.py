"""A small residual network, exported, with images that it classifies by its own lights: quantisation can only lose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from iekd.deploy.backends import Array, get_backend
from iekd.deploy.export import export_onnx
from iekd.models.preprocessing import Preprocessing

SIZE = 16
CLASSES = ("ant", "bee", "cat", "dog")


class Residual(nn.Module):
    """Stem, one residual block with a depthwise layer, pooling, classifier."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.project = nn.Conv2d(2 * width, width, 1)
        self.last = nn.Conv2d(width, 2 * width, 1)
        self.head = nn.Linear(2 * width, len(CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.stem(images))
        inner = torch.relu(self.depthwise(torch.relu(self.expand(first))))
        joined = torch.relu(self.last(first + self.project(inner)))
        return self.head(joined.mean((2, 3)))


def write(path: Path, change: Callable[[Residual], None] = lambda _network: None, width: int = 8) -> Path:
    """The network as ONNX, after ``change``."""
    network = Residual(width)
    with torch.no_grad():
        network.head.weight *= 8
        change(network)
    return export_onnx(network, path, preprocessing=Preprocessing(size=SIZE), classes=CLASSES, name="residual")


def write_transformer(path: Path) -> Path:
    """A vision transformer of one block as ONNX."""
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=len(CLASSES)
    ).eval()
    with torch.no_grad():
        network.head.weight.normal_()
    return export_onnx(network, path, preprocessing=Preprocessing(size=SIZE), classes=CLASSES, name="transformer")


def loud_channel(factor: float) -> Callable[[Residual], None]:
    """One channel of the stem's output ``factor`` times as large, and read at so much less: the same function."""

    def change(network: Residual) -> None:
        network.stem.weight[0] *= factor
        network.stem.bias[0] *= factor
        for reader in (network.expand, network.last):
            reader.weight[:, 0] /= factor

    return change


def images(count: int, seed: int = 1) -> Array:
    """Smooth random images, normalised."""
    coarse = np.random.default_rng(seed).standard_normal((count, 3, 4, 4))
    return np.repeat(np.repeat(coarse, 4, axis=2), 4, axis=3).astype(np.float32)


def labelled(path: Path, count: int, seed: int = 1) -> tuple[Array, np.ndarray]:
    """Images, and what the file at ``path`` says of them."""
    found = images(count, seed)
    return found, get_backend("onnxruntime").load(path, threads=1).run(found).argmax(1)
