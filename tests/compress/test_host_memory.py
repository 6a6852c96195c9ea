"""Memory that one step frees is there for the next."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from iekd.compress.host_memory import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(1 << 24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain = faults()
with freed_memory_kept(torch.device("DEVICE")):
    for _ in range(4):  # the heap grows to what it needs
        faults()
    kept = faults()
    held = int(open("/proc/self/statm").read().split()[1])
print(plain, kept, held - int(open("/proc/self/statm").read().split()[1]))
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def counted(device: str = "cpu", **environment: str) -> tuple[int, int, int]:
    """Page faults of five allocations outside and inside, and pages handed back at the end."""
    command = [sys.executable, "-c", FAULTS.replace("DEVICE", device)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    plain, kept, back = map(int, done.stdout.split())
    return plain, kept, back


@glibc
def test_pages_are_asked_for_once_and_handed_back_at_the_end() -> None:
    plain, kept, back = counted()
    assert plain > 100  # huge pages may make it few
    assert kept < plain / 10
    assert back > 10_000  # of 4 KiB


@glibc
@pytest.mark.parametrize(("device", "environment"), [("cuda", {}), ("cpu", {"MALLOC_TRIM_THRESHOLD_": "131072"})])
def test_another_device_and_settings_of_the_user_are_left_alone(device: str, environment: dict[str, str]) -> None:
    plain, kept, _ = counted(device, **environment)
    assert kept > plain / 2
