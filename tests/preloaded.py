"""What a process of its own finds loaded: imports alone, since a process that has computed cannot be forked safely."""

# ruff: noqa: F401 - what is imported here is used where processes are forked

from __future__ import annotations

import matplotlib.backends.backend_svg
import onnx.reference
import onnxruntime.quantization
import onnxslim
import sklearn.datasets
import torch._functorch.aot_autograd
import torch.export
import torch.onnx._internal.exporter._core
import torch.utils.tensorboard
from exporter import list_operators_once

import iekd.compress.bench
import iekd.compress.cli
import iekd.compress.pipeline
import iekd.compress.search

list_operators_once()
