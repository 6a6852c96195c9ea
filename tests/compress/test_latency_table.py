"""The latency table of a search: what is measured, what is left out, and that nothing else measures meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engine_doubles import Workshop
from filelock import FileLock, Timeout
from small import search_settings, settings

from iekd.compress import measure
from iekd.compress.config_input import make_config
from iekd.compress.observer import Observer
from iekd.compress.one_measurement import lock_file, one_measurement
from iekd.compress.quantizers import SCHEMES, comparison
from iekd.compress.quantizers.candidates import QuantizeSettings, fastest_of
from iekd.compress.searching import latency_table
from iekd.compress.searching.latency_table import Entry, LatencyTable, describe
from iekd.compress.searching.space import Candidate
from iekd.deploy.device.errors import DeviceInputError
from iekd.errors import InputError, VerificationError

CANDIDATE = Candidate("tiny_networks:student", 0.0, 16)
WIDE = Candidate("tiny_networks:wide", 0.0, 16)


def look_up(folder: Path, candidate: Candidate = CANDIDATE, **changes: Any) -> Entry:
    """What the table says of a candidate."""
    config = make_config(search_settings(folder, student="any", threads=1, **changes))
    found = LatencyTable(config, 10).look_up([candidate])[candidate]
    return {key: value for key, value in found.items() if key != "busy"}  # whether other work runs beside the tests


@pytest.mark.parametrize(
    ("error", "precision", "entry"),
    [
        (VerificationError("no graph for it"), "best", {"latency": ["fp32"], "left_out": {"int8": "no graph for it"}}),
        (VerificationError("no graph for it"), "int8", {"refused": "no graph for it"}),
        (InputError("nothing to quantise"), "best", {"refused": "nothing to quantise"}),
    ],
)
def test_a_precision_that_cannot_be_made_is_left_out_where_a_run_leaves_it_out(
    error: Exception, precision: str, entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(latency_table, "quantize", never)
    found = look_up(tmp_path, precision=precision)
    assert {key: list(value) if key == "latency" else value for key, value in found.items()} == entry


def test_what_the_gpu_lacks_or_refuses_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Orin has no FP8, and TensorRT may refuse one file of a network."""
    workshop = Workshop()
    workshop.install(monkeypatch)
    workshop.refuse["int8"] = DeviceInputError("TensorRT does not read it.")
    found = look_up(tmp_path, target="tensorrt", precision="best")
    assert set(found["latency"]) == {"fp32", "fp16", "bf16"}
    assert found["left_out"] == {"int8": "TensorRT does not read it."}
    assert describe(found).endswith(" ms, no int8")


def test_engines_are_of_the_graph_that_would_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traced one scales attention by a root of its width that it casts first, which no FP16 graph may hold."""
    Workshop().install(monkeypatch)
    found = look_up(tmp_path, Candidate("mobilevit_xxs", 0.0, 32), target="tensorrt", precision="best")
    assert set(found["latency"]) == {"fp32", "fp16", "bf16", "int8"}
    assert "left_out" not in found


def test_the_fastest_recipe_counts_whatever_an_untrained_network_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without weights that mean something, one flipped answer of sixteen would throw a recipe out."""
    chosen: list[list[tuple[str, float]]] = []

    def fastest(candidates: list[Any]) -> Any:
        chosen.append([(candidate.recipe, candidate.accuracy) for candidate in candidates])
        return fastest_of(candidates)

    monkeypatch.setattr(comparison, "fastest_of", fastest)
    assert set(look_up(tmp_path, precision="int8")["latency"]) == {"fp32", "int8"}
    scheme = SCHEMES["int8-x86-onnxruntime"]
    (tried,) = chosen
    assert {accuracy for _, accuracy in tried} == {0}
    assert len(tried) > 1
    assert {recipe for recipe, _ in tried} <= set(scheme.recipes)


@pytest.mark.parametrize("kept", [None, "ort-u8u8", "a recipe of an older version"])
def test_a_pruned_shape_takes_the_recipe_that_is_fastest_for_the_whole_network(
    kept: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    real = latency_table.quantize

    def asked_for(*arguments: Any, settings: QuantizeSettings, **others: Any) -> Any:
        asked.append(settings.recipes)
        return real(*arguments, settings=settings, **others)

    if kept:  # the whole network was measured
        entry = {"latency": {"fp32": 1.0, "int8": 0.5}, "recipes": {"int8": kept}}
        with monkeypatch.context() as patch:
            patch.setattr(LatencyTable, "_measure", lambda *_: entry)
            look_up(tmp_path, WIDE, precision="int8")
    monkeypatch.setattr(latency_table, "quantize", asked_for)
    found = look_up(tmp_path, replace(WIDE, prune=0.5), precision="int8")
    assert asked == [("ort-u8u8",) if kept == "ort-u8u8" else ()]
    assert found["recipes"]["int8"] in SCHEMES["int8-x86-onnxruntime"].recipes
    assert "refused" not in found


def test_workers_measure_each_candidate_once_and_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that start together: what one has measured the other takes."""
    candidates = [Candidate("tiny_networks:student", share, 16) for share in (0.0, 0.3, 0.5)]
    config = make_config(search_settings(tmp_path, student="any", threads=1))
    together, measured, held = threading.Barrier(2), [], []

    def measure(_: LatencyTable, candidate: Candidate) -> Entry:
        measured.append(candidate)
        held.append(is_held())
        return {"latency": {"fp32": float(len(measured))}}

    def work() -> dict[Candidate, Entry]:
        table = LatencyTable(config, 10)
        monkeypatch.setattr(table, "_read", meet(table._read))
        return table.look_up(candidates)

    def meet(read: Any) -> Any:
        """The first time both have looked before either goes on."""
        first = [True]

        def look() -> Any:
            found = read()
            if first:
                first.clear()
                together.wait(60)
            return found

        return look

    monkeypatch.setattr(LatencyTable, "_measure", measure)
    with ThreadPoolExecutor(2) as pool:
        first, second = [worker.result() for worker in [pool.submit(work) for _ in "ab"]]
    assert sorted(measured, key=lambda candidate: candidate.prune) == candidates
    assert first == second
    assert held == [True] * 3


def is_held() -> bool:
    try:
        FileLock(lock_file()).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False


def test_a_measurement_waits_for_another_and_says_so() -> None:
    notes: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        lock_file().parent.mkdir(parents=True)
        other = FileLock(lock_file(), thread_local=False)
        pool.submit(other.acquire).result()

        def note(text: str) -> None:
            notes.append(text)
            other.release()

        with one_measurement(note):
            assert is_held()
    assert notes == ["Waiting for another measurement on this machine."]
    assert not is_held()


def test_without_a_place_for_the_lock_it_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    notes: list[str] = []
    with one_measurement(notes.append):
        pass
    (said,) = notes
    assert said.startswith("No lock for this machine's measurements (")


def test_the_benchmark_of_a_run_is_such_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measure_latency", lambda *_, **__: is_held())
    job: Any = SimpleNamespace(config=make_config(settings()), folder=tmp_path, observer=Observer())
    assert measure._latency(job, {}, np.zeros((1, 3, 4, 4), np.float32))
    assert not is_held()
