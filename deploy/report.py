"""``report.json`` and ``report.html``: what a run found out, for programs and for people."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from pydantic import ValidationError

from iekd.deploy import charts, diagnostic_charts
from iekd.deploy.device_results import DeviceResult, device_rows, read_devices
from iekd.deploy.results import SCHEMA_VERSION, Diagnosis, Report
from iekd.errors import InputError
from iekd.files import sha256_of, write_text


def write_report(report: Report, folder: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into ``folder``, atomically; returns the page.

    The page also shows what boards found, where ``folder`` holds results of theirs.
    """
    write_text(folder / "report.json", report.model_dump_json(indent=2) + "\n")
    page = folder / "report.html"
    write_text(page, render(report, read_devices(folder)))
    return page


def read_report(path: Path) -> Report:
    """A report written by :func:`write_report`.

    Raises:
        InputError: missing, damaged, or of a newer version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        version = int(value["schema_version"])
    except FileNotFoundError as error:
        raise InputError(f"no report at {path}.", "Give the folder of a finished run.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a readable report ({error}).", "Start the run again to write it anew."
        ) from error
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version}; this iekd-compress knows {SCHEMA_VERSION}.",
            "pip install -U iekd-compress",
        )
    try:
        return Report.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path} is damaged at {where}: {first['msg']}.", "Start the run again to write it anew."
        ) from error


def kept_diagnosis(folder: Path) -> Diagnosis | None:
    """The run's ``diagnosis.json``; None where there is none, or where the networks have changed since.

    Raises:
        InputError: damaged.
    """
    file = folder / "diagnosis.json"
    if not file.is_file():
        return None
    try:
        found = Diagnosis.model_validate_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is damaged.", "Run `iekd-compress diagnose` again, or delete it.") from error
    same = all(sha256_of(folder / role) == digest for role, digest in found.artefacts.items())
    return found if same else None


def render(report: Report, devices: Sequence[DeviceResult] = ()) -> str:
    """The page: one self-contained HTML file that asks for nothing from anywhere.

    Args:
        report: of the run.
        devices: what boards found out about its student.
    """
    template = importlib.resources.files("iekd.deploy").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(zip=zip, percent=_percent, size=_size, count=_count, seconds=_seconds)
    models = [report.teacher, report.student]
    return environment.from_string(template).render(
        report=report,
        models=models,
        devices=devices,
        device_rows=device_rows(devices),
        tradeoff=Markup(charts.accuracy_against_latency(models)),
        distribution=Markup(charts.latency_distribution(models)),
        over_time=Markup(charts.latency_over_time(models)),
        per_class=Markup(charts.per_class(report.teacher.accuracy.per_class, report.student.accuracy.per_class)),
        shown_classes=min(charts.WORST_CLASSES, len(report.dataset.classes)),
        curves=[
            (stage, [Markup(charts.curve(curve)) for curve in group if curve.name != "lr"])
            for stage, group in groupby(report.curves, key=lambda curve: curve.stage)
        ],
        learned={name: Markup(svg) for name, svg in diagnostic_charts.pictures(report.diagnosis).items()},
        percentiles=[charts.percentiles(model.latency) for model in models],
        configuration=escape("\n".join(f"{key}: {value}" for key, value in report.config.items())),
    )


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%"


def _size(value: int) -> str:
    return f"{value / 1e6:.2f} MB"


def _count(value: int) -> str:
    return f"{value / 1e6:.2f} M"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 90 else f"{int(value // 60)} min {int(value % 60)} s"
