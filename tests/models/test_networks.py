"""Names, artefacts and taps."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from iekd.errors import InputError
from iekd.models.aliases import ALIASES, STUDENTS, Family
from iekd.models.checkpoint import Artefact, load_artefact, load_state, read_weights, save_artefact
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import Architecture, build, count_macs, count_parameters, resolve
from iekd.models.taps import Tapped


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_every_alias_is_a_timm_model(alias: str) -> None:
    assert resolve(alias) == Architecture("timm", ALIASES[alias])
    assert timm.is_model(ALIASES[alias])


@pytest.mark.parametrize("family", [family for family in STUDENTS if family.widths])
def test_every_width_of_a_family_is_a_timm_model(family: Family) -> None:
    assert [name for name in family.widths if not timm.is_model(name)] == []
    assert family.timm_name not in family.widths


def test_unknown_names_get_close_matches() -> None:
    with pytest.raises(InputError, match=r"Did you mean .*resnet50"):
        resolve("resnett50")


def test_counts_are_the_known_ones() -> None:
    """ResNet-18 at 224: 11.69 M parameters and 1.82 G multiply-accumulates (timm's results tables)."""
    network = build(Architecture("timm", "resnet18"), 1000, 224)
    assert count_parameters(network) == 11_689_512
    assert count_macs(network, 224) == pytest.approx(1.82e9, rel=0.01)
    assert network.training


def test_a_network_of_another_class_count_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(1, 1000\) instead of \(1, 3\)"):
        build(_fixed(), 3, 32)


def _fixed() -> Architecture:
    module = type(sys)("fixed_network")
    module.build = lambda: timm.create_model("resnet10t")  # type: ignore[attr-defined]
    sys.modules["fixed_network"] = module
    return Architecture("function", "fixed_network:build")


def artefact(name: str = "mobilenetv3_small_050", classes: int = 3) -> Artefact:
    torch.manual_seed(0)
    return Artefact(
        build(Architecture("timm", name), classes, 32),
        Architecture("timm", name),
        tuple("abc"[:classes]),
        Preprocessing(size=32, mean=(0.5, 0.5, 0.5)),
        {"accuracy": 0.5},
    )


def test_an_artefact_comes_back_exactly_in_another_process(tmp_path: Path) -> None:
    saved = artefact()
    save_artefact(tmp_path / "a", saved)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = saved.network.eval()(images)
    code = (
        "import sys, torch; from pathlib import Path; from iekd.models.checkpoint import load_artefact\n"
        "images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))\n"
        "a = load_artefact(Path(sys.argv[1])); torch.save(a.network.eval()(images).detach(), sys.argv[2])\n"
        "assert a.classes == ('a', 'b', 'c') and a.preprocessing.mean == (0.5, 0.5, 0.5)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a"), str(tmp_path / "out.pt")], check=True)
    assert torch.equal(torch.load(tmp_path / "out.pt"), expected)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["model.json", "model.safetensors"]


def test_damage_is_noticed(tmp_path: Path) -> None:
    save_artefact(tmp_path / "a", artefact())
    weights = tmp_path / "a" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load_artefact(tmp_path / "a")


def test_an_artefact_takes_the_place_of_an_artefact_alone(tmp_path: Path) -> None:
    """Of a damaged one too, as a run that goes on does; a file of the user's own is not deleted."""
    folder = tmp_path / "a"
    for damage in ("model.json", "model.safetensors"):
        save_artefact(folder, artefact())
        (folder / damage).unlink()
        save_artefact(folder, artefact())
        assert load_artefact(folder).classes == ("a", "b", "c")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'notes\.txt'.*Move it away"):
        save_artefact(folder, artefact())
    assert (folder / "notes.txt").read_text() == "mine"
    save_artefact(folder, artefact(), beside=("notes.txt",))
    assert not (folder / "notes.txt").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        save_artefact(tmp_path / "file", artefact())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file"]


def test_a_newer_artefact_is_refused(tmp_path: Path) -> None:
    save_artefact(tmp_path / "a", artefact())
    file = tmp_path / "a" / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(InputError, match="newer version"):
        load_artefact(tmp_path / "a")


def test_weights_of_another_architecture_are_refused_with_an_example() -> None:
    with pytest.raises(InputError, match="another architecture"):
        load_state(artefact().network, timm.create_model("resnet10t").state_dict(), "FILE")


