"""Goals, criteria and what is refused, on networks that prune in a moment."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
import torch_pruning
from torch import Tensor, nn

from iekd.compress.prune import Latency, LatencyShare, Macs, PruneResult, Ratio, describe_gain, prune, prune_artefact
from iekd.compress.pruning import latency
from iekd.compress.pruning.criteria import CRITERIA
from iekd.compress.pruning.goals import Trial, least_ratio
from iekd.compress.pruning.latency import latency_beside, measure_networks, onnx_latency
from iekd.deploy.backends import get_backend
from iekd.deploy.results import Interval
from iekd.errors import InputError
from iekd.models.checkpoint import Artefact, load_artefact, save_artefact
from iekd.models.preprocessing import Preprocessing
from iekd.models.pruned import apply_changes
from iekd.models.registry import Architecture, build, count_macs


class Small(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * width, 4)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.second(self.norm(self.first(images)).relu()).relu()
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


@pytest.fixture
def network() -> Small:
    torch.manual_seed(0)
    return Small()


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(8, 3, 32, 32), torch.randint(0, 4, (8,))) for _ in range(2)]


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_each_criterion_prunes(network: Small, criterion: str, scope: str) -> None:
    result = prune(network, image_size=32, goal=Ratio(0.5), criterion=criterion, scope=scope, batches=batches())
    assert result.macs_after < result.macs_before
    assert result.network(torch.randn(2, 3, 32, 32)).shape == (2, 4)
    assert json.loads(json.dumps(result.history)) == result.history
    assert network.first.out_channels == 32
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("criterion", ["group-norm", "magnitude", "bn-scale", "taylor"])
def test_the_channels_that_matter_least_go(network: Small, criterion: str) -> None:
    """Half of the first layer's channels are made unimportant to every criterion, and exactly they go."""
    with torch.no_grad():
        for tensor in (network.first.weight, network.norm.weight, network.norm.bias):
            tensor[::2] *= 1e-4
        network.second.weight[:, ::2] *= 1e-4
    result = prune(network, image_size=32, goal=Ratio(0.5), criterion=criterion, batches=batches())
    assert torch.equal(result.network.first.weight, network.first.weight[1::2])  # type: ignore[union-attr,arg-type]
    assert torch.equal(result.network.norm.running_var, network.norm.running_var[1::2])  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(("round_to", "expected"), [(1, 19), (8, 16), (16, 16), (32, 32)])
def test_widths_are_rounded_to_the_nearest_multiple(network: Small, round_to: int, expected: int) -> None:
    result = prune(network, image_size=32, goal=Ratio(0.4), round_to=round_to)
    assert result.network.first.out_channels == expected


def test_global_ranking_leaves_every_layer_a_tenth(network: Small) -> None:
    with torch.no_grad():
        for part in (network.first, network.norm):
            part.weight[1:] *= 1e-3  # one strong channel: all others look useless
        network.second.weight[:, 1:] *= 1e-3
    result = prune(network, image_size=32, goal=Ratio(0.3), scope="global", round_to=1)
    assert result.network.first.out_channels >= 3


def test_frozen_and_evaluated_networks_are_pruned_and_stay_so(network: Small) -> None:
    network.eval().requires_grad_(False)
    with torch.no_grad():
        result = prune(network, image_size=32, goal=Ratio(0.5))
    assert result.network.first.out_channels == 16
    assert not result.network.training
    assert not any(parameter.requires_grad for parameter in result.network.parameters())


def test_each_module_keeps_its_own_mode(network: Small) -> None:
    network.train().norm.eval()
    result = prune(network, image_size=32, goal=Ratio(0.5))
    for module in (network, result.network):
        assert module.training
        assert not module.norm.training  # type: ignore[union-attr]


