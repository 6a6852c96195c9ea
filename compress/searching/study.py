"""Optuna's part: which candidate is trained next, by whom, and what is known already.

The study is the one thing that workers share: a journal in the folder, or a database for several machines.
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from iekd.compress.config import setting_defaults
from iekd.compress.learning_rate import EARLIER_RULE
from iekd.compress.searching.space import Candidate, Space
from iekd.compress.searching.storage import storage_errors
from iekd.compress.searching.workers import Watch, signs_of_life, this_worker
from iekd.errors import EnvironmentMissingError, IekdError, InputError, RunFolderError

MISSES = 20
"""Suggestions in succession that were known or too slow, before the next open candidate is simply taken."""
WIDTHS = "multiple for pruned widths"
EARLIER_WIDTHS = {"cpu": 8, "openvino": 8, "cuda": 8, "tensorrt": 16}
"""By target, of a search that does not say it."""
POLL = 2.0
"""Seconds between two looks at what other workers do."""

Work = Callable[[Candidate], tuple[dict[str, Any], tuple[float, float]]]


class Study:
    """One phase of a search, its trials in Optuna's storage.

    Args:
        name: of the study in the storage.
        storage: as :func:`open_storage` gives it.
        space: of all candidates; fixed for a study.
        identity: what must stay the same between two starts and between workers.
        seed: of the sampler.
        note: is told, in a line, what other workers are waited for.

    Raises:
        InputError: the storage holds a study of that name and another identity.
    """

    def __init__(
        self,
        name: str,
        storage: Any,
        space: Space,
        identity: dict[str, Any],
        seed: int,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.note = space, note
        self.worker = this_worker()
        self._watch = Watch()
        with storage_errors("the storage"):
            self._study = optuna.create_study(
                study_name=name, storage=storage, directions=["maximize", "minimize"], load_if_exists=True
            )
            trials = len(self._study.trials)
            self._sampler = optuna.samplers.TPESampler(seed=(seed + trials) % 2**32, n_startup_trials=5)
        self._hold_identity(name, identity)
        self._free_abandoned(leftovers=True)

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
        return _candidates(self._taken())

    def explore(
        self, open_candidates: Sequence[Candidate], budget: int, work: Work, first: Sequence[Candidate] = ()
    ) -> None:
        """Train ``first`` and then what Optuna suggests until ``budget`` are done, by whomever, or none is open.

        Args:
            open_candidates: those worth training; the others that Optuna suggests are told to be bad.
            budget: trained candidates among the open ones, over all workers: what earlier limits had trained beside
                them does not count.
            work: trains one; gives the JSON result to keep, and (retained accuracy, latency in ms) for the sampler.
            first: some of the open candidates, from which the sampler learns.
        """
        worth = set(open_candidates)
        while True:
            self._free_abandoned()
            taken = self.taken() & worth
            left = [candidate for candidate in open_candidates if candidate not in taken]
            start = [candidate for candidate in first if candidate in left]
            if left and len(taken) < budget:
                trial, candidate = self._ask(start[0]) if start else self._suggest(worth, left)
                before = self._before(trial) & worth
                self._do(trial, candidate, work, mine=candidate not in before and len(before) < budget)
            elif not self._wait():
                return

    def complete(self, candidates: Sequence[Candidate], work: Work) -> None:
        """Train those of ``candidates`` that nobody has taken, until all are done, by whomever."""
        while True:
            self._free_abandoned()
            taken = self.taken()
            left = [candidate for candidate in candidates if candidate not in taken]
            if left:
                trial, candidate = self._ask(left[0])
                self._do(trial, candidate, work, mine=candidate in left and candidate not in self._before(trial))
            elif not self._wait():
                return

    def _suggest(self, worth: set[Candidate], left: list[Candidate]) -> tuple[Any, Candidate]:
        for _ in range(MISSES):
            trial, candidate = self._ask()
            if candidate in left:
                return trial, candidate
            self._finish(trial, "FAIL" if candidate in worth else "PRUNED")
        return self._ask(left[0])

    def _ask(self, wanted: Candidate | None = None) -> tuple[Any, Candidate]:
        """A trial, of ``wanted`` or of what Optuna suggests."""
        import optuna

        self._study.sampler = self._sampler
        if wanted is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.sampler = optuna.samplers.PartialFixedSampler(wanted.to_json(), self._sampler)
        trial = self._study.ask()
        trial.set_user_attr("worker", self.worker)
        return trial, Candidate(
            student=trial.suggest_categorical("student", self.space.students),
            prune=trial.suggest_categorical("prune", self.space.prunes),
            size=trial.suggest_categorical("size", self.space.sizes),
        )

    def _before(self, trial: Any) -> set[Candidate]:
        """What was taken by trials asked before this one.

        Of workers that were given the same candidate at once the one asked first keeps it; so one that was asked first
        and does not know its candidate yet is waited for.
        """
        while True:
            earlier = [other for other in self._taken() if other.number < trial.number]
            if all(len(other.params) == 3 or self._watch.is_abandoned(other) for other in earlier):
                return _candidates(earlier)
            time.sleep(POLL / 40)

    def _wait(self) -> bool:
        """Wait until a trial that another worker holds has ended, and may have left its candidate to others.

        False: nobody holds one.
        """
        held = self._trials("RUNNING")
        if not held:
            return False
        self.note(f"Waiting for what other workers train: {', '.join(map(_held, held))}.")
        numbers = {trial.number for trial in held}
        while numbers <= {trial.number for trial in self._trials("RUNNING")}:
            time.sleep(POLL)
            self._free_abandoned()
        return True

    def _do(self, trial: Any, candidate: Candidate, work: Work, *, mine: bool) -> None:
        """Do the work of a trial, unless another worker has its candidate already."""
        if not mine:
            self._finish(trial, "FAIL")
            return
        try:
            with signs_of_life(lambda number: trial.set_user_attr("sign", number)):
                result, values = work(candidate)
        except (EnvironmentMissingError, RunFolderError):
            self._finish(trial, "FAIL")
            raise
        except IekdError as error:
            self._finish(trial, "FAIL", refused=error.message)
        except BaseException:
            self._finish(trial, "FAIL")
            raise
        else:
            self._finish(trial, "COMPLETE", values, result=json.dumps(result))

    def _finish(self, trial: Any, state: str, values: Sequence[float] | None = None, **attributes: str) -> None:
        """End a trial, which may be given by its number.

        One that was taken to be abandoned is ended already, and stays so: its run folder is there, and whoever takes
        the candidate next, perhaps this worker, finds it finished.
        """
        from optuna.trial import TrialState

        with contextlib.suppress(RuntimeError):  # Optuna's UpdateFinishedTrialError; older ones raise it bare
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            self._study.tell(trial, values, state=TrialState[state], skip_if_finished=True)

    def _taken(self) -> list[Any]:
        trials = self._trials("COMPLETE", "RUNNING", "FAIL")
        return [t for t in trials if t.state.name != "FAIL" or "refused" in t.user_attrs]

    def _trials(self, *states: str) -> list[Any]:
        """Those in one of ``states``, all read at one moment."""
        from optuna.trial import TrialState

        found: list[Any] = self._study.get_trials(deepcopy=False, states=tuple(TrialState[state] for state in states))
        return found

    def _free_abandoned(self, *, leftovers: bool = False) -> None:
        """Free what workers held that are gone; their run folders go on where they were.

        Args:
            leftovers: also what this process holds, which is nothing before its first trial: it was left by a call that
                was interrupted, or by a process of the same number in a container's earlier life.
        """
        for trial in self._trials("RUNNING"):
            left = leftovers and trial.user_attrs.get("worker") == self.worker
            if left or self._watch.is_abandoned(trial):
                self._finish(trial.number, "FAIL")

    def _hold_identity(self, name: str, identity: dict[str, Any]) -> None:
        kept = self._study.user_attrs.get("identity")
        if kept is None:
            self._study.set_user_attr("identity", identity)
            return
        kept = {**setting_defaults(), **EARLIER_RULE, **kept}
        kept.setdefault(WIDTHS, EARLIER_WIDTHS.get(kept["target"]))
        for key, value in json.loads(json.dumps(identity)).items():
            if isinstance(value, dict):
                _require_same_parts(name, key, kept.get(key, value), value)  # older searches do not say it
            elif kept.get(key) != value:
                raise InputError(
                    f"the search '{name}' was begun with another {key}: it was {kept.get(key)} and is {value}.",
                    "Give another --out, or the settings of that search.",
                )


def _require_same_parts(name: str, key: str, was: dict[str, Any], is_now: dict[str, Any]) -> None:
    """Raise InputError naming each part that differs."""
    parts = [part for part in {**was, **is_now} if was.get(part) != is_now.get(part)]
    if parts:
        told = "; ".join(f"{part} was {was.get(part)} and is {is_now.get(part)}" for part in parts)
        raise InputError(
            f"the search '{name}' was begun with another {key}: {told}.",
            "Give another --out, or go on where that search began.",
        )


def _candidates(trials: Iterable[Any]) -> set[Candidate]:
    return {Candidate(**trial.params) for trial in trials if len(trial.params) == 3}


def _held(trial: Any) -> str:
    name = Candidate(**trial.params).name if len(trial.params) == 3 else "a trial"
    return f"{name} ({trial.user_attrs.get('worker', 'unknown')})"
