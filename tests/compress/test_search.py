"""The search, whole, on tiny networks and real digits; and its parts by themselves."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import tiny_networks
import torch
from processes import forking
from small import as_flags
from small import search_settings as tiny
from typer.testing import CliRunner

from iekd.compress import search as search_module
from iekd.compress.cli import app
from iekd.compress.config import RunConfig
from iekd.compress.config_input import make_config
from iekd.compress.learning_rate import RULE
from iekd.compress.observer import Observer
from iekd.compress.precisions import require_quantizers
from iekd.compress.search import limits_of, search
from iekd.compress.searching import latency_table, teachers
from iekd.compress.searching.latency_table import LatencyTable
from iekd.compress.searching.outcome import Limits, Point, judge, pareto_front, promising
from iekd.compress.searching.settings import SearchSettings
from iekd.compress.searching.space import Candidate, Space, parse_shares, parse_sizes, parse_students
from iekd.compress.searching.start import spread_out
from iekd.compress.searching.storage import open_storage
from iekd.compress.searching.study import WIDTHS, Study
from iekd.deploy import fingerprint, machine
from iekd.deploy.results import Interval
from iekd.errors import InputError, RunFolderError
from iekd.models.registry import count_macs

pytest.importorskip("optuna", reason="needs the extra `search`")
OWN = SearchSettings(prunes="0", sizes="16", trials=2, short_epochs=1, winners=1)
SPACE = Space(("a", "b"), (0.0, 0.5), (16,))


def point(retained: float, latency: float, student: str = "a", phase: Any = "short", precision: str = "fp32") -> Point:
    return Point(
        student=student,
        prune=0.0,
        size=16,
        precision=precision,
        phase=phase,
        retained=retained,
        accuracy=Interval(value=retained, low=retained, high=retained),
        latency=Interval(value=latency, low=latency, high=latency),
        run="short/a",
        file="student.onnx",
        host="here",
    )


class Watch(Observer):
    """Counts runs, and interrupts the second one after its student's first epoch where asked, as Ctrl-C does."""

    def __init__(self, stop: bool = False) -> None:
        self.stop, self.trained, self.reused = stop, 0, 0

    def epoch_finished(self, name: str, epoch: int, figures: dict[str, float]) -> None:
        if name == "student":
            self.trained += 1
            if self.stop and self.trained == 2:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, Any]:
    """A search that was interrupted in its second trial, gone on with: folder, epochs after the stop, outcome."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    out = tmp_path_factory.mktemp("search") / "study"
    with pytest.raises(KeyboardInterrupt):
        search(tiny(out, min_retained=0.01), OWN, Watch(stop=True))

    def never(*_: Any) -> Any:
        raise AssertionError("measured again")

    patch.setattr(LatencyTable, "_measure", never)  # the table is on disk by now
    watch = Watch()
    outcome = search(tiny(out, min_retained=0.01), OWN, watch)
    patch.undo()
    return out, watch.trained, outcome


def test_every_point_is_a_file_that_ships(searched: tuple[Path, int, Any]) -> None:
    out, _, outcome = searched
    assert outcome.kept
    assert {p.phase for p in outcome.points} == {"short", "full"}
    assert {p.student for p in outcome.points} == {"tiny_networks:student", "tiny_networks:teacher"}
    for found in outcome.points:
        onnxruntime.InferenceSession(str(out / found.run / found.file))
        report = json.loads((out / found.run / "report.json").read_text())
        assert report["student"]["latency"]["median"]["value"] == found.latency.value
        assert found.accuracy.value / outcome.teacher_accuracy == pytest.approx(found.retained)
    assert outcome.chosen in outcome.front
    assert json.loads((out / "search.json").read_text()) == outcome.model_dump()
    page = (out / "search.html").read_text()
    assert "<svg" in page
    assert outcome.chosen.file in page


def test_a_stopped_search_trains_only_what_is_left(searched: tuple[Path, int, Any]) -> None:
    """Of two short recoveries of one epoch both were on disk when it stopped; what is left is the winner's schedule."""
    out, trained, _ = searched
    assert trained == 2
    assert len(list((out / "short").iterdir())) == 2
    assert len(list((out / "teachers").glob("*/teacher"))) == 1


