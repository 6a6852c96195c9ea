"""API contract: the device code against NVIDIA's genuine bindings of TensorRT 10.3, 10.16 and 11.4.

The bindings stand over stub libraries, so nothing is built or run by TensorRT here.  What is real: every class, member,
attribute, keyword and signature; and the device code, which is executed in full with stand-ins that hold it to them.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorrt_wheels as wheels
from tensorrt_walk import Walk

DEVICE = Path(__file__).parents[2] / "deploy" / "device"

Run = Callable[[str, str], Any]


@pytest.fixture(scope="session")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a scenario with the bindings of a version, in a process of its own; what it printed."""
    built = tmp_path_factory.mktemp("stubs")
    kept = getattr(request.config, "cache", None)  # absent with -p no:cacheprovider
    cache = kept.mkdir("tensorrt-bindings") if kept else tmp_path_factory.mktemp("bindings")

    def run_scenario(version: str, name: str) -> Any:
        try:
            bindings = wheels.bindings(version, cache)
            libraries = wheels.stub_libraries(version.split(".")[0], built / version)
            cudart = wheels.host_cudart(built)
        except wheels.UnavailableError as reason:
            pytest.skip(str(reason))
        folder = tmp_path_factory.mktemp("board")
        shutil.copytree(DEVICE, folder / "device", ignore=shutil.ignore_patterns("__pycache__"))
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(libraries),
            "PYTHONPATH": f"{bindings}{os.pathsep}{wheels.STUBS}",
            "IEKD_CUDART": str(cudart),
        }
        command = [sys.executable, "-W", "error", str(wheels.STUBS / "scenarios.py"), name, str(folder)]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert answer.returncode == 0, answer.stderr[-3000:]
        return json.loads(answer.stdout.splitlines()[-1])

    return run_scenario


@pytest.fixture(scope="session")
def surfaces(run: Run) -> dict[str, Any]:
    return {version: run(version, "surface") for version in wheels.SERVED}


SOURCES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DEVICE.glob("*.py"))}

MUST_BE_SEEN = {
    "Builder.build_serialized_network",
    "Builder.create_network",
    "Builder.num_DLA_cores",
    "BuilderFlag.STRIP_PLAN",
    "BuilderFlag.TF32",
    "EngineInspector.get_engine_information",
    "HardwareCompatibilityLevel.AMPERE_PLUS",
    "IBuilderConfig.add_optimization_profile",
    "IBuilderConfig.builder_optimization_level",
    "IBuilderConfig.set_timing_cache",
    "ICudaEngine.create_execution_context",
    "ICudaEngine.get_tensor_profile_shape",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.set_tensor_address",
    "ILogger.log",
    "INetworkDefinition.get_input",
    "IOptimizationProfile.set_shape",
    "IProgressMonitor.step_complete",
    "ITensor.shape",
    "ITimingCache.serialize",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "OnnxParser.parse",
    "OnnxParserRefitter.refit_from_file",
    "ParserError.code",
    "ParserError.node_operator",
    "Refitter.refit_cuda_engine",
    "Runtime.DLA_core",
    "Runtime.deserialize_cuda_engine",
    "Runtime.engine_host_code_allowed",
}


@pytest.mark.parametrize("version", wheels.SERVED)
def test_every_name_attribute_and_keyword_exists(surfaces: dict[str, Any], version: str) -> None:
    walk = Walk(surfaces[version], SOURCES)
    assert walk.run() == []
    assert walk.checked >= MUST_BE_SEEN, "the walk lost sight of what it should check"


