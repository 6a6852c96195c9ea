"""Reading and writing of a run's report."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from iekd.deploy.results import SCHEMA_VERSION, Report
from iekd.errors import InputError
from iekd.files import write_text


def write_report(report: Report, folder: Path) -> Path:
    """Write ``report.json`` into ``folder``."""
    write_text(folder / "report.json", report.model_dump_json(indent=2) + "\n")
    return folder / "report.json"


def read_report(path: Path) -> Report:
    """The inverse of :func:`write_report`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.get("schema_version", 0) > SCHEMA_VERSION:
            raise InputError(f"{path} was written by a newer version.", "Update with pip install -U iekd-compress.")
        return Report.model_validate(value)
    except (OSError, ValueError, ValidationError) as error:
        raise InputError(f"cannot read {path} ({error}).", "Give a finished run.") from error