def test_the_teacher_is_asked_once_for_all_runs(searched: tuple[Path, int, Any]) -> None:
    out, _, _ = searched
    shared = out / "teachers" / "16px" / "shared"
    assert sorted(file.stem for file in (shared / "answers").glob("*.safetensors")) == ["view0", "view1"]
    assert len(list((shared / "checkpoints").iterdir())) == 1
    files = [shared / "teacher.onnx", *out.glob("*/*/teacher.onnx")]
    assert len(files) == 4
    assert len({file.read_bytes() for file in files}) == 1


def test_another_search_in_the_same_folder_is_refused(searched: tuple[Path, int, Any]) -> None:
    out, _, _ = searched
    with pytest.raises(InputError, match="was begun with another batch_size: it was 32 and is 16"):
        search(tiny(out, min_retained=0.01, batch_size=16), OWN)


def test_a_latency_that_nothing_meets_trains_nothing(tmp_path: Path) -> None:
    given = tiny(tmp_path / "study", max_latency="0.00001ms")
    outcome = search(given, OWN, Watch())
    assert not outcome.kept
    assert outcome.points == []
    assert outcome.nearest_estimate.latency["fp32"] == min(entry.latency["fp32"] for entry in outcome.too_slow)
    assert "None is fast enough" in outcome.sentence
    assert not (tmp_path / "study" / "teachers").exists()
    assert "too slow" in (tmp_path / "study" / "search.html").read_text()


class BegunError(Exception):
    """A run was about to begin."""


