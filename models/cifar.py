"""The networks of the field's CIFAR tables, under their own names in timm's registry (``cifar_resnet20``, ...).

Importing this module registers them.  They are for images of 32 x 32 pixels, where ImageNet's networks would have
shrunk the map to a single pixel, and take larger ones as well.  Layouts follow the papers with the choices of
RepDistiller (Tian et al., ICLR 2020), whose tables the field compares with: ResNets with 1 x 1 convolutions where the
width changes.

- ResNet: He et al., CVPR 2016, section 4.2; ``8x4`` and ``32x4`` are four times as wide, with a stem of 32 channels.
- WRN: Zagoruyko and Komodakis, BMVC 2016 (pre-activation).
- VGG: Simonyan and Zisserman, ICLR 2015, with batch normalisation and one linear layer as classifier.
- MobileNetV2: Sandler et al., CVPR 2018, at half width, with stride 1 instead of 2 in its second stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn


class Stage(NamedTuple):
    """A part of a network whose output can be tapped."""

    module: nn.Module
    channels: int
    reduction: int
    """Input pixels a side for each of the output's."""


class Layout(NamedTuple):
    """What the families differ in."""

    stem: nn.Module
    stages: list[Stage]
    last: nn.Module
    """Between the last stage and pooling."""
    features: int
    """Channels that are pooled."""


