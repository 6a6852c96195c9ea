"""Single steps of compression on files of the user's own: what ``quantize`` and ``prune`` do."""

from __future__ import annotations

from pathlib import Path

from iekd.compress.data import load_data
from iekd.compress.engines import some_arrays
from iekd.compress.prune import Latency, Macs, Ratio, describe_gain, prune_artefact
from iekd.compress.pruning.latency import measure_networks, onnx_latency
from iekd.compress.quantize import QuantizeSettings, quantize
from iekd.compress.quantizers.candidates import name_layers
from iekd.compress.targets import TARGETS
from iekd.compress.texts import parse_latency
from iekd.deploy.export import read_metadata
from iekd.deploy.graph_checks import FLOAT_INSTEAD
from iekd.deploy.openvino_format import refuse_openvino
from iekd.errors import InputError, unknown_name
from iekd.models.checkpoint import load_artefact, read_description

CALIBRATION_IMAGES = 256
"""What calibrates a file unless told otherwise."""


def quantize_file(
    model: Path,
    output: Path,
    *,
    data: str,
    precision: str,
    target: str,
    max_drop: float,
    calibration_images: int | None = None,
) -> str:
    """Write ``model`` in another precision; returns what to tell the user.

    Half of the training images that are read calibrate, the others judge.

    Args:
        model: float32 ONNX file that a run wrote.
        output: the file to write.
        data: images, as for the main job.
        precision: as the target has it.
        target: what the file is for.
        max_drop: most accuracy that may be lost, 0..1; layers stay in float until it holds.
        calibration_images: how many calibrate.  None: ``CALIBRATION_IMAGES``, or half of what there is.

    Raises:
        InputError: unknown target or precision, data of other classes, or what :func:`quantize` refuses.
        VerificationError: it loses more than ``max_drop`` whatever stays in float.
    """
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    schemes = TARGETS[target].schemes
    if precision not in schemes:
        raise unknown_name(f"precision of {target}", precision, schemes)
    refuse_openvino(model, "quantisation", FLOAT_INSTEAD)
    images = load_data(data)
    if read_metadata(model).classes != images.classes:
        raise InputError(f"{model} was not made for the classes of {data}.", "Give --data that it was made for.")
    arrays, labels = some_arrays(images.train, model, 2 * max(calibration_images or 0, CALIBRATION_IMAGES))
    count = calibration_images or min(CALIBRATION_IMAGES, len(labels[::2]))
    settings = QuantizeSettings(calibration_images=count, max_drop=max_drop, target=target)
    made = quantize(
        model,
        output,
        scheme=schemes[precision],
        images=arrays[::2],
        labels=labels[::2],
        held_out=(arrays[1::2], labels[1::2]),
        settings=settings,
    )
    chosen = made.chosen
    text = f"{made.file}  {chosen.recipe}, {chosen.method}: {made.before.top1.value:.2%} -> {made.after.top1.value:.2%}"
    if made.float_latency_ms is not None and chosen.latency_ms is not None:
        faster = "faster" if chosen.latency_ms < made.float_latency_ms else "NOT faster"
        text += f", {made.float_latency_ms:.3f} -> {chosen.latency_ms:.3f} ms ({faster})"
    if made.kept_float:
        text += f"; {name_layers(made.kept_float)}"
    if calibration_images is None and count < CALIBRATION_IMAGES:
        text += f"; calibrated on {count} images, half of what there is"
    return text


def prune_file(
    source: Path,
    target: Path,
    *,
    fewer_macs: float | None,
    ratio: float | None,
    max_latency: str | None,
    criterion: str,
    scope: str,
    round_to: int,
) -> str:
    """Prune one artefact into another by the one goal that is given; returns what was gained, measured.

    Raises:
        InputError: not an artefact, or what :func:`iekd.compress.prune.prune` refuses.
    """
    description = read_description(source)
    size, classes = int(description["preprocessing"]["size"]), len(description["classes"])
    goal: Ratio | Macs | Latency
    if fewer_macs is not None:
        goal = Macs(fewer_macs)
    elif ratio is not None:
        goal = Ratio(ratio)
    else:
        assert max_latency is not None
        goal = Latency(parse_latency(max_latency), onnx_latency(image_size=size, classes=classes))
    made = prune_artefact(source, target, goal=goal, criterion=criterion, scope=scope, round_to=round_to)
    networks = {"before": load_artefact(source).network.eval(), "after": made.network.eval()}
    run = measure_networks(networks, image_size=size, classes=classes)
    medians = {name: latency.median for name, latency in run.latency.items()}
    return describe_gain(made.macs, made.parameters, medians["before"], medians["after"], run.ratio("before", "after"))
