"""Given limits, find the student: over networks, pruning, precision and input size.

First a latency table rules out what is too slow, before anything is trained; then Optuna chooses what gets a short
recovery under the one shared teacher; then the winners get the full schedule.  Every trial is a run folder like any.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import socket
from pathlib import Path
from typing import Any, Literal

import torch

from iekd.compress.config import FREE_TO_CHANGE, RunConfig
from iekd.compress.config_input import make_config
from iekd.compress.data import ImageData
from iekd.compress.job import open_data
from iekd.compress.learning_rate import RULE
from iekd.compress.objectives.catalogue import reading_of
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.compress.plan import STUDENT_EPOCHS
from iekd.compress.run_folder import is_run_folder
from iekd.compress.searching import space as spaces
from iekd.compress.searching.latency_table import Entry, LatencyTable, machine_key, machine_parts
from iekd.compress.searching.outcome import Limits, Outcome, Point, judge, most_accurate_network, points_of, promising
from iekd.compress.searching.settings import SearchSettings, check, space_of
from iekd.compress.searching.space import Candidate, Space
from iekd.compress.searching.start import spread_out
from iekd.compress.searching.storage import open_storage, require_optuna
from iekd.compress.searching.study import WIDTHS, Study
from iekd.compress.searching.teachers import Teachers, qat_for
from iekd.deploy.search_page import render
from iekd.errors import InputError, RunFolderError
from iekd.files import write_text

SLACK = 1.1
"""A candidate is trained where the table has it at most so far above the limit: the table's figures are short ones."""
_NOT_COMPARED = {"student", "out", "prune", "prune_round_to", "image_size", "epochs"} | FREE_TO_CHANGE
Phase = Literal["short", "full"]


def search(settings: dict[str, Any], own: SearchSettings, observer: Observer | None = None) -> Outcome:
    """Find the student that keeps the limits, and write ``search.json`` and ``search.html``.

    Args:
        settings: of :class:`~iekd.compress.config.RunConfig`; ``student`` may be what
            :func:`~iekd.compress.searching.space.parse_students` takes, ``prune`` and ``image_size`` fix what would be
            searched.  At least one of ``max_latency`` and ``min_retained`` has to be given.
        own: of the search.
        observer: is told how each run goes on.

    Raises:
        RunFolderError: ``out`` is the folder of a run.
        IekdError: what the user gave cannot be used, or a part of the environment is missing.
    """
    limits = limits_of(settings)
    require_optuna()
    students = spaces.parse_students(settings.get("student"))
    config = make_config({"precision": "best", **_given(settings), "student": students[0]})
    check(config, own)
    config = dataclasses.replace(config, out=str(config.folder if config.out else _default_folder(config)))
    if "," in str(config.folder):
        raise InputError(f"--out {config.out}: a comma parts the names of several teachers.", "Give another --out.")
    if is_run_folder(config.folder):
        raise RunFolderError(f"{config.out} holds a run, and no search.", "Give another --out.")
    data = open_data(config)
    return _Search(config, limits, own, space_of(config, own, students, settings, data), data, observer).run()


def limits_of(settings: dict[str, Any]) -> Limits:
    """The limits among ``settings``, of which there must be one.

    Raises:
        InputError: there is none, or one of them is not a limit.
    """
    given = _given(settings)
    if not {"max_latency", "min_retained"} & given.keys():
        raise InputError("no limit given.", "Add --max-latency 2ms, --min-retained 0.99, or both.")
    checked = make_config({**given, "teacher": given.get("teacher"), "student": "any"})
    return Limits(
        max_latency_ms=checked.max_latency_ms,
        min_retained=checked.min_retained if "min_retained" in given else None,
    )


