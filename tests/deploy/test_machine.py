"""What machines say about themselves, and what they should not say.

Lines of nv_tegra_release and nvpmodel follow public issue reports, some shortened.  nvidia-smi rows are composed:
names, capabilities, drivers and [N/A] from such reports, put into the order of our query, with a memory column added.
"""

from __future__ import annotations

import pytest

from iekd.deploy import machine

# NVIDIA-AI-IOT/jetbot issue 49: without root, errors follow the answer.
NVPMODEL_NOT_ROOT = """NV Power Mode: 5W
1
NVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap/emc_iso_cap: 13
NVPM ERROR: failed to read PARAM EMC: ARG MAX_FREQ: PATH /sys/kernel/nvpmodel_emc_cap/emc_iso_cap
"""
NVPMODEL_FAILED = """NVPM ERROR: failed to set power mode!
NVPM ERROR: optMask is 2, no request for power mode
"""
TEGRA_RELEASE = """# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025
# KERNEL_VARIANT: oot
TARGET_USERSPACE_LIB_DIR=nvidia
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVIDIA H200, 9.0, 570.86.15, 143771 MiB\n", [("NVIDIA H200", "9.0", "570.86.15", "143771 MiB")]),
        (
            "NVIDIA TITAN V, 7.0, 570.86.15, 12288 MiB\nNVIDIA RTX 5880 Ada Generation, 8.9, 570.86.15, 49140 MiB\n",
            [
                ("NVIDIA TITAN V", "7.0", "570.86.15", "12288 MiB"),
                ("NVIDIA RTX 5880 Ada Generation", "8.9", "570.86.15", "49140 MiB"),
            ],
        ),
        ("Orin (nvgpu), [N/A], 540.4.0, [N/A]\n", [("Orin (nvgpu)", "", "540.4.0", "")]),
        ("Orin (nvgpu), N/A, N/A, [Not Supported]\n", [("Orin (nvgpu)", "", "", "")]),
        ("No devices were found\n", []),
        ('Field "compute_cap" is not a valid field to query.\n', []),
        ("[Unknown Error], 9.0, 570.86.15, 1 MiB\n, , ,\n\0\n", []),
        ("", []),
    ],
)
def test_gpus(text: str, expected: list[tuple[str, ...]]) -> None:
    assert machine.gpus(text) == expected


@pytest.mark.parametrize(
    ("text", "expected", "name"),
    [
        (TEGRA_RELEASE, (36, 4, 3), "6.2"),
        ("# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic\n", (36, 4, 0), "6.1"),
        ("# R36 (release), REVISION: 3.0\n", (36, 3, 0), "6.0"),
        ("# R36 (release), REVISION: 9.0\n", (36, 9, 0), "6"),
        ("# R38 (release), REVISION: 2.2, GCID: 42205042, BOARD: generic, EABI: aarch64\n", (38, 2, 2), "7.0"),
        ("# R38 (release), REVISION: 4.0, BOARD: generic\n", (38, 4, 0), "7.1"),
        ("# R39 (release), REVISION: 2.0\n", (39, 2, 0), "7.2"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref\n", (35, 4, 1), "5"),
        ("# R32(release), REVISION: 6.1, GCID: 27863751, BOARD: t186ref, EABI:aarch64\n", (32, 6, 1), "4"),
        ("# R99 (release), REVISION: 1.0\n", (99, 1, 0), ""),
    ],
)
def test_jetson_linux(text: str, expected: tuple[int, ...], name: str) -> None:
    assert machine.l4t(text) == expected
    assert machine.jetpack(expected) == name


@pytest.mark.parametrize("text", ["", "# R36", "R36 (release), REVISION: 4.3", "# Rxx (release), REVISION: 4", "\0"])
def test_a_damaged_release_file_is_no_release(text: str) -> None:
    assert machine.l4t(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER"),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_DESKTOP\n7\nNVPM ERROR: failed to read\n", "MODE_15W_DESKTOP"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n", "MAXN"),
        (NVPMODEL_NOT_ROOT, "5W"),
        (NVPMODEL_FAILED, ""),
        ("NV Power Mode:\n2\n", ""),
        ("NV Power Mode: 30", "30"),
        ("", ""),
    ],
)
def test_power_mode(text: str, expected: str) -> None:
    assert machine.power_mode(text) == expected


def test_power_modes() -> None:
    text = (
        "# < POWER_MODEL ID=9 NAME=COMMENT >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
        "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< POWER_MODEL ID=x NAME=BAD >\n< PM_CONFIG DEFAULT=0 >\n"
    )
    assert machine.power_modes(text) == {"15W": 0, "MAXN_SUPER": 2}
    assert machine.power_modes("") == {}


def test_memory() -> None:
    text = "MemTotal:       24684096 kB\nMemAvailable:   x kB\nHugePages_Total:       0\nSwapTotal:          1024 kB\n"
    assert machine.memory(text) == {"MemTotal": 24684096 * 1024, "SwapTotal": 2**20}
    assert machine.memory("MemTotal") == {}


def test_processors() -> None:
    x86 = "model name\t: AMD EPYC 9B45\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n\nflags\t\t: avx_vnni\n"
    assert machine.cpu_name(x86) == "AMD EPYC 9B45"
    assert machine.instruction_sets(x86) == ["AVX2", "AVX-512", "AVX-512 VNNI", "AMX INT8"]
    arm = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU part\t: 0xd42\n"
    assert machine.cpu_name(arm) == ""
    assert machine.instruction_sets(arm) == ["dot product", "INT8 matrices", "BF16"]
    assert machine.instruction_sets("flags\n") == []
