"""The description of pruned widths, apart from how they came about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from iekd.errors import InputError
from iekd.models.checkpoint import Artefact, load_artefact, save_artefact
from iekd.models.preprocessing import Preprocessing
from iekd.models.pruned import apply_changes, describe_changes, merge_changes
from iekd.models.registry import Architecture


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.depthwise = nn.Conv2d(width, width, 3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.scale = width**-0.5
        self.table = [{"num_chs": width, "module": "conv"}]
        self.register_buffer("mask", torch.ones(width))
        self.head = nn.Linear(width, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.depthwise(self.conv(images)).mean((2, 3))
        logits: torch.Tensor = self.head(self.norm(maps) * self.mask * self.scale)
        return logits


def test_what_differs_is_described_and_nothing_else() -> None:
    changes = describe_changes(Net(8), Net(5))
    assert set(changes) == {"", "conv", "depthwise", "norm", "head"}
    assert changes["depthwise"] == {
        "attributes": {"in_channels": 5, "out_channels": 5, "groups": 5},
        "shapes": {"weight": [5, 1, 3, 3], "bias": [5]},
    }
    assert changes["norm"]["attributes"] == {"normalized_shape": [5]}
    assert changes[""]["attributes"]["table"] == [{"num_chs": 5, "module": "conv"}]
    assert changes[""]["shapes"] == {"mask": [5]}
    assert describe_changes(Net(8), Net(8)) == {}


def test_a_fresh_network_takes_the_description() -> None:
    narrow, fresh = Net(5), Net(8)
    fresh.head.requires_grad_(False)
    apply_changes(fresh, json.loads(json.dumps(describe_changes(Net(8), narrow))))
    fresh.load_state_dict(narrow.state_dict())
    images = torch.randn(2, 3, 9, 9)
    assert torch.equal(fresh(images), narrow(images))
    assert fresh.norm.normalized_shape == (5,)
    assert not fresh.head.weight.requires_grad
    assert fresh.conv.weight.requires_grad


def test_two_descriptions_merge_into_one() -> None:
    first, second = describe_changes(Net(8), Net(5)), describe_changes(Net(5), Net(3))
    assert merge_changes(first, second) == describe_changes(Net(8), Net(3))
    assert merge_changes({}, first) == first == merge_changes(first, {})


@pytest.mark.parametrize(
    "changes",
    [
        {"gone": {"attributes": {}, "shapes": {}}},
        {"conv": {"attributes": {"colour": 3}, "shapes": {}}},
        {"conv": {"attributes": {"training": 3}, "shapes": {}}},
        {"conv": {"attributes": {"out_channels": "many"}, "shapes": {}}},
        {"conv": {"attributes": {}, "shapes": {"weight": [9, 3, 3, 3]}}},
        {"conv": {"attributes": {}, "shapes": {"weight": [5]}}},
        {"conv": {"attributes": {}}},
    ],
)
def test_a_description_that_does_not_fit_is_refused(changes: dict[str, dict[str, dict[str, object]]]) -> None:
    with pytest.raises(InputError, match="does not fit Net at"):
        apply_changes(Net(8), changes)


def test_a_network_given_as_an_object_is_narrowed_on_loading(tmp_path: Path) -> None:
    narrow = Net(5)
    architecture = Architecture("object", "Net", pruned=describe_changes(Net(8), narrow))
    save_artefact(tmp_path / "a", Artefact(narrow, architecture, ("x", "y"), Preprocessing(size=9), {}))
    given = Net(8)
    loaded = load_artefact(tmp_path / "a", given)
    images = torch.randn(2, 3, 9, 9)
    assert torch.equal(loaded.network(images), narrow(images))
    assert describe_changes(Net(8), given) == {}, "the caller's own stays as wide as it was"
    assert loaded.architecture == architecture


def test_an_artefact_of_the_first_format_is_still_read(tmp_path: Path) -> None:
    architecture = Architecture("timm", "resnet10t")
    from iekd.models.registry import build

    save_artefact(
        tmp_path / "a", Artefact(build(architecture, 2, 32), architecture, ("x", "y"), Preprocessing(size=32), {})
    )
    file = tmp_path / "a" / "model.json"
    description = json.loads(file.read_text())
    del description["architecture"]["pruned"]
    file.write_text(json.dumps({**description, "format": 1}))
    assert load_artefact(tmp_path / "a").architecture == architecture
