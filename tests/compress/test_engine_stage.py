"""The pipeline's engine stage, whole runs of it; TensorRT is a double (``tests/engine_doubles.py``)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from engine_doubles import Workshop
from engine_runs import NAMES, Told, go_on

from iekd.compress import pipeline
from iekd.compress.targets import TARGETS
from iekd.deploy.device.engine_cache import Machine, Manifest
from iekd.deploy.device.errors import BuildError, OutOfMemoryError
from iekd.deploy.report import read_report
from iekd.errors import EnvironmentMissingError, InputError
from iekd.files import sha256_of

pytest.importorskip("onnxconverter_common", reason="needs the extra `quantize`")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Workshop, Told]:
    """A finished run in every precision but fp8, whose library is not among the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        folder, shop = tmp_path_factory.mktemp("engines") / "run", Workshop()
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("engine cache")))
        patch.delitem(TARGETS["tensorrt"].schemes, "fp8")  # type: ignore[arg-type]
        shop.install(patch)
        told = go_on(folder)
    return folder, shop, told


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    workshop = Workshop()
    workshop.install(monkeypatch)
    monkeypatch.delitem(TARGETS["tensorrt"].schemes, "fp8")  # type: ignore[arg-type]
    return workshop


def copied(made: tuple[Path, Workshop, Told], tmp_path: Path, *, until: str | None = None) -> Path:
    """The finished run, without what ``until`` and later stages wrote down."""
    folder = tmp_path / "run"
    shutil.copytree(made[0], folder)
    if until:
        state = json.loads((folder / "run.json").read_text())
        names = list(state["stages"])
        for name in names[names.index(until) :]:
            del state["stages"][name]
        (folder / "run.json").write_text(json.dumps(state))
    return folder


def test_every_file_that_is_measured_has_its_engine_in_the_run(made: tuple[Path, Workshop, Told]) -> None:
    folder, shop, _ = made
    assert set(shop.built) == NAMES
    assert len(shop.built) == len(NAMES), "each is built once, and export builds none"
    for name in NAMES:
        engine = folder / "engines" / f"{name}.engine"
        assert Manifest.read(engine).engine_sha256 == sha256_of(engine)
        assert json.loads(engine.with_suffix(".layers.json").read_text())["Layers"]
        assert f"[W] looking at {name}.onnx" in engine.with_suffix(".log").read_text()
    report = read_report(folder / "report.json")
    assert [stage.name for stage in report.stages] == [
        *("plan", "teacher", "distill", "export", "quantize", "engines", "benchmark")
    ]


def test_what_is_measured_is_what_is_taken_away(made: tuple[Path, Workshop, Told]) -> None:
    folder, shop, _ = made
    assert {path.parent for path in shop.opened} == {folder / "engines"}
    assert {path.stem for path in shop.opened} == NAMES


def test_progress_is_told_file_by_file(made: tuple[Path, Workshop, Told]) -> None:
    steps, total = made[2].steps, made[2].total
    assert total == 100 * len(NAMES)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == total
    assert (50, "teacher: Tactics") in steps
    assert (150, "student: Tactics") in steps


def test_the_report_names_the_engine_that_ships_and_what_it_consists_of(made: tuple[Path, Workshop, Told]) -> None:
    folder, _, _ = made
    report = read_report(folder / "report.json")
    for model in (report.teacher, report.student, *report.variants):
        assert model.engine
        assert model.engine.sha256 == sha256_of(folder / model.engine.file)
        assert (model.engine.layers, model.engine.reformats) == (2, 1)
        assert model.engine.precisions == {"fp16": 1, "fp32": 1}
        assert model.engine.tensorrt == "10.3.0"
        assert (model.engine.agreement is not None) == (model.precision == "fp32")
    assert report.student.engine
    assert report.student.engine.file == f"engines/{Path(report.student.file).stem}.engine"
    assert report.teacher.engine
    assert report.teacher.engine.agreement
    assert report.teacher.engine.agreement.top1_agreement == 1
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"{report.student.engine.sha256}  {report.student.engine.file}" in page
    assert "2 layers (1 fp16, 1 fp32), reformats: 1" in page


