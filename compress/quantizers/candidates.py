"""What is asked of a quantisation, what was tried, what came of it; and which of several files is the best one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iekd.compress.calibration import METHODS
from iekd.compress.sensitivity import LayerCost, exceeds
from iekd.deploy.results import Accuracy

SAME_ACCURACY = 0.001
"""A recipe within a tenth of a point of the most accurate one, or within one image, may win by its latency."""
SAME_LATENCY = 1.02
LATENCY_SECONDS = 2.0
"""Of each recipe's best file, where latency decides and nothing else is said."""
NAMED = 3
"""Layers that a message names."""


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How to quantise."""

    calibration_images: int = 256
    """Chosen from those given, balanced over the classes."""
    seed: int = 0
    methods: tuple[str, ...] = METHODS
    """Calibrations to compare, for recipes that leave the choice open."""
    recipes: tuple[str, ...] = ()
    """Of the scheme's, those to try; empty: all."""
    max_drop: float | None = 0.01
    """Most accuracy that may be lost, 0..1; layers stay in float until it holds.  None: whatever comes."""
    enforce: bool = True
    """Whether it must hold.  If not, it only decides between files that one image tells apart."""
    keep_float: tuple[str, ...] = ()
    """Layers (names of ONNX nodes) to leave in float in any case."""
    target: str | None = None
    """The board, where it is known: a precision that it lacks is refused."""
    threads: int = 0
    """Of the sessions; 0: the runtime's default."""
    latency_seconds: float = LATENCY_SECONDS
    """Measured for each recipe, where latency decides."""


@dataclass(frozen=True)
class Candidate:
    """One file that was tried."""

    recipe: str
    method: str
    accuracy: float
    """On the held-out images."""
    error: float
    """Energy of the logits' change / energy of the logits, on the held-out images."""
    latency_ms: float | None = None
    """Median, batch 1, where latency decides, of each recipe's best calibration; the float32 file's is in
    :attr:`QuantizeResult.float_latency_ms`."""


@dataclass(frozen=True)
class QuantizeResult:
    """What was written, and what it cost."""

    file: Path
    scheme: str
    chosen: Candidate
    """The file that was written and its own figures; where layers had to stay in float it is none of ``candidates``."""
    candidates: tuple[Candidate, ...]
    before: Accuracy
    after: Accuracy
    """Both on the held-out images, by the same backend."""
    kept_float: tuple[str, ...]
    sensitivity: tuple[LayerCost, ...]
    """Dearest first; empty where the limit held at once."""
    float_latency_ms: float | None
    """Of the float32 file, from the same interleaved run as the chosen one's."""
    seconds: float

    @property
    def drop(self) -> float:
        """Accuracy lost, 0..1; negative where it grew."""
        return self.before.top1.value - self.after.top1.value

    def to_json(self) -> dict[str, Any]:
        """JSON types alone."""
        value = asdict(self)
        records = {"before": self.before.model_dump(), "after": self.after.model_dump()}
        return {**value, **records, "file": self.file.name, "drop": self.drop}


def name_layers(names: Sequence[str]) -> str:
    """``5 layers stay in float: a, b, c and 2 more``; the first are the dearest, where they were ranked."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    count = "1 layer stays" if len(names) == 1 else f"{len(names)} layers stay"
    return f"{count} in float: {', '.join(names[:NAMED])}{more}"


def as_accurate(
    candidates: list[Candidate], before: float, images: int, max_drop: float | None = None
) -> list[Candidate]:
    """Those of ``candidates`` as accurate as the best, or as the float32 file (``before``, 0..1) where that is less.

    A file that happens to be right where the float32 file errs is not a better one, and one image more or less of a few
    hundred tells no two files apart; how far the logits are changed does.  A limit draws its line all the same: where
    some of them lose no more than ``max_drop``, those.
    """
    best = min(before, max(candidate.accuracy for candidate in candidates))
    slack = max(SAME_ACCURACY, 1 / images) + 1e-9
    equal = [candidate for candidate in candidates if candidate.accuracy >= best - slack]
    return [one for one in equal if max_drop is None or not exceeds(before - one.accuracy, max_drop)] or equal


def fastest_of(equal: list[Candidate]) -> Candidate:
    """The fastest; of those as fast, the one that changes the logits least."""
    fastest = min(candidate.latency_ms or 0.0 for candidate in equal)
    return min(
        (candidate for candidate in equal if (candidate.latency_ms or 0.0) <= fastest * SAME_LATENCY),
        key=lambda candidate: candidate.error,
    )
