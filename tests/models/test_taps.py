"""Taps by number, by name and by themselves, of timm's networks and of a user's own."""

from __future__ import annotations

import pytest
import timm
import tiny_networks
import torch
from torch import nn

from iekd.errors import InputError
from iekd.models.registry import Architecture, build
from iekd.models.taps import Tapped, before


def resnet() -> nn.Module:
    return build(Architecture("timm", "resnet10t"), 3, 64)


def images(size: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


NAMED = [
    ("resnet10t", "layer3", -2),
    ("mobilenetv3_small_050", "blocks.0", 1),
    ("vit_tiny_patch16_224", "blocks.10", -2),
]


@pytest.mark.parametrize(("network", "name", "number"), NAMED, ids=[row[0] for row in NAMED])
def test_a_stage_has_a_name_and_a_number(network: str, name: str, number: int) -> None:
    made = build(Architecture("timm", network), 3, 64).eval()
    by_name, by_number = Tapped(made, (name,)), Tapped(made, (number,))
    assert by_name.names == (name,)
    assert by_name.stages == by_number.stages
    seen: list[torch.Tensor] = []
    made.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    (tap,) = by_name(images(64)).taps
    tokens = seen[0].dim() == 3
    assert torch.equal(tap.flatten(2).transpose(1, 2) if tokens else tap, seen[0][:, 1:] if tokens else seen[0])


def test_several_names_come_in_the_networks_order_each_once() -> None:
    assert Tapped(resnet(), ("layer4", "layer2", -1)).names == ("layer2", "layer4")
    assert Tapped(tiny_networks.student(3), ("4", "0")).names == ("0", "4")


@pytest.mark.parametrize("tap", ["layer5", 5, -6])
def test_an_unknown_tap_lists_the_valid_names(tap: int | str) -> None:
    with pytest.raises(InputError, match=rf"ResNet has no tap {tap}\..*0 to 4.*act1, layer1, layer2, layer3, layer4;"):
        Tapped(resnet(), (tap,))
    with pytest.raises(InputError, match=r"by name: 0, 1, 2, 3, 4;"):
        Tapped(tiny_networks.student(3), ("conv",))


@pytest.mark.parametrize(("size", "name"), [(32, "layer3"), (64, "layer4"), (96, "layer4")])
def test_auto_is_the_last_stage_that_has_positions(size: int, name: str) -> None:
    network = resnet().eval()
    tapped = Tapped(network, ("auto",), size)
    assert tapped.names == (name,)
    assert tapped.shapes(size)[0].height > 1
    assert (Tapped(network).names == (name,)) == (Tapped(network).shapes(size)[0].height > 1)
    assert not network.training, "tapping leaves the mode as it was"


def test_auto_without_any_positions_is_the_last_stage() -> None:
    network = timm.create_model("vit_tiny_patch16_224", img_size=16, depth=2, num_classes=3)
    assert Tapped(network, ("auto",), 16).names == ("blocks.1",)


def test_a_users_network_has_the_same_numbers_at_every_size() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(3 if at == 0 else 4, 4, 3, stride=2, padding=1) for at in range(5)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    assert {Tapped(network, (-1,), size).available for size in (16, 32, 64, 224)} == {("0", "1", "2", "3", "4")}
    assert Tapped(network, ("auto",), 32).names == ("3",)


def test_a_network_of_fixed_size_is_tapped_at_that_size() -> None:
    network = tiny_networks.fixed(3)
    tapped = Tapped(network, (-1,), 16)
    assert tapped.available == ("0", "1", "2")
    assert tapped(images()).taps[0].shape == (2, 4, 8, 8)
    assert network.training
    with pytest.raises(InputError, match="does not take images of 32 x 32 pixels"):
        Tapped(network, (-1,), 32)


def test_a_network_without_maps_can_only_go_untapped() -> None:
    network = tiny_networks.flat(3)
    with pytest.raises(InputError, match=r"no module whose output is a feature map\..*kd"):
        Tapped(network, (-1,), 16)
    answer = Tapped(network, ())(images())
    assert torch.equal(answer.logits, network(images()))
    assert answer.taps == ()


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_logits_do_not_hang_on_the_taps(name: str) -> None:
    network = build(Architecture("timm", name), 3, 64).eval()
    assert torch.equal(Tapped(network, ())(images(64)).logits, Tapped(network)(images(64)).logits)


class Residual(nn.Module):
    """Adds its input in place, as torchvision's ResNets do."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.convolution(images)
        maps += images
        logits: torch.Tensor = self.head(maps.mean((2, 3)))
        return logits


def test_a_tap_is_what_the_module_put_out_though_the_next_works_in_place() -> None:
    network = tiny_networks.fixed(3).eval()
    (tap,) = Tapped(network, (1,), 16)(images()).taps
    assert torch.equal(tap, network[1](network[0](images())))
    assert bool((tap < 0).any())
    residual = Residual()
    (tap,) = Tapped(residual, ("convolution",))(images()).taps
    assert torch.equal(tap, residual.convolution(images()))
    tap.sum().backward()
    assert residual.convolution.weight.grad is not None


ENDING = [
    ("resnet10t", "before:layer4", 64),
    ("resnet50", "before:layer4", 32),
    ("cifar_resnet20", "before:stages.2", 32),
    ("cifar_wrn_16_1", "before:stages.2", 32),
    ("cifar_vgg8", "before:stages.4", 32),
    ("efficientnet_b0", "blocks.6", 32),
    ("convnext_atto", "stages.3", 32),
    ("vit_tiny_patch16_224", "blocks.11", 32),
]


@pytest.mark.parametrize(("name", "tap", "size"), ENDING, ids=[row[0] for row in ENDING])
def test_before_is_what_the_last_activation_of_a_stage_gets(name: str, tap: str, size: int) -> None:
    network = build(Architecture("timm", name), 3, size).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)  # fresh residual branches give zeros
    working_in_place = [module for module in network.modules() if getattr(module, "inplace", False)]
    tapped = Tapped(network, (before(-1), -1), size)
    own = tapped(images(size))
    plain = Tapped(network, (-1,), size)(images(size))
    assert torch.equal(own.logits, plain.logits)
    assert torch.equal(own.taps[-1], plain.taps[0])
    assert [module for module in network.modules() if getattr(module, "inplace", False)] == working_in_place
    assert tapped.names[-1] == tap.removeprefix("before:")
    if tap.startswith("before:"):
        early, late = own.taps
        assert tapped.names[0] == tap
        assert tapped.stages == (tapped.stages[-1],) * 2
        assert bool((early < 0).any())
        assert torch.equal(early.clamp(min=0), late)
        (pull,) = torch.autograd.grad(own.logits.sum(), early)
        assert bool((pull[late > 0] != 0).all()), "the logits are computed from that very map"
        assert bool((pull[early < 0] == 0).all())
    else:
        assert torch.equal(*own.taps), "no activation ends the stage: before it is the stage's own map"


class Shared(nn.Module):
    """One activation in several places, as torchvision's blocks have, and another that ends no stage."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2), nn.Hardswish())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.act(self.second(self.act(self.first(images)))))
        return logits


def test_before_in_a_users_network() -> None:
    network = nn.Sequential(Shared())
    network[0].head = nn.Identity()
    network = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    tapped = Tapped(network, ("before:-1", "before:0.0.second", "0.0.first"), 16)
    assert tapped.names == ("0.0.first", "0.0.second", "before:0")
    first, second, early = tapped(images()).taps
    block = network[0][0]
    assert torch.equal(first, block.first(images()))
    assert torch.equal(second, block.second(block.first(images()).relu()))
    assert torch.equal(early, second), "the last of the calls of the shared activation"
    assert block.act.inplace


def test_an_unknown_stage_before_its_activation_is_told_as_any() -> None:
    with pytest.raises(InputError, match=r"ResNet has no tap layer5\..*before: in front"):
        Tapped(resnet(), ("before:layer5",))


class Everywhere(nn.Module):
    """One activation for two stages and the classifier."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU(inplace=True)
        self.one = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), act)
        self.two = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), act)
        self.hidden = nn.Linear(4, 5)
        self.act = act
        self.out = nn.Linear(5, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.act(self.hidden(self.two(self.one(images)).mean((2, 3)))))
        return logits


def test_an_activation_that_works_elsewhere_too_is_read_where_the_stage_ends() -> None:
    network = Everywhere().eval()
    tapped = Tapped(network, ("before:one", "before:two", "one"), 16)
    assert tapped.names == ("before:one", "one", "before:two")
    early, late, second = tapped(images()).taps
    assert torch.equal(early, network.one[0](images()))
    assert torch.equal(late, early.relu())
    assert torch.equal(second, network.two[0](late))


class Adding(nn.Module):
    """What is added in place to an activation's output stands behind the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.act(self.convolution(maps))
        found += maps
        return found


class Own(nn.ReLU):
    """A user's own kind of a known activation."""


@pytest.mark.parametrize(("block", "found"), [(Adding(), False), (nn.Sequential(nn.Conv2d(3, 3, 1), Own()), True)])
def test_what_ends_a_stage_is_its_activation(block: nn.Module, found: bool) -> None:
    network = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    (name,) = Tapped(network, ("before:-1",), 16).names
    assert name.startswith("before:") == found


@pytest.mark.parametrize("name", ["twins_svt_small", "mvitv2_tiny"])
def test_a_stage_whose_name_is_no_module_is_read_as_it_is(name: str) -> None:
    network = timm.create_model(name, num_classes=3, img_size=64)
    early, late = Tapped(network, ("before:-1",), 64), Tapped(network, (-1,), 64)
    assert early.names == late.names
    assert early.shapes(64) == late.shapes(64)


def test_a_tap_before_and_behind_are_two_also_where_no_activation_ends_the_stage() -> None:
    """So that the teacher's and the student's taps are as many."""
    pair = [build(Architecture("timm", name), 3, 32).eval() for name in ("cifar_resnet20", "mobilenetv2_035")]
    assert [len(Tapped(network, ("before:-1", -1), 32).stages) for network in pair] == [2, 2]
