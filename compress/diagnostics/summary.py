"""A diagnosis in words and as a table."""

from __future__ import annotations

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from iekd.deploy.results import Diagnosis, Interval, NoiseLevel, TapDiagnosis

SIGNIFICANT = 0.05
"""A difference that more random splits than these reach says nothing of the training."""


def in_a_sentence(taps: list[TapDiagnosis], objective: str) -> str:
    """Is the exploration part less like the teacher than the inheritance part?  One sentence a tap."""
    return " ".join(_about(tap, objective, f"At stage {tap.stage}" if len(taps) > 1 else "") for tap in taps)


def diagnosis_table(found: Diagnosis) -> Group:
    """What the command line shows; its last line is the sentence."""
    remark = (Text(found.remark),) if found.remark else ()
    parts = (_parts_table(found), "") if found.taps else ()
    return Group(*parts, _noise_table(found), "", *remark, Text(found.sentence))


def _about(tap: TapDiagnosis, objective: str, where: str) -> str:
    cka = {part.part: part.cka for part in tap.parts}
    inheritance, exploration = cka.get("inheritance"), cka.get("exploration")
    if inheritance is None or exploration is None or tap.difference is None or tap.chance is None:
        return _without_parts(tap, objective, where)
    if tap.difference.low > 0 and tap.chance > SIGNIFICANT:
        verdict = "less like the teacher than the inheritance part, but no more so than parts chosen at random"
    elif tap.difference.low > 0:
        verdict = "less like the teacher than the inheritance part"
    elif tap.difference.high < 0:
        verdict = "more like the teacher than the inheritance part"
    else:
        verdict = "not measurably less like the teacher than the inheritance part"
    return (
        f"{where + ', the' if where else 'The'} exploration part is {verdict}: CKA {exploration.value:.3f} against "
        f"{inheritance.value:.3f}, difference {tap.difference.value:.3f} "
        f"(95 %: {tap.difference.low:.3f} to {tap.difference.high:.3f}); "
        f"{tap.chance:.1%} of random splits differ as much."
    )


def _without_parts(tap: TapDiagnosis, objective: str, where: str) -> str:
    silent = [part.part for part in tap.parts if part.cka is None]
    if silent:
        return f"{where + ', the' if where else 'The'} {silent[0]} channels say the same of every image: no CKA."
    cka = tap.parts[-1].cka
    assert cka is not None
    return (
        f"{where + ', ' if where else ''}{objective} splits no channels here: all of them together have CKA "
        f"{cka.value:.3f} (95 %: {cka.low:.3f} to {cka.high:.3f}) with the teacher."
    )


def _parts_table(found: Diagnosis) -> Table:
    table = _table("stage", "part", "channels", "active", "dead", "CKA with the teacher", "95 %")
    for tap in found.taps:
        for part in tap.parts:
            table.add_row(
                str(tap.stage),
                part.part,
                str(part.channels),
                f"{part.active / part.channels:.1%}",
                str(part.channels - part.active),
                "-" if part.cka is None else f"{part.cka.value:.3f}",
                _range(part.cka),
            )
    return table


def _noise_table(found: Diagnosis) -> Table:
    table = _table("weight noise", *(escape(curve.name) for curve in found.noise))
    for levels in zip(*(curve.levels for curve in found.noise), strict=True):
        table.add_row(f"{levels[0].relative_std:g} std", *(_accuracy(level) for level in levels))
    return table


def _accuracy(level: NoiseLevel) -> str:
    return f"{level.mean:.1%}" + (f" ± {100 * level.spread:.1f}" if len(level.accuracies) > 1 else "")


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="left" if title in ("part", "95 %") else "right")
    return table