def test_a_finished_run_builds_nothing_even_under_another_tensorrt(
    made: tuple[Path, Workshop, Told], shop: Workshop, tmp_path: Path
) -> None:
    folder = copied(made, tmp_path)
    before = sha256_of(folder / "benchmark")
    shop.update("10.16.1")
    assert go_on(folder).done["engines"]
    assert (shop.built, shop.opened) == ([], [])
    assert sha256_of(folder / "benchmark") == before, "figures stay with the engines that they were measured on"


def test_engines_are_kept_where_the_benchmark_was_stopped(
    made: tuple[Path, Workshop, Told], shop: Workshop, tmp_path: Path
) -> None:
    folder = copied(made, tmp_path, until="benchmark")
    told = go_on(folder)
    assert (told.done["engines"], told.done["benchmark"]) == (True, False)
    assert shop.built == []
    assert {path.parent for path in shop.opened} == {folder / "engines"}


def test_engines_of_another_tensorrt_are_built_again_and_that_is_told(
    made: tuple[Path, Workshop, Told], shop: Workshop, tmp_path: Path
) -> None:
    folder = copied(made, tmp_path, until="benchmark")
    shop.update("10.16.1")
    told = go_on(folder)
    assert set(shop.built) == NAMES
    (note,) = (note for note in told.notes if "built again" in note)
    assert "was built by TensorRT 10.3.0; this is 10.16.1." in note
    report = read_report(folder / "report.json")
    assert report.student.engine
    assert report.student.engine.tensorrt == "10.16.1"
    log = (folder / "engines" / "student.log").read_text()
    assert log.count("[W] looking at student.onnx") == 2, "what was said of the former engine stays"


def test_an_engine_that_was_deleted_is_made_again_and_measured(
    made: tuple[Path, Workshop, Told], shop: Workshop, tmp_path: Path
) -> None:
    folder = copied(made, tmp_path)
    (folder / "engines" / "student.engine").unlink()
    told = go_on(folder)
    assert (told.done["engines"], told.done["benchmark"]) == (False, False)
    assert (folder / "engines" / "student.engine").is_file()


def without_the_stage(folder: Path) -> None:
    """As a version left the run that had no such stage."""
    state = json.loads((folder / "run.json").read_text())
    del state["stages"]["engines"]
    (folder / "run.json").write_text(json.dumps(state))
    shutil.rmtree(folder / "engines")


def test_a_run_that_was_measured_before_there_was_the_stage_stays_as_it_is(
    made: tuple[Path, Workshop, Told], shop: Workshop, tmp_path: Path
) -> None:
    folder = copied(made, tmp_path)
    without_the_stage(folder)
    assert go_on(folder).done["benchmark"]
    assert (shop.built, shop.opened) == ([], [])
    report = read_report(folder / "report.json")
    assert [model.engine for model in (report.teacher, report.student)] == [None, None]
    assert 'id="engines"' not in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("benchmark", ["absent", "stale"])
def test_a_run_begun_before_there_was_the_stage_goes_on_with_it(
    made: tuple[Path, Workshop, Told], shop: Workshop, tmp_path: Path, benchmark: str
) -> None:
    folder = copied(made, tmp_path, until="benchmark" if benchmark == "absent" else None)
    without_the_stage(folder)
    shutil.rmtree(folder / "benchmark")
    told = go_on(folder)
    assert (told.done["engines"], told.done["benchmark"]) == (False, False)
    names = [stage.name for stage in read_report(folder / "report.json").stages]
    assert names[-2:] == ["engines", "benchmark"]
    assert go_on(folder).done["benchmark"]


def left_out(folder: Path, told: Told, refused: Exception) -> None:
    """Assert that int8 is not in the run, and that it says why."""
    report = read_report(folder / "report.json")
    assert "int8" not in {model.precision for model in (report.student, *report.variants)}
    assert any(note.startswith(f"student-int8 is left out: {refused}") for note in told.notes)
    assert any(note.startswith(f"Not measured and not shipped, student-int8: {refused}") for note in report.notes)
    assert not (folder / "engines" / "student-int8.engine").exists()
    assert "[W] looking at student-int8.onnx" in (folder / "engines" / "student-int8.log").read_text()


