"""Parsers of what a Jetson prints, on recorded lines; power, clocks and temperatures on file trees like a board's."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from iekd.deploy.device import energy, sensors
from iekd.deploy.device.tegrastats import Reading, parse_tegrastats, total_rails

# Recorded lines, as published by users of each board; the statistics are those of NVIDIA's Jetson Linux Developer
# Guide, "tegrastats Utility" (docs.nvidia.com/jetson/archives, releases 32.5 to 36), which gives examples one by one.
AGX_ORIN_R36 = (
    "05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) CPU [14%@2188,5%@2112,8%@2035,"
    "14%@2201,46%@1267,47%@1267,2%@1267,10%@1267,4%@1036,5%@1036,6%@1036,10%@1036] EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,0] "
    "NVENC 79%@166 NVDEC off NVJPG off NVJPG1 off VIC 36%@115 OFA off NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 "
    "cpu@52.562C soc2@48.437C soc0@49.093C tj@52.562C soc1@49.656C VDD_GPU_SOC 2412mW/2412mW VDD_CPU_CV 1607mW/1607mW "
    "VIN_SYS_5V0 4707mW/4707mW"
)
AGX_ORIN_R35 = (
    "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729,0%@729,0%@729,0%@729,"
    "0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@0 GR3D2_FREQ 0%@0 VIC_FREQ "
    "729 APE 174 CV0@-256C CPU@42.593C Tboard@32C SOC2@39.343C Tdiode@33.25C SOC0@39.375C CV1@-256C GPU@-256C "
    "tj@42.593C SOC1@40.468C CV2@-256C VDD_GPU_SOC 2399mW/2399mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4032mW "
    "NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
AGX_ORIN_R39 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201,4%@2201,14%@2201,30%@2201,18%@2201,"
    "10%@2201,10%@2201,33%@2201,7%@2201,5%@2201,27%@2201] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] NVENC0 off "
    "NVDEC0 off NVJPG0 off NVJPG1 off VIC off OFA off NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 "
    "cpu@52.968C/52.968C soc2@48.406C/48.406C soc0@49.531C/49.531C gpu@47.625C/47.625C "
    "VDD_GPU_SOC 5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
ORIN_NANO = (
    "RAM 2161/7620MB (lfb 149x4MB) SWAP 1875/12002MB (cached 43MB) CPU [2%@1728,1%@1728,4%@1728,2%@1728,9%@1728,"
    "1%@1728] GR3D_FREQ 0% cpu@55.093C soc2@53.75C soc0@54.562C gpu@56.562C tj@56.562C VDD_IN 7256mW/7256mW "
    "VDD_CPU_GPU_CV 1711mW/1711mW VDD_SOC 2511mW/2511mW"
)
THOR = (
    "07-31-2026 14:45:55 RAM 86905/125772MB (lfb 368x4MB) CPU [12%@972,10%@972,off,33%@1890] cpu@39.812C tj@39.906C "
    "soc012@38.812C gpu@39.906C soc345@38.625C VDD_GPU 3561mW/3561mW VDD_CPU_SOC_MSS 7910mW/7910mW "
    "VIN_SYS_5V0 7620mW/7620mW VIN 26686mW/26686mW"
)
TX2_R32 = (
    "RAM 2020/7852MB (lfb 1164x4MB) CPU [9%@345,21%@345,25%@345,3%@345,1%@345,1%@345] EMC_FREQ 0% GR3D_FREQ 0% "
    "PLL@42.5C MCPU@42.5C PMIC@100C Tboard@40C GPU@41C BCPU@42.5C thermal@41.9C Tdiode@41.25C VDD_SYS_GPU 153/158 "
    "VDD_SYS_SOC 536/547 VDD_4V0_WIFI 633/527 VDD_IN 3140/3208 VDD_SYS_CPU 536/590 VDD_SYS_DDR 557/601"
)
RECORDED = [AGX_ORIN_R36, AGX_ORIN_R35, AGX_ORIN_R39, ORIN_NANO, THOR, TX2_R32]


def test_agx_orin() -> None:
    assert parse_tegrastats(AGX_ORIN_R36) == Reading(
        rails_mw={"VDD_GPU_SOC": 2412, "VDD_CPU_CV": 1607, "VIN_SYS_5V0": 4707},
        celsius={"cpu": 52.562, "soc2": 48.437, "soc0": 49.093, "tj": 52.562, "soc1": 49.656},
        ram_used_mb=18207,
        ram_total_mb=62841,
        gpu_load=0.0,
        gpu_mhz=0,
        memory_mhz=2133,
        cpu_mhz=(2188, 2112, 2035, 2201, 1267, 1267, 1267, 1267, 1036, 1036, 1036, 1036),
    )


def test_zones_that_are_off_and_channels_not_connected_are_left_out() -> None:
    found = parse_tegrastats(AGX_ORIN_R35)
    assert found.celsius.keys() == {"CPU", "Tboard", "SOC2", "Tdiode", "SOC0", "tj", "SOC1"}
    assert found.rails_mw.keys() == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}


def test_three_values_a_rail_and_two_a_zone() -> None:
    found = parse_tegrastats(AGX_ORIN_R39)
    assert found.rails_mw == {"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500}
    assert found.celsius == {"cpu": 52.968, "soc2": 48.406, "soc0": 49.531, "gpu": 47.625}
    assert (found.gpu_load, found.gpu_mhz, found.memory_mhz) == (0.12, 1300, 3199)


def test_load_without_a_clock_and_cores_that_are_off() -> None:
    assert (parse_tegrastats(ORIN_NANO).gpu_load, parse_tegrastats(ORIN_NANO).gpu_mhz) == (0.0, None)
    thor = parse_tegrastats(THOR)
    assert thor.cpu_mhz == (972, 972, 1890)
    assert (thor.gpu_load, thor.gpu_mhz, thor.memory_mhz) == (None, None, None)


def test_values_without_a_unit() -> None:
    assert parse_tegrastats(TX2_R32).rails_mw["VDD_IN"] == 3140


def test_the_examples_of_nvidia_s_table() -> None:
    """Developer Guide, release 32.5, appendix "tegrastats Utility", column "Example of statistic"."""
    found = parse_tegrastats(
        "RAM 220/38955MB (lfb 847x4MB) SWAP 0/1978MB (cached 0MB) IRAM 0/252kB(lfb 252kB) "
        "CPU [1%@102,5%@102,0%@102,0%@102]"
    )
    assert found == Reading(ram_used_mb=220, ram_total_mb=38955, cpu_mhz=(102, 102, 102, 102))


@pytest.mark.parametrize(
    ("statistic", "load", "clock"),
    [
        ("GR3D_FREQ 10%@1300", 0.1, 1300),
        ("GR3D_FREQ @[1000,1000,1000]", None, 1000),
        ("GR3D_FREQ 76%@[1147]", 0.76, 1147),
        ("GR3D_FREQ 99%", 0.99, None),
        ("GR3D_FREQ off", None, None),
        ("GR3D_FREQ 12%@[", None, None),
    ],
)
def test_the_gpu_s_forms(statistic: str, load: float | None, clock: int | None) -> None:
    found = parse_tegrastats(f"EMC_FREQ 2%@1866 {statistic} APE 150")
    assert (found.gpu_load, found.gpu_mhz, found.memory_mhz) == (load, clock, 1866)


@pytest.mark.parametrize(
    ("line", "total_mw"),
    [(AGX_ORIN_R36, 8726), (AGX_ORIN_R35, 6831), (ORIN_NANO, 7256), (THOR, 26686), (TX2_R32, 3140)],
)
def test_the_whole_is_counted_once(line: str, total_mw: int) -> None:
    rails = parse_tegrastats(line).rails_mw
    assert sum(rails[name] for name in total_rails(set(rails))) == total_mw


def test_rails_of_an_unknown_board_are_not_added_up() -> None:
    assert total_rails({"VDD_GPU_SOC", "VDD_NEW"}) == ()
    assert total_rails(set()) == ()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        "\0\xff\ufffd",
        "tegrastats: command not found",
        "RAM /MB CPU [ EMC_FREQ %@ GR3D_FREQ %@[] tj@C VDD_IN mW/mW",
        "RAM x/yMB CPU [%@,@] tj@--5C VDD_IN -5mW/3mW VDD_SOC 1.5.2mW/2mW",
        "VDD_IN 7256mW VDD_IN 7256mW/ VDD_IN mW/7256mW VDD_IN 7256mV/7256mV VDD_IN 7256mW/7256mW/",
    ],
)
def test_malformed_lines_say_nothing(line: str) -> None:
    assert parse_tegrastats(line) == Reading()


@pytest.mark.parametrize("line", RECORDED)
def test_a_line_cut_anywhere_never_says_something_else(line: str) -> None:
    """A pipe may end within a line: what is still read must be what the whole line says."""
    whole = parse_tegrastats(line)
    for end in range(len(line)):
        part = parse_tegrastats(line[:end])
        assert part.rails_mw.items() <= whole.rails_mw.items(), line[:end]
        assert part.celsius.items() <= whole.celsius.items(), line[:end]
        assert part.cpu_mhz in ((), whole.cpu_mhz)
        assert part.ram_used_mb in (None, whole.ram_used_mb)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN"),
        ("NV Power Mode: MODE_50W\n3\n", "MODE_50W"),
        ("NVPM VERB: Config file: /etc/nvpmodel.conf\nNVPM VERB: Current mode: NV Power Mode: 25W\n1\n", "25W"),
        ("NV Power Mode:\n", None),
        ("NVPM ERROR: permission denied\n", None),
        ("", None),
    ],
)
def test_the_power_mode(text: str, mode: str | None) -> None:
    assert sensors.parse_power_mode(text) == mode


def test_jetson_clocks() -> None:
    found = sensors.parse_jetson_clocks(
        "SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\n"
        "Online CPUs: 0-5\n"
        "cpu0: Online=1 Governor=schedutil MinFreq=1728000 MaxFreq=1728000 CurrentFreq=1728000 IdleStates: WFI=0 c7=0\n"
        "cpu1:  Governor=schedutil MinFreq=729600 MaxFreq=1728000 CurrentFreq=960000 IdleStates: WFI=1 c7=1 \n"
        "GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000\n"
        "Active GPU TPCs: 8\n"
        "EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1\n"
        "FAN Dynamic Speed Control=kernel hwmon0_pwm1=88\nNV Power Mode: MAXN_SUPER\n"
    )
    assert found == {
        "cpu0": {"min": 1728000000, "max": 1728000000, "current": 1728000000},
        "cpu1": {"min": 729600000, "max": 1728000000, "current": 960000000},
        "GPU": {"min": 1020000000, "max": 1020000000, "current": 1020000000},
        "EMC": {"min": 204000000, "max": 3199000000, "current": 3199000000},
    }
    assert sensors.parse_jetson_clocks("Error: Run this script(/usr/bin/jetson_clocks) as a root user\n") == {}


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64, DATE: Mon Jun 16\n", "36.4.4"),
        ("# R39 (release), REVISION: 2.0, GCID: 45755727, BOARD: generic\n# KERNEL_VARIANT: oot\n", "39.2.0"),
        ("", None),
        ("# R36 (release)", None),
    ],
)
def test_the_release(text: str, release: str | None) -> None:
    assert sensors.l4t_release(text) == release


def lay(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine: no sensor, no Jetson program."""
    for name in ("SYS", "PROC", "ETC"):
        monkeypatch.setattr(sensors, name, tmp_path / name)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def program(board: Path, name: str, code: str) -> None:
    path = board / "bin" / name
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)


