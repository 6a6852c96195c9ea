"""Small texts that the user writes, read."""

from __future__ import annotations

from iekd.errors import InputError


def parse_latency(text: str) -> float:
    """``2ms``, ``1500us`` or ``0.002s`` in milliseconds; a bare number is milliseconds.

    Raises:
        InputError: not a positive duration.
    """
    cleaned = text.strip().lower().replace(" ", "").replace("µs", "us")
    units = {"ms": 1.0, "us": 1e-3, "s": 1e3, "": 1.0}
    unit = next(unit for unit in units if cleaned.endswith(unit))
    try:
        value = float(cleaned.removesuffix(unit)) * units[unit]
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"--max-latency '{text}' is not a duration.", "Write it as 2ms, 800us or 0.002s.")
    return value


def slug(text: str) -> str:
    """The end of a name or path, as part of a folder's name."""
    tail = text.rstrip("/").rsplit("/", 1)[-1]
    return "".join(character if character.isalnum() or character in "._" else "_" for character in tail)
