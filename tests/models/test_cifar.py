"""The networks of the CIFAR tables: published sizes, taps, a round trip as an artefact, and an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch

from iekd.deploy.export import export_onnx
from iekd.models.checkpoint import Artefact, load_artefact, save_artefact
from iekd.models.cifar import LAYOUTS
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import Architecture, build, count_macs, count_parameters
from iekd.models.taps import Tapped

PUBLISHED = {  # RepDistiller's networks at 100 classes
    "cifar_resnet20": 278_324,
    "cifar_resnet32": 472_756,
    "cifar_resnet56": 861_620,
    "cifar_resnet110": 1_736_564,
    "cifar_resnet8x4": 1_233_540,
    "cifar_resnet32x4": 7_433_860,
    "cifar_wrn_16_1": 180_916,  # Zagoruyko and Komodakis 2016: 0.2 M
    "cifar_wrn_16_2": 703_284,
    "cifar_wrn_40_1": 569_780,
    "cifar_wrn_40_2": 2_255_156,
    "cifar_vgg8": 3_965_028,
    "cifar_vgg13": 9_462_180,
    "cifar_mobilenetv2_half": 812_836,
}
PREPROCESSING = Preprocessing(size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def test_every_network_is_listed_here_and_in_timm() -> None:
    assert set(PUBLISHED) == set(LAYOUTS)
    assert set(LAYOUTS) <= set(timm.list_models("cifar_*"))


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_a_network_has_the_published_size(name: str, parameters: int) -> None:
    network = build(Architecture("timm", name), 100, 32)
    assert count_parameters(network) == parameters


@pytest.mark.parametrize(("name", "macs"), [("cifar_resnet20", 40.8e6), ("cifar_resnet56", 125.8e6)])
def test_multiply_accumulates_are_those_of_the_paper(name: str, macs: float) -> None:
    """He et al. 2016 count 41 and 126 million for 20 and 56 layers."""
    assert count_macs(build(Architecture("timm", name), 10, 32), 32) == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize("name", LAYOUTS)
def test_taps_are_what_the_plain_forward_passes_through(name: str) -> None:
    network = build(Architecture("timm", name), 10, 32).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        answer = Tapped(network, (0, -1))(images)
        assert torch.allclose(answer.logits, network(images), atol=1e-5)
        assert torch.equal(answer.taps[-1], network.forward_features(images))
    assert len(Tapped(network).available) == len(network.feature_info)
    assert [tap.shape[1] for tap in answer.taps] == [network.feature_info[n]["num_chs"] for n in (0, -1)]


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_wrn_16_1", "cifar_vgg8", "cifar_mobilenetv2_half"])
def test_a_network_goes_round_through_a_file_and_out_as_onnx(name: str, tmp_path: Path) -> None:
    network = build(Architecture("timm", name), 3, 32).eval()
    save_artefact(tmp_path / "kept", Artefact(network, Architecture("timm", name), ("a", "b", "c"), PREPROCESSING, {}))
    again = load_artefact(tmp_path / "kept").network.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
        assert torch.equal(again(images), expected)
    export_onnx(again, tmp_path / "m.onnx", preprocessing=PREPROCESSING, classes=("a", "b", "c"), name=name)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert np.abs(found - expected.numpy()).max() < 1e-3


def test_timm_builds_one_by_name_and_changes_its_head() -> None:
    network = timm.create_model("cifar_resnet20", num_classes=7)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    network.reset_classifier(2)
    assert network.get_classifier().out_features == 2
    with pytest.raises(ValueError, match="global_pool"):
        network.reset_classifier(2, "max")
