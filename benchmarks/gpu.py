"""What this machine's GPU does with a teacher and a student: PyTorch, ONNX Runtime, TensorRT, in every precision.

    python benchmarks/gpu.py --out runs/gpu

Each row is measured by the project's own harness in one interleaved run; a part that is missing is a row that says why.
Files in other precisions are the project's own conversions, calibrated on random images: their latency counts here and
nothing else.  CSV and raw traces go to --out.  With --device cpu the PyTorch rows run there, which is how this script
is tested.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from iekd.compress.quantize import QuantizeSettings, quantize
from iekd.compress.targets import TARGETS
from iekd.deploy.backends import Array, Session, get_backend
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.engine import check_precision
from iekd.deploy.export import export_onnx
from iekd.deploy.fingerprint import fingerprint
from iekd.errors import IekdError
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import build, resolve

CLASSES = 1000
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CALIBRATION_IMAGES = 16
"""Random ones: enough for ranges that a kernel can be timed with."""
CONVERTED = {"onnxruntime-cuda": "cuda", "tensorrt": "tensorrt"}
"""Backends that are also measured in other precisions, and the target whose schemes make the files."""


class TorchOnDevice:
    """A network on a device in one number type, with the transfers in and out; captured as a CUDA graph where asked."""

    def __init__(self, network: nn.Module, size: int, batch: int, device: str, kind: str, *, graph: bool) -> None:
        self.input_shape = (3, size, size)
        self.batch_range = (batch, batch)
        self.kind, self.device, self.graph = kind, device, graph
        dtype = TYPES[kind]
        self.network = network.eval().to(device, dtype).to(memory_format=torch.channels_last)
        self.static = torch.zeros(batch, 3, size, size, device=device, dtype=dtype)
        self.static = self.static.contiguous(memory_format=torch.channels_last)
        self.captured: torch.cuda.CUDAGraph | None = None
        if graph:
            self._capture()

    @torch.inference_mode()
    def _capture(self) -> None:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            for _ in range(3):
                self.network(self.static)
        torch.cuda.current_stream().wait_stream(side)
        self.captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.captured):
            self.answer = self.network(self.static)

    @torch.inference_mode()
    def run(self, images: Array) -> Array:
        """Logits (N, classes) of images (N, 3, H, W), both in host memory."""
        self.static.copy_(torch.from_numpy(images), non_blocking=True)
        if self.captured is not None:
            self.captured.replay()
            logits = self.answer
        else:
            logits = self.network(self.static)
        found: Array = logits.float().cpu().numpy()
        return found

    def describe(self) -> dict[str, str]:
        """As a backend does."""
        return {"backend": f"PyTorch {torch.__version__}", "provider": self.device, "threads": "device"}

    def close(self) -> None:
        """Nothing to give back."""


def openers(arguments: argparse.Namespace, name: str, onnx: Path) -> dict[str, Callable[[], Session]]:
    """Every way to run the network, by row."""
    architecture, size, batch, device = resolve(name), arguments.size, arguments.batch, arguments.device
    rows: dict[str, Callable[[], Session]] = {}
    for kind in TYPES if device == "cuda" else ("fp32",):
        for graph in (False, True) if device == "cuda" else (False,):
            rows[f"torch-{kind}{'-graph' if graph else ''}"] = lambda kind=kind, graph=graph: TorchOnDevice(  # type: ignore[misc]
                build(architecture, CLASSES, size), size, batch, device, kind, graph=graph
            )
    for backend in ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"):
        rows[backend] = lambda backend=backend: get_backend(backend).load(onnx, batch=batch)  # type: ignore[misc]
    for backend, target in CONVERTED.items():
        for precision, scheme in TARGETS[target].schemes.items():
            rows[f"{backend}-{precision}"] = partial(open_converted, backend, onnx, precision, scheme, batch)
    return rows


def open_converted(backend: str, onnx: Path, precision: str, scheme: str, batch: int) -> Session:
    """The network in another precision, on a backend that was looked for before anything is converted."""
    runtime = get_backend(backend)
    runtime.require()
    if backend == "tensorrt":
        check_precision(precision)
    return runtime.load(convert(onnx, scheme), batch=batch)


def convert(onnx: Path, scheme: str) -> Path:
    """The file in another precision, beside it; two backends share it."""
    file = onnx.with_name(f"{onnx.stem}-{scheme}.onnx")
    if not file.is_file():
        channels, height, width = get_backend("onnxruntime").load(onnx).input_shape
        shape = (2 * CALIBRATION_IMAGES, channels, height, width)
        images = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        labels = np.zeros(len(images), np.int64)  # of no class: no accuracy is asked for
        settings = QuantizeSettings(calibration_images=CALIBRATION_IMAGES, methods=("minmax",), max_drop=None)
        held_out = (images[1::2], labels[1::2])
        quantize(
            onnx, file, scheme=scheme, images=images[::2], labels=labels[::2], held_out=held_out, settings=settings
        )
    return file


def measure(arguments: argparse.Namespace, name: str, writer: csv.DictWriter[str]) -> None:
    """All rows of one network, interleaved in one run."""
    torch.manual_seed(0)
    folder = arguments.out / name
    folder.mkdir(parents=True, exist_ok=True)
    onnx, size, batch = folder / "model.onnx", arguments.size, arguments.batch
    for former in folder.glob("model*.onnx"):  # perhaps of another size
        former.unlink()
    network = build(resolve(name), CLASSES, size).eval()
    export_onnx(
        network, onnx, preprocessing=Preprocessing(size=size), classes=tuple(map(str, range(CLASSES))), name=name
    )
    sessions: dict[str, Session] = {}
    for row, opener in openers(arguments, name, onnx).items():
        try:
            sessions[row] = opener()
        except IekdError as error:
            print(f"{name:18} {row:22} not here: {error.message}")
            writer.writerow({"model": name, "row": row, "note": error.message})
    images = np.random.default_rng(0).standard_normal((8 * batch, 3, size, size)).astype(np.float32)
    run = measure_latency(sessions, images, folder=folder, batch=batch, seconds=arguments.seconds)
    for row, latency in run.latency.items():
        median = latency.median
        interval = f"[{median.low:.3f}, {median.high:.3f}]"
        print(f"{name:18} {row:22} {median.value:8.3f} ms {interval}  p99 {latency.p99.value:.3f}")
        writer.writerow(
            {"model": name, "row": row, "batch": batch, "size": size, "median_ms": median.value, "low": median.low,
             "high": median.high, "p99_ms": latency.p99.value}
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["resnet50", "mobilenetv2_100"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here; --device cpu tries the script without one")
    arguments.out.mkdir(parents=True, exist_ok=True)
    fields = ["model", "row", "batch", "size", "median_ms", "low", "high", "p99_ms", "note"]
    with (arguments.out / "gpu.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fields)
        writer.writeheader()
        for name in arguments.models:
            measure(arguments, name, writer)
    (arguments.out / "machine.json").write_text(fingerprint(0).model_dump_json(indent=2))


if __name__ == "__main__":
    main()
