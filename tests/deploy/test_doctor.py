"""doctor on machines that are made up of a folder for / and of commands that say what was recorded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iekd.deploy import probe
from iekd.deploy.doctor import Finding, examine, healthy

TEGRA_RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
VERSIONS = {"torch": "2.15.0", "timm": "1.0.31", "onnxruntime": "1.32.0"}


class Machine:
    """A machine of files, commands and installed packages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.versions = dict(VERSIONS)
        self.packages: dict[str, Path] = {}
        self.driver_cuda: tuple[int, int] | None = None
        (root / "bin").mkdir()
        self.file("proc/meminfo", "MemTotal:       16777216 kB\nSwapTotal:       0 kB\n")

    def file(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def command(self, name: str, text: str, status: int = 0) -> None:
        said = self.root / f"{name}.txt"
        said.write_text(text.rstrip("\n") + "\n")
        script = self.root / "bin" / name
        printing = f'while IFS= read -r line; do echo "$line"; done <{said}'  # PATH holds no cat
        script.write_text(f"#!/bin/sh\n{printing}\nexit {status}\n")
        script.chmod(0o755)

    def package(self, name: str, file: str, text: str = "") -> None:
        self.file(f"site/{name}/{file}", text)
        self.packages[name] = self.root / "site" / name

    def findings(self) -> dict[str, Finding]:
        return {finding.name: finding for finding in examine()}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(probe, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(probe, "version", lambda name: made.versions.get(name))
    monkeypatch.setattr(probe, "package", lambda name: made.packages.get(name))
    monkeypatch.setattr(probe, "driver_cuda", lambda: made.driver_cuda)
    return made


def test_a_machine_of_nothing_is_told_every_command(machine: Machine) -> None:
    machine.versions.clear()
    shutil.rmtree(machine.root / "proc")
    found = machine.findings()
    assert not healthy(found.values())
    assert found["PyTorch"].fix == "pip install iekd-compress"
    assert found["ONNX Runtime"].fix == "pip install 'iekd-compress[cpu]'"
    assert found["GPU"].status == "info"
    assert found["memory"].detail.startswith("unknown")


def test_whatever_is_missing_has_its_command(machine: Machine) -> None:
    machine.versions.clear()
    machine.command("nvidia-smi", "NVIDIA H200, 9.0, 570.86.15, 143771 MiB")
    missing = [finding for finding in examine() if finding.status == "missing"]
    assert {finding.name for finding in missing} >= {"PyTorch", "ONNX Runtime", "TensorRT"}
    assert all(finding.fix for finding in missing)


def test_a_gpu_wants_packages_that_use_it(machine: Machine) -> None:
    machine.command("nvidia-smi", "NVIDIA H200, 9.0, 570.86.15, 143771 MiB\n" * 2)
    machine.driver_cuda = (12, 8)
    machine.package("torch", "version.py", "__version__ = '2.15.0'\ncuda: Optional[str] = '13.2'\n")
    machine.package("onnxruntime", "capi/libonnxruntime_providers_shared.so")
    found = machine.findings()
    assert found["GPU"] == ("GPU", "ok", "2 x NVIDIA H200, SM 9.0, driver 570.86.15, 143771 MiB", "", False)
    assert "the driver takes CUDA 12.8 at most" in found["PyTorch"].detail
    assert found["ONNX Runtime"].fix == "pip uninstall -y onnxruntime && pip install 'iekd-compress[gpu]'"
    assert "providers: CPU:" in found["ONNX Runtime"].detail
    assert found["TensorRT"].status == "missing"
    assert "the driver takes 12.8" in found["CUDA"].detail
    assert healthy(found.values())

    machine.versions = {"torch": "2.15.0", "onnxruntime-gpu": "1.32.0", "tensorrt": "10.16.1.11"}
    for provider in ("cuda", "tensorrt"):
        machine.package("onnxruntime", f"capi/libonnxruntime_providers_{provider}.so")
    machine.driver_cuda = (13, 0)
    found = machine.findings()
    assert found["PyTorch"].status == "ok"
    assert found["ONNX Runtime"][1:3] == ("ok", "1.32.0 (onnxruntime-gpu), providers: CPU, CUDA, TensorRT")
    assert found["TensorRT"][1:3] == ("ok", "10.16.1.11")

    machine.package("torch", "version.py", "__version__ = '2.15.0+cpu'\ncuda: Optional[str] = None\n")
    assert machine.findings()["PyTorch"].status == "missing"


def test_two_runtimes_are_one_too_many(machine: Machine) -> None:
    machine.versions["onnxruntime-gpu"] = "1.32.0"
    found = machine.findings()
    assert found["ONNX Runtime"].fix.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && ")
    assert not healthy(found.values())


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0"])
def test_an_old_tensorrt_is_refused(machine: Machine, version: str) -> None:
    machine.versions["tensorrt"] = version
    assert machine.findings()["TensorRT"].status == "missing"


@pytest.mark.parametrize(
    ("said", "status", "fix"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch", 18, "sudo reboot"),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that ...",
            9,
            "sudo modprobe nvidia",
        ),
        ('Field "compute_cap" is not a valid field to query.', 2, "sudo ubuntu-drivers install"),
        ("Failed to initialize NVML: Unknown Error", 255, "sudo ubuntu-drivers install"),
        ("No devices were found", 6, "sudo ubuntu-drivers install"),
        ("garbage", 0, "sudo ubuntu-drivers install"),
    ],
)
def test_a_driver_that_does_not_work_is_explained(machine: Machine, said: str, status: int, fix: str) -> None:
    machine.file("etc/os-release", 'NAME="Ubuntu"\nID=ubuntu\n')
    machine.file("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    machine.file("sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
    machine.command("nvidia-smi", said, status)
    found = machine.findings()["GPU"]
    assert found.status == "missing"
    assert found.fix.startswith(fix)


def test_a_gpu_that_the_container_was_not_given(machine: Machine) -> None:
    machine.file("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    machine.file("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
    assert machine.findings()["GPU"].fix == "sudo apt-get install nvidia-driver && sudo reboot"
    machine.file(".dockerenv", "")
    assert machine.findings()["GPU"].fix == "docker run --gpus all ..."


def test_a_hanging_nvidia_smi_does_not_hang_us(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 5)

    machine.command("nvidia-smi", "")
    monkeypatch.setattr(probe.subprocess, "run", hang)
    assert "did not answer" in machine.findings()["GPU"].detail


def test_a_jetson(machine: Machine) -> None:
    machine.file("proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    machine.file("etc/nv_tegra_release", TEGRA_RELEASE)
    machine.file("etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n")
    machine.file("usr/lib/python3.10/dist-packages/tensorrt/__init__.py", "")
    machine.command("nvidia-smi", "Orin (nvgpu), [N/A], 540.4.0, [N/A]")
    machine.command("nvpmodel", "NV Fan Mode:quiet\nNV Power Mode: 15W\n0")
    machine.package("torch", "version.py", "cuda = '12.6'\n")
    found = machine.findings()
    assert found["GPU"].detail == "NVIDIA Jetson Orin Nano Developer Kit, SM 8.7, driver 540.4.0"
    assert found["JetPack"][1:3] == ("ok", "6.2 (Jetson Linux 36.4.3)")
    assert found["power mode"].fix == "sudo nvpmodel -m 2 && sudo jetson_clocks"
    assert found["ONNX Runtime"].status == "ok", "on a board ONNX Runtime runs on the CPU"
    assert "--system-site-packages" in found["TensorRT"].fix
    shutil.rmtree(machine.root / "usr")
    assert machine.findings()["TensorRT"].fix.endswith("apt-get install nvidia-jetpack")

    machine.package("tensorrt", "__init__.py", '__version__ = "10.3.0"\n')
    machine.command("dpkg-query", "6.2.1+b38")
    machine.command("nvpmodel", "NV Power Mode: MAXN_SUPER\n2")
    found = machine.findings()
    assert found["TensorRT"][1:3] == ("ok", "10.3.0")
    assert found["JetPack"].detail == "6.2.1 (Jetson Linux 36.4.3)"
    assert found["power mode"][1:] == ("info", "MAXN_SUPER", "", False)

    machine.command("nvpmodel", "NVPM ERROR: failed to query power mode!", 255)
    machine.command("dpkg-query", "dpkg-query: no packages found matching nvidia-jetpack", 1)
    found = machine.findings()
    assert found["power mode"].fix == "sudo nvpmodel -m 2"
    assert found["JetPack"].detail.startswith("6.2 ")


@pytest.mark.parametrize(
    ("release", "works"), [("R36 (release), REVISION: 4.3", False), ("R38 (release), REVISION: 2.2", True)]
)
def test_a_torch_for_the_cpu_is_not_replaced_by_itself(machine: Machine, release: str, works: bool) -> None:
    """On JetPack 6 PyTorch's own wheel is the one that knows the CPU only."""
    machine.file("proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0")
    machine.file("etc/nv_tegra_release", f"# {release}, GCID: 1, BOARD: generic\n")
    machine.package("torch", "version.py", "cuda: Optional[str] = None\n")
    found = machine.findings()["PyTorch"]
    assert found.status == "missing"
    assert (found.fix == "pip install --force-reinstall torch") == works
    assert ("NVIDIA's PyTorch wheel" in found.fix) != works


def test_an_old_jetpack_is_refused(machine: Machine) -> None:
    machine.file("etc/nv_tegra_release", "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref\n")
    machine.file("proc/device-tree/model", "NVIDIA Jetson AGX Xavier\0")
    found = machine.findings()
    assert found["JetPack"].status == "missing"
    assert found["GPU"].detail == "NVIDIA Jetson AGX Xavier, SM 7.2"


def test_little_memory_asks_for_swap(machine: Machine) -> None:
    machine.file("proc/meminfo", "MemTotal:   3991552 kB\nMemAvailable:   1991552 kB\nSwapTotal:   0 kB\n")
    assert machine.findings()["memory"].fix.startswith("sudo fallocate -l 5G /swapfile && ")
    machine.file("proc/meminfo", "MemTotal:        3991552 kB\nSwapTotal:      8388608 kB\n")
    assert machine.findings()["memory"].status == "ok"


def test_a_container_s_limit_counts(machine: Machine) -> None:
    machine.file("sys/fs/cgroup/memory.max", f"{2 * 2**30}\n")
    found = machine.findings()["memory"]
    assert found.status == "missing"
    assert "this container may use 2.0" in found.detail
    machine.file("sys/fs/cgroup/memory.max", "max\n")
    assert machine.findings()["memory"].status == "ok"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, to build a driver library that answers")
def test_the_driver_library_is_asked_for_its_cuda(tmp_path: Path) -> None:
    for name, body in (("good", "*v = 13020; return 0;"), ("bad", "*v = 13020; return 35;"), ("none", "return 0;")):
        source = tmp_path / f"{name}.c"
        source.write_text(f"int cuDriverGetVersion(int *v) {{ {body} }}\n")
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / f"{name}.so", source], check=True)
    (tmp_path / "damaged.so").write_bytes(b"\x7fELF")
    assert probe.driver_cuda(str(tmp_path / "good.so")) == (13, 2)
    for name in ("bad", "none", "damaged", "absent"):
        assert probe.driver_cuda(str(tmp_path / f"{name}.so")) is None


def test_this_machine_is_told_as_it_is_without_importing_what_is_heavy() -> None:
    code = (
        "import sys; from iekd.deploy.doctor import examine, healthy; found = {f.name: f for f in examine()}\n"
        "assert not {'torch', 'numpy', 'onnxruntime', 'openvino', 'tensorrt', 'pydantic'} & sys.modules.keys()\n"
        "import torch, onnxruntime\n"
        "assert torch.__version__.partition('+')[0] in found['PyTorch'].detail\n"
        "assert ('CPU only' in found['PyTorch'].detail) == (torch.version.cuda is None)\n"
        "said = found['ONNX Runtime'].detail.partition('providers: ')[2].partition(':')[0].split(', ')\n"
        "real = [p.removesuffix('ExecutionProvider') for p in onnxruntime.get_available_providers()]\n"
        "assert set(said) == {'TensorRT' if p == 'Tensorrt' else p for p in real} - {'Azure'}, (said, real)\n"
        "assert healthy(found.values())\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert answer.returncode == 0, answer.stderr
