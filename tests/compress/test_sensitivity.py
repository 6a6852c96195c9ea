"""Which layers are dear, and how few of them have to stay in float."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from quantization_samples import images, loud_channel, write

from iekd.compress.calibration import Calibration
from iekd.compress.quantizers import make_quantizer
from iekd.compress.sensitivity import LayerCost, fewest_kept, layer_names, rank_layers
from iekd.deploy.backends.reference import ReferenceSession


def test_the_layers_that_read_a_loud_channel_are_the_dearest(tmp_path: Path) -> None:
    model = onnx.load(str(write(tmp_path / "loud.onnx", loud_channel(300.0))))
    calibration = Calibration(model, images(32))
    ranking = rank_layers(calibration, make_quantizer("ort-s8s8", calibration), "minmax", ReferenceSession)
    names = layer_names(calibration)
    assert sorted(cost.layer for cost in ranking) == sorted(names)
    stem, expand, _depthwise, _project, last, _head = names
    assert {ranking[0].layer, ranking[1].layer} == {expand, last}
    costs = {cost.layer: cost.error for cost in ranking}
    assert costs[expand] > 10 * costs[stem], "the stem writes the channel; those that read it lose the others"
    assert all(cost.error > 0 for cost in ranking)


RANKING = [LayerCost(f"layer{number}", 1.0 / number) for number in range(1, 21)]


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 13, 19])
def test_the_fewest_layers_are_found_in_few_trials(needed: int) -> None:
    trials: list[int] = []

    def drop(kept: tuple[str, ...]) -> float:
        trials.append(len(kept))
        assert kept == tuple(cost.layer for cost in RANKING[: len(kept)])
        return 0.0 if len(kept) >= needed else 0.5

    assert fewest_kept(RANKING, drop, 0.01) == needed
    assert len(trials) <= 9


def test_a_limit_that_nothing_meets_is_told() -> None:
    assert fewest_kept(RANKING, lambda kept: 0.5, 0.01) is None
    assert fewest_kept(RANKING[:1], lambda kept: 0.0, 0.01) is None, "one layer in float leaves nothing quantised"
