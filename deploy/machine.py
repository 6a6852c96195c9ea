"""Reading what a machine says about itself: each function takes the text of one file or command, and never raises.

What is malformed or not known to the speaker ("[N/A]") becomes an empty string, None or an empty collection.
"""

from __future__ import annotations

import re
from typing import NamedTuple

GPU_QUERY = "name,compute_cap,driver_version,memory.total"

BOARD_SM = {"Xavier": "7.2", "Orin": "8.7", "Thor": "11.0"}
"""Jetson modules and their compute capability, which nvidia-smi there does not tell."""

INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "asimddp": "dot product",
    "i8mm": "INT8 matrices",
    "bf16": "BF16",
    "sve": "SVE",
}
"""The kernel's name of what speeds up inference -> the usual name; x86 first, then Arm."""


class Gpu(NamedTuple):
    """One row of ``nvidia-smi --query-gpu``; empty where it said [N/A]."""

    name: str
    sm: str
    driver: str
    memory: str


def gpus(text: str) -> list[Gpu]:
    """GPUs by ``nvidia-smi --query-gpu=GPU_QUERY --format=csv,noheader``.  Lines of another form are left out."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[0]:
            found.append(Gpu(*("" if part.startswith("[") or part == "N/A" else part for part in parts)))
    return [gpu for gpu in found if gpu.name]


def l4t(text: str) -> tuple[int, ...] | None:
    """Release of Jetson Linux by ``/etc/nv_tegra_release``, such as (36, 4, 3)."""
    found = re.search(r"^# R(\d+) ?\(release\), REVISION: (\d+(?:\.\d+)*)", text, re.MULTILINE)
    return (int(found[1]), *map(int, found[2].split("."))) if found else None


def jetpack(release: tuple[int, ...]) -> str:
    """The JetPack that a release of Jetson Linux belongs to (NVIDIA's JetPack archive), or nothing."""
    names = {(39, 2): "7.2", (38, 4): "7.1", (38, 2): "7.0", (36, 4, 3): "6.2", (36, 4, 0): "6.1", (36, 3): "6.0"}
    for known, name in names.items():
        if release[: len(known)] == known:
            return name
    return {39: "7", 38: "7", 36: "6", 35: "5", 34: "5", 32: "4"}.get(release[0], "")


def power_mode(text: str) -> str:
    """Name of the mode by ``nvpmodel -q``, which also reports a fan mode, warnings and errors, in any order."""
    found = re.search(r"^NV Power Mode:[ \t]*(\S.*?)[ \t]*$", text, re.MULTILINE)
    return found[1] if found else ""


def power_modes(text: str) -> dict[str, int]:
    """Modes of ``/etc/nvpmodel.conf``: name -> the number that ``nvpmodel -m`` takes."""
    modes = re.findall(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text, re.MULTILINE)
    return {name: int(number) for number, name in modes}


def memory(text: str) -> dict[str, int]:
    """Bytes by ``/proc/meminfo``: MemTotal, MemAvailable, SwapTotal and so on."""
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def instruction_sets(text: str) -> list[str]:
    """Of ``INSTRUCTION_SETS``, by ``/proc/cpuinfo``: those of its first processor."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    words = set(found[1].split()) if found else set()
    return [name for flag, name in INSTRUCTION_SETS.items() if flag in words]


def cpu_name(text: str) -> str:
    """Model name by ``/proc/cpuinfo``, which on Arm often has none."""
    found = re.search(r"^model name\s*:[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)
    return found[1] if found else ""
