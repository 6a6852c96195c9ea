"""PyTorch itself, as the reference that exported files are compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from iekd.deploy.backends import Array, check_images
from iekd.errors import InputError


class TorchSession:
    """A network in eval mode, float32, on the CPU.

    Args:
        network: the module; its mode and device are left as they are between calls.
        input_shape: channels, height, width.
    """

    def __init__(self, network: nn.Module, input_shape: tuple[int, int, int]) -> None:
        self._network: nn.Module | None = network
        self.input_shape = input_shape

    @torch.inference_mode()
    def run(self, images: Array) -> Array:
        """See :class:`iekd.deploy.backends.Session`."""
        if self._network is None:
            raise InputError("this session is closed.", "Make another.")
        check_images(images, self.input_shape)
        training = self._network.training
        device = next(self._network.parameters()).device
        logits = self._network.eval()(torch.from_numpy(np.ascontiguousarray(images)).to(device))
        self._network.train(training)
        result: Array = logits.float().cpu().numpy()
        return result

    def describe(self) -> dict[str, str]:
        """See :class:`iekd.deploy.backends.Session`."""
        return {
            "backend": f"PyTorch {torch.__version__}",
            "provider": "eager",
            "threads": f"{torch.get_num_threads()} threads",
        }

    def close(self) -> None:
        """See :class:`iekd.deploy.backends.Session`."""
        self._network = None
