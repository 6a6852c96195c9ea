"""The last stage: judge what was measured against the limits, and write the report."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from iekd import __version__
from iekd.compress.choice import choose
from iekd.compress.config import RunConfig
from iekd.compress.config_input import to_yaml
from iekd.compress.diagnostics.finished_run import shipped
from iekd.compress.engine_stage import read_engines
from iekd.compress.job import Job
from iekd.compress.measured_files import UNPRUNED
from iekd.compress.prune import describe_gain
from iekd.compress.targets import TARGETS
from iekd.deploy import results
from iekd.deploy.report import kept_diagnosis, write_report
from iekd.deploy.verdict import judge
from iekd.files import sha256_of


def make_report(job: Job, stages: dict[str, dict[str, Any]], notes: tuple[str, ...], command: str) -> results.Report:
    """Stage ``report``: judge, and write ``report.json`` and ``report.html``."""
    measured = json.loads((job.folder / "benchmark" / "benchmark.json").read_text(encoding="utf-8"))
    exported, ships = stages["export"]["result"], choose(job.config, measured["models"])
    engines = read_engines(job) if "engines" in stages else {}  # a run that an earlier version measured has none
    models = {
        name: _model_result(job, name, exported, entry, engines.get(name)) for name, entry in measured["models"].items()
    }
    student = models[ships]
    on_board = TARGETS[job.config.target].on_board
    verdict = judge(
        results.Interval(**measured["models"][ships]["retained"]),
        results.Interval(**measured["models"][ships]["speedup"]),
        student.latency.median,
        min_retained=job.config.min_retained,
        max_latency_ms=None if on_board else job.config.max_latency_ms,  # this machine's latency is not the board's
    )
    warnings = [f"{name}: {warning}" for name, model in models.items() for warning in model.latency.warnings]
    report = results.Report(
        iekd_version=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=command,
        config=_plain(job.config),
        dataset=_dataset(job),
        teacher=models["teacher"],
        student=student,
        variants=[model for name, model in models.items() if name not in ("teacher", ships)],
        verdict=verdict,
        stages=[_stage(name, entry) for name, entry in stages.items()],
        curves=_curves(stages),
        diagnosis=kept_for_report(job.folder, job.config),
        fingerprint=results.Fingerprint(**measured["fingerprint"]),
        notes=[
            *notes,
            *warnings,
            *_pruning_gain(exported, measured),
            *_about(job, stages),
            *losses(job.config, models),
            *slower_than_float(job.config, models, student),
        ],
    )
    write_report(report, job.folder)
    return report


def kept_for_report(folder: Path, config: RunConfig) -> results.Diagnosis | None:
    """The diagnosis of the run in ``folder``, if it was made of the student that ships now."""
    found, network = kept_diagnosis(folder), shipped(folder, config)
    if found is None or found.network != network.artefact:
        return None
    return found.model_copy(update={"remark": network.remark})


def _dataset(job: Job) -> results.Dataset:
    return results.Dataset(
        name=job.config.data,
        classes=list(job.data.classes),
        train_images=len(job.data.train),
        val_images=len(job.data.val),
        skipped_images=job.data.skipped,
        digest=job.data.digest,
    )


def _model_result(
    job: Job, name: str, stage: dict[str, Any], measured: dict[str, Any], engine: results.Engine | None
) -> results.ModelResult:
    """One measured file; ``stage`` is what the export said of both networks."""
    role = "teacher" if name == "teacher" else "student"
    exported = stage[role]
    path = job.folder / measured["file"]
    size = job.preprocessing.size
    latency = results.Latency(**measured["latency"])
    return results.ModelResult(
        role=role,
        name=exported["name"],
        file=measured["file"],
        sha256=sha256_of(path),
        size_bytes=_size(path),
        parameters=exported["parameters"],
        macs=exported["macs"],
        precision=measured["precision"],
        backend=", ".join(measured["backend"].values()),
        input_shape=[3, size, size],
        accuracy=results.Accuracy(**measured["accuracy"]),
        latency=latency.model_copy(update={"trace": f"benchmark/{latency.trace}"}),
        verification=results.Verification(**(measured["verification"] or exported["verification"])),
        engine=engine,
    )


def _size(path: Path) -> int:
    """Bytes of a file; OpenVINO's .xml has its weights beside it."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.exists() else 0)


