"""Export both networks, and measure the files that ship."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from iekd.compress.config import RunConfig
from iekd.compress.engine_stage import read_engines
from iekd.compress.job import Job
from iekd.compress.measured_files import ROLES, UNPRUNED, File, exported_files, unpruned_file
from iekd.compress.one_measurement import one_measurement
from iekd.compress.precisions import precisions_asked
from iekd.compress.shared import shared_facts, shared_file
from iekd.compress.targets import TARGETS
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import Array, Session, get_backend
from iekd.deploy.backends.torch import TorchSession
from iekd.deploy.benchmark import LatencyRun, measure_latency
from iekd.deploy.engine import check_precision
from iekd.deploy.export import export_onnx
from iekd.deploy.fingerprint import fingerprint
from iekd.deploy.graph_checks import require_tensorrt_operators
from iekd.deploy.results import Accuracy
from iekd.deploy.statistics import ratio_of_accuracies
from iekd.deploy.verify import compare, verify
from iekd.files import sha256_of, write_json
from iekd.models.checkpoint import load_artefact
from iekd.models.registry import count_macs, count_parameters

VERIFY_IMAGES = 64
LATENCY_IMAGES = 64


def export_models(job: Job, given: dict[str, Any]) -> dict[str, Any]:
    """Stage ``export``: ``teacher.onnx`` and ``student.onnx``, each verified on real validation images.

    The student is the pruned one where there was pruning; ``unpruned.onnx`` then is what it was made from.

    Args:
        job: the run.
        given: what the user named as teacher and student; networks given as objects are needed to read them back.

    Raises:
        VerificationError: a file does not compute what its network computes, or the student's holds an operator that
            TensorRT does not read where the target builds an engine of it.
    """
    images = job.some_images(job.data.val, VERIFY_IMAGES)
    places = {role: role for role in ROLES}
    if job.config.prune:
        places |= {"student": "pruned", UNPRUNED: "student"}
    job.observer.stage_started("export", len(places))
    found: dict[str, Any] = {}
    for number, (role, place) in enumerate(places.items()):
        network = given["teacher" if role == "teacher" else "student"]
        source = job.folder / place, network if not isinstance(network, str) else None
        for_engine = role == "student" and TARGETS[job.config.target].builds_engines
        make = functools.partial(_export, job.config, source, images, for_engine)
        path = job.folder / f"{role}.onnx"
        found[role] = shared_file(job, path, make) if role == "teacher" else make(path)
        job.observer.stage_advanced("export", number + 1, f"{path.name} {path.stat().st_size / 1e6:.1f} MB")
    worst = min(facts["verification"]["top1_agreement"] for facts in found.values())
    return {**found, "note": f"the files agree with PyTorch on {worst:.1%} of {len(images)} images"}


def _export(config: RunConfig, source: tuple[Path, Any], images: Array, for_engine: bool, path: Path) -> dict[str, Any]:
    """Write and verify one file; ``source`` is an artefact, and the network that it describes if it was an object."""
    artefact = load_artefact(*source)
    network = artefact.network.cpu().eval()
    name = artefact.architecture.name
    export_onnx(network, path, preprocessing=artefact.preprocessing, classes=artefact.classes, name=name)
    if for_engine:
        require_tensorrt_operators(onnx.load(str(path)))
    session = get_backend(TARGETS[config.target].checks_exports).load(path, threads=threads(config))
    reference = TorchSession(network, session.input_shape)
    facts = {
        "name": name,
        "parameters": count_parameters(network),
        "macs": count_macs(network, artefact.preprocessing.size),
        "verification": verify(session, reference, images, name=name).model_dump(),
    }
    session.close()
    return facts


def benchmark(job: Job) -> dict[str, Any]:
    """Stage ``benchmark``: accuracy and latency of all files, in one interleaved run.

    Which of them ships hangs on limits that may change later: :func:`iekd.compress.choice.choose` says.
    """
    files = _runnable(job, exported_files(job))
    sessions = {file.name: _open(job, file) for file in files}
    job.observer.stage_started("benchmark", 100)
    accuracy: dict[str, Accuracy] = {}
    correct: dict[str, Any] = {}
    for number, (name, session) in enumerate(sessions.items()):
        accuracy[name], correct[name] = _judge(job, files[number], session)
        job.observer.stage_advanced("benchmark", 20 * (number + 1) // len(files), f"accuracy of the {name}")
    images = job.some_images(job.data.val, LATENCY_IMAGES)
    run = _latency(job, {**sessions, **_unpruned(job)}, images)
    retained = {name: ratio_of_accuracies(right, correct["teacher"]) for name, right in correct.items()}
    models = {
        file.name: {
            "file": file.path,
            "precision": file.precision,
            "accuracy": accuracy[file.name].model_dump(),
            "latency": run.latency[file.name].model_dump(),
            "backend": sessions[file.name].describe(),
            "retained": retained[file.name].model_dump(),
            "speedup": run.ratio("teacher", file.name).model_dump(),
            "verification": _against_float(sessions, file.name, images),
        }
        for file in files
    }
    found = {"models": models, "fingerprint": _fingerprint(job), **_gain(run)}
    write_json(job.folder / "benchmark" / "benchmark.json", found)
    students = [
        f"{accuracy[name].top1.value:.1%} at {run.latency[name].median.value:.2f} ms ({name})"
        for name in models
        if name != "teacher"
    ]
    return {"note": ", ".join(students)}


def _runnable(job: Job, files: list[File]) -> list[File]:
    """Those that can be measured: where engines are, the ones that have one."""
    engines = read_engines(job)
    return [file for file in files if file.name in engines] if TARGETS[job.config.target].runs_engines else files


def _measured(job: Job, file: File) -> Path:
    """What runs on the target: the file's engine in the run where there is one, otherwise the file itself."""
    engine = read_engines(job).get(file.name)
    return job.folder / (engine.file if engine else file.path)


def _open(job: Job, file: File) -> Session:
    return open_session(job.config, _measured(job, file))


def _judge(job: Job, file: File, session: Session) -> tuple[Accuracy, NDArray[np.bool_]]:
    """Accuracy, and right or wrong for each image.  The teacher's file is one for a whole search, and asked once."""

    def find() -> dict[str, Any]:
        accuracy, correct = measure_accuracy(session, job.val_arrays(), job.data.classes)
        return {"accuracy": accuracy.model_dump(), "wrong": np.flatnonzero(~correct).tolist()}

    if file.name == "teacher":
        found = shared_facts(job, f"accuracy-{sha256_of(_measured(job, file))[:16]}", find)
    else:
        found = find()
    accuracy = Accuracy(**found["accuracy"])
    correct = np.ones(accuracy.total, dtype=bool)
    correct[found["wrong"]] = False
    return accuracy, correct


def _latency(job: Job, sessions: dict[str, Session], images: Array) -> LatencyRun:
    """Of all files, interleaved, while nothing else on this machine is measured."""
    with one_measurement(job.observer.note):
        return measure_latency(
            sessions,
            images,
            folder=job.folder / "benchmark",
            seconds=job.config.bench_seconds,
            progress=lambda share: job.observer.stage_advanced(
                "benchmark", 20 + int(80 * share), "latency, interleaved"
            ),
        )


def _unpruned(job: Job) -> dict[str, Session]:
    """The student before pruning, where there was any and it can be measured."""
    file = unpruned_file(job)
    return {one.name: _open(job, one) for one in _runnable(job, [file])} if file else {}


def _gain(run: LatencyRun) -> dict[str, Any]:
    """Latency before pruning, and before / after; nothing where nothing was pruned."""
    if UNPRUNED not in run.latency:
        return {}
    before, speedup = run.latency[UNPRUNED].median, run.ratio(UNPRUNED, "student")
    return {UNPRUNED: {"before": before.model_dump(), "speedup": speedup.model_dump()}}


def _against_float(sessions: dict[str, Session], name: str, images: Array) -> dict[str, Any] | None:
    """How a variant's answers differ from the float32 student's; None for the files that export verified."""
    if name in ROLES:
        return None
    return compare(sessions[name], sessions["student"], images, reference="student.onnx").model_dump()


def _fingerprint(job: Job) -> dict[str, Any]:
    found = fingerprint(threads(job.config))
    found.extra["training"] = f"{job.device.type}, {job.accelerator.num_processes} process(es), {job.precision}"
    return found.model_dump()


def open_session(config: RunConfig, path: Path) -> Session:
    """The file, opened by the target's backend with the threads that the settings ask for."""
    return get_backend(TARGETS[config.target].backend).load(path, threads=threads(config))


def require_backend(config: RunConfig) -> None:
    """Refuse, before anything is trained, what cannot be measured here.

    Raises:
        EnvironmentMissingError: the target's runtime cannot be used.
        InputError: a precision that was asked for by name, and in which the target or this machine's GPU does not
            compute.
    """
    target = TARGETS[config.target]
    precisions_asked(config)
    get_backend(target.backend).require()
    if target.runs_engines and config.precision in target.schemes:
        check_precision(config.precision)


def threads(config: RunConfig) -> int:
    """Threads of a measured session."""
    return config.threads or len(os.sched_getaffinity(0))
