"""The settings of a run as options of a command, and what every command that takes them shares."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar, get_args, get_type_hints

import typer

Command = TypeVar("Command", bound=Callable[..., Any])
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file of settings; flags win.", rich_help_panel="Run")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Run")]


def with_settings(function: Command, help_texts: Mapping[str, str] | None = None) -> Command:
    """Give a command one option for each setting in ``RunConfig``, all None unless given.

    Args:
        function: the command.
        help_texts: of settings that mean something else to it, or that it leaves to another default.
    """
    from iekd.compress.config import RunConfig, options

    own_texts = help_texts or {}
    hints = get_type_hints(RunConfig)
    given = get_type_hints(function, include_extras=True)
    signature = inspect.signature(function).parameters.values()
    own = [p.replace(annotation=given[p.name]) for p in signature if p.kind is not p.VAR_KEYWORD]
    parameters, annotations = [], {p.name: p.annotation for p in own}
    for name, option in options().items():
        kind = next((item for item in get_args(hints[name]) if item is not type(None)), hints[name])
        default = getattr(RunConfig, name, None)
        shown = None if default is None or default is False else str(default)
        info = typer.Option(
            help=own_texts.get(name, option.help + (f" [dim]\\[{shown}][/]" if shown else "")),
            rich_help_panel=option.panel,
            metavar=option.metavar or None,
            show_default=False,
        )
        # kind is a value of the running program, which neither a checker nor the form kind | None can take
        annotation = Annotated[Optional[kind], info]  # type: ignore[valid-type]  # noqa: UP045
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
        annotations[name] = annotation
    # Typer reads both; a type checker knows no __signature__ of a function
    function.__signature__ = inspect.Signature([*own, *parameters])  # type: ignore[attr-defined]
    function.__annotations__ = annotations
    return function


def given_settings(settings: dict[str, Any], config_file: Path | None) -> dict[str, Any]:
    """What the user gave: flags, and under them the file's."""
    from iekd.compress.config_input import read_config_file

    given = read_config_file(config_file) if config_file is not None else {}
    return given | {key: value for key, value in settings.items() if value is not None}


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Warnings of the libraries underneath are for us, not for the user; ``--debug`` shows them."""
    import warnings

    with warnings.catch_warnings():
        if "--debug" not in sys.argv:
            warnings.simplefilter("ignore")
        yield
