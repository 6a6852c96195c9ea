"""The last stages: export both networks, measure the files that ship, judge them against the limits."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

from iekd import __version__
from iekd.compress.config import RunConfig, to_yaml
from iekd.compress.job import Job
from iekd.deploy import results
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import Session, get_backend
from iekd.deploy.backends.torch import TorchSession
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.export import export_onnx
from iekd.deploy.fingerprint import fingerprint
from iekd.deploy.report import write_report
from iekd.deploy.statistics import ratio_of_accuracies
from iekd.deploy.verdict import judge
from iekd.deploy.verify import verify
from iekd.files import sha256_of, write_json
from iekd.models.checkpoint import load_artefact
from iekd.models.registry import count_macs, count_parameters

ROLES = ("teacher", "student")
BACKENDS = {"cpu": "onnxruntime"}
VERIFY_IMAGES = 64
LATENCY_IMAGES = 64


def export_models(job: Job, given: dict[str, Any]) -> dict[str, Any]:
    """Stage ``export``: ``teacher.onnx`` and ``student.onnx``, each verified on real validation images.

    Args:
        job: the run.
        given: what the user named as teacher and student; networks given as objects are needed to read them back.

    Raises:
        VerificationError: a file does not compute what its network computes.
    """
    images = job.some_images(job.data.val, VERIFY_IMAGES)
    job.observer.stage_started("export", len(ROLES))
    found: dict[str, Any] = {}
    for number, role in enumerate(ROLES):
        artefact = load_artefact(job.folder / role, given[role] if not isinstance(given[role], str) else None)
        path = job.folder / f"{role}.onnx"
        network = artefact.network.cpu().eval()
        name = artefact.architecture.name
        export_onnx(network, path, preprocessing=artefact.preprocessing, classes=artefact.classes, name=name)
        session = open_session(job.config, path)
        reference = TorchSession(network, session.input_shape)
        found[role] = {
            "name": name,
            "parameters": count_parameters(network),
            "macs": count_macs(network, artefact.preprocessing.size),
            "verification": verify(session, reference, images, name=name).model_dump(),
        }
        session.close()
        job.observer.stage_advanced("export", number + 1, f"{path.name} {path.stat().st_size / 1e6:.1f} MB")
    worst = min(found[role]["verification"]["top1_agreement"] for role in ROLES)
    return {**found, "note": f"both files agree with PyTorch on {worst:.1%} of {len(images)} images"}


def benchmark(job: Job) -> dict[str, Any]:
    """Stage ``benchmark``: accuracy and latency of both files, in one interleaved run."""
    sessions = {role: open_session(job.config, job.folder / f"{role}.onnx") for role in ROLES}
    job.observer.stage_started("benchmark", 100)
    accuracy, correct = {}, {}
    for number, (role, session) in enumerate(sessions.items()):
        accuracy[role], correct[role] = measure_accuracy(session, job.val_arrays(), job.data.classes)
        job.observer.stage_advanced("benchmark", 10 * (number + 1), f"accuracy of the {role}")
    folder = job.folder / "benchmark"
    run = measure_latency(
        sessions,
        job.some_images(job.data.val, LATENCY_IMAGES),
        folder=folder,
        seconds=job.config.bench_seconds,
        progress=lambda share: job.observer.stage_advanced("benchmark", 20 + int(80 * share), "latency, interleaved"),
    )
    models = {
        role: {
            "accuracy": accuracy[role].model_dump(),
            "latency": run.latency[role].model_dump(),
            "backend": session.describe(),
        }
        for role, session in sessions.items()
    }
    found = {
        "models": models,
        "retained": ratio_of_accuracies(correct["student"], correct["teacher"]).model_dump(),
        "speedup": run.ratio("teacher", "student").model_dump(),
        "fingerprint": _fingerprint(job).model_dump(),
    }
    write_json(folder / "benchmark.json", found)
    return {"note": f"{accuracy['student'].top1.value:.1%} at {run.latency['student'].median.value:.2f} ms"}


def make_report(job: Job, stages: dict[str, dict[str, Any]], notes: tuple[str, ...], command: str) -> results.Report:
    """Stage ``report``: judge, and write ``report.json`` and ``report.html``."""
    measured = json.loads((job.folder / "benchmark" / "benchmark.json").read_text(encoding="utf-8"))
    exported = stages["export"]["result"]
    models = {role: _model_result(job, role, exported[role], measured["models"][role]) for role in ROLES}
    verdict = judge(
        results.Interval(**measured["retained"]),
        results.Interval(**measured["speedup"]),
        models["student"].latency.median,
        min_retained=job.config.min_retained,
        max_latency_ms=job.config.max_latency_ms,
    )
    warnings = [f"{role}: {warning}" for role in ROLES for warning in models[role].latency.warnings]
    report = results.Report(
        iekd_version=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=command,
        config=_plain(job.config),
        dataset=results.Dataset(
            name=job.config.data,
            classes=list(job.data.classes),
            train_images=len(job.data.train),
            val_images=len(job.data.val),
            skipped_images=job.data.skipped,
            digest=job.data.digest,
        ),
        teacher=models["teacher"],
        student=models["student"],
        verdict=verdict,
        stages=[_stage(name, entry) for name, entry in stages.items()],
        curves=_curves(stages),
        fingerprint=results.Fingerprint(**measured["fingerprint"]),
        notes=[*notes, *warnings, *_about(job)],
    )
    write_report(report, job.folder)
    return report


def _fingerprint(job: Job) -> results.Fingerprint:
    found = fingerprint(threads(job.config))
    found.extra["training"] = f"{job.device.type}, {job.accelerator.num_processes} process(es), {job.precision}"
    return found


def open_session(config: RunConfig, path: Path) -> Session:
    """The file, opened by the target's backend with the threads that the settings ask for."""
    return get_backend(BACKENDS[config.target]).load(path, threads=threads(config))


