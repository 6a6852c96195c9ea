"""Was the student good enough and fast enough?"""

from __future__ import annotations

from iekd.deploy.results import Interval, Verdict


def judge(
    retained: Interval, speedup: Interval, latency: Interval, *, min_retained: float, max_latency_ms: float | None
) -> Verdict:
    """Hold what was measured against the user's limits.

    The measured value decides, not the end of its interval; the sentence says so where the limit lies within it.

    Args:
        retained: student accuracy / teacher accuracy.
        speedup: teacher median latency / student median latency.
        latency: the student's median, milliseconds.
        min_retained: least ``retained``.
        max_latency_ms: most ``latency``, or None for no limit.
    """
    misses = []
    if retained.value < min_retained:
        misses.append(
            f"The student keeps {retained.value:.1%} of the teacher's accuracy; {min_retained:.1%} was asked for."
        )
    if max_latency_ms is not None and latency.value > max_latency_ms:
        misses.append(
            f"The student takes {latency.value:.3g} ms (median); at most {max_latency_ms:.3g} ms was asked for."
        )
    sentence = " ".join(misses) or _kept(retained, speedup, latency)
    close = not misses and retained.low < min_retained
    if close:
        sentence += (
            f" The interval of the accuracy kept ({retained.low:.1%} to {retained.high:.1%}) reaches below the limit."
        )
    return Verdict(
        kept=not misses,
        retained=retained,
        speedup=speedup,
        min_retained=min_retained,
        max_latency_ms=max_latency_ms,
        misses=misses,
        sentence=sentence,
    )


def _kept(retained: Interval, speedup: Interval, latency: Interval) -> str:
    pace = f"{speedup.value:.1f} times as fast" if speedup.value >= 1 else f"only {speedup.value:.2f} times as fast"
    return (
        f"The student keeps {retained.value:.1%} of the teacher's accuracy and is {pace} "
        f"({latency.value:.2f} ms an image)."
    )
