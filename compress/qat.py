"""Quantisation-aware training: the student learns on under simulated INT8, by the run's own objective.

What it gives is float weights, which the target's ordinary recipes quantise: every file is made and checked by one
path, trained for it or not.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from iekd.compress.calibration import choose_numbers
from iekd.compress.config import RunConfig
from iekd.compress.distill import Schedule, distill_network
from iekd.compress.job import Job
from iekd.compress.learning_rate import SCRATCH
from iekd.compress.plan import Plan
from iekd.compress.quantizers.simulated import GRIDS, Simulated
from iekd.compress.run_objective import later_config
from iekd.compress.targets import TARGETS
from iekd.compress.variants import QAT_ARTEFACT
from iekd.compress.views import chosen_arrays
from iekd.deploy.backends import get_backend
from iekd.deploy.backends.torch import TorchSession
from iekd.deploy.export import export_onnx
from iekd.deploy.verify import verify
from iekd.models.checkpoint import Artefact, load_artefact, save_artefact
from iekd.models.taps import Tapped

NAME = "qat"
LR_SHARE = 0.1
"""Of the student's learning rate, or of a long training's where that is lower: the weights are near where they should
be."""
EPOCH_SHARE = 4
"""A quarter of the student's epochs, where the settings leave it open."""
_VERIFY_IMAGES = 64


def train_quantized(scheme: str, plan: Plan, job: Job, teacher: nn.Module, given: str | nn.Module) -> dict[str, Any]:
    """Train the student for ``scheme`` and write it as the artefact ``QAT_ARTEFACT``, with its float32 ONNX file.

    Args:
        scheme: one of ``GRIDS``.
        plan: learning rate and epochs of the student.
        job: the run.
        teacher: the network that stage ``teacher`` wrote.
        given: what the user named as student; a network given as an object is needed to read it back.

    Returns:
        Objective, epochs and curves, as JSON types.

    Raises:
        VerificationError: the file does not compute what its network computes.
    """
    source = job.folder / ("pruned" if job.config.prune else "student")
    artefact = load_artefact(source, None if isinstance(given, str) else given)
    schedule = Schedule(NAME, min(plan.lr, SCRATCH) * LR_SHARE, qat_epochs(job.config, plan.epochs))
    own = dataclasses.replace(job, config=later_config(job.config))
    curves = train_network_quantized(artefact.network, teacher, schedule, own, scheme)
    facts = {
        "accuracy": job.accuracy(artefact.network.to(job.device)),
        "objective": own.config.objective,
        "qat": {"scheme": scheme, "epochs": schedule.epochs},
    }
    if job.accelerator.is_main_process:
        _write(dataclasses.replace(artefact, facts={**artefact.facts, **facts}), job)
    return {"objective": own.config.objective, "epochs": schedule.epochs, "curves": curves}


def train_network_quantized(
    network: nn.Module, teacher: nn.Module, schedule: Schedule, job: Job, scheme: str
) -> dict[str, list[float | None]]:
    """Train ``network`` in place as :func:`distill_network` does, under simulated quantisation; returns its curves.

    The ranges of activations start from the images that calibrate the file.
    """
    source = job.data.train
    numbers = choose_numbers(source.targets, None, job.config.seed)[0]  # balanced: a rare class has its ranges, too
    images = torch.from_numpy(chosen_arrays(source, job.preprocessing, numbers)[0]).to(job.device)

    def simulate(tapped: Tapped) -> Simulated:
        return Simulated(tapped, images, GRIDS[scheme])

    history, _ = distill_network(network, teacher, schedule, job, simulate)
    return history.figures


def qat_epochs(config: RunConfig, epochs: int) -> int:
    """Epochs of the training, where the student had ``epochs``."""
    return config.qat_epochs or max(1, epochs // EPOCH_SHARE)


def _write(artefact: Artefact, job: Job) -> None:
    folder = job.folder / QAT_ARTEFACT
    network = artefact.network.cpu().eval()
    path, name = folder / "student.onnx", artefact.architecture.name
    save_artefact(folder, dataclasses.replace(artefact, network=network), beside=(path.name,))
    export_onnx(network, path, preprocessing=artefact.preprocessing, classes=artefact.classes, name=name)
    session = get_backend(TARGETS[job.config.target].checks_exports).load(path, threads=job.config.threads or 0)
    reference = TorchSession(network, session.input_shape)
    verify(session, reference, job.some_images(job.data.val, _VERIFY_IMAGES), name=name)
    session.close()