# An AGX Orin: an INA3221 with three labelled rails and shunt voltages, a second with one label, and another chip.
INA = {
    "SYS/class/hwmon/hwmon0/name": "pwm_tach\n",
    "SYS/class/hwmon/hwmon5/name": "ina3221\n",
    "SYS/class/hwmon/hwmon5/in1_label": "VDD_GPU_SOC\n",
    "SYS/class/hwmon/hwmon5/in1_input": "4900\n",
    "SYS/class/hwmon/hwmon5/curr1_input": "2000\n",
    "SYS/class/hwmon/hwmon5/in2_label": "VDD_CPU_CV\n",
    "SYS/class/hwmon/hwmon5/in2_input": "4900\n",
    "SYS/class/hwmon/hwmon5/curr2_input": "1000\n",
    "SYS/class/hwmon/hwmon5/in3_label": "VIN_SYS_5V0\n",
    "SYS/class/hwmon/hwmon5/in3_input": "5000\n",
    "SYS/class/hwmon/hwmon5/curr3_input": "1600\n",
    "SYS/class/hwmon/hwmon5/in7_label": "sum of shunt voltages\n",
    "SYS/class/hwmon/hwmon5/in7_input": "1200\n",
    "SYS/class/hwmon/hwmon6/name": "ina3221\n",
    "SYS/class/hwmon/hwmon6/in1_input": "5000\n",
    "SYS/class/hwmon/hwmon6/curr1_input": "10\n",
    "SYS/class/hwmon/hwmon6/in2_label": "VDDQ_VDD2_1V8AO\n",
    "SYS/class/hwmon/hwmon6/in2_input": "5000\n",
    "SYS/class/hwmon/hwmon6/curr2_input": "60\n",
}


