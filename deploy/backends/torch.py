"""PyTorch itself, as the reference that exported files are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from iekd.deploy.backends import Array, BatchRange, Session, check_images
from iekd.errors import InputError
from iekd.models.checkpoint import load_artefact


@dataclass(frozen=True)
class Torch:
    """Opens artefact folders, such as RUN/student, instead of exported files."""

    def require(self) -> None:
        """See :class:`iekd.deploy.backends.Backend`; PyTorch is always there."""

    def load(self, path: Path, *, threads: int = 0, batch: int = 1) -> Session:
        """See :class:`iekd.deploy.backends.Backend`."""
        artefact = load_artefact(path)
        size = artefact.preprocessing.size
        return TorchSession(artefact.network.float(), (3, size, size), threads=threads)


class TorchSession:
    """A network in eval mode, in its own precision, on its own device.

    Args:
        network: the module; its modes and device are left as they are between calls.
        input_shape: channels, height, width.
        threads: intra-op threads during a call, whatever the process uses otherwise; 0 for what it uses.
    """

    def __init__(self, network: nn.Module, input_shape: tuple[int, int, int], *, threads: int = 0) -> None:
        self._network: nn.Module | None = network
        self.input_shape = input_shape
        self.batch_range: BatchRange = (1, None)
        self._threads = threads

    @torch.inference_mode()
    def run(self, images: Array) -> Array:
        """See :class:`iekd.deploy.backends.Session`."""
        if self._network is None:
            raise InputError("this session is closed.", "Make another.")
        check_images(images, self.input_shape)
        device = next(self._network.parameters()).device
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device)
        with _evaluating(self._network), _threads(self._threads):
            logits = self._network(batch)
        result: Array = logits.float().cpu().numpy()
        return result

    def streams(self, count: int, batch: int) -> list[Callable[[Array], Array]]:
        """See :class:`iekd.deploy.throughput.Streaming`: a network in eval mode may be called from several threads."""
        if self._network is not None:
            self._network.eval()
        return [self.run] * count

    def describe(self) -> dict[str, str]:
        """See :class:`iekd.deploy.backends.Session`."""
        return {
            "backend": f"PyTorch {torch.__version__}",
            "provider": "eager",
            "threads": f"{self._threads or torch.get_num_threads()} threads",
        }

    def close(self) -> None:
        """See :class:`iekd.deploy.backends.Session`."""
        self._network = None


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards in the mode that it had: frozen ones among training ones too."""
    if not network.training:
        yield
        return
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch knows one number for the whole process; setting it costs less than a microsecond."""
    before = torch.get_num_threads()
    if count in (0, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


CPU = Torch()