def _stage(name: str, entry: dict[str, Any]) -> results.Stage:
    result = entry["result"]
    return results.Stage(name=name, seconds=entry["seconds"], epochs=result.get("epochs"), note=result.get("note", ""))


def _curves(stages: dict[str, dict[str, Any]]) -> list[results.Curve]:
    found = []
    for stage, title, key in (
        ("teacher", "teacher", "curves"),
        ("distill", "factors", "factor_curves"),
        ("distill", "student", "curves"),
        ("prune", "pruned student", "curves"),
        ("quantize", "student under int8", "curves"),
    ):
        curves: dict[str, list[float | None]] = stages.get(stage, {}).get("result", {}).get(key, {})
        found += [results.Curve(stage=title, name=name, values=values) for name, values in curves.items()]
    return found


def _pruning_gain(exported: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """What pruning by itself brought, both files in float32; nothing where there was none."""
    if UNPRUNED not in measured:
        return []
    macs, parameters = ((exported[UNPRUNED][key], exported["student"][key]) for key in ("macs", "parameters"))
    before, speedup = (results.Interval(**measured[UNPRUNED][key]) for key in ("before", "speedup"))
    after = results.Interval(**measured["models"]["student"]["latency"]["median"])
    return [f"Pruning, both in fp32: {describe_gain(macs, parameters, before, after, speedup)}."]


def losses(config: RunConfig, models: dict[str, results.ModelResult]) -> list[str]:
    """Precisions that lose more than ``max_drop`` on the validation set: what decided were training images."""
    exact = models.get("student")
    if exact is None or exact.precision != "fp32":
        return []
    found = []
    for model in models.values():
        drop = exact.accuracy.top1.value - model.accuracy.top1.value
        if model.role == "student" and model.precision != "fp32" and drop > config.drop_limit:
            found.append(
                f"{model.precision} loses {drop:.2%} of accuracy on the {exact.accuracy.total} validation images, more "
                f"than --max-drop {config.drop_limit:g}, which is held on training images."
            )
    return found


def slower_than_float(
    config: RunConfig, models: dict[str, results.ModelResult], ships: results.ModelResult
) -> list[str]:
    """That the precision which was asked for costs time here; a board's latency is not known here."""
    exact = models.get("student")
    if exact is None or ships is exact or config.precision == "best" or TARGETS[config.target].on_board:
        return []
    slow, quick = ships.latency.median, exact.latency.median
    if slow.low <= quick.high:
        return []
    return [
        f"{ships.precision} is slower on this machine than {exact.precision}: {slow.value:.3g} against "
        f"{quick.value:.3g} ms ({exact.file}).  --precision best ships the fastest that keeps the accuracy."
    ]


def _about(job: Job, stages: dict[str, dict[str, Any]]) -> list[str]:
    notes = []
    if job.data.skipped:
        notes.append(f"{job.data.skipped} unreadable images were left out.")
    quantized = stages.get("quantize", {}).get("result", {})
    notes += [f"Not shipped in {refused}" for refused in quantized.get("refused", [])]
    notes += quantized.get("remarks", [])
    left_out = stages.get("engines", {}).get("result", {}).get("left_out", {})
    notes += [f"Not measured and not shipped, {name}: {reason}" for name, reason in left_out.items()]
    if TARGETS[job.config.target].on_board:
        notes.append(f"Latency is this machine's; {job.config.target} measures its own: see student.bundle.zip.")
        if limit := job.config.max_latency:
            notes.append(f"Whether the student takes no more than {limit} is judged there too, not here.")
    if job.config.keep == "best":
        notes.append("The shipped epoch was chosen on the validation set that the accuracy is reported on.")
    if len(job.data.val) < 1000:
        notes.append(f"Accuracy rests on {len(job.data.val)} validation images: read it with its interval.")
    return notes


def _plain(config: RunConfig) -> dict[str, Any]:
    import yaml

    value: dict[str, Any] = yaml.safe_load(to_yaml(config))
    return value
