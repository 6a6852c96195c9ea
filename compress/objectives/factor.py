"""FT, factor transfer: compare what small encoders make of the maps, rather than the maps (Kim et al., NeurIPS 2018).

The teacher's encoder is the front half of an auto-encoder trained on the teacher's maps alone, then frozen; the
student's is trained with the student.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.models.taps import TapShape


def _block(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1)]


class Encoder(nn.Sequential):
    """Maps (B, channels, H, W) to factors (B, factors, H, W).

    A 1x1 projection first brings wide maps down: at ResNet-50's 2,048 channels, 3x3 convolutions at full width would
    cost ten times what a MobileNetV2 does.
    """

    def __init__(self, channels: int, hidden: int, factors: int) -> None:
        width = min(channels, hidden)
        narrow = _block(channels, width, 1) if channels > width else []
        super().__init__(*narrow, *_block(width, factors, 3), *_block(factors, factors, 3))


class Decoder(nn.Sequential):
    """Factors (B, factors, H, W) back to maps (B, channels, H, W); thrown away after the auto-encoder's training."""

    def __init__(self, factors: int, hidden: int, channels: int) -> None:
        width = min(channels, hidden)
        super().__init__(*_block(factors, factors, 3), *_block(factors, width, 3), nn.Conv2d(width, channels, 1))


class AutoEncoder(nn.Module):
    """Encoder and decoder of one tap.

    Args:
        tap: the teacher's.
        settings: for the widths.
    """

    def __init__(self, tap: TapShape, settings: ObjectiveSettings) -> None:
        super().__init__()
        factors = factor_channels(tap, settings)
        self.encoder = Encoder(tap.channels, settings.hidden_channels, factors)
        self.decoder = Decoder(factors, settings.hidden_channels, tap.channels)

    def forward(self, tap: Tensor) -> Tensor:
        """L1 reconstruction error relative to the map's own mean size: comparable between teachers."""
        tap = tap.float()
        return F.l1_loss(self.decoder(self.encoder(tap)), tap) / tap.abs().mean().clamp(min=1e-6)


def factor_channels(tap: TapShape, settings: ObjectiveSettings) -> int:
    """Channels of the factor of a teacher's tap."""
    return max(1, min(tap.channels // 2, settings.factor_channels))


def at_size(tap: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (B, C, h, w) at the spatial size of the teacher's: averaged down or interpolated up."""
    if tap.shape[-2:] == size:
        return tap
    if tap.shape[-2] >= size[0] and tap.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(tap, size)
    return F.interpolate(tap, size=size, mode="bilinear", align_corners=False)
