"""Networks of a few hundred parameters, for tests that train one for every objective."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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


def prunable(num_classes: int) -> nn.Module:
    """Wide enough for multiples of 16 to be cut off, once or twice."""
    return _network(num_classes, 32)


def student(num_classes: int) -> nn.Module:
    """The narrower one; tap 4 is its last map."""
    return _network(num_classes, 4)


def wide(num_classes: int) -> nn.Module:
    """One that keeps multiples of eight channels when it is pruned."""
    return _network(num_classes, 32)


def transformer(num_classes: int) -> nn.Module:
    """Two blocks over 4 x 4 tokens; timm's, so that it is tapped at its blocks."""
    from timm.models.vision_transformer import VisionTransformer

    network: nn.Module = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=num_classes
    )
    return network


def fixed(num_classes: int) -> nn.Module:
    """Takes images of 16 x 16 alone."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, num_classes),
    )


def flat(num_classes: int) -> nn.Module:
    """Takes images of 16 x 16 alone, and has no feature map."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 16), nn.ReLU(), nn.Linear(16, num_classes))


class Outliers(nn.Module):
    """Convolves maps beside as many that are always far larger, as some trained networks have them, and drops those."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.convolve = nn.Conv2d(2 * channels, 2 * channels, 3, stride=2, padding=1, groups=2)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H / 2, W / 2)."""
        joined = torch.cat([maps, torch.full_like(maps, 2000.0)], dim=1)
        return self.convolve(joined)[:, : self.channels]


def fragile(num_classes: int) -> nn.Module:
    """Loses what it knows where its convolution's input has one scale in 8 bits."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Outliers(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )
