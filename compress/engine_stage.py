"""Stage ``engines``: TensorRT's engine of every file that is measured, kept in the run beside what was said of it.

``engines/NAME.engine`` is a copy out of the user's cache with its manifest and its layers, ``engines/NAME.log`` what
TensorRT said whenever it was asked.  The benchmark measures these very files.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from iekd.compress.job import Job
from iekd.compress.measured_files import ROLES, File, exported_files, unpruned_file
from iekd.compress.targets import TARGETS
from iekd.deploy.backends import Array, get_backend
from iekd.deploy.device.engine_watch import Progress
from iekd.deploy.device.inspector import describe, inspect_engine
from iekd.deploy.engine import BuiltEngine, build, check_precision, why_foreign
from iekd.deploy.results import Engine, Verification
from iekd.deploy.verify import compare
from iekd.errors import IekdError
from iekd.files import write_json, write_text

FOLDER = "engines"
_INDEX = f"{FOLDER}/engines.json"
AGREEMENT_IMAGES = 64
_STEPS = 100
"""Of the stage, for each file."""


def build_run_engines(job: Job) -> dict[str, Any]:
    """Build the engine of every file that will be measured, and put it into the run.

    A precision whose engine cannot be had here is left out and told; the others remain.

    Args:
        job: the run, with its files exported.

    Raises:
        IekdError: the float32 engine of the teacher or of the student cannot be built.
    """
    unpruned = unpruned_file(job)
    files = [*exported_files(job), *([unpruned] if unpruned else [])]
    _clear(job.folder / FOLDER)
    images = job.some_images(job.data.val, AGREEMENT_IMAGES)
    job.observer.stage_started("engines", _STEPS * len(files))
    built: dict[str, Engine] = {}
    left_out: dict[str, str] = {}
    for number, file in enumerate(files):
        try:
            check_precision(file.precision)
            engine = _build(job, file, _told(job, file, _STEPS * number))
        except IekdError as error:
            if file.name in ROLES:
                raise
            left_out[file.name] = str(error)
            job.observer.note(f"{file.name} is left out: {error}")
            continue
        built[file.name] = _keep(job, file, engine, images)
        job.observer.stage_advanced("engines", _STEPS * (number + 1), f"{file.name}: {built[file.name].consists}")
    entries = {name: engine.model_dump() for name, engine in built.items()}
    write_json(job.folder / _INDEX, {"engines": entries, "left_out": left_out})
    note = ", ".join(built) + (f"; left out: {', '.join(left_out)}" if left_out else "")
    return {"left_out": left_out, "note": note}


def read_engines(job: Job) -> dict[str, Engine]:
    """The run's engines by the name of what they were built from; none where its target runs no engines."""
    if not TARGETS[job.config.target].runs_engines:
        return {}
    entries = json.loads((job.folder / _INDEX).read_text(encoding="utf-8"))["engines"]
    return {name: Engine(**entry) for name, entry in entries.items()}


def engines_fit(job: Job) -> bool:
    """Can every engine of the run be loaded here and now?  TensorRT or the GPU may have changed since; that is told."""
    for engine in read_engines(job).values():
        if reason := why_foreign(job.folder / engine.file):
            job.observer.note(f"{reason}  The run's engines are built again.")
            return False
    return True


def _build(job: Job, file: File, progress: Progress) -> BuiltEngine:
    """The file's engine in the cache; TensorRT's lines join those of earlier attempts, whatever comes of this one."""
    lines: list[str] = []
    try:
        return build(job.folder / file.path, progress=progress, log=lines.append)
    finally:
        log = job.folder / FOLDER / f"{file.name}.log"
        before = log.read_text(encoding="utf-8") if log.is_file() else ""
        write_text(log, before + "".join(f"{line}\n" for line in lines))


def _told(job: Job, file: File, done: int) -> Progress:
    def progress(share: float, phase: str) -> None:
        job.observer.stage_advanced("engines", done + int(_STEPS * share), f"{file.name}: {phase}")

    return progress


def _keep(job: Job, file: File, engine: BuiltEngine, images: Array) -> Engine:
    """Copy the engine into the run, and say what it is."""
    path = f"{FOLDER}/{file.name}.engine"
    engine.copy_to(job.folder / path)
    summary = inspect_engine(job.folder / path)
    machine = engine.manifest.identity.machine
    return Engine(
        file=path,
        sha256=engine.manifest.engine_sha256,
        size_bytes=engine.manifest.engine_bytes,
        build_seconds=engine.manifest.seconds,
        tensorrt=machine.tensorrt,
        gpu=f"{machine.gpu} (SM {machine.sm})",
        layers=summary.get("layers"),
        reformats=summary.get("reformats"),
        precisions=summary.get("precisions", {}),
        consists=describe(summary),
        agreement=_agreement(job, file, images) if file.precision == "fp32" else None,
    )


def _agreement(job: Job, file: File, images: Array) -> Verification:
    """The engine against its own file: told and not judged, for TensorRT may multiply in TF32."""
    with contextlib.ExitStack() as stack:
        sessions = []
        for backend, path in (("tensorrt", f"{FOLDER}/{file.name}.engine"), ("onnxruntime", file.path)):
            sessions.append(get_backend(backend).load(job.folder / path))
            stack.callback(sessions[-1].close)
        return compare(sessions[0], sessions[1], images, reference=f"{file.path} in ONNX Runtime")


def _clear(folder: Path) -> None:
    """Leave nothing of an earlier attempt but its logs: what is not built now must not pass for the run's."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix != ".log":
            path.unlink()
