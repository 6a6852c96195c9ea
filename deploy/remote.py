"""Copy a bundle to a board, run it there and fetch what it found, over the system's own ssh and scp.

Nothing is asked (BatchMode) and host keys are respected.  A copy that was interrupted goes on where it stopped, a
bundle that is there already is not copied again, and a run that was stopped goes on by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from iekd.deploy import remote_agent
from iekd.deploy.remote_board import EXIT_SSH, Board, connection_error, last_line
from iekd.deploy.remote_run import AGAIN, run_bundle
from iekd.errors import EnvironmentMissingError, IekdError, InputError
from iekd.files import atomic_file, refuse_output_folder, sha256_of

FOLDER = "iekd-bundles"
"""On the board, in the home of the user."""
MIN_PYTHON = (3, 10)
_BLOCK = 1 << 18
_EXIT_NOT_FOUND = 127


def deploy(
    host: str,
    bundle: Path,
    *,
    output: Path,
    port: int | None = None,
    identity: Path | None = None,
    options: Sequence[str] = (),
    python: str = "python3",
    arguments: Sequence[str] = (),
    folder: str = FOLDER,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Run ``bundle`` on the board ``host`` and fetch what it found.

    Args:
        host: ``user@board``.
        bundle: made by :func:`iekd.deploy.bundle.write_bundle`.
        output: folder for ``result.json`` and ``traces/``.
        port: see :class:`Board`.
        identity: see :class:`Board`.
        options: see :class:`Board`.
        python: see :class:`Board`.
        arguments: for ``run.py``, such as ``--backend onnxruntime``.
        folder: on the board, in the user's home or absolute.
        say: is told each line of the board's output; default: standard output.

    Returns:
        The fetched ``result.json``; its verdict may be a miss.

    Raises:
        InputError: the bundle is none, the board found it damaged, or ``output`` is a file.
        EnvironmentMissingError: the board cannot be reached, lets nobody in, has no suitable Python or no space, or
            lacks a part that the run needs.
    """
    board = Board(host, port, identity, tuple(options), python)
    if not re.fullmatch(r"[A-Za-z0-9_./-]+", folder) or folder.startswith("-"):
        raise InputError(
            f"'{folder}' cannot be the folder on the board.", "Give --folder letters, digits, '.', '_', '-' and '/'."
        )
    if any(argument.startswith("--output") for argument in arguments):
        raise InputError("run.py's --output cannot be given here.", "Choose the folder on the board by --folder.")
    refuse_output_folder(output)
    say = say or _print
    digest, unpacked, manifest = _examine(bundle)
    _copy(board, bundle, folder, digest, unpacked, say)
    place = str(_agent(board, "unpack", folder, digest)["folder"])
    run_bundle(board, place, arguments, say)
    return _fetch(board, place, output, manifest)


def _examine(bundle: Path) -> tuple[str, int, str]:
    """SHA-256 of the bundle, bytes that it unpacks to, SHA-256 of its manifest."""
    try:
        with zipfile.ZipFile(bundle) as archive:
            manifest = next(entry for entry in archive.infolist() if entry.filename.endswith("/manifest.json"))
            unpacked = sum(entry.file_size for entry in archive.infolist())
            return sha256_of(bundle), unpacked, hashlib.sha256(archive.read(manifest)).hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"no bundle at {bundle}.", "Make one with `iekd-compress bundle RUN`.") from error
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        raise InputError(f"{bundle} is not a bundle.", "Make one with `iekd-compress bundle RUN`.") from error


def _copy(board: Board, bundle: Path, folder: str, digest: str, unpacked: int, say: Callable[[str], None]) -> None:
    size = bundle.stat().st_size
    there = _agent(board, "probe", folder, digest, str(size), str(unpacked))
    version = tuple(there["python"])
    if version < MIN_PYTHON:
        raise EnvironmentMissingError(
            f"{board.host} has Python {'.'.join(map(str, version))}; 3.10 or later is needed.",
            "JetPack 6 and later bring it; another Python of the board: --python PATH.",
        )
    if there["whole"]:
        say(f"{bundle.name} is on {board.host} already")
        return
    offset = int(there["offset"])
    if offset > size or _prefix(bundle, offset) != there["prefix"]:
        offset = 0
    say(f"copying {size - offset} of {size} bytes to {board.host}:{folder}")
    _agent(board, "receive", folder, digest, str(offset), data=bundle, offset=offset)


