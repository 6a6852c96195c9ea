from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from iekd.compress.config import RunConfig
from iekd.compress.config_input import make_config
from iekd.compress.observer import Observer
from iekd.compress.run_folder import RunFolder
from iekd.compress.searching.storage import open_storage
from iekd.errors import InputError, RunFolderError


class Seen(Observer):
    def __init__(self) -> None:
        self.reused: list[str] = []
        self.done: list[str] = []

    def stage_finished(self, name: str, seconds: float, note: str, reused: bool) -> None:
        (self.reused if reused else self.done).append(name)


def config(folder: Path, **changes: Any) -> RunConfig:
    return make_config({"teacher": "resnet18", "student": "mobilenet", "out": str(folder), **changes})


def opened(folder: Path, observer: Observer | None = None, data: str = "d", **changes: Any) -> Any:
    return RunFolder.open(config(folder, **changes), {"data": data}, observer or Observer(), Accelerator(cpu=True))


def write(path: Path, text: str) -> dict[str, Any]:
    path.write_text(text)
    return {"note": text}


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    seen = Seen()
    for text in ("first", "second"):
        with opened(tmp_path / "run", seen) as folder:
            result = folder.stage("a", ["a.txt"], lambda text=text: write(folder.path / "a.txt", text))
        assert result == {"note": "first"}
    assert (seen.done, seen.reused) == (["a"], ["a"])


def test_a_changed_output_is_made_again_and_what_followed_with_it(tmp_path: Path) -> None:
    seen = Seen()
    for _ in range(2):
        with opened(tmp_path / "run", seen) as folder:
            for name in ("a", "b"):
                folder.stage(name, [f"{name}.txt"], lambda name=name: write(folder.path / f"{name}.txt", name))
            (folder.path / "a.txt").write_text("tampered")
    assert (seen.done, seen.reused) == (["a", "b", "a", "b"], [])


def test_a_file_of_the_users_own_in_an_artefact_is_told_before_the_artefact_is_made_again(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as folder:
        folder.stage("teacher", [], dict)
        folder.stage("distill", [], dict)
    (tmp_path / "run" / "student").mkdir()
    (tmp_path / "run" / "student" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"student holds 'notes\.txt'"), opened(tmp_path / "run"):
        pass
    (tmp_path / "run" / "student" / "notes.txt").unlink()
    with opened(tmp_path / "run") as folder:
        assert folder.stands("distill")


def test_a_stage_that_fails_leaves_no_entry(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), opened(tmp_path / "run") as folder:
        folder.stage("a", [], fail)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stages"] == {}


def test_two_runs_cannot_write_to_one_folder(tmp_path: Path) -> None:
    with (
        opened(tmp_path / "run"),
        pytest.raises(RunFolderError, match="another run is writing"),
        opened(tmp_path / "run"),
    ):
        pass
    with opened(tmp_path / "run"):
        pass


def test_another_configuration_is_refused_and_named(tmp_path: Path) -> None:
    with opened(tmp_path / "run", epochs=3) as folder:
        folder.stage("teacher", [], dict)
    with pytest.raises(RunFolderError, match="--epochs was 3 and is 4"), opened(tmp_path / "run", epochs=4):
        pass


def test_a_setting_that_is_newer_than_the_run_counts_as_its_default(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as folder:
        folder.stage("export", [], dict)
    file = tmp_path / "run" / "run.json"
    state = json.loads(file.read_text())
    del state["config"]["max_drop"]
    file.write_text(json.dumps(state))
    with pytest.raises(RunFolderError, match=r"--max-drop was None and is 0\.02"):
        opened(tmp_path / "run", max_drop=0.02).__enter__()
    with opened(tmp_path / "run"):
        pass


def test_a_default_that_an_earlier_version_wrote_is_still_the_default(tmp_path: Path) -> None:
    with opened(tmp_path / "run", max_drop=0.01) as folder:
        folder.stage("export", [], dict)
    with opened(tmp_path / "run"):
        pass
    with pytest.raises(RunFolderError, match=r"--max-drop was None and is 0\.01"):
        opened(tmp_path / "run", max_drop=0.01).__enter__()


def test_a_run_that_made_nothing_gives_way_to_a_corrected_command(tmp_path: Path) -> None:
    with opened(tmp_path / "run", epochs=3) as folder:
        folder.stage("plan", [], dict)
    with opened(tmp_path / "run", epochs=4) as folder:
        assert folder.stages() == {}


def test_limits_may_change(tmp_path: Path) -> None:
    with opened(tmp_path / "run", min_retained=0.9) as folder:
        folder.stage("teacher", [], dict)
    with opened(tmp_path / "run", min_retained=0.95, max_latency="2ms"):
        pass


def test_other_data_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as folder:
        folder.stage("teacher", [], dict)
    with pytest.raises(RunFolderError, match="other data"), opened(tmp_path / "run", data="changed"):
        pass


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "run"):
        pass
    file = tmp_path / "run" / "run.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, "format": 99, "iekd_version": "9.0"}))
    with pytest.raises(RunFolderError, match=r"newer iekd-compress \(9\.0\)"), opened(tmp_path / "run"):
        pass
    assert json.loads(file.read_text())["format"] == 99


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stages": {}}'])
def test_a_damaged_state_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match="damaged"), opened(tmp_path / "run"):
        pass


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match=r"thesis\.tex"), opened(tmp_path):
        pass


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="is a file"), opened(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_made_or_written_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot create .*: file name too long"), opened(tmp_path / ("run" * 100)):
        pass
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path / "run")  # root may write everywhere
    with pytest.raises(RunFolderError, match=r"no permission to write in .*run"), opened(tmp_path / "run"):
        pass
    pytest.importorskip("optuna", reason="needs the extra `search`")
    with pytest.raises(RunFolderError, match=r"no permission to write in .*run"):
        open_storage(None, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
