"""The errors that a user can do something about.

Each carries what is wrong and what to do next; the command line prints exactly that, on one line, and exits with
``exit_code``.  Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_KEPT = 0
EXIT_MISSED = 1
EXIT_BAD_INPUT = 2
EXIT_ENVIRONMENT = 3
EXIT_FAILED_CHECK = 4
EXIT_DEFECT = 70
"""EX_SOFTWARE of sysexits.h, as the board's ``run.py`` has it."""
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141
"""As a shell tells of a program that a closed pipe ended."""


class IekdError(Exception):
    """A problem with a message for the user.

    Args:
        message: what is wrong, and where.
        hint: what to do next; may be empty.
    """

    exit_code = EXIT_BAD_INPUT

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}  {self.hint}" if self.hint else self.message


class InputError(IekdError):
    """What the user gave cannot be used: a name, a file, a data set, a value."""


class RunFolderError(IekdError):
    """The run folder cannot be used: locked, of another configuration, of a newer version, or the disk is full."""


class DivergenceError(IekdError):
    """A named loss term stopped being finite."""


class VerificationError(IekdError):
    """A file that was made fails its check: it does not compute what the model computes, loses more than is allowed, or
    is no graph that the target takes.  No verdict, whose exit status is 1."""

    exit_code = EXIT_FAILED_CHECK


class EnvironmentMissingError(IekdError):
    """A part of the environment is missing: a package, a driver, a device."""

    exit_code = EXIT_ENVIRONMENT


def unknown_name(kind: str, name: str, valid: Iterable[str], *, listed_by: str = "", in_words: str = "") -> InputError:
    """An error for a name that is not in ``valid``, with close matches or, where few, all valid names.

    Args:
        kind: what it should have named.
        name: as given.
        valid: all that it could have been.
        listed_by: a command that lists them.
        in_words: them as a phrase, which is then shown in any case.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    hint = f"Did you mean {', '.join(close)}?" if close else ""
    if in_words:
        hint = f"{hint}  Valid: {in_words}.".strip()
    elif not close and len(names) <= 25:
        hint = f"Valid: {', '.join(names)}."
    if listed_by:
        hint = f"{hint}  `{listed_by}` lists them.".strip()
    return InputError(f"unknown {kind} '{name}'.", hint)