@pytest.mark.parametrize(
    ("students", "refused", "beside"),
    [
        ("flat,student", "", "student"),  # without a feature map there is nothing to tap
        ("wide,student", "wide", "student"),  # as the table has it
        ("student,flat", "", "student"),
    ],
)
def test_the_teacher_is_trained_beside_the_first_student_that_can_be(
    students: str, refused: str, beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(_: LatencyTable, candidate: Candidate) -> dict[str, Any]:
        return {"refused": "no"} if candidate.student.endswith(f":{refused}") else {"latency": {"fp32": 1.0}}

    def begin(config: RunConfig, *_: Any, **__: Any) -> None:
        raise BegunError(config.student)

    monkeypatch.setattr(LatencyTable, "_measure", measure)
    monkeypatch.setattr("iekd.compress.searching.teachers.run_stages", begin)
    named = ",".join(f"tiny_networks:{name}" for name in students.split(","))
    with pytest.raises(BegunError, match=f"tiny_networks:{beside}"):
        search(tiny(tmp_path, student=named, min_retained=0.01), OWN)


def test_where_no_student_can_follow_no_teacher_is_trained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no module whose output is a feature map"):
        search(tiny(tmp_path, student="tiny_networks:flat,tiny_networks:student", tap="9", min_retained=0.01), OWN)
    assert not (tmp_path / "teachers" / "16px").exists()


def invoke(*flags: str) -> Any:
    """The command line, in this process."""
    return CliRunner().invoke(app, ["search", *flags], catch_exceptions=False)


def test_where_nothing_is_fast_enough_the_accurate_side_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table's fastest gets a short recovery and is accurate enough; the other stays an estimate."""

    def measure(_: LatencyTable, candidate: Candidate) -> dict[str, Any]:
        return {"latency": {"fp32": 100.0 if candidate.student == "tiny_networks:student" else 0.00002}}

    monkeypatch.setattr(LatencyTable, "_measure", measure)
    given = as_flags(tiny(tmp_path / "study", max_latency="0.00001ms", min_retained=0.01))
    result = invoke(*given, "--prunes", "0", "--sizes", "16", "--short-epochs", "1")
    assert result.exit_code == 1, result.output
    outcome = json.loads((tmp_path / "study" / "search.json").read_text())
    (trained,) = outcome["points"]
    assert (trained["student"], trained["phase"]) == ("tiny_networks:teacher", "short")
    assert (outcome["nearest_fast"], outcome["nearest_accurate"]) == (None, trained)
    assert [entry["student"] for entry in outcome["too_slow"]] == ["tiny_networks:student"]
    figures = f"tiny_networks:teacher, 16 pixels, fp32, {trained['retained']:.1%} at"
    assert f"None is fast enough; the fastest: {figures}" in result.output
    assert f"The fastest of those that are accurate enough: {figures}" in result.output


def test_where_no_fast_one_is_accurate_the_slow_ones_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many as --winners, the fastest first; the best of them in full, before that side is given up."""
    table = {"tiny_networks:student": 0.01, "tiny_networks:teacher": 300.0}

    def measure(_: LatencyTable, candidate: Candidate) -> dict[str, Any]:
        return {"latency": {"fp32": table[candidate.student] * candidate.size}}

    monkeypatch.setattr(LatencyTable, "_measure", measure)
    slow = {"lr": 1e-5, "min_retained": 2.0}  # else a student of these is soon twice as good as its teacher
    given = as_flags(tiny(tmp_path / "study", max_latency="200ms", **slow))
    result = invoke(
        *given, "--prunes", "0", "--sizes", "16,24", "--trials", "1", "--short-epochs", "1", "--winners", "1"
    )
    assert result.exit_code == 1, result.output
    outcome = json.loads((tmp_path / "study" / "search.json").read_text())
    assert {(p["student"], p["phase"]) for p in outcome["points"]} == {
        ("tiny_networks:student", "full"),
        ("tiny_networks:teacher", "full"),
    }
    assert {p["size"] for p in outcome["points"] if p["student"] == "tiny_networks:teacher"} == {16}
    assert "The most accurate of those that are fast enough: tiny_networks:" in result.output
    assert "None is accurate enough; the most accurate: tiny_networks:" in result.output


def test_the_command_ends_with_1_where_a_limit_cannot_be_met(tmp_path: Path) -> None:
    result = invoke(*as_flags(tiny(tmp_path / "study", max_latency="1us")), "--prunes", "0", "--sizes", "16")
    assert result.exit_code == 1, result.output
    assert "MISSED" in result.output
    assert re.search(
        r"None is fast enough; the fastest: tiny_networks:\w+, 16 pixels, [\d.]+ ms untrained\.", result.output
    )


@pytest.mark.slow
def test_pruned_quantised_and_resized_candidates_are_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is searched, through the whole of it."""
    monkeypatch.setattr("iekd.compress.search.SLACK", math.inf)  # int8 too where this machine is slow or busy
    own = SearchSettings(prunes="0.3", sizes="16,24", trials=2, short_epochs=1, winners=1)
    given = tiny(tmp_path, student="tiny_networks:wide", precision="best", min_retained=0.01, epochs=1)
    outcome = search(given, own)
    assert outcome.kept
    assert {(p.prune, p.size) for p in outcome.points} == {(0.3, 16), (0.3, 24)}
    assert {p.precision for p in outcome.points} == {"fp32", "int8"}
    for found in outcome.points:
        report = json.loads((tmp_path / found.run / "report.json").read_text())
        (model,) = [m for m in (report["student"], *report["variants"]) if m["file"] == found.file]
        assert model["precision"] == found.precision
        assert model["input_shape"] == [3, found.size, found.size]
        session = onnxruntime.InferenceSession(str(tmp_path / found.run / found.file))
        assert session.get_inputs()[0].shape[2:] == [found.size, found.size]
        unpruned = count_macs(tiny_networks.wide(10), found.size)
        assert report["student"]["macs"] <= 0.75 * unpruned
    assert len(list((tmp_path / "teachers").glob("*/teacher"))) == 2


def test_shares_that_round_to_the_same_have_folders_of_their_own() -> None:
    names = [Candidate("a", share, 16).name for share in (0.0, 0.07, 0.3, 0.301, 0.304, 0.3000001)]
    assert names == ["a-p00-16px", "a-p07-16px", "a-p30-16px", "a-p30.1-16px", "a-p30.4-16px", "a-p30.00001-16px"]
    assert Candidate("a", 0.301, 16).title == "a, 30.1% pruned, 16 pixels"


def test_latencies_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tiny(tmp_path, student="any", precision="int8"))
    candidates = [Candidate("tiny_networks:student", 0.0, 16), Candidate("tiny_networks:student", 0.0, 24)]
    first = LatencyTable(config, 10).look_up(candidates[:1])
    assert set(first[candidates[0]]["latency"]) == {"fp32", "int8"}
    measured: list[Candidate] = []

    def measure(_: LatencyTable, candidate: Candidate) -> dict[str, Any]:
        measured.append(candidate)
        return {"refused": "only counted"}

    monkeypatch.setattr(LatencyTable, "_measure", measure)
    assert LatencyTable(config, 10).look_up(candidates)[candidates[0]] == first[candidates[0]]
    assert measured == candidates[1:]
    monkeypatch.setattr(latency_table, "machine_key", lambda _: "another")
    LatencyTable(config, 10).look_up(candidates[:1])
    assert measured == [candidates[1], candidates[0]]


