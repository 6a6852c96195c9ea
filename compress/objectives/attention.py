"""AT, attention transfer: compare where the maps are active (Zagoruyko and Komodakis, ICLR 2017)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from iekd.compress.objectives.distance import normalized_square
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.objectives.transfer import Transfer
from iekd.errors import InputError
from iekd.models.taps import TapShape


class AttentionMap(nn.Module):
    """Mean square over the channels, normalised (eq. 1 with p = 2); no parameters.

    Maps (B, C, H, W) to (B, H, W), each of unit L2 norm.
    """

    def forward(self, tap: Tensor) -> Tensor:
        """The attention map."""
        energy = tap.float().square().mean(1)
        return F.normalize(energy.flatten(1), dim=1).view_as(energy)


class AttentionTransfer(Transfer):
    """``at``: code and answer are attention maps."""

    furthest = 2.0  # attention is not negative

    def __init__(self, teacher: TapShape, settings: ObjectiveSettings) -> None:
        super().__init__(teacher, settings)
        if teacher.height * teacher.width == 1:
            raise InputError(
                "at compares attention over positions, and these maps have only one.",
                "Tap an earlier stage (--tap auto), or use larger images.",
            )
        self.code_shape = (teacher.height, teacher.width)
        self.attend = AttentionMap()

    def record(self, tap: Tensor) -> Tensor:
        """The attention map (B, H, W)."""
        attention: Tensor = self.attend(tap)
        return attention

    def head(self, channels: int) -> AttentionMap:
        """The same for any number of channels."""
        return AttentionMap()

    def distance(self, code: Tensor, answer: Tensor) -> Tensor:
        """See :func:`normalized_square`."""
        return normalized_square(code, answer)
