"""The run on the board: its output line by line, and how it ended."""

from __future__ import annotations

import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence

from iekd.deploy.device.builds import KILLED
from iekd.deploy.device.explain import SWAP
from iekd.deploy.device.parts import EXIT_DEFECT
from iekd.deploy.remote_board import EXIT_SSH, Board, last_line
from iekd.errors import EnvironmentMissingError, IekdError, InputError

AGAIN = "Start the same command again: the run goes on."
_LESS = (
    f"{AGAIN}  What was being built then comes last.  Less memory: --run-option=--max-batch=1, "
    f"--run-option=--workspace=512.  {SWAP}"
)
_EXIT_KILLED = 128 + signal.SIGKILL


class BoardDefectError(IekdError):
    """The program on the board ended with a defect; its traceback is among the lines that were shown."""

    exit_code = EXIT_DEFECT


def run_bundle(board: Board, place: str, arguments: Sequence[str], say: Callable[[str], None]) -> None:
    """Run the bundle on the board; a verdict of either kind is no error.

    Args:
        board: where.
        place: folder of the bundle there.
        arguments: for ``run.py``.
        say: is told each line of its output.

    Raises:
        InputError: ``run.py`` says so.
        EnvironmentMissingError: the connection broke, the run was killed, or it says that the board lacks something.
        BoardDefectError: it ended with a defect of its own.
    """
    code, last, told = _over_ssh(board, _command(board, place, arguments), say)
    if code in (0, 1):
        return
    if code == EXIT_SSH:
        raise EnvironmentMissingError(
            f"the connection to {board.host} broke ({last_line(told) or 'ssh says nothing'}).", AGAIN
        )
    if code == _EXIT_KILLED:
        raise EnvironmentMissingError(
            f"the run on {board.host} was {KILLED} (its last line: {last}).",
            _LESS,
        )
    kind = {2: InputError, EXIT_DEFECT: BoardDefectError}.get(code, EnvironmentMissingError)
    reason = last.removeprefix("error: ")
    raise kind(
        f"the run on {board.host} ended with exit code {code}: {reason}", "" if code in (2, 3, EXIT_DEFECT) else AGAIN
    )


def _command(board: Board, place: str, arguments: Sequence[str]) -> str:
    """For the board's shell.

    A second shell outlives ``run.py`` and hands its status on: were ssh's own child killed, ssh would end with 255, as
    when the connection breaks.  The ``exit`` keeps that shell from becoming ``run.py`` itself.
    """
    run = f"cd {shlex.quote(place)} && exec {shlex.join([board.python, 'run.py', *arguments])} 2>&1"
    return f"exec sh -c {shlex.quote(f'({run}); exit $?')}"


def _over_ssh(board: Board, remote: str, say: Callable[[str], None]) -> tuple[int, str, str]:
    """Exit status, last line of the output, and what ssh itself said."""
    command = [*board.command("ssh"), board.host, remote]
    last = ""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace"
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last = line.strip() or last
                say(line.rstrip("\n"))
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        errors.seek(0)
        return code, last, errors.read().decode(errors="replace")
