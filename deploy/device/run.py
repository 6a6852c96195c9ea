"""On the board: verify the bundle, build its engines, check accuracy, measure, and write ``result.json``.

``result.json`` is written anew after every step with ``complete`` false until the last: a run that was stopped goes on
where it was, a complete one is measured afresh.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import energy, sensors
from .builds import Builds
from .contents import Bundle, open_bundle
from .errors import DeviceError, detached
from .files import locked, read_object, write_json
from .measure import Session, answers, measure_latency, summarize, wilson
from .options import build_settings, predict_options, run_options
from .parts import EXIT_DEFECT, EXIT_KEPT, EXIT_MISSED, exit_code_of
from .runtimes import Ready, accelerator_note, open_session, prepare, require
from .stages import measure_stages, stage_warnings
from .verdict import judge, misses, table

SCHEMA_VERSION = 1
WARMUP_SECONDS = 0.5
REST_SECONDS = 2.0
ENERGY_SECONDS = 3.0
RESULT = "result.json"
LOCK = "run.lock"


def main(arguments: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """The program; returns its exit code: 0 kept, 1 a limit missed, 2 bad input, 3 the board lacks a part or memory.

    Args:
        arguments: of the command line; default: this process's.
        folder: of the bundle; default: the one that this file came in.
    """
    folder = folder or Path(__file__).resolve().parents[1]
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["predict"]:
            return _predict(predict_options(given[1:]), folder)
        return _run(run_options(given), folder)
    except DeviceError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code_of(error)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here.\n")
        return 130
    except Exception:  # a defect of ours must not end with 1, which says that a limit was missed
        traceback.print_exc()
        return EXIT_DEFECT


@dataclass
class _Run:
    """One run over one bundle."""

    options: argparse.Namespace
    bundle: Bundle
    output: Path
    result: dict[str, Any] = field(default_factory=dict)
    reason: DeviceError = field(default_factory=lambda: DeviceError("no model."))
    """Why the last precision that failed did."""

    def save(self) -> None:
        write_json(self.output / RESULT, self.result)


def _run(options: argparse.Namespace, folder: Path) -> int:
    _say("verifying the bundle")
    bundle = open_bundle(folder)
    version = require(options.backend)
    run = _Run(options, bundle, options.output or folder)
    # After a broken connection the run that was there lives on until it next prints.
    with locked(run.output / LOCK, lambda: _say(f"another run.py works in {run.output}: waiting for its end")):
        run.result = _begin(run, version)
        run.save()
        with contextlib.ExitStack() as stack:
            sessions = _open_sessions(run, stack)
            for precision, session in sessions.items():
                _check_accuracy(run, precision, session)
            _measure(run, sessions)
        return _finish(run)


def _begin(run: _Run, version: str) -> dict[str, Any]:
    """A new result, or the unfinished one of the same bundle on the same runtime and board."""
    board = sensors.describe_board()
    identity = {
        "bundle": {"name": run.bundle.name, "digest": run.bundle.digest},
        "runtime": {"name": run.options.backend, "version": version},
    }
    build = None if run.options.backend == "onnxruntime" else build_settings(run.options).as_dict()
    before = read_object(run.output / RESULT)
    same = all(before.get(key) == value for key, value in identity.items()) and not before.get("complete")
    kept = []
    same = same and before.get("settings", {}).get("build") == build  # another engine may answer otherwise
    if same and before.get("board", {}).get("name") == board["name"]:
        fields = ("precision", "sha256", "accuracy")  # latency and energy are of one sitting, and measured anew
        kept = [{key: model[key] for key in fields} for model in before["models"] if "accuracy" in model]
        _say(f"going on with the run of {before['created']}")
    return {
        "schema_version": SCHEMA_VERSION,
        "complete": False,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **identity,
        "board": board,
        "settings": {
            "seconds": run.options.seconds,
            "images": len(run.bundle.labels),
            "threads": run.options.threads,
            "build": build,
        },
        "limits": {
            "min_accuracy": run.bundle.limits.min_accuracy,
            "max_latency_ms": run.bundle.limits.max_latency_ms,
        },
        "host": run.bundle.host,
        "models": kept,
        "failed": {},
        "notes": [],
    }


def _model(run: _Run, precision: str) -> dict[str, Any]:
    """The record of ``precision`` in the result, made where there is none."""
    models: list[dict[str, Any]] = run.result["models"]
    for model in models:
        if model["precision"] == precision:
            return model
    models.append({"precision": precision, "sha256": run.bundle.digests[precision]})
    return models[-1]


def _open_sessions(run: _Run, stack: contextlib.ExitStack) -> dict[str, Session]:
    """A session for each precision; one that this board cannot run is reported, and the others go on.

    All engines are built before the first is opened: a build needs the memory that open engines hold.

    Raises:
        DeviceError: none can be run.
    """
    options, ready = run.options, _build(run)
    sessions: dict[str, Session] = {}
    if options.dla is None and (note := accelerator_note(options.backend)):
        run.result["notes"].append(note)
    for precision, made in ready.items():
        with _reported(run, precision):
            session = sessions[precision] = open_session(made, threads=options.threads)
            stack.callback(session.close)
            model = _model(run, precision)
            model.update(session=session.describe(), engine=made.engine, shape=list(session.input_shape))
            run.save()
    if not sessions:
        raise run.reason
    return sessions


def _build(run: _Run) -> dict[str, Ready]:
    backend, settings, models = run.options.backend, build_settings(run.options), run.bundle.models
    builds = Builds(run.output, [run.bundle.digest, backend, settings.as_dict()])
    ready: dict[str, Ready] = {}
    for precision in builds.in_order(models, _say):
        _say(f"{precision}: preparing ({backend})")
        with _reported(run, precision), builds.of(precision):
            ready[precision] = prepare(backend, models[precision], run.output / "engines", settings=settings, say=_say)
    return ready


@contextlib.contextmanager
def _reported(run: _Run, precision: str) -> Iterator[None]:
    """What fails here takes this precision out of the run, and is told."""
    try:
        yield
    except DeviceError as error:
        run.reason = detached(error)
        run.result["failed"][precision] = str(error)
        _say(f"{precision}: {error}")


def _check_accuracy(run: _Run, precision: str, session: Session) -> None:
    model, bundle = _model(run, precision), run.bundle
    if "accuracy" not in model:
        right = answers(session, bundle.pixels, bundle.preprocessing.normalize) == bundle.labels
        correct, total = int(right.sum()), len(right)
        model["accuracy"] = {**wilson(correct, total), "correct": correct, "total": total}
        run.save()
    _say(f"{precision}: {model['accuracy']['correct']} of {model['accuracy']['total']} right")


def _measure(run: _Run, sessions: dict[str, Session]) -> None:
    """Latency of all, interleaved; then stages and energy of each, in passes of their own."""
    _say(f"measuring latency, {run.options.seconds:g} s for each of {len(sessions)} models, interleaved")
    images = run.bundle.preprocessing.normalize(run.bundle.pixels[:64])
    before = sensors.temperatures()
    traces = measure_latency(sessions, images, seconds=run.options.seconds, warmup_seconds=WARMUP_SECONDS)
    run.result["celsius"] = {"before": before, "after": sensors.temperatures()}
    run.result["throttled"] = sensors.throttling()
    for precision, trace in traces.items():
        path = run.output / "traces" / f"latency-{precision}.npz"
        trace.keep(path)
        model = _model(run, precision)
        model["latency"] = {**summarize(trace, WARMUP_SECONDS), "trace": f"traces/{path.name}"}
        model["stages_ms"] = measure_stages(sessions[precision], images)
        model["latency"]["warnings"] += stage_warnings(model["stages_ms"])
        model["energy"] = None
        run.save()
    if not run.options.no_energy:
        _measure_energy(run, sessions, images)


def _measure_energy(run: _Run, sessions: dict[str, Session], images: np.ndarray) -> None:
    with energy.open_source() as source:
        if isinstance(source, str):
            run.result["notes"].append(f"No energy: {source}.")
            return
        _say(f"measuring energy ({source.name}: {' + '.join(source.rails)})")
        rest = energy.measure_rest(source, REST_SECONDS)
        for precision, session in sessions.items():
            found = energy.measure_energy(session, images, source, rest, max(ENERGY_SECONDS, run.options.seconds))
            _model(run, precision)["energy"] = found
            if found is None:
                run.result["notes"].append(f"No energy of {precision}: {source.name} gave too few samples.")
            run.save()


def _finish(run: _Run) -> int:
    result, models = run.result, [model for model in run.result["models"] if "latency" in model]
    result["models"] = models
    for model in models:
        model["misses"] = misses(model, run.bundle.limits)
        result["notes"] += [f"{model['precision']}: {warning}." for warning in model["latency"]["warnings"]]
    result["verdict"] = judge(models)
    result["complete"] = True
    run.save()
    for line in ("", *table(models, run.bundle.host), ""):
        _say(line)
    for note in (*(f"{name} was not run: {why}" for name, why in result["failed"].items()), *result["notes"]):
        _say(f"note: {note}")
    verdict = result["verdict"]
    _say(f"{'KEPT' if verdict['kept'] else 'MISSED'}  {verdict['sentence']}")
    _say(f"written: {run.output / RESULT}")
    return EXIT_KEPT if verdict["kept"] else EXIT_MISSED


def _predict(options: argparse.Namespace, folder: Path) -> int:
    bundle = open_bundle(folder)
    output = options.output or folder
    precision = options.precision or _winner(bundle, output, options.backend) or next(iter(bundle.models))
    if precision not in bundle.models:
        raise DeviceError(f"the bundle has no model '{precision}'.", f"Valid: {', '.join(bundle.models)}.")
    model, settings = bundle.models[precision], build_settings(options)
    ready = prepare(options.backend, model, output / "engines", settings=settings, say=_whisper)
    with contextlib.closing(open_session(ready, threads=options.threads)) as session:
        _whisper(f"{bundle.name} {precision}, {session.describe()['backend']}")
        for path in options.images:
            logits = session.run(bundle.preprocessing.load(path)[None])[0].astype(np.float64)
            shares = np.exp(logits - logits.max())
            best = int(shares.argmax())
            _say(f"{path}  {bundle.classes[best]}  {shares[best] / shares.sum():.4f}")
    return EXIT_KEPT


def _winner(bundle: Bundle, output: Path, backend: str) -> str | None:
    """The precision that won the last complete run of this bundle on this runtime."""
    result = read_object(output / RESULT)
    if result.get("bundle", {}).get("digest") != bundle.digest or result["runtime"]["name"] != backend:
        return None
    winner: str | None = result.get("verdict", {}).get("winner")
    return winner


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _whisper(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    raise SystemExit(main())
