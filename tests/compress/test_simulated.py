"""Simulated quantisation: real rounding in the forward pass, plain float weights to take away."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from torch import Tensor, nn

from iekd.compress.quantizers import SCHEMES
from iekd.compress.quantizers.simulated import GRIDS, Grid, Simulated
from iekd.deploy.quiet import quiet
from iekd.models.registry import Architecture, build
from iekd.models.taps import Tapped

pytest.importorskip("nncf")

COARSE = Grid(symmetric=False, weight_reach=4)


class Plain(nn.Module):
    """A user's network: no stages of timm's, a depthwise layer, and weights that are multiplied from the right."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.right = nn.Parameter(torch.randn(8, 6) / 3)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.depthwise(self.norm(self.first(images)).relu()).relu()
        logits: Tensor = self.head((maps.mean((2, 3)) @ self.right).relu())
        return logits


class Joined(nn.Module):
    """Maps of different ranges side by side, as in DenseNet or GhostNet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.small, self.large = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.last, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.cat([self.small(images).relu(), 50 * self.large(images).relu()], dim=1)
        logits: Tensor = self.head(self.last(maps).relu().mean((2, 3)))
        return logits


def images(count: int = 16, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def vit() -> nn.Module:
    network: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", num_classes=4, img_size=16, patch_size=8, depth=2, embed_dim=24
    )
    return network


NETWORKS = {
    "plain": Plain,
    "joined": Joined,
    "ghostnet": lambda: timm.create_model("ghostnet_050", num_classes=4),
    "mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050"),
    "vit": vit,
}


def test_every_int8_scheme_has_its_grid() -> None:
    assert set(GRIDS) == {name for name, scheme in SCHEMES.items() if scheme.precision == "int8"}


@pytest.mark.parametrize("name", NETWORKS)
def test_taps_and_logits_come_quantised_and_the_network_stays_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    tapped = Tapped(NETWORKS[name](), (-1,)).eval()
    before = {key: value.clone() for key, value in tapped.state_dict().items()}
    given = images()
    simulated = Simulated(tapped, given, COARSE)
    exact, rounded = tapped(given), simulated(given)
    assert rounded.taps[0].shape == exact.taps[0].shape
    assert not torch.allclose(rounded.logits, exact.logits, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(rounded.taps[0], exact.taps[0], rtol=1e-3, atol=1e-5)
    assert all(torch.equal(value, tapped.state_dict()[key]) for key, value in before.items())
    plain = simulated.network
    assert plain.state_dict().keys() == tapped.network.state_dict().keys()
    assert torch.equal(plain(given), tapped.network(given))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_quantiser_of_nncf_is_left(name: str) -> None:
    """They compile C++ when they are called, and some stand in several places: where maps are joined, for one."""
    simulated = Simulated(Tapped(NETWORKS[name](), (-1,)).eval(), images(), COARSE)
    left = [module for module in simulated.modules() if "quantiz" in type(module).__name__.lower()]
    assert left
    assert all(type(module).__module__.startswith("torch.ao.") for module in left)


@pytest.mark.parametrize("training", [False, True])
def test_maps_that_are_joined_share_a_range_that_covers_all(training: bool) -> None:
    tapped = Tapped(Joined(), (-1,)).eval()
    given, grid = images(), Grid(symmetric=False, weight_reach=128)
    simulated = Simulated(tapped, given, grid).train(training)
    error = (simulated(given).logits - tapped(given).logits).square().mean() / tapped(given).logits.square().mean()
    assert error < 0.01  # 0.7 where a running mean of both ranges cuts the larger maps off


def test_a_map_before_an_activation_does_not_move_the_rounding() -> None:
    """Reading there keeps a ReLU from working in place; where NNCF rounds must not hang on that."""
    network = build(Architecture("timm", "cifar_resnet20"), 4, 16).eval()
    late, early = (Simulated(Tapped(network, taps, 16), images(), COARSE) for taps in ((-1,), ("before:-1",)))
    given = images()
    assert torch.equal(early(given).logits, late(given).logits)
    (map_before,) = early(given).taps
    assert bool((map_before < 0).any())
    assert any(getattr(module, "inplace", False) for module in network.modules())
    early.train()(given).taps[0].square().mean().backward()
    assert all(parameter.grad is not None for parameter in early.network.stages.parameters())


def test_finer_grids_are_nearer_to_float() -> None:
    tapped = Tapped(Plain(), (-1,)).eval()
    given = images()

    def error(grid: Grid) -> float:
        logits = Simulated(tapped, given, grid)(given).logits
        return (logits - tapped(given).logits).square().mean().item()

    errors = [error(Grid(symmetric=False, weight_reach=reach)) for reach in (4, 16, 128)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 10


def test_weights_learn_and_statistics_do_not() -> None:
    simulated = Simulated(Tapped(Plain(), (-1,)), images(), GRIDS["int8-tensorrt"])
    simulated.train()
    before = {key: value.clone() for key, value in simulated.network.state_dict().items()}
    simulated(3 * images()).logits.square().mean().backward()
    torch.optim.SGD(simulated.parameters(), lr=0.1).step()
    after = simulated.network.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {name for name, _ in simulated.network.named_parameters()}
    assert not simulated.network.norm.training


def test_ranges_follow_in_training_alone() -> None:
    simulated = Simulated(Tapped(Plain(), (-1,)), images(), GRIDS["int8-x86-onnxruntime"])

    def state() -> dict[str, Tensor]:
        return {key: value.clone() for key, value in simulated.state_dict().items() if key.endswith("max_val")}

    def moved(before: dict[str, Tensor]) -> bool:
        return any(not torch.equal(before[key], value) for key, value in state().items())

    before = state()
    assert before
    simulated(5 * images())
    assert not moved(before)
    simulated.train()
    simulated(5 * images())
    assert moved(before)


def test_a_state_comes_back() -> None:
    tapped = Tapped(Plain(), (-1,))
    first, second = (Simulated(tapped, scale * images(), GRIDS["int8-tensorrt"]) for scale in (1, 3))
    assert not torch.equal(first(images()).logits, second(images()).logits)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images()).logits, second(images()).logits)


def test_what_trains_in_bf16_simulates_in_float32() -> None:
    simulated = Simulated(Tapped(Plain(), (-1,)), images(), GRIDS["int8-tensorrt"])
    with torch.autocast("cpu", torch.bfloat16):
        logits = simulated(images().bfloat16()).logits
    assert logits.dtype == torch.float32


def test_what_torch_says_of_a_cuda_without_a_gpu_stays_off_the_terminal() -> None:
    told = logging.getLogger("torch.utils.cpp_extension")
    with quiet():
        assert not told.isEnabledFor(logging.WARNING)
    assert told.isEnabledFor(logging.WARNING)