def test_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=1), image_size=32,
              goal=Ratio(0.5))  # fmt: skip
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_attention_is_narrowed_or_loses_heads() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=2)
    for heads, expected in (("narrow", (3, 32)), ("remove", (2, 64))):
        pruned = prune(vit, image_size=32, goal=Ratio(0.5), heads=heads)
        attention = pruned.network.blocks[0].attn  # type: ignore[union-attr,index]
        assert (attention.num_heads, attention.head_dim) == expected
        assert pruned.changes["blocks.0.attn"]["attributes"]["attn_dim"] == expected[0] * expected[1]


def test_latency_goal_is_met_by_measurement(network: Small) -> None:
    seen = []

    def measure(candidate: nn.Module) -> float:
        seen.append(count_macs(candidate, 32))
        return seen[-1] / 1e5

    goal = Latency(0.5 * count_macs(network, 32) / 1e5, measure)
    result = prune(network, image_size=32, goal=goal)
    assert measure(result.network) <= goal.milliseconds
    assert len(set(seen)) > 2
    assert result.history["goal"] == {"milliseconds": goal.milliseconds}


def test_a_share_of_the_latency_is_left(network: Small) -> None:
    whole = count_macs(network, 32)
    goal = LatencyShare(0.5, lambda candidate: count_macs(candidate, 32) / whole)
    result = prune(network, image_size=32, goal=goal)
    assert 0 < goal.measure(result.network) <= 0.5
    assert result.history["goal"] == {"latency_left": 0.5}
    with pytest.raises(InputError, match=r"cannot be pruned to 0.5 of its latency: .* it takes 0.7, unpruned 1"):
        prune(network, image_size=32, goal=LatencyShare(0.5, lambda _candidate: 0.7))


