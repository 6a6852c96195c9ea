"""How commands end that are interrupted, or whose output nobody reads any more.

Left to typer and Rich, an interruption would end without a word, and a closed pipe with 1: that a limit was missed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from iekd.errors import EXIT_INTERRUPTED, EXIT_UNREAD


class Output(Console):
    """What is printed for the user."""

    def on_broken_pipe(self) -> NoReturn:
        """End, and not as if with a verdict."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()  # what is printed on the way out goes nowhere
        raise SystemExit(EXIT_UNREAD)


class Commands(TyperGroup):
    """All commands of the program."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            Output(stderr=True).print(
                "stopped; what was finished is kept, and a run goes on from there when its command is given again.",
                highlight=False,
                soft_wrap=True,
            )
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:  # of a plain print
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_UNREAD) from None