def require_backend(config: RunConfig) -> None:
    """Raise EnvironmentMissingError unless the target's runtime can be used here."""
    get_backend(BACKENDS[config.target]).require()


def threads(config: RunConfig) -> int:
    """Threads of a measured session."""
    return config.threads or len(os.sched_getaffinity(0))


def _model_result(job: Job, role: str, exported: dict[str, Any], measured: dict[str, Any]) -> results.ModelResult:
    path = job.folder / f"{role}.onnx"
    size = job.preprocessing.size
    latency = results.Latency(**measured["latency"])
    return results.ModelResult(
        role=role,
        name=exported["name"],
        file=path.name,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        parameters=exported["parameters"],
        macs=exported["macs"],
        precision="fp32",
        backend=", ".join(measured["backend"].values()),
        input_shape=[3, size, size],
        accuracy=results.Accuracy(**measured["accuracy"]),
        latency=latency.model_copy(update={"trace": f"benchmark/{latency.trace}"}),
        verification=results.Verification(**exported["verification"]),
    )


def _stage(name: str, entry: dict[str, Any]) -> results.Stage:
    result = entry["result"]
    return results.Stage(name=name, seconds=entry["seconds"], epochs=result.get("epochs"), note=result.get("note", ""))


def _curves(stages: dict[str, dict[str, Any]]) -> list[results.Curve]:
    found = []
    for stage, title, key in (
        ("teacher", "teacher", "curves"),
        ("distill", "factors", "factor_curves"),
        ("distill", "student", "curves"),
    ):
        curves: dict[str, list[float]] = stages.get(stage, {}).get("result", {}).get(key, {})
        found += [results.Curve(stage=title, name=name, values=values) for name, values in curves.items()]
    return found


def _about(job: Job) -> list[str]:
    notes = []
    if job.data.skipped:
        notes.append(f"{job.data.skipped} unreadable images were left out.")
    if job.config.keep == "best":
        notes.append("The shipped epoch was chosen on the validation set that the accuracy is reported on.")
    if len(job.data.val) < 1000:
        notes.append(f"Accuracy rests on {len(job.data.val)} validation images: read it with its interval.")
    return notes


def _plain(config: RunConfig) -> dict[str, Any]:
    import yaml

    value: dict[str, Any] = yaml.safe_load(to_yaml(config))
    return value
