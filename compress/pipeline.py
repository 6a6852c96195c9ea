"""The story of a run: two model names go in, a measured file comes out.

Each stage reads artefacts and writes artefacts, and is done once: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from iekd.compress.board import bundle_run
from iekd.compress.config import RunConfig
from iekd.compress.config_input import make_config, to_yaml
from iekd.compress.data import ImageData
from iekd.compress.distill import distill, load_teacher
from iekd.compress.engine_stage import FOLDER as ENGINES
from iekd.compress.engine_stage import build_run_engines, engines_fit
from iekd.compress.given import networks_given
from iekd.compress.job import Job, emulation, make_accelerator, open_data
from iekd.compress.make_report import make_report
from iekd.compress.measure import benchmark, export_models, require_backend
from iekd.compress.objectives.catalogue import is_mutual, reading_of
from iekd.compress.observer import Observer
from iekd.compress.plan import Plan, make_plan, plan_from_json, plan_to_json
from iekd.compress.precisions import precisions_asked
from iekd.compress.pruned_student import prune_student
from iekd.compress.qat import train_quantized
from iekd.compress.rehearsal import rehearse
from iekd.compress.run_folder import RunFolder
from iekd.compress.targets import TARGETS
from iekd.compress.teacher import make_teacher
from iekd.compress.together import train_together
from iekd.compress.variants import FOLDER as VARIANTS
from iekd.compress.variants import make_variants
from iekd.deploy.results import Report
from iekd.errors import InputError

STAGES = ("plan", "teacher", "distill", "prune", "export", "quantize", "engines", "benchmark", "report")


def run(
    teacher: str | nn.Module,
    student: str | nn.Module,
    data: str | ImageData = "digits",
    *,
    observer: Observer | None = None,
    **settings: Any,
) -> Report:
    """Distil ``teacher`` into ``student`` on ``data``, export both, measure both, and report.

    Args:
        teacher: timm name, alias, artefact folder, ``package.module:function``, or a network.
        student: the same, for the network that ships.  Networks are copied: those that are given stay as they are.
        data: ``digits``, ``folder:PATH``, a name of timm's ``create_dataset``, or data sets of your own made by
            :func:`iekd.compress.data.wrap_datasets`.
        observer: is told how the run goes on.
        settings: the fields of :class:`iekd.compress.config.RunConfig`.

    Returns:
        What is also written to ``report.json`` in the run folder.

    Raises:
        IekdError: what the user gave cannot be used, or a part of the environment is missing.
    """
    config = make_config(
        {
            "teacher": teacher if isinstance(teacher, str) else _name(teacher),
            "student": student if isinstance(student, str) else _name(student),
            "data": data if isinstance(data, str) else data.name,
            **settings,
        }
    )
    report = run_stages(config, teacher, student, data, observer or Observer(), until="report")
    assert report is not None
    return report


def run_stages(
    config: RunConfig,
    teacher: str | nn.Module,
    student: str | nn.Module,
    data: str | ImageData,
    observer: Observer,
    *,
    until: str,
    shared: Path | None = None,
) -> Report | None:
    """Do the stages up to ``until`` (one of ``STAGES``) that the run folder does not hold yet.

    ``shared`` is a folder for what all runs under the same given teacher, data and settings have in common.
    """
    if until == "teacher" and is_mutual(config.objective):
        raise InputError(
            f"{config.objective} trains both networks together: there is no teacher to train before.",
            "Use `iekd-compress distill`.",
        )
    if STAGES.index(until) >= STAGES.index("export"):
        require_backend(config)  # before hours of training, not after
    accelerator = make_accelerator(config)
    if slow := emulation(accelerator):
        observer.note(slow)
    images = open_data(config) if isinstance(data, str) else data
    networks = networks_given(config, teacher, student)
    identity = {"data": images.digest, "networks": networks, **reading_of(config.objective)}
    with RunFolder.open(config, identity, observer, accelerator) as folder:
        plan = _plan(folder, config, images, teacher, student, observer)
        config = plan.settle(config)
        folder.keep_config(to_yaml(config))
        job = Job(config, images, plan.preprocessing, plan.augmentation, accelerator, observer, folder.path, shared)
        report = None
        for name, do in _stages(folder, {"teacher": teacher, "student": student}, plan, job).items():
            result = do()
            report = result if isinstance(result, Report) else report
            if name == until != "report":
                break
    return report


def _stages(folder: RunFolder, given: dict[str, str | nn.Module], plan: Plan, job: Job) -> dict[str, Callable[[], Any]]:
    """What follows the plan, in order, as far as the settings ask for it."""
    exported = ["teacher.onnx", "student.onnx"]
    return {
        **_training(folder, given, plan, job),
        "export": lambda: folder.stage("export", exported, lambda: export_models(job, given), one_process=True),
        **_quantizing(folder, given, plan, job),
        **_building(folder, job),
        "benchmark": lambda: folder.stage("benchmark", ["benchmark"], lambda: benchmark(job), one_process=True),
        "report": lambda: folder.once(lambda: make_report(job, folder.stages(), plan.notes, command_line())),
        **_bundling(folder, job),
    }


def _training(
    folder: RunFolder, given: dict[str, str | nn.Module], plan: Plan, job: Job
) -> dict[str, Callable[[], dict[str, Any]]]:
    """The stages that train: first the teacher and then the student, or both together."""
    teacher, student = given["teacher"], given["student"]
    pruning: dict[str, Callable[[], dict[str, Any]]] = {}
    if job.config.prune:
        pruning["prune"] = lambda: folder.stage(
            "prune", ["pruned"], lambda: prune_student(plan, job, folder.once, load_teacher(job, teacher), student)
        )
    if is_mutual(job.config.objective):
        return {
            "distill": lambda: folder.stage(
                "distill", ["teacher", "student"], lambda: train_together(given, plan, job)
            ),
            **pruning,
        }
    return {
        "teacher": lambda: folder.stage(
            "teacher",
            ["teacher"],
            lambda: make_teacher(teacher, plan.teacher_origin, plan.teacher_epochs, plan.teacher_lr, job),
        ),
        "distill": lambda: folder.stage(
            "distill",
            ["student"],
            lambda: distill(student, plan.student_origin, plan.lr, plan.epochs, job, load_teacher(job, teacher)),
        ),
        **pruning,
    }


def _quantizing(
    folder: RunFolder, given: dict[str, str | nn.Module], plan: Plan, job: Job
) -> dict[str, Callable[[], dict[str, Any]]]:
    """The stage that makes the student's other precisions, where any were asked for."""
    if not precisions_asked(job.config):
        return {}

    def train(scheme: str) -> dict[str, Any]:
        return train_quantized(scheme, plan, job, load_teacher(job, given["teacher"]), given["student"])

    return {"quantize": lambda: folder.stage("quantize", [VARIANTS], lambda: make_variants(job, folder.once, train))}


