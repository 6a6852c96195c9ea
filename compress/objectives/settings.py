"""Weights and choices of an objective.  No heavy import."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Weights and choices.  None means the term's own default, which ``catalogue`` lists with its source."""

    task_weight: float = 1.0
    """Of the cross-entropy on the labels."""
    kd_weight: float | None = None
    """Of each term on logits."""
    temperature: float | None = None
    """Of each term on logits."""
    logit_options: str = ""
    """What terms on logits have of their own, such as ``beta=8``; each term that has one by that name takes it."""
    inherit_weight: float | None = None
    """Of the inheritance term of a lifted transfer."""
    explore_weight: float | None = None
    """Of its exploration term."""
    transfer_weight: float | None = None
    """Of a plain transfer, without the lift."""
    explore_form: str = "distance"
    """``distance``: grow the distance from the teacher, as published.  ``cosine``: make the code unrelated to it.
    ``cka``: make the bare channels unrelated to it, over the images of a batch and without a head."""
    explore_margin: float | None = None
    """With ``distance``: a distance beyond this one earns nothing more.  None: only the distance's own bound."""
    inherit_fraction: float = 0.5
    """Share of the student's channels that inherit; 0 leaves exploration alone, 1 the plain transfer, whose weight it
    takes unless ``inherit_weight`` is given."""
    split: str = "natural"
    """Which channels inherit: ``natural`` (the first), ``random`` (seeded) or ``relevance`` (most like the teacher)."""
    seed: int = 0
    """Of the random split."""
    factor_channels: int = 128
    """FT: most channels of a factor, which has at most half as many as the teacher's tap."""
    hidden_channels: int = 256
    """FT: a wider tap is projected to this many first; at full width, 3x3 convolutions would outweigh a student."""