def test_a_precision_that_is_refused_is_left_out_and_told(
    made: tuple[Path, Workshop, Told], shop: Workshop, tmp_path: Path
) -> None:
    refused = OutOfMemoryError("the memory did not suffice.", "Give --workspace.")
    shop.refuse = {"student-int8": refused}
    folder = copied(made, tmp_path, until="engines")
    left_out(folder, go_on(folder), refused)
    assert set(shop.built) == NAMES - {"student-int8"}
    assert go_on(folder).done["engines"], "it is not tried at every start"


def test_so_is_one_that_was_asked_for_by_name(shop: Workshop, tmp_path: Path) -> None:
    refused = BuildError("TensorRT refuses the node conv (Conv).")
    shop.refuse = {"student-int8": refused}
    left_out(tmp_path / "run", go_on(tmp_path / "run", precision="int8"), refused)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_without_a_float32_engine_there_is_nothing_to_measure(
    made: tuple[Path, Workshop, Told], shop: Workshop, tmp_path: Path, role: str
) -> None:
    shop.refuse = {role: OutOfMemoryError("the memory did not suffice.")}
    folder = copied(made, tmp_path, until="engines")
    with pytest.raises(EnvironmentMissingError, match="did not suffice"):
        go_on(folder)
    log = (folder / "engines" / f"{role}.log").read_text()
    assert log.count(f"[W] looking at {role}.onnx") == 2, "of both attempts"
    shop.refuse = {}
    told = go_on(folder)
    assert (told.done["quantize"], told.done["engines"]) == (True, False), "nothing before it was lost"


def test_a_gpu_without_a_precision_is_not_asked_for_it(
    made: tuple[Path, Workshop, Told], shop: Workshop, tmp_path: Path
) -> None:
    folder = copied(made, tmp_path, until="quantize")
    shutil.rmtree(folder / "variants")
    shop.machine = Machine("10.3.0", "T4", "7.5", "a driver", "Linux x86_64")
    go_on(folder)
    assert set(shop.built) == NAMES - {"student-bf16"}
    assert not (folder / "variants" / "student-bf16.onnx").exists(), "nor is the file made"
    report = read_report(folder / "report.json")
    assert "Not shipped in bf16: bf16 needs a GPU of SM 8.0 or later; this one has 7.5." in report.notes


def test_a_precision_by_name_that_the_gpu_lacks_is_refused_before_it_trains(shop: Workshop, tmp_path: Path) -> None:
    shop.machine = Machine("10.3.0", "T4", "7.5", "a driver", "Linux x86_64")
    with pytest.raises(InputError, match=r"bf16 needs a GPU of SM 8\.0 or later"):
        go_on(tmp_path / "run", precision="bf16")
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_where_the_gpu_lacks_a_precision_leaves_it_out(
    made: tuple[Path, Workshop, Told], shop: Workshop, tmp_path: Path
) -> None:
    folder = copied(made, tmp_path, until="benchmark")
    shop.machine = Machine("10.3.0", "T4", "7.5", "a driver", "Linux x86_64")
    told = go_on(folder)
    assert any("was built for Orin (SM 8.7); this is T4 (SM 7.5)." in note for note in told.notes)
    assert any(note.startswith("student-bf16 is left out: bf16 needs a GPU of SM 8.0") for note in told.notes)
    assert not (folder / "engines" / "student-bf16.engine").exists(), "the other GPU's must not lie there"


def test_what_pruning_gained_is_measured_on_engines_where_there_is_one(shop: Workshop, tmp_path: Path) -> None:
    pruned = {"student": "tiny_networks:wide", "prune": 0.5, "prune_steps": 1, "prune_epochs": 1}
    go_on(tmp_path / "run", precision="fp32", **pruned)
    assert (tmp_path / "run" / "engines" / "unpruned.engine").is_file()
    report = read_report(tmp_path / "run" / "report.json")
    assert any(note.startswith("Pruning, both in fp32") for note in report.notes)


def test_the_stage_comes_between_the_files_and_their_measuring() -> None:
    at = pipeline.STAGES.index("engines")
    assert pipeline.STAGES[at - 1 : at + 2] == ("quantize", "engines", "benchmark")


def test_a_run_that_cannot_build_says_so_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentMissingError, match="TensorRT cannot be imported"):
        go_on(tmp_path / "run", precision="fp32")
    assert not (tmp_path / "run").exists()
