"""Layers that stay in float: that they do, in every library's files, and which recipe is mended with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from quantization_samples import images, labelled, loud_channel, write

from iekd.compress.calibration import Calibration
from iekd.compress.quantize import QuantizeResult, QuantizeSettings, quantize
from iekd.compress.quantizers import Quantizer, comparison, make_quantizer
from iekd.compress.sensitivity import layer_names
from iekd.errors import VerificationError

LOSSY = QuantizeSettings(
    calibration_images=16, latency_seconds=0.05, threads=1, methods=("minmax",), max_drop=0.04, recipes=("nncf",)
)


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("float") / "loud.onnx", loud_channel(1000.0))


def quantized(source: Path, output: Path, scheme: str, settings: QuantizeSettings) -> QuantizeResult:
    found, labels = labelled(source, 128)
    held_out = found[64:], labels[64:]
    return quantize(
        source, output, scheme=scheme, images=found[:64], labels=labels[:64], held_out=held_out, settings=settings
    )


def read_in_eight_bits(path: Path) -> set[str]:
    """Names of the operators that read a quantised value; one that was split for its bias is called as in ONNX."""
    import openvino

    return {
        target.get_node().get_friendly_name().removesuffix("/WithoutBiases")
        for operator in openvino.Core().read_model(path).get_ops()
        if operator.get_type_name() == "FakeQuantize"
        for target in operator.output(0).get_target_inputs()
    }


@pytest.mark.parametrize("preset", ["performance", "mixed"])
def test_what_nothing_but_layers_in_float_reads_stays_in_float_with_nncf(
    loud: Path, tmp_path: Path, preset: str
) -> None:
    pytest.importorskip("nncf", reason="needs the extra `quantize`")
    calibration = Calibration(onnx.load(str(loud)), images(8))
    quantizer = make_quantizer("nncf" if preset == "performance" else "nncf-mixed", calibration)
    layers = layer_names(calibration)
    stem, last, head = layers[0], layers[-2], layers[-1]
    for quantised, also in ((stem, set()), (last, {"Add"}), (head, {"ReduceMean"})):
        kept = [layer for layer in layers if layer != quantised]
        quantizer.write(tmp_path / "q.xml", preset, kept)
        assert read_in_eight_bits(tmp_path / "q.xml") == {quantised, *also}
    quantizer.write(tmp_path / "all.xml", preset)
    assert read_in_eight_bits(tmp_path / "all.xml") >= {*layers, "Add", "ReduceMean"}


def test_layers_in_float_mend_what_nncf_loses(loud: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="needs the extra `quantize`")
    made = quantized(loud, tmp_path / "q.onnx", "int8-openvino", LOSSY)
    assert made.candidates[0].accuracy < 0.9, "or there is nothing to mend"
    assert made.drop <= 0.04
    assert made.kept_float
    assert not read_in_eight_bits(made.file) & set(made.kept_float)


class Stubborn:
    """A quantiser that leaves nothing in float, whatever it is asked."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.suffix, self.methods, self._quantizer = quantizer.suffix, quantizer.methods, quantizer

    def write(self, path: Path, method: str, kept_float: Collection[str] = ()) -> None:
        self._quantizer.write(path, method)


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Recipes that cannot be mended."""
    names: set[str] = set()

    def make(recipe: str, calibration: Calibration) -> Any:
        made = make_quantizer(recipe, calibration)
        return Stubborn(made) if recipe in names else made

    monkeypatch.setattr(comparison, "make_quantizer", make)
    return names


RECIPES = ("ort-u8s7", "ort-u8s7-layers")


@pytest.mark.parametrize("mended", RECIPES)
def test_where_one_recipe_cannot_be_mended_the_next_is(
    loud: Path, tmp_path: Path, stubborn: set[str], mended: str
) -> None:
    """Whichever of the two wins: in one of the cases it is the one that cannot be mended."""
    stubborn |= {*RECIPES} - {mended}
    made = quantized(loud, tmp_path / "q.onnx", "int8-x86-onnxruntime", replace(LOSSY, recipes=RECIPES))
    assert all(candidate.accuracy < 0.9 for candidate in made.candidates), "or there is nothing to mend"
    assert made.chosen.recipe == mended
    assert made.drop <= 0.04
    assert made.kept_float == tuple(cost.layer for cost in made.sensitivity[: len(made.kept_float)])


def test_where_no_recipe_can_be_mended_all_were_tried(loud: Path, tmp_path: Path, stubborn: set[str]) -> None:
    stubborn |= {*RECIPES}
    with pytest.raises(VerificationError, match=r"no share of layers in float .* here or in the 1 other recipe"):
        quantized(loud, tmp_path / "q.onnx", "int8-x86-onnxruntime", replace(LOSSY, recipes=RECIPES))
    assert list(tmp_path.iterdir()) == []