def test_what_a_busy_machine_said_is_told_with_the_way_to_new_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tiny(tmp_path, student="any"))
    entries = [{"latency": {"fp32": 1.0}}, {"latency": {"fp32": 2.0}, "busy": True}]
    monkeypatch.setattr(LatencyTable, "_measure", lambda *_: entries.pop())
    for _ in range(2):
        notes: list[str] = []
        table = LatencyTable(config, 10, notes.append)
        table.look_up([Candidate("tiny_networks:student", 0.0, size) for size in (16, 24)])
        (told,) = notes
        assert told.startswith("1 of 2 latencies")
        assert str(table.path) in told


def test_a_refusal_by_the_clock_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(table: LatencyTable, _: Candidate) -> dict[str, Any]:
        asked.append(table.config.prune_goal)
        return {"refused": "no cut is so fast"}

    monkeypatch.setattr(LatencyTable, "_measure", refuse)
    for goal in ("latency", "latency", "macs", "macs"):
        config = make_config(tiny(tmp_path, student="any", prune_goal=goal))
        LatencyTable(config, 10).look_up([Candidate("tiny_networks:student", 0.5, 16)])
    assert asked == ["latency", "latency", "macs"]


def test_a_machine_s_key_hangs_on_what_it_is_and_not_on_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks of two moments are one machine, another power mode is another."""

    def key(mhz: int, mode: str) -> str:
        for name, said in (("nvidia-smi", f'case $1 in *clocks*) echo "{mhz}, 1980";; *) echo "x";; esac'),
                           ("nvpmodel", f'echo "NV Power Mode: {mode}"')):  # fmt: skip
            (tmp_path / name).write_text(f"#!/bin/sh\n{said}\n")
            (tmp_path / name).chmod(0o755)
        assert f"{mhz} of 1980 MHz" in str(fingerprint.fingerprint(1).gpu_clocks)
        return latency_table.machine_key(config)

    config = make_config(tiny(tmp_path, student="any"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "l4t", lambda _: (36, 4, 3))
    assert key(345, "MAXN") == key(1980, "MAXN")
    assert key(345, "MAXN") != key(345, "15W")


@pytest.mark.parametrize(("latency", "nearest"), [(1.9, "fp32"), (1.0, "fp32"), (0.9, "int8")])
def test_a_slower_precision_is_not_the_nearest_for_lucky_rounding(latency: float, nearest: str) -> None:
    points = [point(0.95, 1.0), point(0.951, latency, precision="int8"), point(0.9, 0.5, "b", precision="int8")]
    config = make_config({"teacher": "t", "student": "s"})
    limits = Limits(max_latency_ms=None, min_retained=0.99)
    found = judge(points, {}, [], [], {}, config=config, limits=limits, teacher_accuracy=0.9)
    assert found.nearest_fast is not None
    assert found.nearest_fast.precision == nearest
    assert f"The most accurate: a, 16 pixels, {nearest}" in found.sentence
    enough = judge(
        points,
        {},
        [],
        [],
        {},
        config=config,
        limits=Limits(max_latency_ms=2.0, min_retained=None),
        teacher_accuracy=0.9,
    )
    assert enough.chosen is not None
    assert enough.chosen.precision == nearest


@pytest.mark.parametrize(
    ("count", "words"), [(0, "Loosen a limit"), (1, "1 candidate that may be"), (2, "2 candidates that may be")]
)
def test_a_miss_tells_of_what_was_not_tried(count: int, words: str) -> None:
    config = make_config({"teacher": "t", "student": "s"})
    left = [Candidate("b", 0.5, 16), Candidate("c", 0.5, 16)][:count]
    table: Any = {one: {"latency": {"fp32": 0.4 + number}} for number, one in enumerate(left)}
    limits = Limits(max_latency_ms=0.5, min_retained=0.5)
    found = judge([point(0.9, 1.0)], table, [], left, {}, config=config, limits=limits, teacher_accuracy=0.9)
    assert words in found.sentence
    assert ("raise --trials" in found.sentence) == bool(left)
    assert len(found.untried) == count
    if left:
        assert found.nearest_estimate == found.untried[0]
        assert "the fastest: b, 50% pruned, 16 pixels, 0.4 ms untrained" in found.sentence


def test_the_front_the_winners_and_the_choice() -> None:
    points = [point(0.9, 1.0), point(0.8, 1.5, "b"), point(0.99, 2.0, "c"), point(1.0, 4.0, "d")]
    assert [p.student for p in pareto_front(points)] == ["a", "c", "d"]
    limits = Limits(max_latency_ms=3.0, min_retained=0.95)
    assert [c.student for c in promising(points, limits, 3)] == ["c", "a"]
    config = make_config({"teacher": "t", "student": "s"})

    def found(limits: Limits, given: list[Point]) -> Any:
        return judge(given, {}, [], [], {}, config=config, limits=limits, teacher_accuracy=0.9)

    assert found(limits, points).chosen.student == "c"
    assert found(Limits(max_latency_ms=1.7, min_retained=None), points).chosen.student == "a"
    assert found(Limits(max_latency_ms=None, min_retained=0.85), points).chosen.student == "a"
    missed = found(Limits(max_latency_ms=1.7, min_retained=0.95), points)
    assert (missed.nearest_fast.student, missed.nearest_accurate.student) == ("a", "c")
    assert "The most accurate of those that are fast enough: a" in missed.sentence
    assert "The fastest of those that are accurate enough: c" in missed.sentence
    neither = found(Limits(max_latency_ms=0.1, min_retained=1.1), points)
    assert neither.sentence.startswith("No file has at most 0.1 ms and at least 110.0% of the teacher's accuracy.")
    assert (
        "None is fast enough; the fastest: a, 16 pixels, fp32, 90.0% at 1 ms after a short recovery."
        in neither.sentence
    )
    assert (
        "None is accurate enough; the most accurate: d, 16 pixels, fp32, 100.0% at 4 ms after a short recovery."
        in neither.sentence
    )
    assert found(Limits(max_latency_ms=None, min_retained=1.1), points).sentence.count("ost accurate") == 1
    assert found(Limits(max_latency_ms=0.1, min_retained=None), points).sentence.count("fastest") == 1
    grown = found(limits, [*points, point(0.97, 1.0, phase="full")])
    assert grown.chosen.student == "a"
    assert len(grown.points) == 4


@pytest.mark.parametrize("limits", [(3.0, 0.95), (3.0, None), (None, 0.95)])
@pytest.mark.parametrize("target", ["cpu", "jetson-orin"])
def test_one_sentence_explains_the_choice(limits: tuple[float | None, float | None], target: str) -> None:
    config = make_config({"teacher": "t", "student": "s", "target": target})
    asked = Limits(max_latency_ms=limits[0], min_retained=limits[1])
    points = [point(0.9, 1.0), point(0.99, 2.0, "c")]
    sentence = judge(points, {}, [], [], {}, config=config, limits=asked, teacher_accuracy=0.9).sentence
    assert re.findall(r"[.!?](?=\s|$)", sentence) == ["."]
    for words in ("c, 16 pixels, fp32", "of 2 measured files", "99.0%", "2 ms"):
        assert words in sentence
    assert ("not on the jetson-orin" in sentence) == (target == "jetson-orin")


def _work(storage: str, folder: str) -> None:
    study = Study("s", open_storage(storage, Path(folder)), SPACE, {"k": 1}, seed=0)
    study.explore(SPACE.candidates(), 4, lambda c: ({"points": [], "name": c.name}, (0.5, 1.0)))


def test_workers_share_a_database(tmp_path: Path) -> None:
    """Two processes, one storage: every candidate is done once, whoever does it."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = Study("s", open_storage(url, tmp_path), SPACE, {"k": 1}, seed=0)
    study.explore(SPACE.candidates(), 1, lambda c: ({"points": [], "name": c.name}, (0.5, 1.0)))
    processes = [forking().Process(target=_work, args=(url, str(tmp_path))) for _ in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert {result["name"] for result in study.results()} == {c.name for c in SPACE.candidates()}
    with pytest.raises(InputError, match="begun with another k"):
        Study("s", open_storage(url, tmp_path), SPACE, {"k": 2}, seed=0)


def test_a_search_that_is_older_than_a_setting_had_its_default(tmp_path: Path) -> None:
    Study("s", open_storage(None, tmp_path), SPACE, {"objective": "kd"}, seed=0)
    Study("s", open_storage(None, tmp_path), SPACE, {"objective": "kd", "task_weight": 1.0}, seed=0)
    with pytest.raises(InputError, match="begun with another task_weight"):
        Study("s", open_storage(None, tmp_path), SPACE, {"objective": "kd", "task_weight": 2.0}, seed=0)


def test_a_search_of_before_the_rate_hung_on_the_steps_is_not_gone_on_with(tmp_path: Path) -> None:
    """Its students trained at 2e-3 whatever the length; beside them those of today look better than they are."""
    Study("s", open_storage(None, tmp_path), SPACE, {"lr": None}, seed=0)
    with pytest.raises(InputError, match="rule for the learning rate: it was the same for all lengths and is by the n"):
        Study("s", open_storage(None, tmp_path), SPACE, {"lr": None, **RULE}, seed=0)


@pytest.mark.parametrize(("target", "was"), [("cpu", 8), ("openvino", 8), ("cuda", 8), ("tensorrt", 16)])
def test_a_search_that_does_not_say_its_multiple_goes_on_with_that_of_then(
    target: str, was: int, tmp_path: Path
) -> None:
    Study("s", open_storage(None, tmp_path), SPACE, {"target": target}, seed=0)
    Study("s", open_storage(None, tmp_path), SPACE, {"target": target, WIDTHS: was}, seed=0)
    with pytest.raises(InputError, match=f"multiple for pruned widths: it was {was} and is {was * 2}"):
        Study("s", open_storage(None, tmp_path), SPACE, {"target": target, WIDTHS: was * 2}, seed=0)


@pytest.mark.parametrize(
    ("changes", "multiple"),
    [({}, 16), ({"prune_round_to": 8}, 8), ({"target": "tensorrt"}, 16), ({"target": "cuda"}, 8)],
)
def test_a_search_names_the_multiple_that_its_widths_have(
    changes: dict[str, Any], multiple: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tiny(tmp_path, student="any", min_retained=0.9, **changes))
    own = search_module._Search(config, Limits(max_latency_ms=None, min_retained=0.9), OWN, SPACE, None, None)
    own.data = SimpleNamespace(digest="")
    monkeypatch.setattr(search_module, "machine_parts", lambda _config: {})
    monkeypatch.setattr(search_module, "machine_key", lambda _config: "")
    assert own._identity()[WIDTHS] == multiple
    assert "prune_round_to" not in own._identity()


@pytest.mark.parametrize(("lr", "names_it"), [(None, True), (1e-3, False)])
def test_a_search_names_the_rule_where_no_rate_is_given(
    lr: float | None, names_it: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def hold(_: Study, __: str, identity: dict[str, Any]) -> None:
        seen.append(identity)

    monkeypatch.setattr(Study, "_hold_identity", hold)
    search(tiny(tmp_path / "study", max_latency="0.00001ms", lr=lr), OWN)
    assert [RULE.items() <= identity.items() for identity in seen] == [names_it, names_it]


def test_what_is_not_worth_training_is_not_trained(tmp_path: Path) -> None:
    study = Study("s", open_storage(None, tmp_path), SPACE, {}, seed=0)
    worth = [Candidate("b", 0.5, 16)]
    trained: list[Candidate] = []

    def work(candidate: Candidate) -> Any:
        trained.append(candidate)
        raise InputError("cannot be had")

    study.explore(worth, 3, work)
    assert trained == worth
    assert study.refused() == {worth[0].name: "cannot be had"}


def test_what_earlier_limits_had_trained_does_not_count_under_others(tmp_path: Path) -> None:
    study = Study("s", open_storage(None, tmp_path), SPACE, {}, seed=0)
    trained: list[Candidate] = []

    def work(candidate: Candidate) -> Any:
        trained.append(candidate)
        return {"points": []}, (0.5, 1.0)

    wide, narrow = SPACE.candidates(), SPACE.candidates()[-1:]
    study.explore(wide, 2, work, wide[:2])
    study.explore(narrow, 1, work)
    assert trained == [*wide[:2], *narrow]
    study.explore(wide, 3, work)
    assert len(trained) == 3, "the three of them are within these limits"


def test_a_journal_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    def work(candidate: Candidate) -> Any:
        return {"points": [], "name": candidate.name}, (0.5, 1.0)

    journal = tmp_path / "study.journal"
    Study("s", open_storage(None, tmp_path), SPACE, {}, seed=0).explore(SPACE.candidates(), 2, work)
    journal.write_bytes(journal.read_bytes()[:-15])
    Study("s", open_storage(None, tmp_path), SPACE, {}, seed=0).explore(SPACE.candidates(), 4, work)
    study = Study("s", open_storage(None, tmp_path), SPACE, {}, seed=0)
    assert {result["name"] for result in study.results()} == {one.name for one in SPACE.candidates()}
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], b"{half\n", *lines[2:]]))
    with pytest.raises(RunFolderError, match=r"study\.journal is damaged.*Delete it"):
        open_storage(None, tmp_path)


