"""How the comparison of quantisers reads its own table."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from quantisers import gaps


def rows(backend: str, **files: tuple[float, float]) -> list[dict[str, Any]]:
    """Points lost and milliseconds by file."""
    return [
        {"backend": backend, "file": file, "drop_points": drop, "ours_over_it": {"value": files["ours"][1] / ms}}
        for file, (drop, ms) in files.items()
    ]


def test_a_fast_file_that_lost_its_accuracy_counts_in_one_reading_alone() -> None:
    found = gaps(rows("a", float32=(0, 9), ours=(0.2, 2), exact=(0.1, 4), lossy=(30, 1)))
    assert math.isclose(found["drop_gap"], 0.1)
    assert (found["latency_ratio"], found["latency_ratio_of_accurate"]) == (2, 0.5)


def test_the_worst_backend_counts() -> None:
    found = gaps([*rows("a", ours=(0, 3), other=(0, 2)), *rows("b", ours=(1, 1), other=(-1, 2))])
    assert found == {"drop_gap": 2, "latency_ratio": 1.5, "latency_ratio_of_accurate": 1.5}


def test_a_ratio_from_fresh_processes_counts_before_that_of_one() -> None:
    table = rows("a", ours=(0, 3), other=(0, 2), slow=(0, 10))
    table[1]["repeated"] = {"value": 1.01}
    assert gaps(table)["latency_ratio"] == 1.01
