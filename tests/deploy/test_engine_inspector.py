"""What an engine consists of, read from the inspector's JSON.

The fixtures are written for these tests, in the layouts that NVIDIA documents: 10.x after the example of "Engine
Inspector" (docs.nvidia.com/deeplearning/tensorrt/10.16.1/inference-library/engine-tools.html), 11.x after "Migrating
IEngineInspector Usage from TensorRT 10.x to 11.x" (.../11.3.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iekd.deploy.device.errors import DeviceInputError
from iekd.deploy.device.inspector import Layer, describe, inspect_engine, parse_layers, summarize

FP32, INT8 = "Row major linear FP32", "Thirty-two wide channel vectorized row major Int8 format."
FP16 = "Channel major FP16 format where channel % 8 == 0"


def tensor(name: str, form: str) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": [1, 8, 16, 16], "Format/Datatype": form}


def layer(name: str, kind: str, read: str, written: str, **more: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor(f"{name} in", read)],
        "Outputs": [tensor(f"{name} out", written)],
        **more,
        "TacticValue": "0x11bde0e1d9f2f35d",
    }


REFORMAT = "Reformatting CopyNode for Input Tensor 0 to conv1 + relu1"
GPU_ENGINE = {
    "Layers": [
        layer(REFORMAT, "Reformat", FP32, INT8, Origin="REFORMAT"),
        layer("conv1 + relu1", "CaskConvolution", INT8, INT8, Weights={"Type": "Int8", "Count": 72}),
        layer("pool", "CaskPooling", FP16, FP16),
        layer("head", "CaskGemmConvolution", FP16, FP32, Weights={"Type": "Half", "Count": 80}),
        layer("softmax", "CudaSoftMax", "Float", "Float"),
    ],
    "Bindings": ["images", "logits"],
}
DLA_ENGINE = {
    "Layers": [
        layer("images to nvm", "Reformat", FP32, FP16),
        layer("{ForeignNode[conv1...conv9]}", "DLA", FP16, FP16),
        layer("softmax", "CudaSoftMax", FP16, FP32),
    ],
    "Bindings": ["images", "logits"],
}
NEW = {"Name": "t", "Dimensions": [-1, 8], "Format": "Row major linear"}
ENGINE_11 = {
    "Layers": [
        {
            "Name": "conv1\x1econv2",
            "LayerType": "CaskConvolution",
            "Inputs": [{**NEW, "DataType": "BFloat16"}],
            "Outputs": [{**NEW, "DataType": "Float"}],
            "Metadata": "[ONNX Layer: conv1]\x1f[ONNX Layer: conv2]",
        }
    ],
    "I/O Tensors": [{"Name": "images", "IOMode": "Input", "DataType": "Float", "Dimensions": [-1, 3, 16, 16]}],
}
NAMES_ONLY = {"Layers": [REFORMAT, "conv1 + relu1", "{ForeignNode[a...b]}"], "Bindings": ["images", "logits"]}


def test_layers_of_tensorrt_10() -> None:
    assert parse_layers(json.dumps(GPU_ENGINE)) == [
        Layer(REFORMAT, "Reformat", "fp32", "GPU"),
        Layer("conv1 + relu1", "CaskConvolution", "int8", "GPU"),
        Layer("pool", "CaskPooling", "fp16", "GPU"),
        Layer("head", "CaskGemmConvolution", "fp16", "GPU"),
        Layer("softmax", "CudaSoftMax", "fp32", "GPU"),
    ]


def test_a_summary_counts_what_computes() -> None:
    found = summarize(parse_layers(json.dumps(GPU_ENGINE)))
    assert (found["layers"], found["reformats"]) == (4, 1)
    assert found["precisions"] == {"int8": 1, "fp16": 2, "fp32": 1}
    assert found["devices"] == {"GPU": 4}
    assert found["types"]["CaskConvolution"] == 1
    assert found["beside_dla"] == []
    assert describe(found) == "4 layers (1 int8, 2 fp16, 1 fp32), reformats: 1"
    assert json.loads(json.dumps(found)) == found


def test_layers_of_tensorrt_11_with_raw_separators_in_their_names() -> None:
    text = json.dumps(ENGINE_11).replace("\\u001e", "\x1e").replace("\\u001f", "\x1f")
    assert "\x1e" in text
    assert parse_layers(text) == [Layer("conv1\x1econv2", "CaskConvolution", "bf16", "GPU")]


def test_what_runs_on_the_dla_is_told() -> None:
    found = summarize(parse_layers(json.dumps(DLA_ENGINE)))
    assert found["devices"] == {"DLA": 1, "GPU": 1}
    assert describe(found, dla=True) == "2 layers (2 fp16), reformats: 1; 1 on the DLA, on the GPU softmax"
    alone = summarize(parse_layers(json.dumps({"Layers": DLA_ENGINE["Layers"][:2]})))
    assert describe(alone, dla=True).endswith("1 on the DLA, none on the GPU")
    fallen = summarize(parse_layers(json.dumps(GPU_ENGINE)))
    assert describe(fallen, dla=True).endswith("none runs on the DLA: the GPU runs all of them")
    many = [Layer("x", "DLA", None, "DLA"), *(Layer(f"g{number}", "Scale", None, "GPU") for number in range(5))]
    assert describe(summarize(many), dla=True).endswith("on the GPU g0, g1, g2 and 2 more")


def test_names_only_say_no_more_than_names() -> None:
    found = parse_layers(json.dumps(NAMES_ONLY))
    assert found[1] == Layer("conv1 + relu1", None, None, None)
    told = summarize(found)
    assert (told["layers"], told["reformats"], told["precisions"], told["devices"]) == (2, 1, {}, {})
    line = describe(told, dla=True)
    assert line == "2 layers (2 of untold precision), reformats: 1; which of them run on the DLA is not told"


def test_an_open_batch_hides_the_formats_but_not_the_weights() -> None:
    hidden = "N/A due to dynamic shapes"
    entries = [
        layer("conv", "CaskConvolution", hidden, hidden, Weights={"Type": "Half", "Count": 72}),
        layer("shuffle", "NoOp", hidden, hidden),
    ]
    assert [found.precision for found in parse_layers(json.dumps({"Layers": entries}))] == ["fp16", None]


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        (FP32, "fp32"),
        ("Channel major BFloat16 format where channel % 8 == 0", "bf16"),
        ("Row major linear FP8 format", "fp8"),
        ("Four wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear Int64 format", "int64"),
        ("Half", "fp16"),
        ("Unknown format", None),
        ("Floating", None),
        (None, None),
        (7, None),
    ],
)
def test_the_type_within_a_format(form: Any, precision: str | None) -> None:
    (found,) = parse_layers(json.dumps({"Layers": [layer("x", "Scale", form, form)]}))
    assert found.precision == precision


@pytest.mark.parametrize("engine", [GPU_ENGINE, DLA_ENGINE, ENGINE_11, NAMES_ONLY])
def test_an_answer_cut_anywhere_is_refused(engine: dict[str, Any]) -> None:
    text = json.dumps(engine)
    for end in range(len(text)):
        with pytest.raises(DeviceInputError, match="is not JSON"):
            parse_layers(text[:end])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("null", "lists no layers"),
        ("[]", "lists no layers"),
        ("{}", "lists no layers"),
        ('{"Layers": {}}', "lists no layers"),
        ('{"Layers": [1]}', "layer 0 .* has no name"),
        ('{"Layers": ["a", {"LayerType": "Scale"}]}', "layer 1 .* has no name"),
    ],
)
def test_what_is_no_inspector_s_answer_is_refused(text: str, words: str) -> None:
    with pytest.raises(DeviceInputError, match=words):
        parse_layers(text)


@pytest.mark.parametrize(
    "entry",
    [
        {"Name": "x", "LayerType": 3},
        {"Name": "x", "Inputs": {}, "Outputs": None, "Weights": []},
        {"Name": "x", "Inputs": ["a", 1], "Weights": {"Type": None}},
    ],
)
def test_what_a_layer_leaves_out_stays_unknown(entry: dict[str, Any]) -> None:
    assert parse_layers(json.dumps({"Layers": [entry]})) == [Layer("x", None, None, None)]


def test_an_engine_s_layers_lie_beside_it(tmp_path: Path) -> None:
    engine, beside = tmp_path / "student-0123.engine", tmp_path / "student-0123.layers.json"
    assert "student-0123.layers.json cannot be read" in inspect_engine(engine)["error"]
    beside.write_text(json.dumps(DLA_ENGINE))
    assert inspect_engine(engine)["devices"] == {"DLA": 1, "GPU": 1}
    beside.write_text(json.dumps(DLA_ENGINE)[:-40])
    assert describe(inspect_engine(engine)).startswith(
        "layers unknown: student-0123.layers.json: the engine inspector's"
    )
    beside.write_bytes(b"\xff\xfe")
    assert "cannot be read" in inspect_engine(engine)["error"]


def test_an_engine_without_layers_is_described() -> None:
    assert describe(summarize([])) == "0 layers (none), reformats: 0"
