"""Optuna's part: which candidate is trained next, by whom, and what is known already.

The study is the one thing that workers share: a journal in the folder, or a database for several machines.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from iekd.compress.searching.space import Candidate, Space
from iekd.errors import EnvironmentMissingError, IekdError, InputError, RunFolderError

MISSES = 20
"""Suggestions in succession that were known or too slow, before the next open candidate is simply taken."""

Work = Callable[[Candidate], tuple[dict[str, Any], tuple[float, float]]]


class Study:
    """One phase of a search, its trials in Optuna's storage.

    Args:
        name: of the study in the storage.
        storage: as :func:`open_storage` gives it.
        space: of all candidates; fixed for a study.
        identity: what must stay the same between two starts and between workers.
        seed: of the sampler.

    Raises:
        InputError: the storage holds a study of that name and another identity.
    """

    def __init__(self, name: str, storage: Any, space: Space, identity: dict[str, Any], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self.worker = f"{socket.gethostname()}:{os.getpid()}"
        with _storage_errors("the storage"):
            self._study = optuna.create_study(
                study_name=name, storage=storage, directions=["maximize", "minimize"], load_if_exists=True
            )
            trials = len(self._study.trials)
            self._study.sampler = optuna.samplers.TPESampler(seed=seed + trials, n_startup_trials=5)
        self._hold_identity(name, identity)
        self._requeue_abandoned()

    def results(self) -> list[dict[str, Any]]:
        """What the work of each finished trial gave, of all workers."""
        return [json.loads(trial.user_attrs["result"]) for trial in self._trials("COMPLETE")]

    def refused(self) -> dict[str, str]:
        """Candidates that could not be trained, by name, and why."""
        return {
            Candidate(**trial.params).name: trial.user_attrs["refused"]
            for trial in self._trials("FAIL")
            if "refused" in trial.user_attrs
        }

    def taken(self) -> set[Candidate]:
        """Candidates that are done, being done by someone, or refused."""
        done = [*self._trials("COMPLETE"), *self._trials("RUNNING")]
        failed = [trial for trial in self._trials("FAIL") if "refused" in trial.user_attrs]
        return {Candidate(**trial.params) for trial in (*done, *failed) if len(trial.params) == 3}

    def explore(self, open_candidates: Sequence[Candidate], budget: int, work: Work) -> None:
        """Train candidates that Optuna suggests until ``budget`` are taken or none is open.

        Args:
            open_candidates: those worth training; the others that Optuna suggests are told to be bad.
            budget: trained candidates of the whole study, over all workers.
            work: trains one; gives the JSON result to keep, and (retained accuracy, latency in ms) for the sampler.
        """
        while len(taken := self.taken()) < budget and (left := [c for c in open_candidates if c not in taken]):
            trial, candidate = self._suggest(set(open_candidates), left)
            self._do(trial, candidate, work)

    def complete(self, candidates: Sequence[Candidate], work: Work) -> None:
        """Train those of ``candidates`` that nobody has taken."""
        for candidate in candidates:
            if candidate not in self.taken():
                self._do(*self._ask(candidate), work)

    def _suggest(self, worth: set[Candidate], left: list[Candidate]) -> tuple[Any, Candidate]:
        from optuna.trial import TrialState

        for _ in range(MISSES):
            trial, candidate = self._ask()
            if candidate in left and self._is_first(trial, candidate):
                return trial, candidate
            known = candidate in worth
            self._study.tell(trial, state=TrialState.FAIL if known else TrialState.PRUNED)
        return self._ask(left[0])

    def _ask(self, wanted: Candidate | None = None) -> tuple[Any, Candidate]:
        """A trial, of ``wanted`` or of what is queued or what Optuna suggests."""
        if wanted is not None:
            self._study.enqueue_trial(wanted.to_json())
        trial = self._study.ask()
        trial.set_user_attr("worker", self.worker)
        return trial, Candidate(
            student=trial.suggest_categorical("student", self.space.students),
            prune=trial.suggest_categorical("prune", self.space.prunes),
            size=trial.suggest_categorical("size", self.space.sizes),
        )

    def _is_first(self, trial: Any, candidate: Candidate) -> bool:
        """Of workers that were given the same candidate at once, the one asked first keeps it."""
        rivals = [
            other
            for other in self._trials("RUNNING")
            if other.number < trial.number and len(other.params) == 3 and Candidate(**other.params) == candidate
        ]
        return not rivals

    def _do(self, trial: Any, candidate: Candidate, work: Work) -> None:
        from optuna.trial import TrialState

        try:
            result, values = work(candidate)
        except (EnvironmentMissingError, RunFolderError):
            self._study.tell(trial, state=TrialState.FAIL)
            raise
        except IekdError as error:
            trial.set_user_attr("refused", error.message)
            self._study.tell(trial, state=TrialState.FAIL)
        except BaseException:
            self._study.tell(trial, state=TrialState.FAIL)
            raise
        else:
            trial.set_user_attr("result", json.dumps(result))
            self._study.tell(trial, values)

    def _trials(self, state: str) -> list[Any]:
        from optuna.trial import TrialState

        found: list[Any] = self._study.get_trials(deepcopy=False, states=(TrialState[state],))
        return found

    def _requeue_abandoned(self) -> None:
        """Free what a killed worker of this machine held; its run folder goes on where it was."""
        from optuna.trial import TrialState

        for trial in self._trials("RUNNING"):
            host, _, process = str(trial.user_attrs.get("worker", "")).rpartition(":")
            if host == socket.gethostname() and not Path(f"/proc/{process}").exists():
                self._study.tell(trial.number, state=TrialState.FAIL)

    def _hold_identity(self, name: str, identity: dict[str, Any]) -> None:
        kept = self._study.user_attrs.get("identity")
        if kept is None:
            self._study.set_user_attr("identity", identity)
            return
        for key, value in json.loads(json.dumps(identity)).items():
            if kept.get(key) != value:
                raise InputError(
                    f"the search '{name}' was begun with another {key}: it was {kept.get(key)} and is {value}.",
                    "Give another --out, or the settings of that search.",
                )


def open_storage(url: str | None, folder: Path) -> Any:
    """Optuna's storage: a database at ``url``, or a journal in ``folder``.

    Raises:
        EnvironmentMissingError: Optuna, or the database's driver, is not installed.
        InputError: ``url`` is not one, or nothing answers there.
    """
    require_optuna()
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if url is None:
        folder.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    with _storage_errors(f"--storage '{url.partition('://')[0]}://…'"):
        return RDBStorage(url)


def require_optuna() -> None:
    """Raise EnvironmentMissingError unless Optuna is installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissingError(
            "searching needs Optuna, which is not installed.", "pip install 'iekd-compress[search]'"
        ) from error


class _storage_errors:  # noqa: N801 - reads as a statement
    """Names the storage where it cannot be used; its URL may hold a password and is not shown."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        if isinstance(error, SQLAlchemyError | ImportError | ModuleNotFoundError):
            raise InputError(
                f"{self.what} cannot be used ({type(error).__name__}).",
                "Give a URL of SQLAlchemy's such as sqlite:///study.db or postgresql://host/db, its driver installed.",
            ) from error