@pytest.mark.parametrize(
    ("planted_in", "old", "new", "found_in"),
    [
        ("trt_build.py", "trt.BuilderFlag.SPARSE_WEIGHTS", "trt.BuilderFlag.FP16", ["11.4"]),
        ("trt_build.py", "BuilderFlag.SPARSE_WEIGHTS", "BuilderFlag.EDITABLE_TIMING_CACHE", ["10.3"]),
        ("trt_build.py", "builder.create_builder_config(", "builder.create_builder_confg(", list(wheels.SERVED)),
        ("trt_build.py", "ignore_mismatch=False", "mismatch=False", list(wheels.SERVED)),
        ("trt_build.py", "config.DLA_core =", "config.dla_core =", list(wheels.SERVED)),
        (
            "trt_build.py",
            "config.builder_optimization_level =",
            "config.num_optimization_profiles =",
            list(wheels.SERVED),
        ),
        ("trt_build.py", "parser.parse(", "parser.supports_model(", ["11.4"]),
        ("trt_build.py", "cache.serialize()", "cache.serialise()", list(wheels.SERVED)),
        ("trt_build.py", "config: trt.IBuilderConfig = builder", "config = object() or builder", list(wheels.SERVED)),
        ("trt_lane.py", "context.execute_async_v3(", "context.execute_async_v4(", list(wheels.SERVED)),
        ("trt_lane.py", "set_tensor_address(binding.name, ", "set_tensor_address(", list(wheels.SERVED)),
        ("trt_logger.py", "phase_name: str, parent_phase", "phase: str, parent_phase", list(wheels.SERVED)),
        ("trt_runtime.py", "engine.num_io_tensors", "engine.device_memory_size", ["11.4"]),
        (
            "trt_runtime.py",
            "runtime: trt.Runtime = make_runtime(",
            "runtime = getattr(trt, 'Runtime')(",
            list(wheels.SERVED),
        ),
    ],
)
def test_a_planted_mistake_is_found(
    surfaces: dict[str, Any], planted_in: str, old: str, new: str, found_in: list[str]
) -> None:
    assert old in SOURCES[planted_in], "the plant has nowhere to grow"
    planted = SOURCES | {planted_in: SOURCES[planted_in].replace(old, new)}
    found = {version: Walk(surface, planted).run() for version, surface in surfaces.items()}
    assert [version for version in wheels.SERVED if found[version]] == found_in
    assert all(line.startswith(planted_in) for lines in found.values() for line in lines)


def test_an_older_version_is_refused(run: Run) -> None:
    answer = run("10.2", "version")
    assert answer["raised"] == "DeviceMissingError"
    assert answer["message"] == "TensorRT 10.2.0 is too old: 10.3 or later is needed."


@pytest.mark.parametrize("version", wheels.SERVED)
def test_without_a_gpu_the_bindings_answer_is_explained(run: Run, version: str) -> None:
    answer = run(version, "nothing returned")
    for key in ("build", "load"):
        assert answer[key] == {"raised": "DeviceMissingError", "message": "TensorRT found no usable GPU."}
    assert answer["machine"]["tensorrt"].startswith(version)
    assert answer["machine"]["platform"] == f"{platform.system()} {platform.machine()}"
    assert len(answer["logs"]) == 1, "the log of a failed build is kept"


