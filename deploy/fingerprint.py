"""What ran on what: enough to tell whether two figures may be compared."""

from __future__ import annotations

import os
import platform

from iekd.deploy import machine, probe
from iekd.deploy.device import sensors
from iekd.deploy.results import Fingerprint

PACKAGES = (
    *("iekd-compress", "torch", "timm", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "openvino"),
    *("nncf", "nvidia-modelopt", "onnxconverter-common", "torch-pruning"),
)


def fingerprint(threads: int) -> Fingerprint:
    """Describe this machine.  Whatever cannot be read is left out or called unknown; this never raises.

    Args:
        threads: that the measured sessions used.
    """
    return Fingerprint(
        device=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        threads=threads,
        memory_gib=round(_memory_bytes() / 2**30, 1),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=_versions(),
        gpu=_gpu_name(),
        clocks=_clocks(),
        gpu_clocks=_gpu_clocks(),
        extra={**_instruction_sets(), **_gpu_facts(), **_jetson()},
    )


def _cpu_name() -> str:
    model = probe.read("proc/device-tree/model").strip("\0\n")
    return machine.cpu_name(probe.read("proc/cpuinfo")) or model or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _versions() -> dict[str, str]:
    return {name: version for name in PACKAGES if (version := probe.version(name)) is not None}


def _gpu_name() -> str | None:
    """The first GPU and its driver, by nvidia-smi."""
    found = _ask_gpu("name", "driver_version")
    return ", ".join(filter(None, found or ())) or None


def _gpu_facts() -> dict[str, str]:
    """Of the first GPU, what stays the same: its compute capability, and the latest CUDA that the driver takes."""
    (sm,) = _ask_gpu("compute_cap") or ("",)
    sm = sm or next((sm for name, sm in machine.BOARD_SM.items() if name in probe.board()), "")
    cuda = probe.driver_cuda()
    return _known({"SM": sm, "CUDA of the driver": f"{cuda[0]}.{cuda[1]}" if cuda else ""})


def _gpu_clocks() -> str | None:
    """A discrete GPU's clock; nvidia-smi does not tell whether somebody locked it, only where it stands."""
    now, most = _ask_gpu("clocks.sm", "clocks.max.sm") or ("", "")
    if not (now.isdigit() and most.isdigit()):
        return None
    where = "locked there, or busy" if int(now) >= int(most) else "floating, or locked below"
    return f"{now} of {most} MHz when asked: {where}"


def _ask_gpu(*fields: str) -> list[str] | None:
    """Fields of the first GPU, by nvidia-smi, empty where it does not know one; None where it does not answer so."""
    query = (f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0")
    answer = probe.run("nvidia-smi", *query, seconds=10)
    found = [field.strip() for field in answer.text.partition("\n")[0].split(",")]
    if answer.status != 0 or len(found) != len(fields):
        return None
    return ["" if field.startswith("[") or field == "N/A" else field for field in found]


def _jetson() -> dict[str, str]:
    """Release and power mode, on which a Jetson's figures hang."""
    release = machine.l4t(probe.read("etc/nv_tegra_release"))
    if release is None:
        return {}
    jetpack, linux = machine.jetpack(release) or "unknown", ".".join(map(str, release))
    mode = machine.power_mode(probe.run("nvpmodel", "-q").text)
    return _known({"JetPack": f"{jetpack} (Jetson Linux {linux})", "power mode": mode})


def _clocks() -> str:
    """Of all processors, and of a Jetson's GPU: locked where each lower limit is the upper one."""
    files = sorted((probe.ROOT / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    governors = dict.fromkeys(governor for file in files if (governor := probe.text(file).strip()))
    state = str(sensors.clocks()["state"])
    return f"{state} (governor {', '.join(governors)})" if governors else state


def _instruction_sets() -> dict[str, str]:
    flags = next((line for line in probe.read("proc/cpuinfo").splitlines() if line.startswith("flags")), "").split()
    known = [
        name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16") if name in flags
    ]
    return _known({"instruction sets": " ".join(known)})


def _known(facts: dict[str, str]) -> dict[str, str]:
    return {name: fact for name, fact in facts.items() if fact}
