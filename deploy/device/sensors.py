"""What a Jetson (or any Linux board) says of itself: power mode, clocks, temperatures, throttling, INA power monitors.

Everything here reads; nothing is set, and nothing needs root.  What a board does not have is absent from the answer.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

SYS = Path("/sys")
PROC = Path("/proc")
ETC = Path("/etc")


def describe_board(packages: tuple[str, ...] = ("numpy", "tensorrt", "onnxruntime")) -> dict[str, Any]:
    """Name, system, memory, versions, power mode and clocks of this machine; never raises."""
    return {
        "name": board_name(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": _versions(packages),
        "l4t": l4t_release(_read(ETC / "nv_tegra_release")),
        "power_mode": power_mode(),
        "clocks": clocks(),
    }


def board_name() -> str:
    """The device tree's model, or the processor's name."""
    model = _read(PROC / "device-tree" / "model").strip("\0\n ")
    if model:
        return model
    for line in _read(PROC / "cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def l4t_release(text: str) -> str | None:
    """``36.4.3`` from the first line of ``/etc/nv_tegra_release``."""
    found = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text)
    return f"{found.group(1)}.{found.group(2)}" if found else None


def power_mode() -> str | None:
    """The active mode, such as ``MAXN``, or None where there is no nvpmodel."""
    return parse_power_mode(_run("nvpmodel", "-q"))


def parse_power_mode(text: str) -> str | None:
    """The mode's name in what ``nvpmodel -q`` prints: ``NV Power Mode: NAME``, then its number on a line."""
    found = re.search(r"NV Power Mode:[ \t]*(\S+)", text)
    return found.group(1) if found else None


def parse_jetson_clocks(text: str) -> dict[str, dict[str, int]]:
    """Clocks in hertz by unit (``cpu0``, ``GPU``, ``EMC``) in what ``jetson_clocks --show`` prints.

    Each has ``min``, ``max`` and ``current``; CPU lines are in kilohertz, the others in hertz.
    """
    pattern = re.compile(r"^\s*(\w+):?\s.*?MinFreq=(\d+)\s+MaxFreq=(\d+)\s+CurrentFreq=(\d+)", re.MULTILINE)
    found = {}
    for name, *values in pattern.findall(text):
        unit = 1000 if name.startswith("cpu") else 1
        found[name] = dict(zip(("min", "max", "current"), (int(value) * unit for value in values), strict=True))
    return found


def clocks() -> dict[str, Any]:
    """``state`` (locked, floating or unknown) and the clocks in hertz by unit.

    Locked means that every CPU's and the GPU's lower limit is its upper limit, as ``jetson_clocks`` leaves it.
    ``jetson_clocks --show`` wants root; without it the kernel's own files are read.
    """
    root = os.geteuid() == 0
    units = parse_jetson_clocks(_run("jetson_clocks", "--show") if root else "") or _kernel_clocks()
    counted = {name: unit for name, unit in units.items() if not name.upper().startswith(("EMC", "DLA", "PVA"))}
    if not counted:
        return {"state": "unknown", "hertz": {}}
    locked = all(unit["min"] == unit["max"] for unit in counted.values())
    return {"state": "locked" if locked else "floating", "hertz": units}


def _kernel_clocks() -> dict[str, dict[str, int]]:
    found = {}
    for name, folder, pattern, unit in _clock_files():
        values = [_number(folder / pattern.format(kind)) for kind in ("min", "max", "cur")]
        if None not in values:
            found[name] = _unit([unit * (value or 0) for value in values])
    return found


def _clock_files() -> list[tuple[str, Path, str, int]]:
    """Name, folder, form of the files' names and unit in hertz of each clock that the kernel tells to everyone.

    cpufreq has kilohertz, devfreq hertz; the GPUs there are named 17000000.gpu, 17000000.ga10b or gpu-gpc-0.
    """
    cores = sorted((SYS / "devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    devices = sorted((SYS / "class/devfreq").glob("*"))
    gpus = [folder for folder in devices if re.search(r"gpu|\.ga10b|\.gv11b", folder.name)]
    return [
        *((folder.parent.name, folder, "scaling_{}_freq", 1000) for folder in cores),
        *((folder.name if number else "GPU", folder, "{}_freq", 1) for number, folder in enumerate(gpus)),
    ]


def current_hertz() -> dict[str, int]:
    """The clocks of now by unit, from the kernel's files alone: cheap enough to be read during a measurement."""
    found = ((name, unit, _number(folder / pattern.format("cur"))) for name, folder, pattern, unit in _clock_files())
    return {name: unit * value for name, unit, value in found if value is not None}


def _unit(values: list[int]) -> dict[str, int]:
    return dict(zip(("min", "max", "current"), values, strict=True))


def temperatures() -> dict[str, float]:
    """Degrees Celsius by thermal zone; zones that cannot be read now (a GPU that is off) are left out."""
    found = {}
    for zone in sorted((SYS / "class/thermal").glob("thermal_zone*")):
        name, value = _read(zone / "type").strip(), _number(zone / "temp")
        if name and value is not None and value > -200_000:
            found[name.removesuffix("-thermal")] = value / 1000
    return found


def throttling() -> list[str]:
    """The throttle alerts that are on now."""
    devices = (SYS / "class/thermal").glob("cooling_device*")
    names = {_read(device / "type").strip(): _number(device / "cur_state") for device in devices}
    return sorted(name for name, state in names.items() if "throttle" in name and state)


def ina_rails() -> dict[str, int]:
    """Milliwatts by rail from the INA3221 power monitors, and from an INA238 on the board's input.

    A channel is a rail where it has a label, a voltage (mV) and a current (mA); in4 to in7 of the driver are shunt
    voltages, not rails (kernel documentation, hwmon/ina3221).
    """
    found: dict[str, int] = {}
    for monitor in sorted((SYS / "class/hwmon").glob("hwmon*")):
        chip = _read(monitor / "name").strip()
        if chip == "ina3221":
            found.update(_channels(monitor))
        elif chip == "ina238" and (microwatts := _number(monitor / "power1_input")) is not None:
            found["VIN"] = microwatts // 1000
    return found


def _channels(monitor: Path) -> dict[str, int]:
    found = {}
    for number in (1, 2, 3):
        label = _read(monitor / f"in{number}_label").strip()
        volts, amperes = _number(monitor / f"in{number}_input"), _number(monitor / f"curr{number}_input")
        if label and label != "NC" and volts is not None and amperes is not None:
            found[label] = volts * amperes // 1000
    return found


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    import importlib.metadata

    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=10, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_read(path))
    except ValueError:
        return None
