"""Put what a board found beside what the host found: into the run folder and its report."""

from __future__ import annotations

import re
from pathlib import Path

from iekd.deploy.device_results import FOLDER, DeviceResult, read_device_result
from iekd.deploy.report import read_report, write_report
from iekd.deploy.results import Report
from iekd.errors import InputError
from iekd.files import sha256_of, write_text


def add_device_result(run: Path, result: Path, *, name: str | None = None) -> Path:
    """Add a board's ``result.json`` to a finished run and write its report anew.

    Args:
        run: folder of the run that the bundle was made from.
        result: as ``run.py`` wrote it on the board.
        name: of the board; None: its own, with its power mode and what ran there.  A result of that name is replaced.

    Returns:
        The copy, ``RUN/devices/NAME.json``.

    Raises:
        InputError: the result is unfinished or damaged, or of another student than the run's; or there is no report.
    """
    report, found = read_report(run / "report.json"), read_device_result(result)
    _check_student(run, report, found, result)
    label = name or "-".join(filter(None, (found.board.name, found.board.power_mode, found.runtime.name)))
    copy = run / FOLDER / f"{_slug(label)}.json"
    write_text(copy, found.model_dump_json(indent=2) + "\n")
    write_report(report, run)
    return copy


def _check_student(run: Path, report: Report, found: DeviceResult, path: Path) -> None:
    """A name is not enough: two students of one architecture bear it, with other weights each."""
    files = {model.sha256 for model in (report.student, *report.variants)}
    files |= {sha256_of(file) for file in run.glob("variants/*.onnx")}  # those for a board are not in the host's report
    if not any(model.sha256 in files for model in found.models):
        raise InputError(
            f"{path} is of {found.bundle.name}, whose files are none of this run's: its student is "
            f"{report.student.name}, SHA-256 {report.student.sha256[:12]}.",
            "Give the run that the bundle was made from.",
        )


def _slug(text: str) -> str:
    slug = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    if not slug:
        raise InputError(f"'{text}' cannot be the name of a device.", "Use letters and digits.")
    return slug
