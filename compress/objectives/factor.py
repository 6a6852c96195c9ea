"""FT, factor transfer: compare what small encoders make of the maps, rather than the maps (Kim et al., NeurIPS 2018).

The teacher's encoder is the front half of an auto-encoder trained on the teacher's maps alone, then frozen; the
student's is trained with the student.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from iekd.compress.objectives.distance import normalized_l1
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.objectives.transfer import Transfer
from iekd.models.taps import TapShape


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes a batch of one pixel, which has no statistics, by the running ones."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise maps (B, C, H, W)."""
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def _block(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [convolution, BatchNorm(outputs), nn.LeakyReLU(0.1)]


class Encoder(nn.Sequential):
    """Maps (B, channels, H, W) to factors (B, factors, H, W).

    A 1x1 projection first brings wide maps down: at ResNet-50's 2,048 channels, 3x3 convolutions at full width would
    cost ten times what a MobileNetV2 does.  Of the published three 3x3 convolutions one is left, and a 1x1: encoders
    must not cost more than a twentieth of a step (benchmarks/training_step.py).
    """

    def __init__(self, channels: int, hidden: int, factors: int) -> None:
        width = min(channels, hidden)
        narrow = _block(channels, width, 1) if channels > width else []
        super().__init__(*narrow, *_block(width, factors, 3), *_block(factors, factors, 1))


class Decoder(nn.Sequential):
    """Factors (B, factors, H, W) back to maps (B, channels, H, W); thrown away after the auto-encoder's training."""

    def __init__(self, factors: int, hidden: int, channels: int) -> None:
        width = min(channels, hidden)
        super().__init__(*_block(factors, factors, 3), *_block(factors, width, 3), nn.Conv2d(width, channels, 1))


class AutoEncoder(nn.Module):
    """An encoder in training, with the decoder that the training needs."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, tap: Tensor) -> Tensor:
        """L1 reconstruction error relative to the map's own mean size: comparable between teachers."""
        tap = tap.float()
        return F.l1_loss(self.decoder(self.encoder(tap)), tap) / tap.abs().mean().clamp(min=1e-6)


class FactorTransfer(Transfer):
    """``ft``: the code is the teacher's factor, the head a small encoder."""

    furthest = 2.0

    def __init__(self, teacher: TapShape, settings: ObjectiveSettings) -> None:
        super().__init__(teacher, settings)
        self.hidden = settings.hidden_channels
        factors = max(1, min(teacher.channels // 2, settings.factor_channels))
        self.code_shape = (factors, teacher.height, teacher.width)
        self.encoder = Encoder(teacher.channels, self.hidden, factors)

    def learner(self) -> AutoEncoder:
        """The auto-encoder; its decoder is a new one at each call."""
        return AutoEncoder(self.encoder, Decoder(self.code_shape[0], self.hidden, self.teacher.channels))

    def record(self, tap: Tensor) -> Tensor:
        """The factor (B, k, H, W)."""
        factor: Tensor = self.encoder(tap)
        return factor

    def head(self, channels: int) -> Encoder:
        """An encoder of its own."""
        return Encoder(channels, self.hidden, self.code_shape[0])

    def distance(self, code: Tensor, answer: Tensor) -> Tensor:
        """See :func:`normalized_l1`."""
        return normalized_l1(code, answer)