def test_ina_monitors(board: Path) -> None:
    assert sensors.ina_rails() == {}
    lay(board, INA)
    rails = sensors.ina_rails()
    assert rails == {"VDD_GPU_SOC": 9800, "VDD_CPU_CV": 4900, "VIN_SYS_5V0": 8000, "VDDQ_VDD2_1V8AO": 300}
    assert sum(rails[name] for name in total_rails(set(rails))) == 22700
    lay(board, {"SYS/class/hwmon/hwmon5/curr1_input": "not a number\n"})
    assert "VDD_GPU_SOC" not in sensors.ina_rails()
    lay(board, {"SYS/class/hwmon/hwmon7/name": "ina238\n", "SYS/class/hwmon/hwmon7/power1_input": "26686000\n"})
    assert sensors.ina_rails()["VIN"] == 26686


def test_temperatures_and_throttling(board: Path) -> None:
    assert (sensors.temperatures(), sensors.throttling()) == ({}, [])
    lay(
        board,
        {
            "SYS/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "SYS/class/thermal/thermal_zone0/temp": "52875\n",
            "SYS/class/thermal/thermal_zone1/type": "gpu-thermal\n",
            "SYS/class/thermal/thermal_zone1/temp": "",
            "SYS/class/thermal/thermal_zone2/type": "cv0-thermal\n",
            "SYS/class/thermal/thermal_zone2/temp": "-256000\n",
            "SYS/class/thermal/cooling_device0/type": "cpu-throttle-alert\n",
            "SYS/class/thermal/cooling_device0/cur_state": "0\n",
            "SYS/class/thermal/cooling_device1/type": "gpu-throttle-alert\n",
            "SYS/class/thermal/cooling_device1/cur_state": "1\n",
            "SYS/class/thermal/cooling_device2/type": "pwm-fan\n",
            "SYS/class/thermal/cooling_device2/cur_state": "3\n",
        },
    )
    assert sensors.temperatures() == {"cpu": 52.875}
    assert sensors.throttling() == ["gpu-throttle-alert"]


