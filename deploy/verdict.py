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
        kept, asked = _apart(retained.value, min_retained, (".1%", ".2%", ".4%"))
        misses.append(f"The student keeps {kept} of the teacher's accuracy; {asked} was asked for.")
    if max_latency_ms is not None and latency.value > max_latency_ms:
        taken, most = _apart(latency.value, max_latency_ms, (".3g", ".4g", ".6g"))
        misses.append(f"The student takes {taken} ms (median); at most {most} ms was asked for.")
    parts = [" ".join(misses) or _kept(retained, speedup, latency)]
    if retained.low < min_retained <= retained.high:
        parts.append(
            f"The interval of the accuracy kept ({retained.low:.1%} to {retained.high:.1%}) reaches "
            f"{'below' if retained.value >= min_retained else 'beyond'} the limit."
        )
    if max_latency_ms is not None and latency.low <= max_latency_ms < latency.high:
        parts.append(f"The interval of the median ({latency.low:.3g} to {latency.high:.3g} ms) holds the limit.")
    sentence = " ".join(parts)
    return Verdict(
        kept=not misses,
        retained=retained,
        speedup=speedup,
        min_retained=min_retained,
        max_latency_ms=max_latency_ms,
        misses=misses,
        sentence=sentence,
    )


def _apart(value: float, limit: float, formats: tuple[str, ...]) -> tuple[str, str]:
    """Both in the first of ``formats`` that tells them apart."""
    texts = [(format(value, one), format(limit, one)) for one in formats]
    return next(((a, b) for a, b in texts if a != b), texts[-1])


def _kept(retained: Interval, speedup: Interval, latency: Interval) -> str:
    pace = f"{speedup.value:.1f} times as fast" if speedup.value >= 1 else f"only {speedup.value:.2f} times as fast"
    return (
        f"The student keeps {retained.value:.1%} of the teacher's accuracy and is {pace} "
        f"({latency.value:.2f} ms an image)."
    )