def _building(folder: RunFolder, job: Job) -> dict[str, Callable[[], dict[str, Any]]]:
    """The stage that builds engines, where this machine runs them.

    What was measured stays as it is.  Until then an engine must be one that can be loaded here: a run may go on under
    another TensorRT, or on another GPU, than it was begun with.
    """
    if not TARGETS[job.config.target].runs_engines:
        return {}

    def measured_without() -> bool:
        """Did a version that had no such stage measure the run already?"""
        if "engines" in folder.stages():
            return False
        if folder.stands("benchmark"):
            return True
        folder.forget("benchmark")  # or it would stand before the stage that it rests on
        return False

    def build() -> dict[str, Any]:
        if folder.once(measured_without):
            return {}
        return folder.stage(
            "engines",
            [ENGINES],
            lambda: build_run_engines(job),
            one_process=True,
            usable=lambda: folder.stands("benchmark") or engines_fit(job),
        )

    return {"engines": build}


def _bundling(folder: RunFolder, job: Job) -> dict[str, Callable[[], Any]]:
    """What a target on a board ends with: the bundle that travels there."""
    if not TARGETS[job.config.target].on_board:
        return {}

    def work() -> str:
        name = "student.bundle.zip"
        job.observer.note(f"{name}: {bundle_run(folder.path, folder.path / name, data=job.data)}")
        return name

    return {"bundle": lambda: folder.once(work)}


def command_line() -> str:
    """How this process was started, for the report."""
    import shlex

    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _plan(
    folder: RunFolder,
    config: RunConfig,
    data: ImageData,
    teacher: str | nn.Module,
    student: str | nn.Module,
    observer: Observer,
) -> Plan:
    def work() -> dict[str, Any]:
        plan = make_plan(config, data, teacher, student, observer)
        rehearse(config, plan, len(data.classes), teacher, student)
        return plan_to_json(plan)

    return plan_from_json(folder.stage("plan", [], work, one_process=True))


def _name(network: nn.Module) -> str:
    return type(network).__qualname__
