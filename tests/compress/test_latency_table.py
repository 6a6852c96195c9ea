"""The latency table of a search: what is measured, what is left out, and that nothing else measures meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_doubles import Workshop
from small import search_settings

from iekd.compress.config import make_config
from iekd.compress.searching import latency_table
from iekd.compress.searching.latency_table import Entry, LatencyTable, describe
from iekd.compress.searching.space import Candidate
from iekd.deploy.device.errors import DeviceInputError
from iekd.errors import InputError, VerificationError

CANDIDATE = Candidate("tiny_networks:student", 0.0, 16)


def look_up(folder: Path, **changes: Any) -> Entry:
    """What the table says of ``CANDIDATE``."""
    config = make_config(search_settings(folder, student="any", threads=1, **changes))
    return LatencyTable(config, 10).look_up([CANDIDATE])[CANDIDATE]


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
