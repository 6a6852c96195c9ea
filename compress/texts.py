"""Small texts that the user writes, read."""

from __future__ import annotations

import math
import re

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


def parse_per_channel(flag: str, text: str) -> tuple[float, float, float]:
    """``0.5,0.5,0.5``, or one number for all three, as numbers for red, green and blue.

    Raises:
        InputError: not one or three finite numbers.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise InputError(
            f"{flag} '{text}' is not a number for each of red, green and blue.",
            "Give three joined by commas, such as 0.485,0.456,0.406, or one for all; pixels are scaled to 0..1 first.",
        )
    red, green, blue = values * (3 // len(values))
    return red, green, blue


def parse_stages(flag: str, text: str) -> tuple[int | str, ...]:
    """Stages joined by commas: numbers such as -1, or names.

    Raises:
        InputError: an empty part.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(
            f"{flag} '{text}' is not a list of stages.",
            "Give numbers such as -1 (the last) or -2,-1, names such as layer3, or auto.",
        )
    return tuple(int(part) if re.fullmatch(r"[+-]?\d+", part) else part for part in parts)


def slug(text: str) -> str:
    """The end of a name or path, as part of a folder's name."""
    tail = text.rstrip("/").rsplit("/", 1)[-1]
    return "".join(character if character.isalnum() or character in "._" else "_" for character in tail)
