"""Where the time of a call goes, and what that says of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .measure import Array, Floats, Session

STAGE_CALLS = 100
COMPUTE_CV_LIMIT = 0.025
"""Of the compute time, as trtexec has it."""
LAUNCH_BOUND = 0.8
"""Enqueueing that takes this share of the compute time, as trtexec has it."""


def measure_stages(session: Session, images: Array, calls: int = STAGE_CALLS) -> dict[str, dict[str, float]]:
    """Each stage that the session can time, in a pass of its own: median and 99th percentile in milliseconds, and cv,
    the coefficient of variation."""
    stages: dict[str, list[float]] = {}
    for number in range(-1, calls):  # the first brings the caches back from the other sessions; not counted
        at = max(0, number) % len(images)
        _, times = session.timed_run(np.ascontiguousarray(images[at : at + 1]))
        for name, milliseconds in times.items() if number >= 0 else ():
            stages.setdefault(name, []).append(float(milliseconds))
    return {name: _stage(np.array(values)) for name, values in stages.items()}


def _stage(values: Floats) -> dict[str, float]:
    mean = float(values.mean())
    cv = float(values.std(ddof=1)) / mean if mean and len(values) > 1 else 0.0
    return {"median": float(np.median(values)), "p99": float(np.percentile(values, 99)), "cv": cv}


def stage_warnings(stages: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the stages of a call say of how it should be improved, or mistrusted; the host warns by the same rules.

    Args:
        stages: ``median`` in milliseconds and ``cv`` of each; nothing is said where ``compute`` is not among them.
    """
    if "compute" not in stages:
        return []
    found, compute = [], stages["compute"]["median"]
    if stages["compute"]["cv"] > COMPUTE_CV_LIMIT:
        varied = f"{stages['compute']['cv']:.1%} (coefficient of variation)"
        found.append(f"compute time varied by {varied}: lock the device's clocks")
    if "enqueue" in stages and stages["enqueue"]["median"] > LAUNCH_BOUND * compute:
        found.append(
            f"launch-bound: enqueueing took {stages['enqueue']['median']:.3g} ms of {compute:.3g} ms "
            "compute; capture a CUDA graph or raise the batch"
        )
    for name, words in (("h2d", "to the device"), ("d2h", "from the device")):
        if name in stages and stages[name]["median"] >= compute:
            found.append(
                f"transfer-bound: copying {words} took {stages[name]['median']:.3g} ms, computing {compute:.3g} ms"
            )
    return found
