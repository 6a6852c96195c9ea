"""How NVIDIA's ``trtexec`` is asked, so that its versions and our session measure the same thing.

Defaults differ: 10.x includes data transfers, waits blocking and launches kernel by kernel; 11.x does none of these.
The flags below ask for 11's way in words that both take (``sampleOptions.cpp`` of v10.3.0; of 11.1 and on, where three
are deprecated, accepted, and the default), and what trtexec prints of its options says whether it understood.
"""

from __future__ import annotations

import re
from pathlib import Path

WARMUP_SECONDS, SECONDS = 0.5, 3
FLAGS = (
    "--noDataTransfers",
    "--useSpinWait",
    "--useCudaGraph",
    "--infStreams=1",
    "--idleTime=0",
    f"--warmUp={int(1000 * WARMUP_SECONDS)}",
    f"--duration={SECONDS}",
)
CONDITIONS = {
    "Inference Streams": "1",
    "Idle time": "0ms",
    "Data transfers": "Disabled",
    "Spin-wait": "Enabled",
    "Multithreading": "Disabled",
    "CUDA Graph": "Enabled",
}
"""As trtexec prints them, in 10.3 and 11.1 alike."""


def command(trtexec: str, engine: Path, shapes: str) -> list[str]:
    """The command line; ``shapes`` such as ``images:8x3x32x32``."""
    return [trtexec, f"--loadEngine={engine}", f"--shapes={shapes}", *FLAGS]


def conditions(output: str) -> dict[str, str]:
    """What it says of those of its options that ``CONDITIONS`` names."""
    found = {}
    for name in CONDITIONS:
        line = re.search(rf"^(?:\[[^\]]*\] )*{re.escape(name)}: (\S+)\s*$", output, re.MULTILINE)
        if line:
            found[name] = line[1]
    return found


def median_compute(output: str) -> float:
    """Median of the GPU's time for the network, ms.

    Raises:
        ValueError: the output does not say.
    """
    found = re.search(r"GPU Compute Time: min = .*?\bmedian = ([\d.e-]+) ms", output)
    if not found:
        raise ValueError(f"no GPU Compute Time in: {output[-2000:]}")
    return float(found[1])
