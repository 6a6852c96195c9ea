"""The main command is one run, or under --max-latency a search among what --student stands for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small import as_flags, search_settings
from typer.testing import CliRunner

from iekd.compress import cli
from iekd.compress.config import RunConfig
from iekd.compress.searching.space import parse_students
from iekd.compress.which_job import students_to_search
from iekd.errors import InputError, RunFolderError

GIVEN = {"teacher": "resnet50", "student": "mobilenet", "max_latency": "1.5ms", "min_retained": 0.99}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"min_retained": None},
        {"student": "mobilenetv3"},
        {"student": "resnet18,lcnet_050"},
        {"student": "mobilenetv3_small_*"},
        {"target": "openvino", "objective": "kd"},
    ],
)
def test_several_students_under_a_latency_are_searched(changes: dict[str, Any]) -> None:
    given = {**GIVEN, **changes}
    assert students_to_search(given) == parse_students(given["student"])


@pytest.mark.parametrize(
    "changes",
    [
        {"max_latency": None},
        {"student": None},
        {"student": "mobilenetv2_100"},
        {"student": "resnet18"},  # a short name of one width
        {"student": "tiny_networks:student"},
        {"target": "jetson-orin"},
        {"objective": "dml"},
        {"target": "cpuu"},  # for the run to refuse
    ],
)
def test_everything_else_is_one_run(changes: dict[str, Any]) -> None:
    assert students_to_search({**GIVEN, **changes}) == ()


def test_an_artefact_is_one_network_whatever_its_folder_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "a,b*"
    folder.mkdir()
    (folder / "model.json").touch()
    assert students_to_search({**GIVEN, "student": str(folder)}) == ()


def test_a_run_that_was_begun_without_the_limit_is_judged_by_it(tmp_path: Path) -> None:
    """A short name was one network then, and only --max-latency may change in its folder."""
    assert students_to_search({**GIVEN, "out": str(tmp_path)})
    (tmp_path / "run.json").write_text("{}")
    assert students_to_search({**GIVEN, "out": str(tmp_path)}) == ()


def test_a_search_does_not_write_into_a_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunFolderError, match="holds a run, and no search"):
        main(["search", *as_flags(search_settings(tmp_path, max_latency="1us"))])
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_several_processes_train_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert students_to_search(GIVEN) == ()


def test_an_unknown_student_is_told() -> None:
    with pytest.raises(InputError, match="unknown model 'mobilnet'"):
        students_to_search({**GIVEN, "student": "mobilnet"})


def main(flags: list[str]) -> Any:
    """The main command, in this process."""
    return CliRunner().invoke(cli.app, flags, catch_exceptions=False, env={"COLUMNS": "80"})


@pytest.mark.parametrize(("kept", "status"), [(True, 0), (False, 1)])
def test_the_main_command_says_that_it_searches_and_ends_as_a_search(
    kept: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def search(given: dict[str, Any], own: Any, _: Any) -> Any:
        asked.append((given, own.trials))
        return SimpleNamespace(kept=kept, front=[], sentence="That is it.")

    monkeypatch.setattr("iekd.compress.search.search", search)
    answer = main(as_flags(GIVEN))
    assert answer.exit_code == status, answer.output
    assert asked == [(GIVEN, 12)]
    assert answer.output.splitlines()[0] == (
        "--student mobilenet stands for 13 networks: searching them, as `iekd-compress search` does; "
        "name one, such as mobilenetv2_100, to train that alone."
    )


def test_the_main_command_keeps_its_own_limit_on_accuracy_when_it_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(cli, "run_search", lambda _, given: asked.append(given["min_retained"]) or 0)
    for limit in (None, 0.5):
        assert main(as_flags({**GIVEN, "min_retained": limit})).exit_code == 0
    assert asked == [RunConfig.min_retained, 0.5]


@pytest.mark.parametrize("changes", [{"max_latency": None}, {"student": "mobilenetv2_100"}])
def test_the_main_command_trains_what_is_one_network(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def run_stages(config: RunConfig, *_: Any, **__: Any) -> Any:
        trained.append(config.student)
        raise InputError("enough of it")

    monkeypatch.setattr("iekd.compress.pipeline.run_stages", run_stages)
    given = {**GIVEN, **changes}
    with pytest.raises(InputError, match="enough of it"):
        main(as_flags(given))
    assert trained == [given["student"]]


def test_the_whole_of_it(tmp_path: Path) -> None:
    """A limit that nothing meets: the main command measures the candidates, trains none, and ends with 1."""
    pytest.importorskip("optuna", reason="needs the extra `search`")
    given = search_settings(tmp_path / "study", max_latency="1us", prune=0.0, image_size=16)
    answer = main(as_flags(given))
    assert answer.exit_code == 1, answer.output
    assert "stands for 2 networks" in answer.output
    assert "MISSED" in answer.output
    assert (tmp_path / "study" / "search.html").is_file()


def test_what_a_search_cannot_take_is_refused() -> None:
    with pytest.raises(InputError, match="--epochs 0"):
        main(as_flags({**GIVEN, "epochs": 0}))