class Wrapped(nn.Module):
    """A network whose own names begin as a wrapper's do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_what_wraps_a_network_in_training_does_not_matter(prefix: str, tmp_path: Path) -> None:
    for network in (nn.Sequential(nn.Linear(3, 2)), Wrapped()):
        state = {f"{prefix}{name}": value + 1 for name, value in network.state_dict().items()}
        torch.save({"state_dict": {**state, "n_averaged": torch.tensor(3)}}, tmp_path / "w.pth")
        expected = {name: value + 1 for name, value in network.state_dict().items()}
        load_state(network, read_weights(tmp_path / "w.pth"), "w.pth")
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "holds a list and no weights by name"),
        (torch.ones(2), "holds a Tensor and no weights"),
        ({"epoch": 3, "optimizer": {}}, "holds no weights; its keys are: epoch, optimizer"),
        (
            {"state_dict": {}, "args": types.SimpleNamespace(lr=1)},
            r"objects beside tensors \(types.SimpleNamespace\).*state_dict",
        ),
    ],
)
def test_files_that_hold_no_weights_are_told_by_what_they_hold(content: object, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=words) as told:
        read_weights(tmp_path / "w.pth")
    assert "\x1b" not in str(told.value)


@pytest.mark.parametrize("beside", [{}, {"state_dict": {"weight": torch.zeros(2)}}], ids=["alone", "beside plain ones"])
def test_averaged_weights_are_taken_of_what_a_training_script_saves(beside: dict[str, object], tmp_path: Path) -> None:
    averaged = {"arch": "resnet18", "args": argparse.Namespace(lr=1), "state_dict_ema": {"weight": torch.ones(2)}}
    torch.save({**averaged, **beside}, tmp_path / "w.pth.tar")
    assert torch.equal(read_weights(tmp_path / "w.pth.tar")["weight"], torch.ones(2))


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_another_class_count_is_refused_unless_the_head_may_be_adapted(name: str) -> None:
    arguments = {"img_size": 32} if name.startswith("vit") else {}
    own = timm.create_model(name, num_classes=3, **arguments)
    other = timm.create_model(name, num_classes=7, **arguments).state_dict()
    with pytest.raises(InputError, match="trained for 7 classes, the data has 3"):
        load_state(own, other, "FILE")
    head = own.get_classifier().weight.clone()
    load_state(own, other, "FILE", adapt_head=True)
    assert torch.equal(own.get_classifier().weight, head)
    first = next(iter(other))
    assert torch.equal(own.state_dict()[first], other[first])


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {tmp_path / 'hacked'}",)

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="cannot read weights"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "hacked").exists()


FAMILIES = ["resnet18", "mobilenetv2_100", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224", "regnety_002"]


@pytest.mark.parametrize("name", FAMILIES)
def test_taps_see_what_the_network_computes(name: str) -> None:
    network = build(Architecture("timm", name), 5, 64).eval()
    tapped = Tapped(network, (-1, -2)).eval()
    images = torch.randn(2, 3, 64, 64)
    features = tapped(images)
    assert torch.allclose(features.logits, network(images), atol=1e-5)
    shapes = tapped.shapes(64)
    assert [tuple(tap.shape[1:]) for tap in features.taps] == [tuple(shape) for shape in shapes]
    assert list(tapped.stages) == sorted(tapped.stages), "in the network's order, whatever order they were asked in"
    assert features.taps[0].shape[-1] >= features.taps[1].shape[-1]
    assert set(dict(tapped.named_parameters())) == {f"network.{key}" for key, _ in network.named_parameters()}


class Plain(nn.Module):
    """A network without ``forward_intermediates``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2)
        self.second = nn.Conv2d(6, 9, 3, stride=2)
        self.head = nn.Linear(9, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(images).relu()).mean((2, 3)))


def test_networks_without_stages_are_tapped_by_hooks() -> None:
    network = Plain()
    tapped = Tapped(network, (-1, 0))
    images = torch.randn(2, 3, 64, 64)
    features = tapped(images)
    assert torch.equal(features.taps[0], network.first(images))
    assert features.taps[1].shape[1] == 9
    assert not any(module._forward_hooks for module in network.modules())


def test_a_missing_tap_is_named() -> None:
    with pytest.raises(InputError, match="has no tap 7"):
        Tapped(Plain(), (7,))
