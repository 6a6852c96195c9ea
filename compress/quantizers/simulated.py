"""Simulated quantisation: a tapped network that computes as its INT8 file will, and stays trainable.

No quantiser here is ours: NNCF says where a network is quantised, PyTorch's fake quantisers follow the ranges, round,
and let gradients through.  NNCF's own fake quantisers compile C++ or CUDA sources when they are first called, for which
it takes a compiler, and on a busy machine longer than the minute after which they give up.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from iekd.deploy.quiet import quiet
from iekd.errors import EnvironmentMissingError, InputError
from iekd.models.taps import Features, Tapped

INSTALL = "pip install 'iekd-compress[quantize]'"
_BATCH = 64
_FOLLOW = 0.01
"""Share of a batch's range in the running range of an activation: PyTorch's default."""


@dataclass(frozen=True)
class Grid:
    """The whole numbers that a target computes with."""

    symmetric: bool
    """Activations are int8 about 0; else uint8 from any lowest to any highest value."""
    weight_reach: int
    """Weights are -reach to reach - 1, with a scale for each output channel."""


GRIDS = {
    "int8-x86-onnxruntime": Grid(symmetric=False, weight_reach=64),
    "int8-openvino": Grid(symmetric=False, weight_reach=64),
    "int8-tensorrt": Grid(symmetric=True, weight_reach=128),
}
"""By quantisation scheme; where its recipes differ, the coarsest of them."""


_LEFT_ALONE = "group_norm"
"""Its scale is not one a channel of an operator's output, which NNCF takes it for."""


class Simulated(nn.Module):
    """A copy of a tapped network under simulated quantisation.

    Gradients pass the rounding as if it were not there.  Statistics of batch normalisation stay as they are: the file
    has them folded into its weights.  Ranges of weights are those of the moment; ranges of activations are taken from
    ``images`` and then follow the training, as those of the file will.

    Attributes:
        network: the plain float network whose weights are trained; nothing of the simulation is in it.

    Args:
        tapped: stays as it is.
        images: preprocessed training images (N, 3, H, W), on the network's device.
        grid: of the target.

    Raises:
        EnvironmentMissingError: NNCF is not installed.
        InputError: NNCF cannot quantise such a network.
    """

    def __init__(self, tapped: Tapped, images: Tensor, grid: Grid) -> None:
        super().__init__()
        self._tapped = _placed(copy.deepcopy(tapped).eval(), images[:1])
        from nncf.torch.function_hook import get_hook_storage

        self._activations: list[Any] = []
        hooks = get_hook_storage(self._tapped)
        for quantizer, names in _places(hooks).items():
            fake = _weights(quantizer, grid) if quantizer.per_channel else _activations(grid, shared=len(names) > 1)
            for name in names:
                hooks.set_submodule(name, fake.to(images.device))
            if not quantizer.per_channel:
                self._activations.append(fake)
        with torch.no_grad():
            for batch in torch.split(images, _BATCH):
                self(batch)
        self.eval()

    @property
    def network(self) -> nn.Module:
        """See the class."""
        return self._tapped.network

    def forward(self, images: Tensor) -> Features:
        """Logits and taps of a batch (B, 3, H, W), as :class:`Tapped` gives them; in float32 whatever else trains."""
        with torch.autocast(images.device.type, enabled=False):
            features: Features = self._tapped(images.float())
        return features

    def train(self, mode: bool = True) -> Simulated:
        """As of any module, but for batch normalisation; ranges of activations follow in training alone."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        for fake in self._activations:
            fake.enable_observer(mode)
        return self


class Answers(nn.Module):
    """The logits alone, for who measures accuracy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        features: Features = self._network(images)
        return features.logits


def require_nncf() -> None:
    """Raise EnvironmentMissingError unless NNCF can be imported."""
    os.environ.setdefault("NNCF_CI", "1")  # no telemetry
    try:
        with quiet():
            import nncf.torch  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissingError("--qat needs NNCF, which is not installed.", INSTALL) from error


def _placed(tapped: Tapped, image: Tensor) -> Tapped:
    """A copy with NNCF's quantisers where it would quantise; their ranges do not matter."""
    require_nncf()
    import nncf
    from nncf.quantization import advanced_parameters as advanced

    parameters = advanced.AdvancedQuantizationParameters(
        overflow_fix=advanced.OverflowFix.DISABLE,
        disable_bias_correction=True,  # this and the next two change weights
        disable_channel_alignment=True,
        smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(matmul=-1),
        activations_quantization_params=advanced.QuantizationParameters(per_channel=False),
        weights_quantization_params=advanced.QuantizationParameters(per_channel=True),
    )
    transformer = any(isinstance(module, nn.LayerNorm) for module in tapped.modules())
    try:
        with quiet():
            placed: Tapped = nncf.quantize(
                tapped,
                nncf.Dataset([image]),
                subset_size=1,
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                ignored_scope=nncf.IgnoredScope(types=[_LEFT_ALONE], validate=False),
                advanced_parameters=parameters,
            )
    except (RuntimeError, ValueError) as error:  # NNCF's own, and what it does not catch of torch's
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            f"{type(tapped.network).__name__} cannot be trained under simulated int8; NNCF says: {reason}.",
            "Give --qat never: int8 is then made without training.",
        ) from error
    return placed


def _places(hooks: Any) -> dict[Any, list[str]]:
    """Where each of NNCF's quantisers stands: the maps that one operator joins have a single one between them."""
    found: dict[Any, list[str]] = {}
    for name, quantizer in hooks.named_hooks(remove_duplicate=False):
        found.setdefault(quantizer, []).append(name)
    return found


def _weights(quantizer: Any, grid: Grid) -> Any:
    from torch.ao.quantization import (
        FakeQuantize,
        FusedMovingAvgObsFakeQuantize,
        MovingAveragePerChannelMinMaxObserver,
    )

    shape = list(quantizer.scale_shape)
    axis = shape.index(max(shape))
    kind = FakeQuantize if axis else FusedMovingAvgObsFakeQuantize  # the fused one is twice as fast, on axis 0 alone
    return kind(
        MovingAveragePerChannelMinMaxObserver,
        quant_min=-grid.weight_reach,
        quant_max=grid.weight_reach - 1,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=axis,
        averaging_constant=1.0,  # no average: the range of these very weights
    )


def _activations(grid: Grid, *, shared: bool) -> Any:
    """Of one map, or of all maps that share a range, which then covers all that was ever seen of them."""
    from torch.ao.quantization import (
        FakeQuantize,
        FusedMovingAvgObsFakeQuantize,
        MinMaxObserver,
        MovingAverageMinMaxObserver,
    )

    numbers: dict[str, Any] = {
        "quant_min": -128 if grid.symmetric else 0,
        "quant_max": 127 if grid.symmetric else 255,
        "dtype": torch.qint8 if grid.symmetric else torch.quint8,
        "qscheme": torch.per_tensor_symmetric if grid.symmetric else torch.per_tensor_affine,
    }
    if shared:  # a running mean of different maps would be the range of none
        return FakeQuantize(MinMaxObserver, **numbers)  # type: ignore[no-untyped-call]  # PyTorch's has no types
    return FusedMovingAvgObsFakeQuantize(MovingAverageMinMaxObserver, averaging_constant=_FOLLOW, **numbers)
