"""Nodes of an ONNX graph named after the modules that they come from.

Their names are what people read in Netron, in TensorRT's profile of an engine, and where a layer is said to stay in
float: ``blocks.0.0.conv_pw/Conv`` instead of ``node_Conv_516``.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection

import onnx

from iekd.deploy.graph_checks import WEIGHTED

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter keeps the names of the modules around an operator, and last the operator's own."""
_NO_MODULE = "_empty_nn_module_stack"
"""Stands there for an operator that torch.export put in by itself."""
_WEIGHT = ".weight"


def name_nodes(model: onnx.ModelProto) -> None:
    """Rename the nodes in place; one of which the exporter says nothing keeps its name."""
    weights = {tensor.name for tensor in model.graph.initializer}
    given: Counter[str] = Counter()
    for node in model.graph.node:
        module = _module_of(node, weights)
        if module is None:
            continue
        name = f"{module}/{node.op_type}" if module else node.op_type
        given[name] += 1
        node.name = name if given[name] == 1 else f"{name}_{given[name]}"


def _module_of(node: onnx.NodeProto, weights: Collection[str]) -> str | None:
    """Path of the module, empty for the network itself; None where nothing is known.

    A layer that another was folded into goes by its weight, since the exporter tells the other's module.  Equal weights
    of other operators, such as those of fresh normalisations, are one tensor in the file and tell nothing.
    """
    own = [name for name in node.input if name in weights and name.endswith(_WEIGHT)]
    if own and node.op_type in WEIGHTED:
        return str(own[0]).removesuffix(_WEIGHT)
    told = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), None)
    scopes = ast.literal_eval(told) if told else []
    if len(scopes) < 2:
        return None
    return "" if scopes[-2].startswith(_NO_MODULE) else str(scopes[-2])
