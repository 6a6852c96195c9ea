"""Every student that has a short name exports to operators that TensorRT's parser reads, float32 as it is built."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from iekd.deploy.export import export_onnx
from iekd.deploy.graph_checks import require_tensorrt_operators
from iekd.errors import VerificationError
from iekd.models.aliases import STUDENTS
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import build, resolve

QUICK = ("mobilenetv3_small_100", "ghostnet_100", "deit_tiny_patch16_224")
"""Squeeze-and-excite, concatenations, attention: the operators of the others and more."""
NAMES = sorted({family.timm_name for family in STUDENTS})
SIZE = 64


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_tensorrt_reads_every_operator_of_a_student(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = build(resolve(name), 10, SIZE)
    how = Preprocessing(size=SIZE)
    file = export_onnx(network, tmp_path / "s.onnx", preprocessing=how, classes=tuple("0123456789"), name=name)
    require_tensorrt_operators(onnx.load(str(file)))


def test_the_first_three_nodes_that_it_lacks_are_named() -> None:
    def node(number: int, operator: str) -> onnx.NodeProto:
        return onnx.helper.make_node(operator, ["x"], [f"y{number}"], name=f"n{number}")

    nodes = [node(number, operator) for number, operator in enumerate(("Relu", "Det", "Det", "DFT", "Unique"))]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []))
    words = r"Det \(node n1\) .*; Det \(node n2\) .*; DFT \(node n3\) is not on NVIDIA's list and 1 more"
    with pytest.raises(VerificationError, match=words) as caught:
        require_tensorrt_operators(model)
    assert "cpu" in caught.value.hint