def test_a_machine_that_differs_is_told_by_what_differs(tmp_path: Path) -> None:
    def begin(**facts: str) -> None:
        Study("s", open_storage(None, tmp_path), SPACE, {"machine": facts, "key": str(facts)}, seed=0)

    begin(device="a", **{"packages timm": "1.0"})
    with pytest.raises(InputError, match=r"another machine: packages timm was 1\.0 and is 1\.1\."):
        begin(device="a", **{"packages timm": "1.1"})


def test_a_search_begins_with_networks_spread_over_the_latencies(tmp_path: Path) -> None:
    students = ("slow", "fast", "middle", "faster", "slowest")
    space = Space(students, (0.0, 0.5), (16, 32))
    pace = dict(zip(students, (4.0, 2.0, 3.0, 1.0, 5.0), strict=True))
    table = {one: {"latency": {"fp32": 9.0, "int8": pace[one.student] - one.prune}} for one in space.candidates()}
    worth = [one for one in space.candidates() if one != Candidate("slowest", 0.0, 32)]
    first = spread_out(worth, table, 6)
    assert first == [Candidate("faster", 0.0, 32), Candidate("middle", 0.0, 32), Candidate("slowest", 0.0, 16)]
    assert len(spread_out(worth, table, 100)) == 5
    assert spread_out(worth, table, 1) == [Candidate("faster", 0.0, 32)]
    study = Study("s", open_storage(None, tmp_path), space, {}, seed=0)
    trained: list[Candidate] = []

    def work(candidate: Candidate) -> Any:
        trained.append(candidate)
        return {"points": []}, (0.5, 1.0)

    study.explore(worth, 2, work, first)
    study.explore(worth, 5, work, first)
    assert trained[:3] == first
    assert len(set(trained)) == len(trained) == 5


