"""The command ``search``.  A thin layer, as ``cli.py`` is."""

from __future__ import annotations

import functools
import shlex
from typing import Annotated, Any

import typer
from rich.console import Console

from iekd.compress.host_threads import waiting_threads_sleep
from iekd.compress.settings_options import ConfigFile, Debug, given_settings, quiet_libraries, with_settings
from iekd.errors import EXIT_KEPT, EXIT_MISSED

_PANEL = "Search"
_HELP_TEXTS = {
    "student": "Names joined by commas, a pattern, or a family.  Default: those of `iekd-compress models`.",
    "prune": "One share to prune, instead of --prunes.",
    "image_size": "One input size, pixels, instead of --sizes.",
    "precision": "fp32, fp16, bf16, int8, fp8, or best: all that the target has. [dim]\\[best][/]",
    "min_retained": "Least student accuracy / teacher accuracy.  Default: none, the most accurate counts.",
}
Prunes = Annotated[
    str | None,
    typer.Option(
        help="Shares to prune (--prune-goal: of what), such as 0,0.5. [dim]\\[0,0.3,0.5,0.7][/]", rich_help_panel=_PANEL
    ),
]
Sizes = Annotated[str | None, typer.Option(help="Input sizes, such as 64,96.", rich_help_panel=_PANEL)]
Trials = Annotated[int, typer.Option(help="Networks that get a short recovery.", rich_help_panel=_PANEL)]
ShortEpochs = Annotated[
    int | None, typer.Option(help="Epochs of a short recovery; default a quarter of --epochs.", rich_help_panel=_PANEL)
]
Winners = Annotated[int, typer.Option(help="Networks that get the full schedule.", rich_help_panel=_PANEL)]
Storage = Annotated[
    str | None, typer.Option(help="Database that several machines share.", metavar="URL", rich_help_panel=_PANEL)
]


def add_search(app: typer.Typer, out: Console) -> None:
    """Put ``search`` into ``app``."""

    @app.command()
    @functools.partial(with_settings, help_texts=_HELP_TEXTS)
    def search(
        config_file: ConfigFile = None,
        prunes: Prunes = None,
        sizes: Sizes = None,
        trials: Trials = 12,
        short_epochs: ShortEpochs = None,
        winners: Winners = 3,
        storage: Storage = None,
        debug: Debug = False,
        **settings: Any,
    ) -> None:
        """Given --max-latency, --min-retained or both, find the STUDENT: names, a pattern or a family of them.

        A search that was stopped goes on where it was; the same command in several processes shares the work.
        """
        waiting_threads_sleep()
        own = {
            "prunes": prunes,
            "sizes": sizes,
            "trials": trials,
            "short_epochs": short_epochs,
            "winners": winners,
            "storage": storage,
        }
        raise typer.Exit(run_search(out, given_settings(settings, config_file), **own))


def run_search(out: Console, given: dict[str, Any], **own: Any) -> int:
    """Search, print what was found, and return the exit status.

    Args:
        out: where to print.
        given: settings of the runs, as the user gave them.
        own: fields of :class:`~iekd.compress.searching.settings.SearchSettings`.

    Raises:
        IekdError: as :func:`iekd.compress.search.search`.
    """
    from iekd.compress.console import ConsoleObserver

    with ConsoleObserver(out) as observer, quiet_libraries():
        from iekd.compress.search import search
        from iekd.compress.searching.settings import SearchSettings

        found = search(given, SearchSettings(**own), observer)
    _print(out, found)
    return EXIT_KEPT if found.kept else EXIT_MISSED


def search_instead(given: dict[str, Any], report: Any) -> str:
    """The search for what a run's student missed, as a command; empty where its objective cannot be searched under.

    Args:
        given: settings of the run, as its user gave them; what is searched is left to the search.
        report: of the run, which holds the limits that it was judged by.
    """
    from iekd.compress.config import flag
    from iekd.compress.objectives.catalogue import is_mutual
    from iekd.compress.targets import TARGETS

    if is_mutual(report.config["objective"]):
        return ""
    wanted = {**given, "min_retained": report.verdict.min_retained, "out": None, "prune": None}
    if TARGETS[report.config["target"]].on_board:
        wanted["max_latency"] = None  # the board alone can judge it
    words = ["iekd-compress", "search"]
    for key, value in wanted.items():
        if isinstance(value, bool):
            words.append(flag(key) if value else flag(f"no_{key}"))
        elif value is not None:
            words += [flag(key), str(value)]
    return shlex.join(words)


def _print(out: Console, found: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for title in ("", "student", "pruned", "input", "precision", "kept", "median"):
        table.add_column(title, no_wrap=True)
    for number, point in enumerate(found.front, 1):
        cells = (f"{100 * point.prune:.4g}%", str(point.size), point.precision, f"{point.retained:.1%}")
        table.add_row(str(number), escape(point.student), *cells, f"{point.latency.value:.3g} ms")
    if found.front:
        out.print("Files that no other beats in both accuracy and latency:")
        out.print(table)
    for number, point in enumerate(found.front, 1):  # too long for a column
        out.print(f"{number}  {escape(f'{point.run}/{point.file}')}", highlight=False, soft_wrap=True)
        for warning in point.warnings:
            out.print(f"   [dim]{escape(warning)}[/]", highlight=False, soft_wrap=True)
    mark = "[bold green]FOUND[/]" if found.kept else "[bold red]MISSED[/]"
    out.print(f"{mark}  {escape(found.sentence)}", highlight=False, soft_wrap=True)
