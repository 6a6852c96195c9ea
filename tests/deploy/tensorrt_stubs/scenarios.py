"""What the API contract runs: ``scenarios.py NAME FOLDER``, in a process with one version's genuine bindings.

FOLDER holds a copy of ``deploy/device`` as the plain package ``device``, as on a board.  Prints one JSON object.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import stand_in
import tensorrt_bindings as trt
from workshop import CLASSES, SHAPE, Device, Workshop


def main(name: str, folder: Path) -> None:
    sys.modules["tensorrt"] = trt
    sys.path.insert(0, str(folder))
    sys.stdout.write(json.dumps(SCENARIOS[name](folder)) + "\n")


def surface(folder: Path) -> Any:
    return stand_in.surface(trt)


def outcome(work: Callable[[], Any]) -> dict[str, str]:
    """What a call raised."""
    try:
        value = work()
    except Exception as error:
        return {"raised": type(error).__name__, "message": getattr(error, "message", str(error))}
    return {"returned": str(value)}


def model(folder: Path) -> Path:
    onnx = folder / "student.onnx"
    if not onnx.exists():
        onnx.write_bytes(b"an ONNX file that only a stand-in reads")
    return onnx


def nothing_returned(folder: Path) -> Any:
    """The genuine bindings over libraries that return nothing, as on a machine without a GPU."""
    from device.engine import BuildSettings, build_engine, this_machine
    from device.engine_cache import Identity, Manifest
    from device.manifest import sha256_of
    from device.session import EngineSession

    engine = folder / "lone.engine"
    engine.write_bytes(b"plan")
    identity = Identity("0" * 64, this_machine(), BuildSettings().as_dict())
    Manifest(identity, sha256_of(engine), 4, str(model(folder)), 1.0, "now").write(engine)
    return {
        "build": outcome(lambda: build_engine(model(folder), BuildSettings(), folder / "cache")),
        "load": outcome(lambda: EngineSession(engine)),
        "machine": vars(this_machine()),
        "logs": [path.name for path in (folder / "cache").glob("*.log")],
    }


def version(folder: Path) -> Any:
    from device.trt_version import require_tensorrt

    return outcome(require_tensorrt)


# Building, with stand-ins


def flag_names(calls: list[Any]) -> list[str]:
    """Names of flags; of the two that STRIP_PLAN has in version 10, the newer."""
    names = {int(member): name for name, member in trt.BuilderFlag.__members__.items() if name != "WEIGHTLESS"}
    return [names[int(arguments[0])] for arguments in calls]


def build(folder: Path) -> Any:
    """Every setting, the cache, progress and log."""
    from device.engine import BuildSettings, build_engine, dla_cores
    from device.session import EngineSession

    shop = Workshop(shape=(-1, 3, -1, -1), dla=2)
    shares: list[tuple[float, str]] = []
    log: list[str] = []
    settings = BuildSettings(
        batch=(1, 4, 16),
        height=(32, 64, 128),
        width=(32, 64, 128),
        workspace_mib=512,
        tactic_mib=256,
        optimization_level=5,
        tf32=False,
        sparse=True,
        version_compatible=True,
        hardware_compatible=True,
        strip_plan=True,
    )
    cache = folder / "cache"
    engine = build_engine(model(folder), settings, cache, progress=lambda *a: shares.append(a), log=log.append)
    again = build_engine(model(folder), settings, cache)
    builds = shop.builds
    on_dla = BuildSettings(batch=(8, 8, 8), height=(64, 64, 64), width=(64, 64, 64), dla_core=1)
    placed = build_engine(model(folder), on_dla, cache)
    shop.script.update(Device(8).script)
    EngineSession(placed).close()
    loads = [[method, str(given[0])] for kind, method, given in shop.bindings.calls if kind == "Runtime"]
    profile = shop.called("IOptimizationProfile", "set_shape")[0]
    return {
        "flags": flag_names(shop.called("IBuilderConfig", "set_flag")),
        "cleared": flag_names(shop.called("IBuilderConfig", "clear_flag")),
        "network": shop.called("Builder", "create_network")[0][0],
        "strongly typed": 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
        "pools": [arguments[1] for arguments in shop.called("IBuilderConfig", "set_memory_pool_limit")],
        "profile": [list(dims) for dims in profile[1:]],
        "same": engine == again,
        "builds": builds,
        "files": sorted(path.name.replace(engine.stem, "NAME") for path in cache.iterdir() if "-" in path.name),
        "layers": engine.with_suffix(".layers.json").read_text(),
        "timing reused": len(shop.called("IBuilderConfig", "create_timing_cache")[-1][0]),
        "dla cores": dla_cores(),
        "loads": loads,
        "dla": [shop.config["DLA_core"], str(shop.config["default_device_type"])],
        "no dla": outcome(lambda: build_engine(model(folder), BuildSettings(**vars(on_dla) | {"dla_core": 2}), cache)),
        "shares": [share for share, _ in shares],
        "phases": sorted({phase for _, phase in shares}),
        "log": log,
    }


def refused(folder: Path) -> Any:
    """Builds that fail: an operator, memory, a stop by the user."""
    from device.engine import BuildSettings, build_engine

    gc.disable()  # what a failed build held must be free when the next begins
    shop = Workshop()
    left: list[int] = []
    answers: dict[str, Any] = {"left": left}

    def say(severity: Any, line: str) -> None:
        journal = shop.config["progress_monitor"].watch
        journal.lines.append(f"[{severity}] {line}")

    refusal: dict[tuple[str, str], Any] = {
        ("OnnxParser", "parse"): lambda *_: False,
        ("OnnxParser", "num_errors"): 1,
        ("ParserError", "node_operator"): lambda: "GridSample",
        ("ParserError", "node_name"): lambda: "/warp/GridSample",
    }
    for key, code, text in (
        ("operator", trt.ErrorCode.INVALID_NODE, 'Assertion failed: creator && "Plugin not found"'),
        ("operator by code", trt.ErrorCode.UNSUPPORTED_NODE, "Assertion failed: rank"),
        ("types", trt.ErrorCode.INVALID_NODE, "must have same input types. But they are of types Float and Half."),
        ("memory of a node", trt.ErrorCode.MEM_ALLOC_FAILED, "Assertion failed: weights"),
        ("value", trt.ErrorCode.INVALID_VALUE, "Assertion failed: axis"),
    ):
        refusal |= {("ParserError", "code"): lambda c=code: c, ("ParserError", "desc"): lambda t=text: t}
        shop.script.update(refusal)
        answers[key] = outcome(lambda: build_engine(model(folder), BuildSettings(), folder / "a"))
        left.append(len(shop.bindings.constructed))
    for key in refusal:
        del shop.script[key]
    shop.fail = lambda _network: say("W", "Requested amount of GPU memory (15485030400 bytes) could not be allocated.")
    answers["memory"] = outcome(lambda: build_engine(model(folder), BuildSettings(), folder / "b"))
    left.append(len(shop.bindings.constructed))
    answers["log"] = [path.read_text() for path in (folder / "b").glob("*.log")]
    shop.fail = None

    def interrupt(share: float, phase: str) -> None:
        raise KeyboardInterrupt

    try:
        build_engine(model(folder), BuildSettings(), folder / "c", progress=interrupt)
    except KeyboardInterrupt:
        left.append(len(shop.bindings.constructed))
        answers["interrupted"] = sorted(path.name for path in (folder / "c").iterdir())
    shop.script[("IBuilderConfig", "set_timing_cache")] = lambda cache, mismatch: False
    (folder / "d").mkdir()
    log: list[str] = []
    build_engine(model(folder), BuildSettings(), folder / "d", log=log.append)
    answers["foreign timing cache"] = [line for line in log if "timing cache" in line]
    shop.script[("ITensor", "shape")] = trt.Dims((4, *SHAPE))
    answers["fixed batch"] = outcome(lambda: build_engine(model(folder), BuildSettings(batch=(1, 1, 2)), folder / "e"))
    return answers


# Running, with stand-ins over a CUDA runtime in host memory


def expected(images: Any) -> Any:
    return images.reshape(len(images), -1).mean(axis=1, keepdims=True) * np.arange(1, CLASSES + 1, dtype=np.float32)


def resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def session(folder: Path) -> Any:
    from device.engine import BuildSettings, build_engine
    from device.errors import DeviceInputError
    from device.session import EngineSession

    shop = Workshop()
    engine = build_engine(model(folder), BuildSettings(batch=(1, 1, 4)), folder / "cache")
    device = Device(4)
    shop.script.update(device.script)
    random = np.random.default_rng(0)
    answers: dict[str, Any] = {}

    opened = EngineSession(engine)
    answers["shape"], answers["most"] = list(opened.input_shape), opened.most
    errors, states = [], []
    for batch in (1, 1, 1, 4, 4, 2, 3, 4, 4, 1):
        images = random.normal(size=(batch, *SHAPE)).astype(np.float32)
        errors.append(float(np.abs(opened.run(images) - expected(images)).max()))
        states.append(opened._lane._graph is not None)
    answers["worst error"], answers["graph in use"] = max(errors), states
    answers["described"] = opened.describe()

    logits, times = opened.timed_run(images)
    answers["timed"], answers["timed right"] = times, bool(np.allclose(logits, expected(images), atol=1e-6))

    live = device.live()
    calls = opened.streams(2)
    answers["streams"] = [device.live() > live, bool(np.allclose(calls[-1](images), expected(images), atol=1e-6))]
    answers["wrong in a stream"] = outcome(lambda: calls[0](images.astype(np.float64)))

    wrong = {
        "type": images.astype(np.float64),
        "channels": np.zeros((1, 1, 4, 4), np.float32),
        "rank": np.zeros((3, 4, 4), np.float32),
        "empty": np.zeros((0, *SHAPE), np.float32),
        "too many": np.zeros((5, *SHAPE), np.float32),
    }
    answers["wrong"] = {name: outcome(lambda value=value: opened.run(value)) for name, value in wrong.items()}
    opened.close()
    opened.close()
    answers["closed"] = outcome(lambda: opened.run(images))
    answers["closed for streams"] = [outcome(lambda: calls[0](images)), outcome(lambda: opened.streams(1))]
    answers["left after close"] = device.live()

    with EngineSession(engine, cuda_graph=False) as plain:
        before = device.enqueued
        for _ in range(3):
            plain.run(images)
        answers["without graph"] = [device.enqueued - before, plain.describe()["cuda graph"]]

    device.cudart.standInFail(b"cudaStreamEndCapture", 900)
    with EngineSession(engine) as unlucky:
        found = [bool(np.allclose(unlucky.run(images), expected(images), atol=1e-6)) for _ in range(3)]
        answers["capture fails"] = [found, unlucky.describe()["cuda graph"]]
    device.cudart.standInFail(b"cudaMalloc", 2)
    answers["no memory"] = outcome(lambda: EngineSession(engine))
    device.cudart.standInFail(b"", 0)
    answers["left at the end"] = device.live()

    half = Device(4, trt.DataType.HALF)
    shop.script.update(half.script)
    with EngineSession(engine) as narrow:
        logits = narrow.run(images)
        answers["half"] = [str(logits.dtype), bool(np.allclose(logits, expected(images), atol=2e-3))]

    manifest = engine.with_suffix(".json")
    text = manifest.read_text()
    foreign = {"gpu": ("stand-in for a GPU", "Orin"), "sm": ('"8.7"', '"8.6"'), "tensorrt": (trt.__version__, "9.9.9")}
    answers["foreign"] = {}
    for name, (ours, theirs) in foreign.items():
        manifest.write_text(text.replace(ours, theirs))
        calls = len(shop.called("Runtime", "deserialize_cuda_engine"))
        answers["foreign"][name] = outcome(lambda: EngineSession(engine))
        assert len(shop.called("Runtime", "deserialize_cuda_engine")) == calls, "the manifest is read first"
    assert DeviceInputError
    return answers


def two_logs(folder: Path) -> Any:
    """Each failure is explained by what TensorRT said then, though it knows the first logger alone."""
    from device.engine import BuildSettings, build_engine, dla_cores
    from device.session import EngineSession

    shop = Workshop()
    engine = build_engine(model(folder), BuildSettings(batch=(1, 1, 4)), folder / "cache")
    shop.script.update(Device(4).script)
    images = np.zeros((1, *SHAPE), np.float32)

    def failing(line: str, result: Any) -> Callable[..., Any]:
        def fail(*_: Any) -> Any:
            shop.bindings.logger.log(trt.ILogger.Severity.ERROR, line)
            return result

        return fail

    with EngineSession(engine) as first:
        dla_cores()
        shop.script[("Runtime", "deserialize_cuda_engine")] = failing("out of memory", None)
        load = outcome(lambda: EngineSession(engine))
        del shop.script[("Runtime", "deserialize_cuda_engine")]
        with EngineSession(engine) as second:
            shop.script[("IExecutionContext", "execute_async_v3")] = failing("CUDA failure 700", False)
            runs = [outcome(lambda one=one: one.run(images)) for one in (first, second)]
            shop.script[("IExecutionContext", "set_input_shape")] = failing("OutOfMemory", False)
            shape = outcome(lambda: second.run(np.zeros((2, *SHAPE), np.float32)))
            again = outcome(lambda: first.run(images))
    shop.fail = lambda _network: failing("insufficient memory", None)()
    log: list[str] = []
    build = outcome(lambda: build_engine(model(folder), BuildSettings(), folder / "cache", log=log.append))
    return {"load": load, "runs": runs, "shape": shape, "again": again, "build": build, "log": log[1:]}


def many_calls(folder: Path) -> Any:
    """10,000 calls after a warm-up, and what grew by them."""
    from device.engine import BuildSettings, build_engine
    from device.session import EngineSession

    shop = Workshop()
    engine = build_engine(model(folder), BuildSettings(batch=(1, 1, 4)), folder / "cache")
    device = Device(4)
    shop.script.update(device.script)
    images = np.zeros((2, *SHAPE), np.float32)
    with EngineSession(engine) as opened:
        for _ in range(500):
            opened.run(images)
        live, memory = device.live(), resident_kib()
        for _ in range(10_000):
            opened.run(images)
        return {"live": device.live() - live, "kib": resident_kib() - memory}


def long_log(folder: Path) -> Any:
    """A session's journal forgets; a build's does not.  What explained one failure does not explain the next."""
    from device.engine_watch import Watch
    from device.trt_logger import LOGGER, Journal

    session, build = Journal(Watch(), keep=200), Journal(Watch())
    for journal in (session, build):
        journal.log(trt.ILogger.Severity.ERROR, "out of memory")
        for number in range(1000):
            journal.log(trt.ILogger.Severity.WARNING, str(number))
            journal.log(trt.ILogger.Severity.VERBOSE, "left out")
    kept = [len(journal.watch.lines) for journal in (session, build)]
    session.log(trt.ILogger.Severity.INTERNAL_ERROR, "out of memory")
    last = session.watch.lines[-1]
    failures = [type(error).__name__ for error in (session.failure(), session.failure(), build.failure())]
    with session:  # of one thread
        with session:  # and of another
            LOGGER.log(trt.ILogger.Severity.WARNING, "both inside")
        LOGGER.log(trt.ILogger.Severity.WARNING, "one inside")
    LOGGER.log(trt.ILogger.Severity.WARNING, "outside")
    return {"kept": kept, "last": last, "failures": failures, "heard": session.watch.lines}


def stripped(folder: Path) -> Any:
    """A plan without weights gets them back from the ONNX file, and only from that very file."""
    from device.engine import BuildSettings, build_engine
    from device.session import EngineSession

    shop = Workshop()
    engine = build_engine(model(folder), BuildSettings(batch=(1, 1, 4), strip_plan=True), folder / "cache")
    shop.script.update(Device(4).script)
    EngineSession(engine).close()
    refits = (
        len(shop.called("OnnxParserRefitter", "refit_from_file")),
        len(shop.called("Refitter", "refit_cuda_engine")),
    )
    moved = folder / "elsewhere" / "student.onnx"
    moved.parent.mkdir()
    model(folder).rename(moved)
    gone = outcome(lambda: EngineSession(engine))
    again = build_engine(moved, BuildSettings(batch=(1, 1, 4), strip_plan=True), folder / "cache")
    EngineSession(again).close()
    refitted = Path(shop.called("OnnxParserRefitter", "refit_from_file")[-1][0])
    moved.write_bytes(b"another network")
    changed = outcome(lambda: EngineSession(engine))
    return {
        "refits": refits,
        "gone": gone,
        "builds": shop.builds,
        "from where it is now": refitted == moved,
        "changed": changed,
    }


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "surface": surface,
    "nothing returned": nothing_returned,
    "version": version,
    "build": build,
    "refused": refused,
    "session": session,
    "long log": long_log,
    "two logs": two_logs,
    "many calls": many_calls,
    "stripped": stripped,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