def test_what_a_killed_worker_held_is_free_again(tmp_path: Path) -> None:
    study = Study("s", open_storage(None, tmp_path), SPACE, {}, seed=0)
    study.worker = study.worker.rpartition(":")[0] + ":99999999"
    _, dead = study._ask(Candidate("b", 0.0, 16))
    assert dead in study.taken()
    assert dead not in Study("s", open_storage(None, tmp_path), SPACE, {}, seed=0).taken()


def test_students_are_names_patterns_and_families() -> None:
    assert parse_students("mobilenetv3_small_*,resnet18")[-1] == "resnet18"
    assert "mobilenetv3_small_050" in parse_students("mobilenetv3_small_*")
    family = set(parse_students("mobilenet"))
    assert {"mobilenetv2_100", "mobilenetv4_conv_small"} <= family
    assert {"mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small_050"} <= family
    assert parse_students("mobilenetv3-small") == (
        "mobilenetv3_small_100",
        "mobilenetv3_small_050",
        "mobilenetv3_small_075",
    )
    assert parse_students("mobilenetv2_100") == ("mobilenetv2_100",)
    assert len(parse_students(None)) == len(set(parse_students(None))) > 5
    assert parse_shares("0,0.5") == (0.0, 0.5)
    assert parse_sizes("64, 32") == (64, 32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: limits_of({"teacher": "resnet18"}), "no limit given"),
        (lambda: limits_of({"teacher": "resnet18", "max_latency": "soon"}), "is not a duration"),
        (lambda: limits_of({"min_retained": 0.9}), "no teacher given"),
        (lambda: parse_students("mobilenett"), "unknown model 'mobilenett'"),
        (lambda: parse_students("mobilenetv9_*"), "no timm model matches"),
        (lambda: parse_students(","), "names no student"),
        (lambda: parse_shares("0,1"), "is not a list of shares"),
        (lambda: parse_sizes("4"), "is not a list of input sizes"),
        (lambda: search(tiny(Path("x"), min_retained=0.9, prune=0.5), OWN), "both --prune and --prunes"),
        (lambda: search(tiny(Path("x"), min_retained=0.9, objective="dml"), OWN), "no teacher can be shared"),
        (lambda: search(tiny(Path("x"), min_retained=0.9), SearchSettings(trials=0)), "--trials 0"),
        (
            lambda: search(tiny(Path("x"), min_retained=0.9, max_latency="2ms", target="jetson-orin"), OWN),
            "--max-latency cannot be judged here: what runs on a jetson-orin is measured there.  Give --min-retained",
        ),
        (lambda: open_storage("nonsense", Path("x")), "--storage"),
    ],
)
def test_bad_input_is_told_in_a_line(call: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_of_torchrun_do_not_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="not spread over the processes of torchrun"):
        search(tiny(tmp_path / "run", min_retained=0.9), OWN)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("qat", "precision", "phase", "trained"),
    [
        ("always", "fp32", "full", "never"),
        ("always", "int8", "short", "always"),
        ("auto", "int8", "short", "never"),
        ("auto", "fp32", "full", "auto"),
        ("never", "int8", "full", "never"),
    ],
)
def test_int8_is_trained_for_where_it_is_made(
    qat: str, precision: str, phase: Any, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--qat always`` is refused by a run that makes no int8, as the teacher's is and one that float32 is left to."""
    config = make_config(tiny(tmp_path, student="any", min_retained=0.9, precision="best", qat=qat))
    own = search_module._Search(config, Limits(max_latency_ms=None, min_retained=0.9), OWN, SPACE, None, None)
    own.teachers = teachers.Teachers(config, SimpleNamespace(classes="ab"), ["a"], Observer())
    monkeypatch.setattr(own.teachers, "of_size", lambda _size: tmp_path)
    monkeypatch.setattr(own, "_precision", lambda _candidate: precision)
    assert own._run_config(Candidate("a", 0.0, 16), "short/a", phase).qat == trained
    monkeypatch.setattr(teachers, "make_plan", lambda *_: None)
    monkeypatch.setattr(teachers, "rehearse", lambda config, *_: require_quantizers(config))
    assert own.teachers.config_of(16).precision == "fp32"


def test_a_candidate_that_is_too_large_for_the_gpu_is_refused_like_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 90 GiB")

    config = make_config(tiny(tmp_path, student="any", min_retained=0.9))
    own = search_module._Search(config, Limits(max_latency_ms=None, min_retained=0.9), OWN, SPACE, None, None)
    own.table = {Candidate("a", 0.0, 16): {"latency": {"fp32": 1}}}
    own.teachers = teachers.Teachers(config, SimpleNamespace(classes="ab"), ["a"], Observer())
    monkeypatch.setattr(own.teachers, "of_size", lambda _size: tmp_path)
    monkeypatch.setattr(search_module, "run_stages", run)
    with pytest.raises(InputError, match=r"more memory than the GPU has \(tried to allocate 90 GiB\)\.  Lower --batch"):
        own._train(Candidate("a", 0.0, 16), "short")
