"""Nodes of exported files are named after the modules that they come from."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from iekd.deploy.export import export_onnx
from iekd.deploy.graph_checks import WEIGHTED
from iekd.deploy.node_names import name_nodes
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import build, resolve

SIZE = 32
KNOWN = {
    "mobilenetv3_small_050": {
        "conv_stem/Conv",
        "blocks.0.0.se.conv_reduce/Conv",
        "blocks.1.0.conv_dw/Conv",
        "classifier/Gemm",
    },
    "vit_tiny_patch16_224": {
        "patch_embed.proj/Conv",
        "blocks.3.attn.qkv/MatMul",
        "norm/LayerNormalization",
        "head/Gemm",
    },
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_layer_is_named_after_its_module(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(resolve(name), 10, SIZE)
    how = Preprocessing(size=SIZE)
    file = export_onnx(network, tmp_path / "n.onnx", preprocessing=how, classes=tuple("0123456789"), name=name)
    nodes = onnx.load(str(file)).graph.node
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)
    assert set(names) >= KNOWN[name]
    modules = {path for path, _ in network.named_modules()}
    assert {node.name.rsplit("/", 1)[0] for node in nodes if node.op_type in WEIGHTED} <= modules


def test_what_nothing_is_told_of_keeps_its_name() -> None:
    def node(operator: str, name: str, scopes: list[str] | None, weight: str = "w") -> onnx.NodeProto:
        made = helper.make_node(operator, ["x", weight], [name], name=name)
        if scopes is not None:
            made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(scopes))
        return made

    nodes = [
        node("Conv", "a", ["", "stem", "bn1", "batch_norm"], "stem.conv.weight"),  # bn1 was folded into it
        node("Add", "b", ["", "stem", "add"]),
        node("Add", "c", ["", "stem", "add_1"]),
        node("Add", "d", ["", "add_2"]),
        node("Add", "e", ["_empty_nn_module_stack_from_metadata_hook", "sym_size"]),
        node("Add", "f", None),
        node("LayerNormalization", "g", ["", "norm", "layer_norm"], "blocks.0.norm.weight"),  # the same numbers
    ]
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in ("stem.conv.weight", "blocks.0.norm.weight")
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], weights))
    name_nodes(model)
    assert [one.name for one in model.graph.node] == [
        "stem.conv/Conv",
        "stem/Add",
        "stem/Add_2",
        "Add",
        "Add_2",
        "f",
        "norm/LayerNormalization",
    ]
