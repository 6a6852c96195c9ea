"""The objectives by name, importable without torch so that the command line can list them at once."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One term that an objective's name may be composed of."""

    name: str
    kind: str
    """``transfer``, ``lift`` or ``logits``"""
    summary: str
    paper: str


ENTRIES = (
    Entry("ce", "logits", "labels alone, no teacher", ""),
    Entry("kd", "logits", "softened logits", "Hinton et al. 2015, arXiv 1503.02531"),
    Entry("ft", "transfer", "factors of the last map", "Kim et al., NeurIPS 2018, arXiv 1802.04977"),
    Entry("ie-ft", "lift", "inherit and explore over ft", "Huang et al., CVPR 2021, arXiv 2107.00181"),
)

NAMES = tuple(entry.name for entry in ENTRIES)