@pytest.mark.parametrize("version", wheels.SERVED)
def test_a_build_asks_for_what_was_set(run: Run, version: str) -> None:
    answer = run(version, "build")
    assert answer["network"] == answer["strongly typed"]
    flags = ["SPARSE_WEIGHTS", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL"]
    assert answer["flags"] == [*flags, "GPU_FALLBACK"]
    assert answer["cleared"] == ["TF32"]
    assert answer["pools"] == [512 << 20, 256 << 20]
    assert answer["profile"] == [[1, 3, 32, 32], [4, 3, 64, 64], [16, 3, 128, 128]]
    assert answer["same"]
    assert answer["builds"] == 1, "the second call is served by the cache"
    assert {"NAME.engine", "NAME.json", "NAME.layers.json"} <= set(answer["files"])
    assert json.loads(answer["layers"]) == {"Layers": ["conv1"]}
    assert answer["timing reused"] > 0
    assert answer["dla cores"] == 2
    assert answer["dla"] == [1, "DeviceType.DLA"]
    loaded = ["deserialize_cuda_engine", "b'plan'"]
    on_dla = [["DLA_core =", "1"], loaded]  # in this order: an engine captures the core when it is loaded
    assert answer["loads"] == [["engine_host_code_allowed =", "True"], loaded, *on_dla, *on_dla]
    assert answer["no dla"]["message"] == "no Deep Learning Accelerator of number 2: this device has 2."
    assert answer["shares"] == sorted(answer["shares"])
    assert len(answer["shares"]) >= 3
    assert answer["shares"][-1] == 1
    assert answer["phases"] == ["Building Engine", "Tactics"] or answer["phases"] == ["Tactics"]
    assert answer["log"][0].startswith("[I] building ")


@pytest.mark.parametrize("version", wheels.SERVED)
def test_a_build_that_fails_says_why(run: Run, version: str) -> None:
    answer = run(version, "refused")
    assert answer["operator"]["raised"] == "DeviceInputError"
    assert "operator GridSample: /warp/GridSample (GridSample)" in answer["operator"]["message"]
    assert answer["operator by code"]["message"].endswith("(GridSample).  TensorRT says: Assertion failed: rank")
    assert "mixes number types" in answer["types"]["message"]
    assert answer["memory of a node"]["raised"] == "OutOfMemoryError"
    assert (
        answer["value"]["message"] == "TensorRT refuses the node /warp/GridSample (GridSample): Assertion failed: axis"
    )
    assert answer["memory"]["raised"] == "OutOfMemoryError"
    assert "14768 MiB" in answer["memory"]["message"]
    assert "15485030400" in answer["log"][0]
    assert answer["interrupted"] == ["build.lock"], "a stopped build leaves nothing"
    assert answer["left"] == [0] * 7, "of each failed build: its builder and parser, and so their memory"
    assert len(answer["foreign timing cache"]) == 1
    assert answer["fixed batch"]["message"] == "the file fixes its batch to 4; (1, 1, 2) was asked for."


@pytest.mark.parametrize("version", wheels.SERVED)
def test_a_session_answers(run: Run, version: str) -> None:
    """The session's own work: buffers, copies, shapes, graphs, errors.  What an engine computes is scripted."""
    answer = run(version, "session")
    assert answer["shape"] == [3, 4, 4]
    assert answer["most"] == 4
    assert answer["worst error"] < 1e-6
    # captured on the second call of a shape, dropped when the shape changes
    assert answer["graph in use"] == [False, True, True, False, True, False, False, False, True, False]
    assert answer["described"]["cuda graph"] == "captured"
    assert answer["described"]["backend"].startswith(f"TensorRT {version}")
    assert answer["timed"].keys() == {"h2d", "compute", "d2h", "enqueue", "host"}
    device = sum(answer["timed"][key] for key in ("h2d", "compute", "d2h"))
    assert 0 < device <= answer["timed"]["host"]
    assert answer["timed right"]
    assert answer["streams"] == [True, True]
    assert answer["wrong in a stream"]["raised"] == "DeviceInputError"
    for name, refusal in answer["wrong"].items():
        assert refusal["raised"] == "DeviceInputError", name
    assert "(1 to 4, 3, 4, 4), not (5, 3, 4, 4)" in answer["wrong"]["too many"]["message"]
    for refusal in (answer["closed"], *answer["closed for streams"]):
        assert refusal["message"] == "this session is closed."
    assert answer["left after close"] == 0
    assert answer["without graph"] == [3, "off"]
    assert answer["capture fails"][0] == [True, True, True]
    assert answer["capture fails"][1].startswith("not possible: CUDA failed in cudaStreamEndCapture")
    assert answer["no memory"]["raised"] == "OutOfMemoryError"
    assert answer["left at the end"] == 0
    assert answer["half"] == ["float32", True]
    for name, there in (("gpu", "Orin"), ("sm", "SM 8.6"), ("tensorrt", "TensorRT 9.9.9")):
        assert there in answer["foreign"][name]["message"]


def test_memory_is_flat_over_ten_thousand_calls(run: Run) -> None:
    answer = run("11.4", "many calls")
    assert answer["live"] == 0
    assert answer["kib"] < 1024


@pytest.mark.parametrize("version", wheels.SERVED)
def test_a_stripped_plan_is_refitted_from_its_own_file(run: Run, version: str) -> None:
    answer = run(version, "stripped")
    assert answer["refits"] == [1, 1]
    assert (answer["builds"], answer["from where it is now"]) == (1, True)
    for key in ("gone", "changed"):
        assert answer[key]["message"].endswith("which has them, is missing or changed.")


@pytest.mark.parametrize("version", wheels.SERVED)
def test_several_engines_hear_the_one_log_that_there_is(run: Run, version: str) -> None:
    answer = run(version, "two logs")
    assert answer["load"]["raised"] == "OutOfMemoryError"
    assert [one["message"] for one in answer["runs"]] == [
        "TensorRT did not build the engine: the engine did not run"
    ] * 2
    assert answer["shape"]["raised"] == "OutOfMemoryError"
    assert answer["again"]["raised"] == "BuildError", "the others' failures are not this one's"
    assert answer["build"]["raised"] == "OutOfMemoryError"
    assert answer["log"] == ["[E] insufficient memory"]


@pytest.mark.parametrize("version", wheels.SERVED)
def test_a_session_s_log_stays_short(run: Run, version: str) -> None:
    answer = run(version, "long log")
    assert answer["kept"] == [200, 1001]
    assert answer["last"] == "[F] out of memory"
    assert answer["heard"] == ["[W] both inside", "[W] one inside"]
    assert answer["failures"] == ["OutOfMemoryError", "BuildError", "OutOfMemoryError"]
