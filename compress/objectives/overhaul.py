"""OD, overhaul of feature distillation: margin ReLU and partial L2 distance (Heo et al., ICCV 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iekd.compress.objectives.distance import partial_square
from iekd.compress.objectives.factor import BatchNorm
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.objectives.transfer import Transfer
from iekd.models.taps import TapShape


class OverhaulTransfer(Transfer):
    """``od``: the code is the teacher's map behind a margin ReLU, the head a 1x1 convolution to as many channels.

    Both maps are those before the activation that ends their stage (figure 3), where one does (``taps_for``).  The
    margin of a channel is its mean negative value (section 3.2), estimated from the probe batch; it is 0 where a
    channel has no negative values.
    """

    margin: Tensor
    """(C, 1, 1); NaN until estimated."""

    def __init__(self, teacher: TapShape, settings: ObjectiveSettings) -> None:
        super().__init__(teacher, settings)
        self.code_shape = tuple(teacher)
        self.register_buffer("margin", torch.full((teacher.channels, 1, 1), torch.nan))

    def prepare(self, tap: Tensor) -> None:
        """Estimate the margins from maps (B, C, H, W)."""
        tap = tap.float()
        count = (tap < 0).sum((0, 2, 3)).clamp(min=1)
        self.margin.copy_((tap.clamp(max=0).sum((0, 2, 3)) / count)[:, None, None])

    def remark(self) -> str:
        """Without margins little is left of OD."""
        if bool((self.margin < 0).any()):
            return ""
        return (
            "OD: the teacher's map has no negative values where it is read, so that all margins are 0: no activation "
            "module ends that stage, or none that is known."
        )

    def record(self, tap: Tensor) -> Tensor:
        """The map behind the margin ReLU, of mean square 1 an image."""
        tap = torch.maximum(tap.float(), self.margin)
        return tap / tap.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)

    def head(self, channels: int) -> nn.Sequential:
        """1x1 convolution and batch normalisation."""
        wide = self.teacher.channels
        return nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), BatchNorm(wide))

    def distance(self, code: Tensor, answer: Tensor) -> Tensor:
        """See :func:`partial_square`."""
        return partial_square(code, answer)
