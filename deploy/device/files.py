"""Reading and writing on the board: JSON with clear errors, files that are either whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
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
        raise DeviceError(
            f"cannot write {path}: {os.strerror(error.errno or 0)}.",
            "Free some space, or give --output another folder.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