@pytest.mark.parametrize(("lowest", "state"), [(306000000, "floating"), (1300500000, "locked")])
def test_clocks_from_the_kernel(board: Path, lowest: int, state: str) -> None:
    assert sensors.clocks() == {"state": "unknown", "hertz": {}}
    cpu, gpu = "SYS/devices/system/cpu/cpu0/cpufreq", "SYS/class/devfreq/17000000.gpu"
    lay(
        board,
        {
            **{f"{cpu}/scaling_{kind}_freq": "2201600\n" for kind in ("min", "max", "cur")},
            **{f"{gpu}/{kind}_freq": "1300500000\n" for kind in ("max", "cur")},
            f"{gpu}/min_freq": f"{lowest}\n",
            "SYS/class/devfreq/15340000.vic/min_freq": "1\n",
        },
    )
    found = sensors.clocks()
    assert found["state"] == state
    assert found["hertz"]["GPU"] == {"min": lowest, "max": 1300500000, "current": 1300500000}
    assert found["hertz"]["cpu0"]["current"] == 2201600000


def test_a_board_describes_itself(board: Path) -> None:
    lay(
        board,
        {
            "PROC/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
            "ETC/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n",
        },
    )
    program(board, "nvpmodel", "print('NV Power Mode: MAXN\\n0')")
    found = sensors.describe_board()
    assert found["name"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert (found["l4t"], found["power_mode"]) == ("36.4.3", "MAXN")
    assert found["packages"]["numpy"] == np.__version__


def test_programs_that_fail_say_nothing(board: Path) -> None:
    program(board, "nvpmodel", "raise SystemExit('NVPM ERROR: cannot open the socket')")
    assert sensors.power_mode() is None
    (board / "bin" / "nvpmodel").write_bytes(b"\x7fELF nonsense")
    assert sensors.power_mode() is None


class Sleeper:
    """A session whose calls take two milliseconds."""

    calls = 0

    def run(self, images: np.ndarray) -> np.ndarray:
        self.calls += 1
        time.sleep(0.002)
        return images[:, 0, 0]


IMAGES = np.zeros((3, 1, 1, 1), np.float32)


def test_the_clocks_during_the_measurement(board: Path) -> None:
    """The kernel's change while it is measured; the memory's is what tegrastats alone tells."""
    gpu = {"min_freq": "306000000", "max_freq": "1300500000", "cur_freq": "306000000"}
    lay(board, {f"SYS/class/devfreq/17000000.gpu/{name}": value for name, value in gpu.items()})

    def read() -> Reading:
        lay(board, {"SYS/class/devfreq/17000000.gpu/cur_freq": "1300500000"} if sampler.watts else {})
        return parse_tegrastats(AGX_ORIN_R39)

    sampler = energy.Sampler(energy.Source("a sensor", ("VDD_GPU_SOC",), read, 0.01))
    with sampler:
        time.sleep(0.3)
    assert sampler.hertz == {"GPU": [306_000_000, 1_300_500_000], "EMC": [3_199_000_000] * 2}
    assert sampler.celsius["cpu"] == 52.968


def test_energy_from_the_monitors(board: Path) -> None:
    lay(
        board,
        {**INA, "SYS/class/thermal/thermal_zone0/type": "tj-thermal", "SYS/class/thermal/thermal_zone0/temp": "61500"},
    )
    lay(
        board, {f"SYS/devices/system/cpu/cpu0/cpufreq/scaling_{kind}_freq": "2201600" for kind in ("min", "max", "cur")}
    )
    session = Sleeper()
    with energy.open_source() as source:
        assert isinstance(source, energy.Source)
        assert source.rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
        found = energy.measure_energy(session, IMAGES, source, 20.0, 0.4)  # type: ignore[arg-type]
    assert found is not None
    assert found["watts"] == pytest.approx(22.7)
    assert found["calls"] == session.calls
    assert found["joules_per_inference"] == pytest.approx(22.7 * found["seconds"] / session.calls)
    assert found["joules_above_rest"] == pytest.approx(2.7 * found["seconds"] / session.calls)
    assert (found["celsius"], found["hertz"]) == ({"tj": 61.5}, {"cpu0": [2_201_600_000] * 2})


def test_energy_from_tegrastats(board: Path) -> None:
    """A stand-in prints a recorded line over and over, with malformed ones between, until it is stopped."""
    program(
        board,
        "tegrastats",
        f"import os, sys, time\nopen({str(board / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "assert sys.argv[1:] == ['--interval', '100'], sys.argv\n"
        f"while True:\n    print('VDD_IN garbage', flush=True); print({ORIN_NANO!r}, flush=True); time.sleep(0.05)",
    )
    with energy.open_source() as source:
        assert isinstance(source, energy.Source), source
        assert (source.name, source.rails) == ("tegrastats", ("VDD_IN",))
        assert energy.measure_rest(source, 1.0) == pytest.approx(7.256)
        found = energy.measure_energy(Sleeper(), IMAGES, source, None, 1.0)  # type: ignore[arg-type]
    assert found is not None
    assert found["watts"] == pytest.approx(7.256)
    assert found["joules_above_rest"] is None
    with pytest.raises(ProcessLookupError):
        os.kill(int((board / "pid").read_text()), 0)


def test_no_power_is_said_in_words(board: Path) -> None:
    with energy.open_source() as source:
        assert source == "no power sensor that this program can read: none found"
    lay(board, {name: text.replace("VDD_GPU_SOC", "VDD_NEW") for name, text in INA.items()})
    with energy.open_source() as source:
        assert isinstance(source, str)
        assert "VDD_NEW" in source
        assert "not known to add up" in source


def test_tegrastats_without_power_is_said_in_words(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "FIRST_LINE_SECONDS", 0.5)
    program(board, "tegrastats", "print('RAM 1/2MB (lfb 1x4MB)')")
    with energy.open_source() as source:
        assert source == "tegrastats shows no power rails"


def test_too_few_samples_give_no_figure() -> None:
    source = energy.Source("a sensor", ("VDD_IN",), lambda: None, 0.01)
    assert energy.measure_rest(source, 0.1) is None
    assert energy.measure_energy(Sleeper(), IMAGES, source, None, 0.1) is None  # type: ignore[arg-type]
