"""Workers on one search: none trains what another does, none judges before all are done, none waits for the dead."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from processes import forking
from small import PROGRAM, as_flags, command, environment_of, search_settings

from iekd.compress.searching import study as studies
from iekd.compress.searching import workers
from iekd.compress.searching.space import Candidate, Space
from iekd.compress.searching.storage import open_storage
from iekd.compress.searching.study import Study
from iekd.compress.searching.workers import Watch, this_worker

pytest.importorskip("optuna", reason="needs the extra `search`")
SPACE = Space(("a", "b"), (0.0, 0.5), (16,))
FIRST, *_, LAST = SPACE.candidates()
DONE: Any = ({"points": []}, (0.5, 1.0))


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "POLL", 0.02)


def open_study(folder: Path, note: Any = lambda _: None) -> Study:
    return Study("s", open_storage(None, folder), SPACE, {}, seed=0, note=note)


def _hold_last(folder: str) -> None:
    def work(_: Candidate) -> Any:
        (Path(folder) / "held").touch()
        until(Path(folder) / "go")
        return DONE

    open_study(Path(folder)).complete([LAST], work)


def until(file: Path) -> None:
    end = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end, f"no {file}"
        time.sleep(0.02)


@pytest.mark.parametrize("way", ["explore", "complete"])
def test_a_worker_that_runs_out_waits_for_the_others(tmp_path: Path, way: str) -> None:
    """The other process ends its trial only when it is told that it is waited for."""
    other = forking().Process(target=_hold_last, args=(str(tmp_path),))
    other.start()
    until(tmp_path / "held")
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        (tmp_path / "go").touch()

    study = open_study(tmp_path, note)
    if way == "explore":
        study.explore(SPACE.candidates(), 4, lambda _: DONE)
    else:
        study.complete(SPACE.candidates(), lambda _: DONE)
    assert len(study.results()) == 4
    worker = f"{this_worker().rpartition(':')[0]}:{other.pid}"
    assert notes == [f"Waiting for what other workers train: {LAST.name} ({worker})."]
    other.join()
    assert other.exitcode == 0


def overtaken(folder: Path, monkeypatch: pytest.MonkeyPatch, own: Candidate) -> Any:
    """A study whose worker looks at what is taken, and before it asks for ``own`` another one has asked for FIRST."""
    rival = open_study(folder)
    held: list[Any] = []
    study = open_study(folder, lambda _: rival._finish(held.pop(), "COMPLETE", (0.5, 1.0), result='{"points": []}'))
    ask = study._ask

    def late(wanted: Candidate | None = None) -> Any:
        if not rival.taken():
            held.append(rival._ask(FIRST)[0])
        return ask(wanted or own)

    monkeypatch.setattr(study, "_ask", late)
    return study


@pytest.mark.parametrize("way", ["explore", "complete"])
def test_who_asked_first_keeps_the_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    study = overtaken(tmp_path, monkeypatch, FIRST)
    trained: list[Candidate] = []

    def work(candidate: Candidate) -> Any:
        trained.append(candidate)
        return DONE

    if way == "explore":
        study.explore([FIRST], 4, work)
    else:
        study.complete([FIRST], work)
    assert trained == []
    assert len(study.results()) == 1


def test_workers_together_keep_to_the_number_of_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = overtaken(tmp_path, monkeypatch, LAST)
    study.explore(SPACE.candidates(), 1, lambda _: DONE)
    assert study.taken() == {FIRST}


def test_who_does_not_know_its_candidate_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rival, study = open_study(tmp_path), open_study(tmp_path)
    early = rival._study.ask()
    early.set_user_attr("worker", rival.worker)
    trial, candidate = study._ask(FIRST)

    def decide(_: float) -> None:
        for name, choices in (("student", SPACE.students), ("prune", SPACE.prunes), ("size", SPACE.sizes)):
            early.suggest_categorical(name, choices)

    monkeypatch.setattr(studies.time, "sleep", decide)
    assert study._before(trial) == {Candidate(**early.params)}
    assert candidate == FIRST


def test_a_worker_that_died_elsewhere_is_not_waited_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SILENCE", 0.2)
    study, dead = open_study(tmp_path), open_study(tmp_path)
    dead.worker = "elsewhere:1"
    dead._ask(FIRST)
    trained: list[Candidate] = []

    def work(candidate: Candidate) -> Any:
        trained.append(candidate)
        return DONE

    study.explore([FIRST], 1, work)
    assert trained == [FIRST]


def test_a_sign_of_life_counts_and_silence_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(workers.time, "monotonic", lambda: now)
    watch, trial = Watch(), SimpleNamespace(number=3, user_attrs={"worker": "elsewhere:1"})
    assert not watch.is_abandoned(trial)
    now = workers.SILENCE
    trial.user_attrs["sign"] = 1
    assert not watch.is_abandoned(trial)
    now = 2 * workers.SILENCE
    assert not watch.is_abandoned(trial)
    now += 1
    assert watch.is_abandoned(trial)
    host = this_worker().rpartition(":")[0]
    assert watch.is_abandoned(SimpleNamespace(number=4, user_attrs={"worker": f"{host}:99999999"}))
    assert not watch.is_abandoned(SimpleNamespace(number=5, user_attrs={"worker": this_worker()}))


def test_work_shows_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "BEAT", 0.01)
    study = open_study(tmp_path)
    seen = 0

    def work(_: Candidate) -> Any:
        nonlocal seen
        end = time.monotonic() + 30
        while seen < 2 and time.monotonic() < end:
            seen = study._trials("RUNNING")[0].user_attrs.get("sign", 0)
        return DONE

    study.complete([FIRST], work)
    assert seen >= 2


def test_a_worker_that_was_taken_for_dead_loses_nothing(tmp_path: Path) -> None:
    study, other = open_study(tmp_path), open_study(tmp_path)
    asked = 0

    def work(_: Candidate) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            other._finish(other._trials("RUNNING")[0].number, "FAIL")
        return DONE

    study.complete([FIRST], work)
    assert asked == 2  # the second time its run folder is finished
    assert len(study.results()) == 1


def test_what_this_process_left_behind_is_free(tmp_path: Path) -> None:
    """Of an interrupted call in a notebook, or of a container that starts anew with the same process number."""
    open_study(tmp_path)._ask(FIRST)
    assert open_study(tmp_path).taken() == set()
    living = open_study(tmp_path)
    living.worker = f"{living.worker.rpartition(':')[0]}:{os.getppid()}"
    living._ask(FIRST)
    assert open_study(tmp_path).taken() == {FIRST}


@pytest.mark.slow
def test_two_commands_share_one_search_and_agree(tmp_path: Path) -> None:
    flags = as_flags(search_settings(tmp_path / "study", min_retained=0.01))
    flags += ["--prunes", "0", "--sizes", "16", "--trials", "2", "--short-epochs", "1", "--winners", "1"]
    paths = {"PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parents[2] / 'src'}"}
    environment = environment_of(**paths)
    both = [
        subprocess.Popen([*PROGRAM, "search", *flags], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=400)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0].splitlines()[-1] == said[1].splitlines()[-1]
    outcome = json.loads((tmp_path / "study" / "search.json").read_text())
    for phase, count in (("short", 2), ("full", 1)):
        assert len(list((tmp_path / "study" / phase).iterdir())) == count
    again = command("search", *flags, **paths)
    assert again.returncode == 0
    assert json.loads((tmp_path / "study" / "search.json").read_text()) == outcome
