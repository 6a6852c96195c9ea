"""The schema of a board's ``result.json``, which ``deploy/device/run.py`` writes, and its rows for the report.

All latencies are milliseconds, power is watts, energy joules; fractions lie in 0..1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from iekd.deploy.results import Interval, Latency, Record
from iekd.errors import InputError

SCHEMA_VERSION = 1
FOLDER = "devices"
"""Of a run, where the results of boards are kept."""


class BundleIdentity(Record):
    """Which bundle ran."""

    name: str
    digest: str = Field(description="SHA-256 of the bundle's manifest")


class Runtime(Record):
    """What ran it."""

    name: str = Field(description="'tensorrt' or 'onnxruntime'")
    version: str


class Clocks(Record):
    """The board's clocks when the run began."""

    state: str = Field(description="'locked', 'floating' or 'unknown'")
    hertz: dict[str, dict[str, int]] = Field(description="min, max and current by unit")


class BoardFacts(Record):
    """The board, as it describes itself."""

    name: str
    machine: str
    cores: int
    memory_gib: float
    os: str
    python: str
    packages: dict[str, str]
    l4t: str | None = Field(description="Jetson Linux release")
    power_mode: str | None = Field(description="as nvpmodel names it")
    clocks: Clocks


class DeviceAccuracy(Interval):
    """Top-1 accuracy on the bundled images; the interval is Wilson's."""

    correct: int
    total: int


class Energy(Record):
    """Energy of one inference, model run back to back at batch 1."""

    watts: float = Field(description="mean of the whole board or module, by ``rails``")
    rest_watts: float | None
    joules_per_inference: float
    joules_above_rest: float | None
    calls: int
    seconds: float
    samples: int
    source: str
    rails: list[str]
    celsius: dict[str, float] = Field(description="highest, by zone")
    hertz: dict[str, list[int]] = Field(default={}, description="lowest and highest clock, by unit")
    throttled: list[str]


class DeviceModel(Record):
    """One precision and what the board measured of it."""

    precision: str
    sha256: str = Field(description="of the ONNX file")
    session: dict[str, str]
    engine: dict[str, Any] | None
    shape: list[int]
    accuracy: DeviceAccuracy
    latency: Latency
    stages_ms: dict[str, dict[str, float]]
    energy: Energy | None
    misses: list[str]


class DeviceVerdict(Record):
    """Which precision won, and whether it kept the limits."""

    kept: bool
    winner: str | None
    sentence: str


class DeviceResult(Record):
    """Everything that a board found out about a bundle."""

    schema_version: int
    complete: bool
    created: str
    bundle: BundleIdentity
    runtime: Runtime
    board: BoardFacts
    settings: dict[str, Any]
    limits: dict[str, float | None]
    host: dict[str, Any]
    models: list[DeviceModel]
    failed: dict[str, str] = Field(description="precisions that the board could not run, and why")
    notes: list[str]
    celsius: dict[str, dict[str, float]] = Field(description="before and after the latency, by zone")
    throttled: list[str]
    verdict: DeviceVerdict


@dataclass(frozen=True)
class DeviceRow:
    """One precision on one board, as the report shows it."""

    device: str
    runtime: str
    precision: str
    wins: bool
    accuracy: DeviceAccuracy
    median: Interval
    p99: Interval
    power_mode: str
    clocks: str
    """Locked, floating or unknown, and where known the clocks when the run began."""
    celsius: float | None
    """The hottest zone that was seen."""
    energy: Energy | None
    host_median_ms: float | None
    host_accuracy: float | None


def read_device_result(path: Path) -> DeviceResult:
    """A result that a board wrote.

    Raises:
        InputError: missing, damaged, unfinished, or of a newer version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        version = int(value["schema_version"])
    except FileNotFoundError as error:
        raise InputError(f"no device result at {path}.", "Fetch result.json from the board.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a device result ({error}).", "Fetch result.json from the board.") from error
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version}; this iekd-compress knows {SCHEMA_VERSION}.",
            "pip install -U iekd-compress",
        )
    if value.get("complete") is not True:
        raise InputError(f"{path} is of a run that did not end.", "Start run.py again on the board: it goes on.")
    try:
        return DeviceResult.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path} is damaged at {where}: {first['msg']}.", "Run the bundle on the board again."
        ) from error


def read_devices(run: Path) -> list[DeviceResult]:
    """The results of boards that were added to the run folder, by name."""
    return [read_device_result(path) for path in sorted((run / FOLDER).glob("*.json"))]


def device_rows(results: Sequence[DeviceResult]) -> list[DeviceRow]:
    """A row for each precision on each board, the fastest first."""
    return [
        _row(result, model)
        for result in results
        for model in sorted(result.models, key=lambda model: model.latency.median.value)
    ]


def _row(result: DeviceResult, model: DeviceModel) -> DeviceRow:
    heat = [*result.celsius.values(), *([model.energy.celsius] if model.energy else [])]
    host = result.host.get("models", {}).get(model.precision, {})
    return DeviceRow(
        device=result.board.name,
        runtime=f"{result.runtime.name} {result.runtime.version}",
        precision=model.precision,
        wins=result.verdict.winner == model.precision,
        accuracy=model.accuracy,
        median=model.latency.median,
        p99=model.latency.p99,
        power_mode=result.board.power_mode or "",
        clocks=_clocks(result.board.clocks),
        celsius=max((value for zones in heat for value in zones.values()), default=None),
        energy=model.energy,
        host_median_ms=host.get("median_ms"),
        host_accuracy=host.get("accuracy"),
    )


def _clocks(clocks: Clocks) -> str:
    """``locked (CPU 2202 MHz, GPU 1300 MHz)``: of the cores the fastest, else what a network needs."""
    highest: dict[str, int] = {}
    for unit, hertz in clocks.hertz.items():
        name = "CPU" if unit.startswith("cpu") else unit
        highest[name] = max(hertz["current"], highest.get(name, 0))
    told = ", ".join(f"{name} {highest[name] / 1e6:.0f} MHz" for name in ("CPU", "GPU", "EMC") if name in highest)
    return f"{clocks.state} ({told})" if told else clocks.state