def test_latency_is_that_of_the_exported_file(network: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a runtime that opens real files, and a clock that gives each a millisecond a weight in its file."""
    opened: list[SimpleNamespace] = []
    asked: list[tuple[str, int]] = []

    def load(path: Path, *, threads: int) -> Any:
        weights = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(str(path)).graph.initializer)
        session = get_backend("onnxruntime").load(path, threads=threads)
        asked.append((backend, threads))
        opened.append(SimpleNamespace(weights=weights, shape=session.input_shape, closed=0))
        opened[-1].close = lambda one=opened[-1]: setattr(one, "closed", one.closed + 1)
        return opened[-1]

    def clock(sessions: dict[str, Any], images: np.ndarray, **how: Any) -> Any:
        assert how["seconds"] == 0.25
        assert all(session.shape == images.shape[1:] for session in sessions.values())
        medians = {name: SimpleNamespace(value=session.weights) for name, session in sessions.items()}
        return SimpleNamespace(
            latency={name: SimpleNamespace(median=value) for name, value in medians.items()},
            ratio=lambda slow, fast: SimpleNamespace(value=medians[slow].value / medians[fast].value),
        )

    backend = ""

    def runtime(name: str) -> Any:
        nonlocal backend
        backend = name
        return SimpleNamespace(load=load)

    monkeypatch.setattr(latency, "get_backend", runtime)
    monkeypatch.setattr(latency, "measure_latency", clock)
    pruned = prune(network, image_size=32, goal=Ratio(0.5)).network
    how: dict[str, Any] = {"image_size": 32, "classes": 4, "backend": "openvino", "threads": 3, "seconds": 0.25}
    measure = onnx_latency(**how)
    sizes = [sum(part.weight.numel() for part in (one.first, one.second, one.head)) for one in (network, pruned)]
    for one, size in zip((network, pruned), sizes, strict=True):
        assert size <= measure(one) <= size + 3 * 4 * 64, "its weights and, beside them, vectors alone"
    run = measure_networks({"a": network, "b": pruned}, **how)
    assert run.latency["a"].median.value == opened[0].weights > run.latency["b"].median.value == opened[1].weights
    beside = latency_beside(network, **how)
    for _ in range(2):  # the whole one's file is there, measured again beside each
        assert beside(pruned) == pytest.approx(opened[1].weights / opened[0].weights)
    assert asked == [("openvino", 3)] * 8
    assert [one.closed for one in opened] == [1] * 8


def test_a_pruned_network_that_is_not_faster_says_so(network: Small) -> None:
    result = prune(network, image_size=32, goal=Ratio(0.5))
    one, two = Interval(value=1, low=1, high=1), Interval(value=2, low=1.9, high=2.1)
    sizes = result.macs, result.parameters
    assert describe_gain(*sizes, two, one, two).startswith("2.00 [1.90, 2.10] times faster: latency 2 -> 1 ms; MACs")
    doubtful = Interval(value=1.02, low=0.98, high=1.06)
    assert describe_gain(*sizes, one, one, doubtful).startswith("not faster (1.02 [0.98, 1.06] times the speed)")


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_ratios_outside_the_open_interval_are_refused(value: float) -> None:
    for goal in (Ratio, Macs, lambda left: LatencyShare(left, lambda _network: 1.0)):
        with pytest.raises(InputError, match=r"outside \(0, 1\)"):
            goal(value)
    with pytest.raises(InputError, match="not a duration"):
        Latency(-value if value > 0 else value, lambda _network: 1.0)


def refuse(message: str, network: nn.Module, **options: object) -> None:
    before = copy.deepcopy(network.state_dict())
    arguments: dict[str, object] = {"goal": Ratio(0.5), **options}
    with pytest.raises(InputError, match=message):
        prune(network, image_size=32, **arguments)  # type: ignore[arg-type]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_bad_choices_are_refused(network: Small) -> None:
    refuse("unknown pruning criterion 'magnitud'.*magnitude", network, criterion="magnitud")
    refuse("unknown pruning scope", network, scope="local")
    refuse("unknown way to prune attention heads", network, heads="all")
    refuse("multiples of 0", network, round_to=0)
    refuse("taylor needs labelled batches", network, criterion="taylor")


def test_goals_that_cannot_be_met_are_refused(network: Small) -> None:
    refuse("nothing to prune in Small: at ratio 0.01 no width changes", network, goal=Ratio(0.01))
    refuse("cannot be pruned to .* MACs: at the most", network, goal=Macs(0.999))
    refuse("takes 1 ms already", network, goal=Latency(2.0, lambda _network: 1.0))
    refuse("cannot be pruned to 0.5 ms", network, goal=Latency(0.5, lambda _network: 1.0))


def test_a_network_with_nothing_to_prune_is_refused() -> None:
    class HeadOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(images.mean((2, 3)))
            return logits

    refuse("nothing to prune in HeadOnly: it has no convolution and no linear layer beside the", HeadOnly())


def test_a_network_that_cannot_be_pruned_is_refused_with_the_layer_s_name(network: Small) -> None:
    class Stubborn(nn.Module):
        """Insists on its width."""

        def forward(self, maps: Tensor) -> Tensor:
            return maps.reshape(-1, 32, 16, 16)

    network.norm = nn.Sequential(nn.BatchNorm2d(32), Stubborn())  # type: ignore[assignment]
    refuse(r"Small cannot be pruned at layer 'norm\.1': shape", network)


def test_a_criterion_without_its_normalisation_names_the_layer_or_the_kind_that_is_missing(network: Small) -> None:
    transformer = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    refuse(r"has no BatchNorm layer: .* 'blocks\.0\.norm1' first, is LayerNorm", transformer, criterion="bn-scale")
    network.norm = nn.Identity()
    refuse("Small has no BatchNorm layer and no other normalisation", network, criterion="bn-scale")
    inputs_alone = nn.Sequential(nn.BatchNorm2d(3), network)
    refuse(r"no batch normalisation follows '1\.first'", inputs_alone, criterion="bn-scale")


def test_an_image_size_that_does_not_fit_names_the_layer() -> None:
    refuse("cannot be pruned at layer 'patch_embed'", timm.create_model("vit_tiny_patch16_224", depth=1))


def test_rigid_attention_leaves_only_hidden_layers_to_prune() -> None:
    small = {"img_size": 64, "window_size": 2, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 32}
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **small)
    result: PruneResult = prune(swin, image_size=64, goal=Ratio(0.5))
    assert result.history["widths"]
    assert all(".mlp.fc1" in layer for layer in result.history["widths"])


def test_layers_that_stay_whole_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes with CoAtNet's widths takes torch-pruning minutes and gigabytes to enumerate, and stays anyway."""
    followed = []
    follow = torch_pruning.DependencyGraph.get_pruning_group

    def spy(graph: Any, module: nn.Module, *rest: Any) -> Any:
        followed.append(graph._module2name[module])
        return follow(graph, module, *rest)

    monkeypatch.setattr(torch_pruning.DependencyGraph, "get_pruning_group", spy)
    result = prune(timm.create_model("test_coatnet", num_classes=3, img_size=160), image_size=160, goal=Ratio(0.5))
    assert result.history["widths"].keys() <= set(followed)
    assert all(".mlp.fc1" in layer or ".se.fc1" in layer for layer in followed), followed


def test_an_artefact_is_pruned_into_another_and_keeps_its_history(tmp_path: Path) -> None:
    architecture = Architecture("timm", "mobilenetv3_small_050")
    artefact = Artefact(
        build(architecture, 3, 32), architecture, ("a", "b", "c"), Preprocessing(size=32), {"accuracy": 0.9}
    )
    save_artefact(tmp_path / "a", artefact)
    first = prune_artefact(tmp_path / "a", tmp_path / "b", goal=Macs(0.3))
    second = prune_artefact(tmp_path / "b", tmp_path / "c", goal=Ratio(0.3), criterion="magnitude")
    loaded = load_artefact(tmp_path / "c")
    assert loaded.facts == {"pruning": [first.history, second.history]}, "the accuracy is not known any more"
    assert count_macs(loaded.network, 32) == second.macs_after < first.macs_after


def test_an_object_of_the_users_own_takes_the_description(network: Small) -> None:
    result = prune(network, image_size=32, goal=Ratio(0.5))
    twin = Small()
    apply_changes(twin, json.loads(json.dumps(result.changes)))
    twin.load_state_dict(result.network.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(twin.eval()(images), result.network.eval()(images))


def test_a_network_that_loses_a_layer_at_large_ratios_is_pruned_by_smaller_ones() -> None:
    """GhostNet's joined halves leave nothing of a layer at 0.95; half of its MACs can go all the same."""
    network = timm.create_model("ghostnet_050", num_classes=10)
    made = prune(network, image_size=64, goal=Macs(0.5), round_to=8)
    before, after = (count_macs(one, 64) for one in (network, made.network))
    assert 0.3 * before < after <= 0.5 * before
    with torch.no_grad():
        assert made.network.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize(
    ("largest", "limit", "found"), [(0.95, 0.5, 0.5), (0.6, 0.5, 0.5), (0.3, 0.8, 0.2), (0.6, 0.3, None)]
)
def test_the_least_ratio_is_found_below_those_that_are_refused(
    largest: float, limit: float, found: float | None
) -> None:
    best, most = least_ratio(by_ratio(largest), limit)
    assert (best is None) == (found is None)
    assert best is None or found is None or 0 <= best.ratio - found < 0.02
    assert found is not None or 0 <= largest - most.ratio < 0.02


def test_a_network_that_every_ratio_ruins_is_refused_before_all_are_tried() -> None:
    tried: list[float] = []
    with pytest.raises(InputError, match="nothing would be left"):
        least_ratio(by_ratio(0.0, tried), 0.5)
    assert tried == [0.95, 0.475, 0.2375]


def by_ratio(largest: float, tried: list[float] | None = None) -> Callable[[float], Trial[float]]:
    """A network that takes what is left of it, and of which no more than ``largest`` can go."""

    def attempt(ratio: float) -> Trial[float]:
        if tried is not None:
            tried.append(ratio)
        if ratio > largest:
            raise InputError("nothing would be left")
        return Trial(ratio, ratio, 1 - ratio)

    return attempt