class CifarNetwork(nn.Module):
    """Stem, stages, pooling, one linear layer; with the methods by which timm reads features.

    Args:
        layout: the layers, for a number of input channels.
        num_classes: of the classifier; 0 for pooled features instead.
        in_chans: channels of the images.
    """

    def __init__(self, layout: Callable[[int], Layout], num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        stem, stages, last, features = layout(in_chans)
        self.stem = stem
        self.stages = nn.ModuleList(stage.module for stage in stages)
        self.last = last
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.num_features = self.head_hidden_size = features
        self.feature_info = [
            {"num_chs": stage.channels, "reduction": stage.reduction, "module": f"stages.{number}"}
            for number, stage in enumerate(stages)
        ]
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier; ``global_pool`` is timm's argument, and only ``avg`` is known."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool must be 'avg', not {global_pool!r}")
        self.num_classes = num_classes
        self.classifier = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.classifier

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The last stage's map and the maps of chosen stages, with timm's arguments.

        Args:
            x: images (B, C, H, W).
            indices: stages, or how many of the last ones; all where None.
            norm: has no effect, as in timm's ResNets: stages end in their own normalisation.
            stop_early: leave out stages after the last one chosen.
            output_fmt: ``NCHW``.
            intermediates_only: leave out the last map.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        chosen, highest = feature_take_indices(len(self.stages), indices)
        x, maps = self.stem(x), []
        for number, stage in enumerate(self.stages):
            if stop_early and number > highest:
                break
            x = stage(x)
            if number in chosen:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's map."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, classes) of the last stage's map, or the pooled features (B, C) before the classifier."""
        pooled: Tensor = self.pool(self.last(x))
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _rectified(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> Iterator[nn.Module]:
    """Convolution, normalisation, ReLU."""
    yield _convolution(inputs, outputs, kernel, stride, groups)
    yield nn.BatchNorm2d(outputs)
    yield nn.ReLU(inplace=True)


def _residual_stages(block: Callable[[int, int, int], nn.Module], widths: list[int], blocks: int) -> list[Stage]:
    """Three stages of ``blocks`` blocks, the second and third at half the size of the one before."""
    stages = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        first = block(inputs, outputs, 2 if number else 1)
        rest = (block(outputs, outputs, 1) for _ in range(blocks - 1))
        stages.append(Stage(nn.Sequential(first, *rest), outputs, 2**number))
    return stages


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, ReLU after their sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_rectified(inputs, outputs, stride=stride), _convolution(outputs, outputs), nn.BatchNorm2d(outputs)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        out: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return out


def resnet(channels: int, *, depth: int, widths: tuple[int, int, int, int] = (16, 16, 32, 64)) -> Layout:
    """ResNet of ``depth`` = 6n + 2 layers; ``widths`` are the stem's and the stages'."""
    stages = _residual_stages(BasicBlock, list(widths), (depth - 2) // 6)
    return Layout(nn.Sequential(*_rectified(channels, widths[0])), stages, nn.Identity(), widths[-1])


class PreActivationBlock(nn.Module):
    """Normalisation and ReLU before each convolution; where the width changes, also before the shortcut's."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            *_rectified(inputs, outputs, stride=stride),
            _convolution(outputs, outputs),
        )
        self.shortcut = _convolution(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        ready = self.before(x)
        kept = x if self.shortcut is None else self.shortcut(ready)
        out: Tensor = self.body(ready) + kept
        return out


def wide_resnet(channels: int, *, depth: int, factor: int) -> Layout:
    """WRN-depth-factor, of ``depth`` = 6n + 4 layers.

    The last normalisation and ReLU belong to the last stage, so that its tap is the map that is pooled.
    """
    widths = [16, 16 * factor, 32 * factor, 64 * factor]
    stages = _residual_stages(PreActivationBlock, widths, (depth - 4) // 6)
    ended = nn.Sequential(stages[-1].module, nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True))
    stages[-1] = stages[-1]._replace(module=ended)
    return Layout(_convolution(channels, widths[0]), stages, nn.Identity(), widths[-1])


def vgg(channels: int, *, repeats: tuple[int, ...]) -> Layout:
    """VGG with that many convolutions in each of five stages.

    Three poolings, before the second, third and fourth stage: at 32 pixels the last two share the size of 4 x 4.
    """
    stages: list[Stage] = []
    inputs = channels
    for number, (width, repeat) in enumerate(zip((64, 128, 256, 512, 512), repeats, strict=True)):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if number in (1, 2, 3) else []
        for _ in range(repeat):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inputs = width
        stages.append(Stage(nn.Sequential(*layers), width, 2 ** min(number, 3)))
    return Layout(nn.Identity(), stages, nn.Identity(), inputs)


class InvertedResidual(nn.Module):
    """Expand by 1 x 1, filter each channel by 3 x 3, project by 1 x 1 without activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.body = nn.Sequential(
            *_rectified(inputs, inner, 1),
            *_rectified(inner, inner, 3, stride, groups=inner),
            _convolution(inner, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        out: Tensor = self.body(x)
        return x + out if self.residual else out


_MOBILE_ROWS = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
"""Expansion, channels at full width, repeats and first stride (Sandler et al. 2018, table 2), by stage."""


def mobilenetv2(channels: int, *, width: float) -> Layout:
    """MobileNetV2 of a given width; the 1,280 channels before pooling stay."""
    inputs = int(32 * width)
    stem = nn.Sequential(*_rectified(channels, inputs, stride=2))
    stages, reduction = [], 2
    for rows in _MOBILE_ROWS:
        blocks = []
        for expansion, outputs, repeats, stride in rows:
            reduction *= stride
            for number in range(repeats):
                blocks.append(InvertedResidual(inputs, int(outputs * width), 1 if number else stride, expansion))
                inputs = int(outputs * width)
        stages.append(Stage(nn.Sequential(*blocks), inputs, reduction))
    return Layout(stem, stages, nn.Sequential(*_rectified(inputs, 1280, 1)), 1280)


_WIDE = (32, 64, 128, 256)
LAYOUTS: dict[str, Callable[[int], Layout]] = {
    **{f"cifar_resnet{depth}": partial(resnet, depth=depth) for depth in (20, 32, 56, 110)},
    **{f"cifar_resnet{depth}x4": partial(resnet, depth=depth, widths=_WIDE) for depth in (8, 32)},
    **{
        f"cifar_wrn_{depth}_{factor}": partial(wide_resnet, depth=depth, factor=factor)
        for depth in (16, 40)
        for factor in (1, 2)
    },
    "cifar_vgg8": partial(vgg, repeats=(1, 1, 1, 1, 1)),
    "cifar_vgg13": partial(vgg, repeats=(2, 2, 2, 2, 2)),
    "cifar_mobilenetv2_half": partial(mobilenetv2, width=0.5),
}
"""The models by name."""

default_cfgs = generate_default_cfgs(
    {
        name: {
            "url": "",
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": None,
            "mean": (0.4914, 0.4822, 0.4465),  # of CIFAR-10's training images
            "std": (0.2470, 0.2435, 0.2616),
            "classifier": "classifier",
        }
        for name in LAYOUTS
    }
)
"""Read by ``register_model``; there are no pre-trained weights."""


def _entry_point(name: str, layout: Callable[[int], Layout]) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        network: nn.Module = build_model_with_cfg(
            CifarNetwork, name, pretrained, layout=layout, feature_cfg={"feature_cls": "getter"}, **arguments
        )
        return network

    create.__name__ = name
    create.__doc__ = f"``{name}``: see the module's text."
    return create


for _name, _layout in LAYOUTS.items():
    register_model(_entry_point(_name, _layout))
