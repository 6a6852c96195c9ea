"""A run's folder: one writer at a time, every stage finished or absent, nothing of another configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from iekd import __version__
from iekd.compress.config import FREE_TO_CHANGE, MAX_DROP, RunConfig, flag, setting_defaults
from iekd.compress.observer import Observer
from iekd.errors import RunFolderError
from iekd.files import may_write, sha256_of, write_json, write_text
from iekd.models.checkpoint import refuse_foreign

FORMAT = 1
T = TypeVar("T")
_ARTEFACTS = ("teacher", "student", "pruned")
_STATE = "run.json"
_CONFIG = "config.yaml"


class RunFolder:
    """The folder of one run, held by a lock while this object is in use.  Made by :meth:`open`."""

    def __init__(self, path: Path, state: dict[str, Any], observer: Observer, accelerator: Accelerator) -> None:
        self.path = path
        self.observer = observer
        self._accelerator = accelerator
        self._state = state

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, config: RunConfig, identity: dict[str, Any], observer: Observer, accelerator: Accelerator
    ) -> Iterator[RunFolder]:
        """Create the folder, or go on in it.

        Args:
            config: the settings as given; :meth:`keep_config` later writes the resolved ones.
            identity: what beside the settings must stay the same between two starts (the data's digest).
            observer: told of each stage.
            accelerator: of several processes only the main one locks and writes.

        Raises:
            RunFolderError: in use by another run, of another configuration, of a newer version, or not a run folder.
            InputError: a file of the user's own lies in one of its artefacts, which a stage may write anew.
        """
        path = config.folder
        if not accelerator.is_main_process:
            yield cls(path, {"stages": {}}, observer, accelerator)
            return
        make_folder(path)
        lock = FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunFolderError(
                f"another run is writing to {path}.", "Wait for it, or give this one another --out."
            ) from error
        try:
            yield cls(path, _open_state(path, config, identity), observer, accelerator)
        finally:
            lock.release()

    def keep_config(self, text: str) -> None:
        """Write the resolved settings as ``config.yaml``."""
        if self._accelerator.is_main_process:
            write_text(self.path / _CONFIG, text)

    def stage(
        self,
        name: str,
        outputs: list[str],
        work: Callable[[], dict[str, Any]],
        *,
        one_process: bool = False,
        usable: Callable[[], bool] = lambda: True,
    ) -> dict[str, Any]:
        """Do ``work`` unless an earlier run finished it and its outputs are unchanged; return its JSON result.

        Args:
            name: of the stage.
            outputs: files or folders that the work writes, relative to the run folder.
            work: does the stage; what it returns is stored and given back to later runs.
            one_process: of several processes only the main one works, the others wait.
            usable: asked of unchanged outputs: do they still serve, on this machine?
        """
        entry = self._state["stages"][name] if self.stands(name) and usable() else None
        entry = self._same_everywhere(entry)
        if entry:
            self.observer.stage_finished(name, entry["seconds"], entry["result"].get("note", ""), True)
            return dict(entry["result"])
        started = time.monotonic()
        result = work() if self._accelerator.is_main_process or not one_process else {}
        result = self._same_everywhere(result)
        seconds = time.monotonic() - started
        if self._accelerator.is_main_process:
            self._finish(name, outputs, result, seconds)
        self.observer.stage_finished(name, seconds, result.get("note", ""), False)
        return dict(result)

    def stands(self, name: str) -> bool:
        """Did an earlier run finish the stage, and are its outputs unchanged?  False in all but the main process."""
        entry = self._state["stages"].get(name)
        return bool(entry) and all(self._unchanged(output, digest) for output, digest in entry["outputs"].items())

    def forget(self, name: str) -> None:
        """Make a stage, and everything that was built on it, count as not done."""
        names = list(self._state["stages"])
        for later in names[names.index(name) :] if name in names else ():
            del self._state["stages"][later]

    def once(self, work: Callable[[], T]) -> T:
        """Let the main process do ``work``, and give its result to every process."""
        result: T = self._same_everywhere(work() if self._accelerator.is_main_process else None)
        return result

    def _finish(self, name: str, outputs: list[str], result: dict[str, Any], seconds: float) -> None:
        """Enter the stage; one that is done again makes everything that was built on the former one stale."""
        self.forget(name)
        self._state["stages"][name] = {
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(seconds, 3),
            "iekd_version": __version__,
            "outputs": {output: sha256_of(self.path / output) for output in outputs},
            "result": result,
        }
        write_json(self.path / _STATE, self._state)

    def _same_everywhere(self, value: Any) -> Any:
        """The main process's value, in every process; also the point where they wait for one another."""
        if self._accelerator.num_processes == 1:
            return value
        return broadcast_object_list([value])[0]

    def stages(self) -> dict[str, dict[str, Any]]:
        """The finished stages, in order."""
        return dict(self._state["stages"])

    def _unchanged(self, output: str, digest: str) -> bool:
        path = self.path / output
        return path.exists() and sha256_of(path) == digest


def is_run_folder(path: Path) -> bool:
    """Does a run, finished or not, lie there?"""
    return (path / _STATE).is_file()


def make_folder(path: Path) -> None:
    """Make the folder of a run or a search.

    Raises:
        RunFolderError: it cannot be made, or this user may not write in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunFolderError(f"{path} is a file.", "Give another --out.") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise RunFolderError(f"cannot create {path}: {why[:1].lower()}{why[1:]}.", "Give another --out.") from error
    if not may_write(path):
        raise RunFolderError(f"no permission to write in {path}.", "Give another --out.")


def _open_state(path: Path, config: RunConfig, identity: dict[str, Any]) -> dict[str, Any]:
    file = path / _STATE
    settings = dataclasses.asdict(config)
    if is_run_folder(path):
        state = _read_state(file)
        if _nothing_made(path, state):
            state["stages"] = {}
        else:
            _refuse_other_config(path, state, settings, identity)
        for name in _ARTEFACTS:
            refuse_foreign(path / name)
    else:
        foreign = [entry.name for entry in path.iterdir() if entry.name != ".lock"]
        if foreign:
            raise RunFolderError(
                f"{path} is not empty and is not a run folder (it holds '{sorted(foreign)[0]}').", "Give another --out."
            )
        state = {"format": FORMAT, "stages": {}}
    state.update(iekd_version=__version__, config=settings, identity=identity)
    write_json(file, state)
    return state


_NEWER = ("networks",)
"""Of the identity, what runs of older versions do not say."""


def _nothing_made(path: Path, state: dict[str, Any]) -> bool:
    """Did the run end before it trained anything, so that a corrected command may take its place?"""
    return state["stages"].keys() <= {"plan"} and not (path / "checkpoints").exists()


def _read_state(file: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = int(state["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{file} is damaged ({error}).", "Give another --out.") from error
    if version > FORMAT:
        raise RunFolderError(
            f"{file.parent} was written by a newer iekd-compress ({state.get('iekd_version', '?')}).",
            "Update with pip install -U iekd-compress, or give another --out.",
        )
    return state


def _refuse_other_config(path: Path, state: dict[str, Any], settings: dict[str, Any], identity: dict[str, Any]) -> None:
    before, now = {**setting_defaults(), **state["config"]}, settings
    if now["max_drop"] is None and before["max_drop"] == MAX_DROP:
        before["max_drop"] = None  # an earlier version wrote the default
    keys = [key for key in now if key not in FREE_TO_CHANGE and before.get(key) != now[key]]
    if keys:
        changes = ", ".join(f"{flag(key)} was {before.get(key)} and is {now[key]}" for key in keys[:3])
        raise RunFolderError(
            f"{path} holds a run of another configuration: {changes}.",
            "Give another --out, or the settings of that run.",
        )
    made_from = {**{key: identity[key] for key in _NEWER if key in identity}, **state["identity"]}
    for key, value in identity.items():
        if made_from.get(key) != value:
            raise RunFolderError(
                f"{path} holds a run of other {key}: what it was made from has changed since.", "Give another --out."
            )
