"""Where Optuna keeps a search: a journal in the folder, or a database for several machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from iekd.compress.run_folder import make_folder
from iekd.errors import EnvironmentMissingError, InputError, RunFolderError


def open_storage(url: str | None, folder: Path) -> Any:
    """Optuna's storage: a database at ``url``, or a journal in ``folder``.

    Raises:
        EnvironmentMissingError: Optuna, or the database's driver, is not installed.
        InputError: ``url`` is not one, or nothing answers there.
        RunFolderError: ``folder`` cannot be made or written in.
    """
    require_optuna()
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if url is None:
        make_folder(folder)
        journal = folder / "study.journal"
        with storage_errors(str(journal), journal=True):
            cut_half_written(journal)
            return JournalStorage(JournalFileBackend(str(journal)))
    with storage_errors(f"--storage '{url.partition('://')[0]}://…'"):
        return RDBStorage(url)


def cut_half_written(journal: Path) -> None:
    """Drop what a full disk or a power cut left of the last record: nothing can be read behind it."""
    from optuna.storages.journal import JournalFileSymlinkLock

    if not journal.is_file():
        return
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(journal, whole)
    finally:
        lock.release()


def require_optuna() -> None:
    """Raise EnvironmentMissingError unless Optuna is installed."""
    try:
        import optuna  # noqa: F401 - is it there?
    except ImportError as error:
        raise EnvironmentMissingError(
            "searching needs Optuna, which is not installed.", "pip install 'iekd-compress[search]'"
        ) from error


class storage_errors:  # noqa: N801 - reads as a statement
    """Names the storage where it cannot be used; its URL may hold a password and is not shown."""

    def __init__(self, what: str, *, journal: bool = False) -> None:
        self.what, self.journal = what, journal

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        if self.journal and isinstance(error, (ValueError, AssertionError, KeyError)):
            raise RunFolderError(
                f"{self.what} is damaged: it cannot be read as the record of a search.",
                "Delete it and give the command again: finished runs in the folder are taken as they are.",
            ) from error
        if isinstance(error, SQLAlchemyError | ImportError | ValueError):  # a port that is no number, for one
            raise InputError(
                f"{self.what} cannot be used ({type(error).__name__}).",
                "Give a URL of SQLAlchemy's such as sqlite:///study.db or postgresql://host/db, its driver installed.",
            ) from error
