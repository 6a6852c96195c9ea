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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import energy, sensors
from .contents import Bundle, open_bundle
from .errors import DeviceError
from .files import read_json, write_json
from .measure import Session, answers, measure_latency, measure_stages, summarize, wilson
from .parts import EXIT_DEFECT, EXIT_KEPT, EXIT_MISSED, exit_code_of
from .runtimes import RUNTIMES, open_session, require
from .verdict import judge, misses, table

SCHEMA_VERSION = 1
WARMUP_SECONDS = 0.5
REST_SECONDS = 2.0
ENERGY_SECONDS = 3.0
RESULT = "result.json"


def main(arguments: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """The program; returns its exit code: 0 kept, 1 a limit missed, 2 bad input, 3 a part of the board missing.

    Args:
        arguments: of the command line; default: this process's.
        folder: of the bundle; default: the one that this file came in.
    """
    folder = folder or Path(__file__).resolve().parents[1]
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["predict"]:
            return _predict(_predict_options(given[1:]), folder)
        return _run(_run_options(given), folder)
    except DeviceError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code_of(error)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here.\n")
        return 130
    except Exception:  # a defect of ours must not end with 1, which says that a limit was missed
        traceback.print_exc()
        return EXIT_DEFECT


def _run_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Verify, build, check and measure this bundle; `run.py predict IMAGE...` classifies images.",
        epilog="Exit code: 0 kept, 1 a limit missed, 2 bad input, 3 a part of the board is missing.",
    )
    _shared_options(parser)
    parser.add_argument("--seconds", type=_positive, default=5.0, help="measured for each model (default 5)")
    parser.add_argument("--no-energy", action="store_true", help="leave out the pass that measures power")
    return parser.parse_args(arguments)


def _predict_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py predict", description="Classify images: .npy arrays, or files with Pillow."
    )
    _shared_options(parser)
    parser.add_argument("--precision", help="which model (default: the last run's winner, else the first)")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    return parser.parse_args(arguments)


def _shared_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=RUNTIMES, default=RUNTIMES[0], help="never another than this one")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime (default: its own choice)")
    parser.add_argument("--output", type=Path, help="folder of result.json, traces and engines (default: the bundle's)")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be positive")
    return value


@dataclass
class _Run:
    """One run over one bundle."""

    options: argparse.Namespace
    bundle: Bundle
    output: Path
    result: dict[str, Any]

    def save(self) -> None:
        write_json(self.output / RESULT, self.result)


def _run(options: argparse.Namespace, folder: Path) -> int:
    _say("verifying the bundle")
    bundle = open_bundle(folder)
    version = require(options.backend)
    run = _Run(options, bundle, options.output or folder, {})
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
    before = _read_result(run.output)
    same = all(before.get(key) == value for key, value in identity.items()) and not before.get("complete")
    kept = []
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
        "settings": {"seconds": run.options.seconds, "images": len(run.bundle.labels), "threads": run.options.threads},
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

    Raises:
        DeviceError: none can be run.
    """
    sessions: dict[str, Session] = {}
    reason = DeviceError("no model.")
    for precision, path in run.bundle.models.items():
        _say(f"{precision}: opening ({run.options.backend})")
        try:
            session, engine = open_session(
                run.options.backend, path, run.output / "engines", threads=run.options.threads, say=_say
            )
        except DeviceError as error:
            reason = error
            run.result["failed"][precision] = str(error)
            _say(f"{precision}: {error}")
            continue
        stack.callback(session.close)
        sessions[precision] = session
        _model(run, precision).update(session=session.describe(), engine=engine, shape=list(session.input_shape))
        run.save()
    if not sessions:
        raise reason
    return sessions


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
    session, _ = open_session(
        options.backend, bundle.models[precision], output / "engines", threads=options.threads, say=_whisper
    )
    with contextlib.closing(session):
        _whisper(f"{bundle.name} {precision}, {session.describe()['backend']}")
        for path in options.images:
            logits = session.run(bundle.preprocessing.load(path)[None])[0].astype(np.float64)
            shares = np.exp(logits - logits.max())
            best = int(shares.argmax())
            _say(f"{path}  {bundle.classes[best]}  {shares[best] / shares.sum():.4f}")
    return EXIT_KEPT


def _winner(bundle: Bundle, output: Path, backend: str) -> str | None:
    """The precision that won the last complete run of this bundle on this runtime."""
    result = _read_result(output)
    if result.get("bundle", {}).get("digest") != bundle.digest or result["runtime"]["name"] != backend:
        return None
    winner: str | None = result.get("verdict", {}).get("winner")
    return winner


def _read_result(output: Path) -> dict[str, Any]:
    """What an earlier run left, or nothing where there is none that can be read."""
    with contextlib.suppress(DeviceError):
        value = read_json(output / RESULT)
        if isinstance(value, dict):
            return value
    return {}


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _whisper(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    raise SystemExit(main())
