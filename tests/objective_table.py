"""Every objective once, with settings that differ from the defaults: what is here is trained, resumed and exported."""

from __future__ import annotations

from typing import Any, NamedTuple

from iekd.compress.objectives import describe_objectives

TRANSFERS = tuple(entry.name for entry in describe_objectives() if entry.kind == "transfer")
"""Every transfer in the catalogue."""


class Row(NamedTuple):
    """An objective's name, settings of :class:`ObjectiveSettings`, and the terms that it must report."""

    name: str
    settings: dict[str, Any]
    terms: frozenset[str]


def _row(name: str, *terms: str, **settings: Any) -> Row:
    return Row(name, settings, frozenset({"task", *terms}))


def with_plain(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows, and the plain transfer of each lift that has no row of its own."""
    given = {part for row in rows for part in row.name.split("+")}
    plain = dict.fromkeys(part.removeprefix("ie-") for part in sorted(given) if part.startswith("ie-"))
    return (*rows, *(_row(name, "transfer") for name in plain if name not in given))


TABLE = with_plain(
    (
        _row("ce"),
        _row("kd", "kd", temperature=2.0),
        _row("dkd", "dkd"),
        _row("dist", "dist", kd_weight=0.5),
        _row("lskd", "lskd"),
        _row("ats", "ats"),
        _row("at", "transfer"),
        _row("ft", "transfer", factor_channels=4, hidden_channels=8),
        _row("od", "transfer"),
        _row("vkd", "transfer"),
        _row("ie-at", "inherit", "explore", split="random", seed=3),
        _row("ie-ft", "inherit", "explore", explore_form="cosine"),
        _row("ie-od", "inherit", "explore", explore_margin=2.5),
        _row("ie-vkd", "inherit", "explore", inherit_fraction=0.25),
        _row("ie-ft+kd", "inherit", "explore", "kd", split="relevance"),
        _row("ie-at+dist", "inherit", "explore", "dist", explore_form="cka"),
        _row("ie-od+dkd", "inherit", "explore", "dkd"),
        _row("ie-vkd+lskd", "inherit", "explore", "lskd"),
    )
)

MUTUAL = (
    ("dml", {"a.task", "a.follow", "b.task", "b.follow"}),
    (
        "ie-dml",
        {
            f"{network}.{term}"
            for network in "ab"
            for term in ("task", "follow", "inherit", "explore", "reconstruction")
        },
    ),
    ("switokd", {"a.task", "a.follow", "b.task", "b.follow"}),
)
"""Modes of mutual learning, and the terms that they may report."""
