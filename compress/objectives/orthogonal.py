"""VkD: pooled features through a projection that can only rotate (Miles et al., CVPR 2024).

A free projection can make up for a student that is unlike its teacher, and, in the exploration part, for one that is
like it; one with orthonormal columns cannot, so pull and push act on the student's own channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iekd.compress.objectives.distance import standardized_huber
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.objectives.transfer import Transfer
from iekd.models.taps import TapShape


class OrthogonalProjection(nn.Module):
    """Maps (B, inputs, H, W), averaged over positions, to (B, outputs) by a matrix with orthonormal columns or rows.

    The matrix is the Q of the weight's QR decomposition: weight decay, which only shrinks R, leaves it alone.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.tall = outputs >= inputs
        self.weight = nn.Parameter(torch.randn(max(inputs, outputs), min(inputs, outputs)))

    def matrix(self) -> Tensor:
        """(outputs, inputs), float32."""
        q: Tensor = torch.linalg.qr(self.weight.float())[0]
        return q if self.tall else q.t()

    def forward(self, tap: Tensor) -> Tensor:
        """The projected features."""
        return F.linear(tap.float().mean((2, 3)), self.matrix())


class OrthogonalTransfer(Transfer):
    """``vkd``: the code is the teacher's pooled, standardised features, the head an orthogonal projection."""

    furthest = 2.0

    def __init__(self, teacher: TapShape, settings: ObjectiveSettings) -> None:
        super().__init__(teacher, settings)
        self.code_shape = (teacher.channels,)

    def record(self, tap: Tensor) -> Tensor:
        """Pooled features (B, C) of mean 0 and variance 1 an image."""
        return F.layer_norm(tap.float().mean((2, 3)), self.code_shape, eps=1e-8)

    def head(self, channels: int) -> OrthogonalProjection:
        """One matrix."""
        return OrthogonalProjection(channels, self.teacher.channels)

    def distance(self, code: Tensor, answer: Tensor) -> Tensor:
        """See :func:`standardized_huber`."""
        return standardized_huber(code, answer)
