"""What a line of NVIDIA's ``tegrastats`` says: power rails, temperatures, memory, load and clocks.

Formats: NVIDIA, Jetson Linux Developer Guide, "tegrastats Utility", releases 32 to 39.  The line has no grammar that
NVIDIA promises, and differs between boards and releases; so each statistic is looked for by itself, what is not
there is left out, and what is malformed is skipped rather than guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_RAM = re.compile(r"\bRAM (\d+)/(\d+)MB\b")
# Release 32 writes VDD_IN 3140/3208, later ones VDD_IN 3140mW/3208mW, release 39 adds a third value, the peak.
_MILLIWATTS = r"\d+(?:mW)?"
_RAIL = re.compile(
    rf"\b(V[A-Z0-9_]*|POM_[A-Z0-9_]+|GPU|CPU|SOC|CV|SYS5V) (\d+)(?:mW)?/{_MILLIWATTS}(?:/{_MILLIWATTS})?(?=\s|$)"
)
_TEMPERATURE = re.compile(r"\b([A-Za-z][A-Za-z0-9_]*)@(-?\d+(?:\.\d+)?)C\b")
# Load alone (0%), with a clock (12%@1300), with one for each cluster (12%@[1300,1300]), or clocks alone (@[1000]).
_GPU = re.compile(r"\bGR3D_FREQ (?:(\d+)%)?(?:@(?:\[(\d+)[^\]]*\]|(\d+)))?(?=\s|$)")
_MEMORY_CLOCK = re.compile(r"\bEMC_FREQ \d+%@(\d+)(?=\s|$)")
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
_CORE = re.compile(r"\d+%@(\d+)")

INVALID_CELSIUS = -200.0
"""A zone whose rail is off reads -256 °C."""


@dataclass(frozen=True)
class Reading:
    """One line; what it did not say is None or absent."""

    rails_mw: dict[str, int] = field(default_factory=dict)
    """Power by rail at the moment of the line, milliwatts."""
    celsius: dict[str, float] = field(default_factory=dict)
    """Temperature by zone."""
    ram_used_mb: int | None = None
    ram_total_mb: int | None = None
    gpu_load: float | None = None
    """0..1."""
    gpu_mhz: int | None = None
    memory_mhz: int | None = None
    cpu_mhz: tuple[int, ...] = ()
    """Of the cores that are on."""

    @property
    def hertz(self) -> dict[str, int]:
        """Clocks by unit, named as ``jetson_clocks`` does; not the cores', whose numbers the line leaves open."""
        megahertz = {"GPU": self.gpu_mhz, "EMC": self.memory_mhz}
        return {unit: value * 1_000_000 for unit, value in megahertz.items() if value}


def parse_tegrastats(line: str) -> Reading:
    """What ``line`` says; never raises, whatever the line is."""
    ram, gpu, memory, cpu = (pattern.search(line) for pattern in (_RAM, _GPU, _MEMORY_CLOCK, _CPU))
    clock = (gpu.group(2) or gpu.group(3)) if gpu else None
    return Reading(
        rails_mw={name: int(now) for name, now in _RAIL.findall(line)},
        celsius={name: float(value) for name, value in _TEMPERATURE.findall(line) if float(value) > INVALID_CELSIUS},
        ram_used_mb=int(ram.group(1)) if ram else None,
        ram_total_mb=int(ram.group(2)) if ram else None,
        gpu_load=int(gpu.group(1)) / 100 if gpu and gpu.group(1) else None,
        gpu_mhz=int(clock) if clock else None,
        memory_mhz=int(memory.group(1)) if memory else None,
        cpu_mhz=tuple(int(value) for value in _CORE.findall(cpu.group(1))) if cpu else (),
    )


TOTALS = (
    ("VDD_IN",),  # Orin NX and Orin Nano: the whole module
    ("VIN",),  # Thor: the board's input
    ("POM_5V_IN",),  # Nano
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin; VDDQ_VDD2_1V8AO is part of the last
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
"""Rails that together are what the board or module draws (Developer Guide, "Platform Power and Performance")."""


def total_rails(names: set[str]) -> tuple[str, ...]:
    """The rails of ``names`` to add up for the whole, or none where no sum of them is known to be the whole."""
    return next((rails for rails in TOTALS if set(rails) <= names), ())
