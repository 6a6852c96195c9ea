"""Several networks that answer as one, by the mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SEPARATOR = ","


def member_names(text: str) -> list[str]:
    """``resnet18,resnet34`` as its parts; one name alone is a list of one."""
    return [part.strip() for part in text.split(SEPARATOR)]


class Ensemble(nn.Module):
    """Mean logits (B, classes) of several classifiers for images (B, 3, H, W).

    Args:
        members: classifiers with the same classes.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Mean logits."""
        return torch.stack([member(images) for member in self.members]).mean(0)
