"""What a report says of the machine, on machines that are made up of a folder for / and of commands of their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from iekd.deploy import probe
from iekd.deploy.device import sensors
from iekd.deploy.fingerprint import fingerprint


class Machine:
    """Files below a root, and commands that answer a query by its fields."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir()

    def file(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def command(self, name: str, script: str) -> None:
        program = self.root / "bin" / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def gpu(self, **fields: str) -> None:
        """nvidia-smi, which refuses a query as a whole where it does not know a field."""
        known = " ".join(f"{name.replace('__', '.')}) echo -n '{value}';;" for name, value in fields.items())
        unknown = '*) echo "Field \\"$field\\" is not a valid field to query."; exit 2;;'
        self.command(
            "nvidia-smi",
            f'query=${{1#--query-gpu=}}; sign=\nIFS=,\nfor field in $query; do\nprintf "%s" "$sign"; sign=", "\n'
            f'case "$field" in {known} {unknown} esac\ndone\necho',
        )

    def processor(self, number: int, *, low: int, high: int, governor: str) -> None:
        for name, value in (("min_freq", low), ("max_freq", high), ("cur_freq", low), ("governor", governor)):
            self.file(f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_{name}", f"{value}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(probe, "ROOT", tmp_path)
    monkeypatch.setattr(probe, "driver_cuda", lambda: None)
    monkeypatch.setattr(sensors, "SYS", tmp_path / "sys")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Machine(tmp_path)


def test_a_gpu_is_told_with_its_sm_and_the_driver_s_cuda(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "driver_cuda", lambda: (13, 0))
    machine.gpu(name="NVIDIA L4", driver_version="580.1", compute_cap="8.9", clocks__sm="210", clocks__max__sm="2040")
    found = fingerprint(1)
    assert found.gpu == "NVIDIA L4, 580.1"
    assert found.extra == {"SM": "8.9", "CUDA of the driver": "13.0"}
    assert found.gpu_clocks == "210 of 2040 MHz when asked: floating, or locked below"


@pytest.mark.parametrize(
    ("now", "most", "told"),
    [("2040", "2040", "2040 of 2040 MHz when asked: locked there, or busy"), ("[N/A]", "2040", None)],
)
def test_the_clocks_of_a_gpu_are_told_as_far_as_they_are_known(
    machine: Machine, now: str, most: str, told: str | None
) -> None:
    machine.gpu(name="NVIDIA L4", driver_version="580.1", compute_cap="8.9", clocks__sm=now, clocks__max__sm=most)
    assert fingerprint(1).gpu_clocks == told


def test_an_older_nvidia_smi_still_tells_the_name(machine: Machine) -> None:
    machine.gpu(name="Tesla P4", driver_version="450.80")
    found = fingerprint(1)
    assert (found.gpu, found.extra, found.gpu_clocks) == ("Tesla P4, 450.80", {}, None)


def test_a_machine_that_tells_nothing(machine: Machine) -> None:
    found = fingerprint(1)
    assert (found.gpu, found.clocks, found.gpu_clocks, found.extra) == (None, "unknown", None, {})


def test_a_jetson_tells_its_release_and_its_power_mode(machine: Machine) -> None:
    machine.file("proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0")
    machine.file("etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    machine.command("nvpmodel", "echo 'NV Power Mode: MAXN'; echo 0")
    machine.gpu(name="Orin (nvgpu)", driver_version="540.4.0", compute_cap="[N/A]")
    found = fingerprint(1)
    assert found.device == "NVIDIA Jetson AGX Orin Developer Kit"
    assert found.extra == {"SM": "8.7", "JetPack": "6.2 (Jetson Linux 36.4.3)", "power mode": "MAXN"}


def test_clocks_are_locked_where_every_unit_s_are(machine: Machine) -> None:
    machine.processor(0, low=2_000_000, high=2_000_000, governor="performance")
    assert fingerprint(1).clocks == "locked (governor performance)"
    machine.processor(1, low=800_000, high=2_000_000, governor="schedutil")
    assert fingerprint(1).clocks == "floating (governor performance, schedutil)"
    machine.processor(1, low=2_000_000, high=2_000_000, governor="performance")
    for name, hertz in (("min", 306_000_000), ("max", 1_300_000_000), ("cur", 306_000_000)):
        machine.file(f"sys/class/devfreq/17000000.gpu/{name}_freq", f"{hertz}\n")
    assert fingerprint(1).clocks == "floating (governor performance)", "the GPU's are not"
