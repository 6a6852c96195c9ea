"""What the machine did while it was measured: other processes, clocks, temperature, throttling, power.

Sampled between the measured blocks, never during a call.  Linux's own files, and nvidia-smi where there is one; what
cannot be read is None.  On a Jetson the bundle's runner reads tegrastats instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from iekd.deploy.results import Conditions, GpuConditions

SAMPLE_SECONDS = 1.0
BUSY_CORES = 0.1
GPU_QUERY = ("clocks.sm", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active")
THROTTLE_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
}
"""Bits of nvidia-smi's clocks_throttle_reasons.active that slow a busy GPU down (NVML's nvmlClocksThrottleReason*);
idle, application clocks and sync boost are left out: they are settings, not accidents."""


class Monitor:
    """Collects samples from its creation on.

    Args:
        root: of the file system that holds /proc and /sys.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._began, self._cpu, self._throttles = time.monotonic(), self._cpu_seconds(), self._throttle_count()
        self._last = float("-inf")
        self._mhz: list[float] = []
        self._celsius: list[float] = []
        self._gpu: list[tuple[float, float, float | None, int]] = []
        self._nvidia_smi = shutil.which("nvidia-smi")
        self._samples = 0

    def sample(self) -> None:
        """Take a sample, unless the last one is less than ``SAMPLE_SECONDS`` old."""
        if time.monotonic() - self._last < SAMPLE_SECONDS:
            return
        self._samples += 1
        self._mhz += self._clocks()
        self._celsius += [value / 1e3 for value in self._numbers("sys/class/thermal", "thermal_zone*/temp")]
        self._gpu += [row] if (row := self._gpu_row()) else []
        self._last = time.monotonic()

    def summary(self) -> Conditions:
        """Everything since the creation."""
        other, steal = self._share_of_others()
        throttles = self._throttle_count()
        return Conditions(
            samples=self._samples,
            other_cpu=other,
            steal=steal,
            mhz=(min(self._mhz), max(self._mhz)) if self._mhz else None,
            celsius=max(self._celsius, default=None),
            throttled=None if throttles is None or self._throttles is None else throttles - self._throttles,
            gpu=_summarize_gpu(self._gpu) if self._gpu else None,
        )

    def _share_of_others(self) -> tuple[float | None, float | None]:
        """Cores used by other processes, and stolen by the hypervisor, since the creation."""
        now = self._cpu_seconds()
        if now is None or self._cpu is None:
            return None, None
        seconds = max(time.monotonic() - self._began, 1e-9)
        busy, steal, own = (after - before for after, before in zip(now, self._cpu, strict=True))
        return round(max(0.0, busy - own) / seconds, 3), round(steal / seconds, 3)

    def _cpu_seconds(self) -> tuple[float, float, float] | None:
        """Seconds of all cores that were busy, that were stolen, and that this process used."""
        fields = self._read("proc/stat").partition("\n")[0].split()
        if len(fields) < 9 or fields[0] != "cpu":
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) / self._ticks for field in fields[1:9])
        own = os.times()
        return user + nice + system + irq + softirq, steal, own.user + own.system

    def _clocks(self) -> list[float]:
        """Each core's clock in MHz."""
        scaled = self._numbers("sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq")
        if scaled:
            return [value / 1e3 for value in scaled]
        lines = self._read("proc/cpuinfo").splitlines()
        return [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]

    def _throttle_count(self) -> int | None:
        counts = self._numbers("sys/devices/system/cpu", "cpu[0-9]*/thermal_throttle/core_throttle_count")
        return int(sum(counts)) if counts else None

    def _gpu_row(self) -> tuple[float, float, float | None, int] | None:
        if self._nvidia_smi is None:
            return None
        command = [self._nvidia_smi, f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits", "--id=0"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return parse_gpu_row(answer.stdout)

    def _numbers(self, folder: str, pattern: str) -> list[float]:
        found = []
        for path in sorted((self._root / folder).glob(pattern)):
            try:
                found.append(float(path.read_text()))
            except (OSError, ValueError):
                continue
        return found

    def _read(self, name: str) -> str:
        try:
            return (self._root / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


def parse_gpu_row(text: str) -> tuple[float, float, float | None, int] | None:
    """SM clock in MHz, temperature, watts and throttle bits of one line of nvidia-smi; None where malformed."""
    fields = [field.strip() for field in text.strip().partition("\n")[0].split(",")]
    if len(fields) != len(GPU_QUERY):
        return None
    try:
        mhz, celsius = float(fields[0]), float(fields[1])
    except ValueError:
        return None
    try:
        watts: float | None = float(fields[2])
    except ValueError:
        watts = None  # "[N/A]": not every board measures it
    try:
        bits = int(fields[3], 16)
    except ValueError:
        bits = 0
    return mhz, celsius, watts, bits


def _summarize_gpu(rows: list[tuple[float, float, float | None, int]]) -> GpuConditions:
    watts = [row[2] for row in rows if row[2] is not None]
    bits = 0
    for row in rows:
        bits |= row[3]
    return GpuConditions(
        mhz=(min(row[0] for row in rows), max(row[0] for row in rows)),
        celsius=max(row[1] for row in rows),
        watts=sum(watts) / len(watts) if watts else None,
        throttled=[reason for bit, reason in THROTTLE_REASONS.items() if bits & bit],
    )


def warnings_of(conditions: Conditions) -> list[str]:
    """What a reader of the figures should know of the machine."""
    found = []
    if conditions.other_cpu is not None and conditions.other_cpu > BUSY_CORES:
        found.append(f"other processes used {conditions.other_cpu:.1f} processor cores during the measurement")
    if conditions.steal is not None and conditions.steal > BUSY_CORES:
        found.append(f"the hypervisor took away {conditions.steal:.1f} processor cores during the measurement")
    if conditions.throttled:
        found.append(f"the processor was throttled for its heat {conditions.throttled} times during the measurement")
    if conditions.gpu and conditions.gpu.throttled:
        found.append(f"the GPU was slowed down during the measurement: {', '.join(conditions.gpu.throttled)}")
    return found