def _prefix(path: Path, size: int) -> str:
    """SHA-256 of the first ``size`` bytes; empty for none."""
    if not size:
        return ""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while size > 0 and (block := handle.read(min(size, _BLOCK))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _agent(board: Board, *arguments: str, data: Path | None = None, offset: int = 0) -> dict[str, Any]:
    """Run a command of :mod:`iekd.deploy.remote_agent` on the board; ``data`` from ``offset`` on is its input.

    The program itself goes first through standard input, so that no shell of the board has to quote it.
    """
    source = Path(remote_agent.__file__).read_bytes()
    start = f"import sys; exec(sys.stdin.buffer.read({len(source)}))"
    remote = shlex.join([board.python, "-c", start, *arguments])
    command = [*board.command("ssh"), board.host, remote]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # the other side has given up, and says why
                _feed(process.stdin, source, data, offset)
            answer = process.stdout.read()
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        errors.seek(0)
        told = errors.read().decode(errors="replace")
    return _checked(board, code, answer, told)


def _feed(pipe: IO[bytes], source: bytes, data: Path | None, offset: int) -> None:
    pipe.write(source)
    if data is not None:
        with open(data, "rb") as handle:
            handle.seek(offset)
            shutil.copyfileobj(handle, pipe, _BLOCK)
    pipe.close()


def _checked(board: Board, code: int, answer: bytes, told: str) -> dict[str, Any]:
    """The agent's answer, or what went wrong as an error."""
    if code == EXIT_SSH:
        raise connection_error(board, told)
    if code == _EXIT_NOT_FOUND:
        raise EnvironmentMissingError(
            f"{board.host} has no {board.python}.", "sudo apt-get install python3 there, or give --python PATH."
        )
    try:
        value: dict[str, Any] = json.loads(answer)
    except ValueError as error:
        last = last_line(told) or f"exit code {code}"
        raise EnvironmentMissingError(
            f"{board.python} on {board.host} did not answer ({last}).", f"Try: ssh {board.host} {board.python} -V"
        ) from error
    if "error" in value:
        raise _agent_error(board, value["error"], value["detail"])
    return value


def _agent_error(board: Board, kind: str, detail: str) -> IekdError:
    message, hint = {
        "disk": ("has no space left", "Free some space there and start the same command again: the copy goes on."),
        "busy": ("is being copied to by another", "Wait for it, and start the same command again."),
        "denied": ("cannot be written to", "Give another one by --folder, or look at its permissions."),
        "damaged": ("did not get the whole bundle", "Start the same command again: the copy goes on."),
    }[kind]
    return EnvironmentMissingError(f"{board.host} {message} ({detail}).", hint)


def _fetch(board: Board, place: str, output: Path, manifest: str) -> Path:
    """Copy ``result.json`` and the traces here, and see that they are of this bundle."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as temporary:
        sources = [f"{board.host}:{place}/{name}" for name in ("result.json", "traces")]
        command = [*board.command("scp"), "-q", "-r", *sources, temporary]
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        if answer.returncode:
            raise EnvironmentMissingError(
                f"cannot fetch the result from {board.host} ({last_line(answer.stderr)}).", AGAIN
            )
        fetched = Path(temporary)
        try:
            value = json.loads((fetched / "result.json").read_text(encoding="utf-8"))
            whole = value["complete"] is True and value["bundle"]["digest"] == manifest
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise EnvironmentMissingError(f"the run on {board.host} left no complete result.", AGAIN)
        for path in (*sorted((fetched / "traces").glob("*.npz")), fetched / "result.json"):
            with atomic_file(output / path.relative_to(fetched)) as target:
                shutil.copyfile(path, target)
    return output / "result.json"


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
