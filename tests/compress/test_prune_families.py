"""Every student family: pruned, reloaded in another process, pruned again, exported."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from iekd.compress.prune import Macs, PruneResult, Ratio, prune
from iekd.deploy.backends import get_backend
from iekd.deploy.export import export_onnx
from iekd.models.checkpoint import Artefact, load_artefact, save_artefact
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import Architecture, build, count_macs, count_parameters
from iekd.models.taps import Tapped

SIZE = 64
CLASSES = tuple("abcde")
FAMILIES = [
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "resnet18",
    "efficientnet_b0",
    "vit_tiny_patch16_224",
]

READ_ALL = """
import sys, torch
from pathlib import Path
from iekd.models.checkpoint import load_artefact
images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
for folder in sorted(Path(sys.argv[1]).iterdir()):
    artefact = load_artefact(folder)
    with torch.no_grad():
        torch.save(artefact.network.eval()(images), folder / "logits.pt")
assert "torch_pruning" not in sys.modules
"""


@dataclass
class Pruned:
    before: nn.Module
    result: PruneResult
    architecture: Architecture
    folder: Path


def images() -> torch.Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pruned]:
    """Each family pruned, saved, and read by one other process that leaves its answers beside the artefact."""
    root, found = tmp_path_factory.mktemp("pruned"), {}
    for name in FAMILIES:
        torch.manual_seed(0)
        architecture = Architecture("timm", name)
        network = build(architecture, len(CLASSES), SIZE)
        result = prune(network, image_size=SIZE, goal=Ratio(0.5))
        entry = Pruned(network, result, result.architecture(architecture), root / name)
        save_artefact(entry.folder, Artefact(result.network, entry.architecture, CLASSES, Preprocessing(size=SIZE), {}))
        found[name] = entry
    subprocess.run([sys.executable, "-W", "ignore", "-c", READ_ALL, str(root)], check=True)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_smaller_and_answers_as_many_classes(families: dict[str, Pruned], name: str) -> None:
    pruned = families[name]
    result = pruned.result
    assert result.macs_after == count_macs(result.network, SIZE) < 0.4 * result.macs_before
    assert result.parameters_after == count_parameters(result.network) < 0.4 * result.parameters_before
    assert result.macs_before == count_macs(pruned.before, SIZE), "the given network is as it was"
    assert result.network.training == pruned.before.training
    assert copy.deepcopy(result.network).eval()(images()).shape == (2, len(CLASSES))
    for layer, (before, after) in result.history["widths"].items():
        assert after < before, layer
        assert after % 8 == 0, layer


@pytest.mark.parametrize("name", FAMILIES)
def test_another_process_builds_it_again_exactly(families: dict[str, Pruned], name: str) -> None:
    pruned = families[name]
    with torch.no_grad():
        expected = pruned.result.network.eval()(images())
    assert torch.equal(torch.load(pruned.folder / "logits.pt"), expected)
    assert {path.suffix for path in pruned.folder.iterdir()} == {".json", ".safetensors", ".pt"}


@pytest.mark.parametrize("name", FAMILIES)
def test_it_prunes_again_and_still_reloads(families: dict[str, Pruned], name: str, tmp_path: Path) -> None:
    pruned = families[name]
    again = prune(load_artefact(pruned.folder).network, image_size=SIZE, goal=Ratio(0.4))
    assert again.macs_after < 0.8 * pruned.result.macs_after
    architecture = again.architecture(pruned.architecture)
    save_artefact(tmp_path / "a", Artefact(again.network, architecture, CLASSES, Preprocessing(size=SIZE), {}))
    reloaded = load_artefact(tmp_path / "a").network
    with torch.no_grad():
        assert torch.equal(reloaded.eval()(images()), again.network.eval()(images()))


@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_runtime_agrees(families: dict[str, Pruned], name: str, tmp_path: Path) -> None:
    network = load_artefact(families[name].folder).network.eval()
    path = export_onnx(
        network, tmp_path / "model.onnx", preprocessing=Preprocessing(size=SIZE), classes=CLASSES, name=name
    )
    session = get_backend("onnxruntime").load(path, threads=1)
    with torch.no_grad():
        expected = network(images()).numpy()
    np.testing.assert_allclose(session.run(images().numpy()), expected, rtol=1e-3, atol=1e-4)
    session.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_s_own_notes_follow(families: dict[str, Pruned], name: str) -> None:
    network = load_artefact(families[name].folder).network.eval()
    taps = Tapped(network, (-1, -2)).shapes(SIZE)
    chosen = [network.feature_info[stage]["num_chs"] for stage in Tapped(network, (-1, -2)).stages]
    assert [tap.channels for tap in taps] == chosen
    network.reset_classifier(7)
    assert network(images()).shape == (2, 7)


def test_macs_goal_is_met_with_the_least_pruning(families: dict[str, Pruned]) -> None:
    before = families["mobilenetv2_100"].before
    result = prune(before, image_size=SIZE, goal=Macs(0.5), scope="global")
    assert 0.42 * result.macs_before < result.macs_after <= 0.5 * result.macs_before
    assert result.history["goal"] == {"fewer_macs": 0.5}
