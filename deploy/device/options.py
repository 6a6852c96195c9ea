"""What ``run.py`` and ``run.py predict`` can be told on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from .engine_settings import BuildSettings
from .runtimes import RUNTIMES


def run_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Of ``run.py``."""
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Verify, build, check and measure this bundle; `run.py predict IMAGE...` classifies images.",
        epilog="Exit code: 0 kept, 1 a limit missed, 2 bad input, 3 the board lacks a part or memory.",
    )
    _shared_options(parser)
    parser.add_argument("--seconds", type=_positive, default=5.0, help="measured for each model (default 5)")
    parser.add_argument("--no-energy", action="store_true", help="leave out the pass that measures power")
    return parser.parse_args(arguments)


def predict_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Of ``run.py predict``."""
    parser = argparse.ArgumentParser(
        prog="run.py predict", description="Classify images: .npy arrays, or files with Pillow."
    )
    _shared_options(parser)
    parser.add_argument("--precision", help="which model (default: the last run's winner, else the first)")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    return parser.parse_args(arguments)


def build_settings(options: argparse.Namespace) -> BuildSettings:
    """How TensorRT shall build the engines."""
    most = options.max_batch if options.dla is None else 1  # an accelerator takes one size only
    return BuildSettings(
        batch=(1, 1, most),
        workspace_mib=options.workspace,
        optimization_level=options.level,
        dla_core=options.dla,
    )


def _shared_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=RUNTIMES, default=RUNTIMES[0], help="never another than this one")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime (default: its own choice)")
    parser.add_argument("--output", type=Path, help="folder of result.json, traces and engines (default: the bundle's)")
    engines = parser.add_argument_group("engines", "How TensorRT builds them; `predict` needs what the run was given.")
    engines.add_argument("--max-batch", type=_at_least(1), default=8, metavar="N", help="largest batch (default 8)")
    engines.add_argument(
        "--workspace", type=_at_least(1), metavar="MIB", help="scratch memory of a layer (default: all)"
    )
    engines.add_argument("--level", type=int, default=3, choices=range(6), help="optimisation level (default 3)")
    engines.add_argument(
        "--dla", type=_at_least(0), metavar="N", help="run on that Deep Learning Accelerator, the GPU for the rest"
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be positive")
    return value


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return number