class _Search:
    """One worker's search."""

    def __init__(
        self,
        config: RunConfig,
        limits: Limits,
        own: SearchSettings,
        space: Space,
        data: ImageData,
        observer: Observer | None,
    ) -> None:
        self.config, self.limits, self.own, self.space, self.data = config, limits, own, space, data
        self.observer = observer or Observer()
        self.folder = config.folder
        self.epochs = config.epochs or STUDENT_EPOCHS
        self.table: dict[Candidate, Entry] = {}
        self.teachers: Teachers

    def run(self) -> Outcome:
        storage = open_storage(self.own.storage, self.folder)
        short, full = (
            Study(
                f"{self.folder.name}{end}", storage, self.space, self._identity(), self.config.seed, self.observer.note
            )
            for end in ("", "-full")
        )
        self.table = table = self._table()
        students = dict.fromkeys(candidate.student for candidate, entry in table.items() if "latency" in entry)
        self.teachers = Teachers(self.config, self.data, list(students), self.observer)
        refused = {candidate.name: entry["refused"] for candidate, entry in table.items() if "refused" in entry}
        if len(refused) == len(table):
            raise InputError(f"no student can be used; {_first(refused)}", "Give others.")
        usable = [candidate for candidate in table if candidate.name not in refused]
        worth = [candidate for candidate in usable if self._is_worth_it(table[candidate])]
        if worth:
            self._reference_accuracy()  # the teacher comes first: without one that answers there is nothing to recover
            first = spread_out(worth, table, self.own.trials)
            short.explore(worth, self.own.trials, functools.partial(self._train, phase="short"), first)
            winners = promising(_points(short), self.limits, self.own.winners)
            full.complete(winners, functools.partial(self._train, phase="full"))
        too_slow = [candidate for candidate in usable if candidate not in worth]
        outcome = self._outcome(short, full, worth, too_slow, refused)
        if not outcome.points and (failed := {**short.refused(), **full.refused()}):
            raise InputError(f"no student could be trained; {_first(failed)}", "Correct that setting.")
        write_text(self.folder / "search.json", outcome.model_dump_json(indent=2) + "\n")
        write_text(self.folder / "search.html", render(outcome.model_dump()))
        return outcome

    def _outcome(
        self, short: Study, full: Study, worth: list[Candidate], too_slow: list[Candidate], refused: dict[str, str]
    ) -> Outcome:
        """The choice.  Where no file is accurate enough, that side of the limits is sought among what is too slow.

        A short recovery tells little of what a network can keep, so the best of those gets the full schedule, unless
        one is accurate enough without it.
        """

        def tried() -> set[Candidate]:
            return short.taken() | full.taken()

        def judged() -> Outcome:
            points = [*_points(short), *_points(full)]
            return judge(
                points,
                self.table,
                too_slow,
                [candidate for candidate in worth if candidate not in tried()],
                {**refused, **short.refused(), **full.refused()},
                config=self.config,
                limits=self.limits,
                teacher_accuracy=self._reference_accuracy() if points else None,
            )

        outcome = judged()
        if self.limits.min_retained is None:
            return outcome
        nearest = sorted(too_slow, key=lambda candidate: min(self.table[candidate]["latency"].values()))
        nearest = nearest[: self.own.winners]
        for candidate in nearest:
            if outcome.kept or outcome.nearest_accurate:
                break
            self._reference_accuracy()
            short.complete([candidate], functools.partial(self._train, phase="short"))
            outcome = judged()
        if not (outcome.kept or outcome.nearest_accurate):
            best = most_accurate_network(outcome.points, nearest)
            full.complete(best, functools.partial(self._train, phase="full"))
            outcome = judged()
        return outcome

    def _table(self) -> dict[Candidate, Entry]:
        candidates = self.space.candidates()
        self.observer.stage_started("latency table", len(candidates))
        latencies = LatencyTable(self.config, len(self.data.classes), self.observer.note)
        return latencies.look_up(candidates, functools.partial(self.observer.stage_advanced, "latency table"))

    def _is_worth_it(self, entry: Entry) -> bool:
        return self.limits.fast_enough(min(entry["latency"].values()) / SLACK)

    def _train(self, candidate: Candidate, phase: Phase) -> tuple[dict[str, Any], tuple[float, float]]:
        """A whole run of one candidate; what is known of its files, and the two figures that Optuna goes by."""
        self.observer.note(f"{'Short recovery' if phase == 'short' else 'Full schedule'}: {candidate.title}")
        run = f"{phase}/{candidate.name}"
        config = self._run_config(candidate, run, phase)
        shared = self.teachers.shared_by(candidate.size)
        try:
            report = run_stages(
                config, config.teacher, config.student, self.data, self.observer, until="report", shared=shared
            )
        except torch.OutOfMemoryError as error:
            raise InputError(f"it needs more memory than the GPU has ({error}).", "Lower --batch-size.") from error
        assert report is not None
        points = points_of(report, candidate, phase, self._reference_accuracy(), run, socket.gethostname())
        fast = [point for point in points if self.limits.fast_enough(point.latency.value)]
        best = max(fast, key=lambda p: p.retained) if fast else min(points, key=lambda p: p.latency.value)
        return {"points": [point.model_dump() for point in points]}, (best.retained, best.latency.value)

    def _run_config(self, candidate: Candidate, run: str, phase: Phase) -> RunConfig:
        short, precision = phase == "short", self._precision(candidate)
        return dataclasses.replace(
            self.config,
            teacher=str(self.teachers.of_size(candidate.size)),
            student=candidate.student,
            teacher_epochs=0,
            teacher_weights="auto",
            prune=candidate.prune,
            precision=precision,
            image_size=candidate.size,
            epochs=self._short_epochs() if short else self.epochs,
            qat="never" if short and self.config.qat == "auto" else qat_for(precision, self.config),
            out=str(self.folder / run),
        )

    def _precision(self, candidate: Candidate) -> str:
        """Of ``best`` float32 alone is left where the table has no other precision of this network nearly as fast."""
        latency = self.table[candidate]["latency"]
        others = [value for precision, value in latency.items() if precision != "fp32"]
        slower = bool(others) and min(others) > SLACK * latency["fp32"]
        return "fp32" if self.config.precision == "best" and slower else self.config.precision

    def _short_epochs(self) -> int:
        return self.own.short_epochs or max(1, self.epochs // 4)

    def _reference_accuracy(self) -> float:
        """Of the teacher at the largest input size: what every candidate is held against."""
        return self.teachers.accuracy_at(max(self.space.sizes))

    def _identity(self) -> dict[str, Any]:
        """What must be the same in every worker and after every stop; the latencies' machine is among it."""
        kept = {key: value for key, value in dataclasses.asdict(self.config).items() if key not in _NOT_COMPARED}
        found = {
            **kept,
            "students": self.space.students,
            "prunes": self.space.prunes,
            "sizes": self.space.sizes,
            "epochs": self.epochs,
            "short epochs": self._short_epochs(),
            WIDTHS: self.config.round_to,
            "data digest": self.data.digest,
            "machine": machine_parts(self.config),
            "machine (or its software)": machine_key(self.config),
        }
        found |= reading_of(self.config.objective)
        found |= RULE if self.config.lr is None else {}
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain


def _points(study: Study) -> list[Point]:
    return [Point(**point) for result in study.results() for point in result["points"]]


def _first(refused: dict[str, str]) -> str:
    name, why = next(iter(refused.items()))
    return f"{name}: {why}"


def _default_folder(config: RunConfig) -> Path:
    return Path("runs") / f"search-{dataclasses.replace(config, student='any').folder.name.replace('-any-', '-')}"


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}
