"""Tables that the command line shows without starting a job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.markup import escape
from rich.table import Table

from iekd.compress.objectives.catalogue import Entry, describe_objectives
from iekd.errors import InputError
from iekd.models.aliases import STUDENTS, TEACHERS


def aliases_table() -> Table:
    """Short names of teachers and students."""
    table = _table("short name", "timm model", "")
    for title, families in (("students", STUDENTS), ("teachers", TEACHERS)):
        table.add_row(f"[dim]{title}[/]", "", "")
        for family in families:
            table.add_row(f"  {family.alias}", family.timm_name, f"[dim]{family.note}[/]")
    table.caption = (
        "Every timm name works as teacher and as student: iekd-compress models 'resnet*' searches them.\n"
        "Stages for --tap and --teacher-tap: a name that a network has not is answered with those that it has."
    )
    return table


def timm_names(pattern: str) -> list[str]:
    """timm's model names that match a shell pattern; a plain word matches anywhere.

    Raises:
        InputError: none does.
    """
    import timm

    names: list[str] = timm.list_models(pattern if "*" in pattern else f"*{pattern}*")
    if not names:
        raise InputError(f"no timm model matches '{pattern}'.", "Try a shorter word, such as mobilenet.")
    return names


def objectives_table() -> Table:
    """The terms that an objective may be composed of."""
    table = _table("term", "", "defaults", "source")
    for entry in describe_objectives():
        table.add_row(entry.name, entry.summary, "\n".join(_defaults(entry)), f"[dim]{entry.paper}[/]")
    table.caption = "Terms are joined by +, such as ie-ft+kd.  Defaults are changed by options of the same names."
    return table


def _defaults(entry: Entry) -> list[str]:
    """The settings that this term reads, as the command line names them; a transfer and its lift share an entry."""
    others = {"transfer": ("inherit_weight", "explore_weight"), "lift": ("transfer_weight",)}.get(entry.kind, ())
    flags = [f"--{name.replace('_', '-')} {value:g}" for name, value in entry.defaults.items() if name not in others]
    options = ",".join(f"{name}={value:g}" for name, value in entry.options.items())
    return [*flags, f"--logit-options {options}"] if options else flags


def doctor_table(findings: Iterable[Any]) -> Table:
    """What this machine has and lacks."""
    marks = {"ok": "[green]✓[/]", "missing": "[yellow]✗[/]", "info": "[dim]·[/]"}
    table = _table("", "part", "found", "to get it")
    for finding in findings:
        table.add_row(marks[finding.status], finding.name, escape(finding.detail), escape(finding.fix))
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), caption_justify="left")
    for title in titles:
        table.add_column(title)
    return table
