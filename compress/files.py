"""Single steps of compression on files of the user's own: what ``quantize`` and ``prune`` do."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from iekd.compress.calibration import calibrated_on_few, choose_numbers
from iekd.compress.data import ImageData, load_data
from iekd.compress.precisions import scheme_of
from iekd.compress.prune import Latency, Macs, Ratio, describe_gain, prune_artefact
from iekd.compress.pruning.latency import measure_networks
from iekd.compress.pruning.share import target_latency
from iekd.compress.quantize import QuantizeSettings, open_pair, quantize, refuse_quantized
from iekd.compress.quantizers.candidates import name_layers
from iekd.compress.targets import TARGETS
from iekd.compress.texts import parse_latency
from iekd.compress.views import chosen_arrays, plain_arrays
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import get_backend
from iekd.deploy.export import read_metadata
from iekd.deploy.graph_checks import FLOAT_INSTEAD
from iekd.deploy.openvino_format import refuse_openvino
from iekd.errors import InputError, unknown_name
from iekd.models.checkpoint import load_artefact, read_description


def quantize_file(
    model: Path,
    output: Path,
    *,
    data: str,
    precision: str,
    target: str,
    max_drop: float,
    calibration_images: int | None = None,
    val_fraction: float | None = None,
    skip_bad_images: bool = False,
    seed: int = 0,
) -> str:
    """Write ``model`` in another precision; returns what to tell the user.

    Some training images calibrate, others decide between ways to do it; the accuracy that is told is that of both files
    on the validation images, which decided nothing.

    Args:
        model: float32 ONNX file that a run wrote.
        output: the file to write.
        data: images, as for the main job.
        val_fraction: share of them kept for validation, where they are one tree; likewise.
        skip_bad_images: leave out those that cannot be read; likewise.
        precision: as the target has it.
        target: what the file is for.
        max_drop: most accuracy that may be lost, 0..1; layers stay in float until it holds.
        calibration_images: how many calibrate, balanced over the classes.  None: :data:`CALIBRATION_IMAGES`, or half of
            the training images.
        seed: of the choice of images.

    Raises:
        InputError: unknown target or precision, data of other classes, or what :func:`quantize` refuses.
        VerificationError: it loses more than ``max_drop`` whatever stays in float.
    """
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    scheme = scheme_of(precision, target)
    refuse_openvino(model, "quantisation", FLOAT_INSTEAD)
    refuse_quantized(output, model)
    images = load_data(data, val_fraction=val_fraction, skip_bad_images=skip_bad_images)
    about = read_metadata(model)
    if about.classes != images.classes:
        raise InputError(f"{model} was not made for the classes of {data}.", "Give --data that it was made for.")
    calibrating, judging = choose_numbers(images.train.targets, calibration_images, seed)
    arrays, labels = chosen_arrays(images.train, about.preprocessing, calibrating)
    settings = QuantizeSettings(calibration_images=len(labels), seed=seed, max_drop=max_drop, target=target)
    made = quantize(
        model,
        output,
        scheme=scheme,
        images=arrays,
        labels=labels,
        held_out=chosen_arrays(images.train, about.preprocessing, judging),
        settings=settings,
    )
    chosen = made.chosen
    text = f"{made.file}  {chosen.recipe}, {chosen.method}: {_accuracies(model, made.file, scheme, images)}"
    if made.float_latency_ms is not None and chosen.latency_ms is not None:
        faster = "faster" if chosen.latency_ms < made.float_latency_ms else "NOT faster"
        text += f", {made.float_latency_ms:.3f} -> {chosen.latency_ms:.3f} ms ({faster})"
    if made.kept_float:
        text += f"; {name_layers(made.kept_float)}"
    if calibration_images is None and (few := calibrated_on_few(len(labels))):
        text += f"; {few}"
    return text


def _accuracies(model: Path, made: Path, scheme: str, images: ImageData) -> str:
    """Both files' accuracy on the validation images."""
    preprocessing, found = read_metadata(model).preprocessing, []
    for session in open_pair(model, made, scheme):
        with contextlib.closing(session):
            accuracy, _ = measure_accuracy(session, plain_arrays(images, preprocessing), images.classes)
        found.append(f"{accuracy.top1.value:.2%}")
    return f"{' -> '.join(found)} on {len(images.val)} validation images"


def prune_file(
    source: Path,
    output: Path,
    *,
    fewer_macs: float | None,
    ratio: float | None,
    max_latency: str | None,
    criterion: str,
    scope: str,
    round_to: int | None = None,
    target: str = "cpu",
    threads: int | None = None,
) -> str:
    """Prune one artefact into another by the one goal that is given; returns what was gained, measured.

    Args:
        source: the artefact.
        output: folder of the pruned one: missing, empty, or an artefact, which is replaced.
        fewer_macs: share of the multiply-accumulates to remove.
        ratio: share of the channels to remove.
        max_latency: such as 1.5ms, on the target's runtime as a run measures it.
        criterion: all but ``taylor``, which needs images.
        scope: uniform or global.
        round_to: widths become multiples of it.  None: as the target likes them.
        target: what the network is for; its runtime measures.
        threads: of the measured sessions.  None: this machine's cores.

    Raises:
        InputError: not an artefact, unknown target, a latency that is not measured here, or what
            :func:`iekd.compress.prune.prune` refuses.
        EnvironmentMissingError: the target's runtime cannot be used.
    """
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    if criterion == "taylor":
        raise InputError(
            "criterion taylor needs labelled images, and this command reads none.",
            "Choose group-norm, magnitude or bn-scale, or prune in a run: --prune 0.5 --prune-criterion taylor.",
        )
    get_backend(TARGETS[target].backend).require()
    cores = threads or len(os.sched_getaffinity(0))
    description = read_description(source)
    size, classes = int(description["preprocessing"]["size"]), len(description["classes"])
    goal: Ratio | Macs | Latency
    if fewer_macs is not None:
        goal = Macs(fewer_macs)
    elif ratio is not None:
        goal = Ratio(ratio)
    else:
        assert max_latency is not None
        goal = Latency(parse_latency(max_latency), target_latency(target, cores, image_size=size, classes=classes))
    rounded = round_to or TARGETS[target].round_to
    made = prune_artefact(source, output, goal=goal, criterion=criterion, scope=scope, round_to=rounded)
    networks = {"before": load_artefact(source).network.eval(), "after": made.network.eval()}
    backend = TARGETS[target].backend
    run = measure_networks(networks, image_size=size, classes=classes, backend=backend, threads=cores)
    medians = {name: latency.median for name, latency in run.latency.items()}
    return describe_gain(made.macs, made.parameters, medians["before"], medians["after"], run.ratio("before", "after"))
