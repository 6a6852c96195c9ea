"""One build with TensorRT 10.3 to 11: parse, configure, build, inspect.  Imported only once TensorRT has been found.

TensorRT's objects are annotated where they are made: a test follows these annotations and holds every attribute and
keyword against the real bindings of several versions.
"""

from __future__ import annotations

from pathlib import Path

import tensorrt as trt

from .engine_cache import Built
from .engine_settings import BuildSettings, Range
from .engine_watch import Watch
from .errors import BuildError, DeviceError, DeviceInputError
from .explain import RefusedNode, explain
from .trt_logger import LOGGER, Journal, Monitor
from .trt_runtime import make_builder, make_runtime


def build(onnx: Path, settings: BuildSettings, timing: bytes, watch: Watch) -> Built:
    """Build an engine; see :func:`engine.build_engine`.

    Args:
        onnx: the file.
        settings: how to build.
        timing: a serialised timing cache, or nothing.
        watch: gets log and progress, and may cancel.
    """
    with Journal(watch) as journal:
        plan, timings = _serialize(onnx, settings, timing, journal)  # the builder's memory is free again from here on
        return Built(plan=plan, layers=_layers(plan, settings, journal), timing_cache=timings)


def _serialize(onnx: Path, settings: BuildSettings, timing: bytes, journal: Journal) -> tuple[bytes, bytes]:
    """The engine and the timing cache."""
    builder: trt.Builder = make_builder(journal)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network: trt.INetworkDefinition = builder.create_network(flags)
    _parse(onnx, network, journal)
    config: trt.IBuilderConfig = builder.create_builder_config()
    monitor = Monitor(journal.watch)  # must outlive the build
    config.progress_monitor = monitor
    _configure(config, settings)
    _place_on_dla(builder, config, settings)
    _add_profile(builder, config, network, settings)
    cache: trt.ITimingCache = _timing_cache(config, timing, journal)
    plan: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if plan is None:
        if journal.watch.cancelled.is_set():
            raise BuildError("the build was cancelled.")
        raise journal.failure()
    timings: trt.IHostMemory = cache.serialize()
    return bytes(plan), bytes(timings)


def _parse(onnx: Path, network: trt.INetworkDefinition, journal: Journal) -> None:
    """Read the file into the network; where TensorRT refuses it, the cause and the nodes are named."""
    parser: trt.OnnxParser = trt.OnnxParser(network, LOGGER)
    if not parser.parse(onnx.read_bytes(), path=str(onnx)):
        raise _refusal(onnx, parser, journal)


def _refusal(onnx: Path, parser: trt.OnnxParser, journal: Journal) -> DeviceError:
    """What the parser's errors stand for."""
    nodes = []
    for index in range(parser.num_errors):
        refusal: trt.ParserError = parser.get_error(index)
        journal.watch.lines.append(f"[E] {refusal.desc()}")
        if refusal.node_operator():
            code = str(refusal.code()).rpartition(".")[2]  # the enum's own `name` is a method in 10.3
            nodes.append(RefusedNode(refusal.node_operator(), refusal.node_name(), refusal.desc(), code))
    error = explain(journal.watch.lines, nodes)
    if isinstance(error, BuildError):
        return DeviceInputError(f"TensorRT cannot read {onnx}.  {error.message}", "Export the model again.")
    return error


def _configure(config: trt.IBuilderConfig, settings: BuildSettings) -> None:
    config.builder_optimization_level = settings.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector; the engine is as fast
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    if settings.tactic_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, settings.tactic_mib << 20)
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if settings.strip_plan:
        # Refitting with the very weights that it was built with leaves TensorRT free to optimise on their values.
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)


def _place_on_dla(builder: trt.Builder, config: trt.IBuilderConfig, settings: BuildSettings) -> None:
    if settings.dla_core is None:
        return
    if settings.dla_core >= builder.num_DLA_cores:
        raise DeviceInputError(
            f"no Deep Learning Accelerator of number {settings.dla_core}: this device has {builder.num_DLA_cores}.",
            "Leave dla_core out to run on the GPU.",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = settings.dla_core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _add_profile(
    builder: trt.Builder, config: trt.IBuilderConfig, network: trt.INetworkDefinition, settings: BuildSettings
) -> None:
    """The sizes that the engine will take; none where the file fixes them all."""
    if network.num_inputs != 1 or network.num_outputs != 1:
        raise DeviceInputError(
            f"the file has {network.num_inputs} inputs and {network.num_outputs} outputs, not one of each.",
            "Give an image classifier.",
        )
    images: trt.ITensor = network.get_input(0)
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] < 0:
        raise DeviceInputError(f"the file's input is {shape}, not (N, C, H, W).", "Give an image classifier.")
    names = ("batch", "channels", "height", "width")
    ranges = [_sizes(*entry) for entry in zip(names, shape, _wanted(settings), strict=True)]
    if min(shape) >= 0:
        return
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    smallest, usual, largest = (trt.Dims([sizes[end] for sizes in ranges]) for end in range(3))
    profile.set_shape(images.name, min=smallest, opt=usual, max=largest)
    config.add_optimization_profile(profile)


def _wanted(settings: BuildSettings) -> tuple[Range | None, ...]:
    return settings.batch, None, settings.height, settings.width


def _sizes(name: str, size: int, wanted: Range | None) -> Range:
    """The sizes of one dimension: the file's own where it fixes it, otherwise those asked for."""
    if size >= 0:
        if wanted is not None and not wanted[0] <= size <= wanted[2]:
            raise DeviceInputError(f"the file fixes its {name} to {size}; {wanted} was asked for.", "Export it open.")
        return size, size, size
    if wanted is None:
        raise DeviceInputError(f"the file leaves its {name} open.", f"Give the build settings a {name}.")
    return wanted


def _timing_cache(config: trt.IBuilderConfig, timing: bytes, journal: Journal) -> trt.ITimingCache:
    """The cache of an earlier build where it fits, otherwise an empty one."""
    cache: trt.ITimingCache | None = config.create_timing_cache(timing)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache
    journal.watch.lines.append("[W] the timing cache is not for this device; a new one is begun.")
    fresh: trt.ITimingCache = config.create_timing_cache(b"")
    config.set_timing_cache(fresh, ignore_mismatch=False)
    return fresh


def _layers(plan: bytes, settings: BuildSettings, journal: Journal) -> str:
    """What the engine consists of, as the inspector's JSON: layers, their types, formats and device."""
    host_code, dla_core = settings.version_compatible, settings.dla_core
    runtime: trt.Runtime = make_runtime(journal, host_code=host_code, dla_core=dla_core)
    engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise journal.failure()
    inspector: trt.EngineInspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
