"""Reading and writing on the board: JSON with clear errors, files that are either whole or absent, a lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import DeviceError


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DeviceError: missing or not JSON; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DeviceError(f"the bundle has no {path.name}.", "Copy the bundle to the board again.") from error
    except (OSError, ValueError) as error:
        raise DeviceError(f"{path} cannot be read ({error}).", "Copy the bundle to the board again.") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one where there is none that can be read."""
    with contextlib.suppress(DeviceError):
        value = read_json(path)
        if isinstance(value, dict):
            return value
    return {}


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed to ``path``.

    Raises:
        DeviceError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file ``path``; where another process holds it, call ``waiting`` and wait for its end.

    The kernel drops the lock with the process, so a killed one leaves none behind.

    Raises:
        DeviceError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise _unwritable(path, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _unwritable(path: Path, error: OSError) -> DeviceError:
    return DeviceError(
        f"cannot write {path}: {os.strerror(error.errno or 0)}.",
        "Free some space, or give --output another folder.",
    )
