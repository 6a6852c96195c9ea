"""The diagnosis of a run: its measures against formulas and planted cases, and the command on real small runs."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_networks
import torch
from filelock import FileLock
from report_samples import sample_report
from rich.console import Console
from small import command, refused, settings
from torch import Tensor, nn

from iekd.compress.config_input import make_config
from iekd.compress.diagnose import diagnose, parse_levels
from iekd.compress.diagnostics.channels import active_channels, is_rectified
from iekd.compress.diagnostics.cka import likeness, random_differences
from iekd.compress.diagnostics.finished_run import FinishedRun, open_run, shipped
from iekd.compress.diagnostics.summary import diagnosis_table, in_a_sentence
from iekd.compress.diagnostics.weight_noise import accuracy, accuracy_under_noise, noisy_weights
from iekd.compress.objectives.alignment import gram, hsic
from iekd.compress.objectives.split import split_channels
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.deploy.report import kept_diagnosis, read_report, render
from iekd.deploy.results import Diagnosis, Interval, NoiseCurve, NoiseLevel, PartDiagnosis, Report, TapDiagnosis
from iekd.errors import InputError, RunFolderError
from iekd.models.checkpoint import load_artefact, save_artefact


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _value(a: Tensor, b: Tensor) -> float:
    found = likeness(a, {"b": b}, draws=2)["b"]
    assert found is not None
    return found.value


# CKA


@pytest.mark.parametrize("weights", [[1] * 7, [2, 0, 1, 3, 1, 0, 2], [1, 1, 4, 0, 1, 1, 1]])
def test_hsic_is_the_mean_over_distinct_images(weights: list[int]) -> None:
    """The published sums, written out with loops."""
    count = len(weights)
    a, b = gram(_random(count, 5)), gram(_random(count, 3, seed=1) + _random(count, 5)[:, :3])
    w = np.array(weights, float)
    sums, norms = np.zeros(3), np.zeros(3)
    for i, j in itertools.permutations(range(count), 2):
        sums[0] += w[i] * w[j] * a[i, j] * b[i, j]
        norms[0] += w[i] * w[j]
    for i, j, q in itertools.permutations(range(count), 3):
        sums[1] += w[i] * w[j] * w[q] * a[i, j] * b[i, q]
        norms[1] += w[i] * w[j] * w[q]
    for i, j, q, r in itertools.permutations(range(count), 4):
        sums[2] += w[i] * w[j] * w[q] * w[r] * a[i, j] * b[q, r]
        norms[2] += w[i] * w[j] * w[q] * w[r]
    expected = sums[0] / norms[0] - 2 * sums[1] / norms[1] + sums[2] / norms[2]
    found = hsic(a, b, torch.tensor(weights, dtype=torch.float64)[:, None])
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_hsic_of_all_images_is_the_closed_form() -> None:
    """Song et al.'s own formula by matrix products."""
    n = 20
    a, b = gram(_random(n, 9)), gram(_random(n, 4, seed=1))
    zero_a, zero_b, one = a - a.diag().diag(), b - b.diag().diag(), torch.ones(n, dtype=torch.float64)
    expected = (zero_a @ zero_b).trace() + (one @ zero_a @ one) * (one @ zero_b @ one) / ((n - 1) * (n - 2))
    expected = (expected - 2 / (n - 2) * (one @ zero_a @ zero_b @ one)) / (n * (n - 3))
    torch.testing.assert_close(hsic(a, b, one[:, None])[0], expected, rtol=1e-10, atol=1e-12)


def test_identical_representations_have_cka_1() -> None:
    features = _random(40, 6, 3, 3)
    found = likeness(features, {"same": features.clone()}, draws=50)["same"]
    assert found is not None
    assert found.value == pytest.approx(1, abs=1e-12)
    assert found.draws == pytest.approx(1, abs=1e-12)


def test_cka_ignores_rotation_scale_and_shift() -> None:
    a, b = _random(60, 12), _random(60, 8, seed=1)
    b[:, :4] += a[:, :4]
    rotation = torch.linalg.qr(_random(8, 8, seed=2)).Q
    value = _value(a, b)
    assert 0.05 < value < 0.9
    assert _value(a, b @ rotation) == pytest.approx(value, abs=1e-5)
    assert _value(a * 37.0, b * 0.01) == pytest.approx(value, abs=1e-5)
    assert _value(a + 5.0, b - 3.0) == pytest.approx(value, abs=1e-5)
    assert _value(b, a) == pytest.approx(value, abs=1e-10)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    assert _value(a[order], b[order]) == pytest.approx(value, abs=1e-10)
    stretched = b * torch.linspace(0.1, 10, 8)
    assert abs(_value(a, stretched) - value) > 0.01, "no more invariant than it should be"


def test_unrelated_representations_have_cka_0_however_many_features() -> None:
    """Where the usual, biased estimate is far from 0."""
    a, b = _random(100, 2000), _random(100, 1500, seed=1)
    ga, gb = gram(a), gram(b)
    assert (ga * gb).sum() / (ga.norm() * gb.norm()) > 0.9
    found = likeness(a, {"b": b}, draws=200)["b"]
    assert found is not None
    assert abs(found.value) < 0.06
    assert found.interval().low < 0 < found.interval().high


def test_more_noise_is_less_alike_and_the_difference_is_paired() -> None:
    a = _random(80, 10)
    others = {"near": a + 0.5 * _random(80, 10, seed=1), "far": a + 2 * _random(80, 10, seed=2)}
    found = likeness(a, others, draws=300)
    near, far = found["near"], found["far"]
    assert near is not None
    assert far is not None
    difference = near.less(far)
    assert difference.value == pytest.approx(near.value - far.value)
    assert 0 < difference.low < difference.value < difference.high
    assert near.less(near) == Interval(value=0, low=0, high=0)


def test_the_interval_is_as_wide_as_new_images_would_make_it() -> None:
    """The bootstrap's spread against the spread over fresh samples of the same two representations."""

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        a = _random(100, 6, seed=seed) * torch.linspace(0.5, 2, 6)
        return a, a[:, :4] + _random(100, 4, seed=seed + 10_000)

    fresh = [likeness(a, {"b": b}, draws=100, seed=seed)["b"] for seed in range(60) for a, b in [draw(seed)]]
    values = np.array([found.value for found in fresh if found])
    bootstrap = np.median([found.draws.std() for found in fresh if found])
    assert 0.7 < bootstrap / values.std() < 1.4
    assert abs(np.mean([found.draws.mean() - found.value for found in fresh if found])) < 0.5 * values.std()


def test_random_splits_are_what_a_planted_split_stands_out_from() -> None:
    teacher = _random(60, 8)
    maps = _random(60, 16, 2, 1, seed=1)
    maps[:, :8] += teacher[:, :, None, None]
    by_chance = random_differences(teacher, maps, 8, splits=50)
    planted = _value(teacher, maps[:, :8]) - _value(teacher, maps[:, 8:])
    assert len(by_chance) == 50
    assert planted > by_chance.max()
    assert abs(by_chance.mean()) < 0.3 * planted
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    expected = _value(teacher, maps[:, order[:3]]) - _value(teacher, maps[:, order[3:]])
    assert random_differences(teacher, maps, 3, splits=1)[0] == pytest.approx(expected, abs=1e-4)


def test_features_that_tell_one_image_from_the_rest_are_not_alike_and_a_number_says_so() -> None:
    """As of channels that the exploration has all but silenced: what is no number could not be read back."""
    a, b = _random(40, 6), torch.zeros(40, 3)
    b[7] = 1.0
    found = likeness(a, {"a": a, "b": b}, draws=50)
    whole, lone = found["a"], found["b"]
    assert whole is not None
    assert lone is not None
    assert lone.value == 0
    assert lone.interval().low <= 0 <= lone.interval().high
    assert whole.less(lone).low > 0.8
    assert np.isfinite(lone.draws).all()
    maps = torch.cat([a[:, :2], b], 1)[:, :, None, None]
    assert np.isfinite(random_differences(a, maps, 2, splits=20)).all()


def test_features_that_say_nothing_have_no_cka() -> None:
    assert likeness(_random(10, 4), {"still": torch.full((10, 3), 0.1)}, draws=2) == {"still": None}
    assert likeness(torch.ones(10, 3), {"b": _random(10, 4)}, draws=2) == {"b": None}
    with pytest.raises(ValueError, match="8 images"):
        likeness(_random(7, 4), {"b": _random(7, 4)})


# Channels


class _Net(nn.Module):
    """A small classifier whose last map is rectified, or not."""

    def __init__(self, last: nn.Module, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), last)
        self.head = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images).mean((2, 3)))
        return logits


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Hardswish(), nn.Identity()])
@torch.no_grad()
def test_a_planted_dead_channel_is_found(last: nn.Module) -> None:
    torch.manual_seed(0)
    network = _Net(last).eval()
    norm = network.body[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.bias[2], norm.bias[5] = -50.0, 0.7
    norm.weight[5] = 0 if not isinstance(last, nn.ReLU) else 1
    if isinstance(last, nn.Identity):
        norm.weight[2] = 0
    tap = network.body(_random(32, 3, 8, 8))
    dead = [2] if isinstance(last, nn.ReLU) else [2, 5]
    assert is_rectified(tap) == isinstance(last, nn.ReLU)
    assert (~active_channels(tap)).nonzero().flatten().tolist() == dead


def test_a_channel_that_fires_once_is_active() -> None:
    tap = torch.zeros(50, 4, 5, 5)
    tap[:, 0] = 1
    tap[17, 2, 3, 3] = 1e-3
    assert active_channels(tap).tolist() == [True, False, True, False]


# Noise


def test_noise_0_changes_nothing_and_every_noise_is_taken_back() -> None:
    network = _Net(nn.ReLU()).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with noisy_weights(network, 0.0, 1):
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(KeyError), noisy_weights(network, 0.5, 1):
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_noise_is_scaled_to_each_tensor_and_leaves_normalisation_alone() -> None:
    network = nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300), nn.Linear(300, 200))
    with torch.no_grad():
        network[2].weight.mul_(100)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with noisy_weights(network, 0.2, 7):
        noisy = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    changed = [name for name in before if not torch.equal(before[name], noisy[name])]
    assert changed == ["0.weight", "2.weight"]
    for name in changed:
        noise = noisy[name] - before[name]
        assert (noise.std() / before[name].std()).item() == pytest.approx(0.2, rel=0.03)
        assert abs(noise.mean() / noise.std()) < 0.03
    with noisy_weights(network, 0.2, 8):
        assert not torch.equal(network[0].weight, noisy["0.weight"])


def test_accuracy_falls_with_the_noise() -> None:
    """A network that is right by construction, and a guess when its weights are nothing but noise."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 12, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(12))
    labels = torch.arange(600) % 12
    images = torch.eye(12)[labels].view(600, 3, 2, 2)
    assert accuracy(network, images, labels) == 1
    none, little, much = accuracy_under_noise(network, images, labels, [0.0, 0.1, 100.0], 8)
    assert (none.accuracies, none.mean, none.spread) == ([1.0], 1.0, 0.0)
    assert little.mean == 1
    assert len(much.accuracies) == 8
    assert much.mean < 0.4
    assert much.spread == pytest.approx(np.std(much.accuracies, ddof=1))
    assert accuracy_under_noise(network, images, labels, [100.0], 8) == [much]


# Runs


def _train(folder: Path, **changes: object) -> Path:
    values = settings(out=str(folder), epochs=1, **changes)
    config = make_config(values)
    run_stages(config, config.teacher, config.student, config.data, Observer(), until="distill")
    return folder


@pytest.fixture(scope="module")
def lifted(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ie-ft+kd."""
    folder = tmp_path_factory.mktemp("lifted") / "run"
    shutil.copytree(finished_run, folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of kd, trained and not exported."""
    return _train(tmp_path_factory.mktemp("plain") / "plain $x_1$ run", objective="kd")


@pytest.fixture(scope="module")
def by_relevance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ie-vkd at two taps, split by relevance."""
    return _train(tmp_path_factory.mktemp("relevance") / "run", objective="ie-vkd", split="relevance", tap="-2,-1")


def _copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_student_without_maps_has_its_steadiness(tmp_path: Path) -> None:
    """Objectives on logits alone train networks that nothing can be compared of."""
    run = _train(tmp_path / "run", objective="kd", student="tiny_networks:flat", image_size=16)
    found = diagnose(run, noise=[0.2], seeds=2)
    assert not found.taps
    assert found.sentence.startswith("No likeness to the teacher: ")
    assert "no module whose output is a feature map" in found.sentence
    assert [level.relative_std for level in found.noise[0].levels] == [0, 0.2]
    shown = io.StringIO()
    Console(width=120, file=shown).print(diagnosis_table(found))
    assert found.sentence in " ".join(shown.getvalue().split())
    assert found.sentence in render(sample_report().model_copy(update={"diagnosis": found}))


def test_networks_given_as_objects_must_be_given_again(tmp_path: Path) -> None:
    given = {"teacher": tiny_networks.teacher(10), "student": tiny_networks.student(10)}
    values = settings(out=str(tmp_path / "run"), epochs=1, teacher_epochs=1, tap="4", objective="kd")
    config = make_config({**values, "teacher": "Sequential", "student": "Sequential"})
    run_stages(config, given["teacher"], given["student"], config.data, Observer(), until="distill")
    with pytest.raises(InputError, match=r"the teacher of .* was given as a Python object.*networks="):
        diagnose(tmp_path / "run", noise=[0.2], seeds=2)
    assert diagnose(tmp_path / "run", noise=[0.2], seeds=2, networks=given).taps


@pytest.mark.slow
def test_the_command(lifted: Path, plain: Path, tmp_path: Path) -> None:
    run = _copy(lifted, tmp_path)
    assert "What the student learned" not in (run / "report.html").read_text()
    state = (run / "run.json").read_bytes()
    answer = command("diagnose", str(run), "--noise", "0.1,0.4", "--seeds", "2", "--against", str(plain))
    assert answer.returncode == 0, answer.stderr
    found = Diagnosis.model_validate_json((run / "diagnosis.json").read_text())
    lines = [line for line in answer.stdout.splitlines() if line.strip()]
    assert lines[-1] == found.sentence
    assert re.search(r"exploration part is .*CKA -?\d\.\d{3} against -?\d\.\d{3}, difference .* to ", found.sentence)
    assert found.images == 60
    assert [curve.name for curve in found.noise] == ["student", f"student of {plain.name}"]
    assert [level.relative_std for level in found.noise[0].levels] == [0, 0.1, 0.4]
    report = read_report(run / "report.json")
    assert report.diagnosis == found
    assert report.student.accuracy.correct == round(60 * found.noise[0].levels[0].mean), "the same images, unchanged"
    page = (run / "report.html").read_text()
    assert "What the student learned" in page
    assert found.sentence in page
    assert (run / "run.json").read_bytes() == state


@pytest.mark.slow
def test_parts_and_their_likeness(lifted: Path, tmp_path: Path) -> None:
    """Every figure again from the artefacts, by other means."""
    run = _copy(lifted, tmp_path)
    found = diagnose(run, noise=[0.2], seeds=2)
    (tap,) = found.taps
    half = tap.student_shape[0] // 2
    assert [(part.part, part.channels) for part in tap.parts] == [
        ("inheritance", half),
        ("exploration", tap.student_shape[0] - half),
        ("all", tap.student_shape[0]),
    ]
    assert all(part.cka is not None and part.cka.low < part.cka.value < part.cka.high for part in tap.parts)
    assert sum(part.active for part in tap.parts[:2]) == tap.parts[2].active
    from iekd.compress.pipeline import open_data
    from iekd.models.taps import Tapped

    data = open_data(open_run(run).config)
    maps = []
    for role in ("teacher", "student"):
        artefact = load_artefact(run / role)
        pixels = torch.from_numpy(np.stack([artefact.preprocessing(image) for image, _ in data.val]))
        with torch.no_grad():
            maps.append(Tapped(artefact.network.eval())(pixels).taps[0])
    assert tap.parts[0].cka is not None
    assert tap.parts[0].cka.value == pytest.approx(_value(maps[0], maps[1][:, :half]), abs=1e-4)
    again = diagnose(run, noise=[0.2], seeds=2)
    assert again == found


@pytest.mark.slow
def test_exploration_by_cka_parts_the_channels_of_a_trained_student(tmp_path: Path) -> None:
    """What IE-KD promises, on a student that learned its task: less like the teacher, and more so than by chance."""
    learning = {"train_limit": 600, "val_limit": 200, "augment": "none", "teacher_epochs": 6, "epochs": 8}
    values = settings(**learning, out=str(tmp_path / "run"), objective="ie-ft", explore_form="cka")
    config = make_config(values)
    run_stages(config, config.teacher, config.student, config.data, Observer(), until="distill")
    found = diagnose(tmp_path / "run", noise=[0.1], seeds=2)
    assert found.noise[0].levels[0].mean > 0.5
    (tap,) = found.taps
    assert tap.difference is not None
    assert tap.chance is not None
    assert tap.difference.low > 0
    assert tap.chance < 0.05
    assert "exploration part is less like the teacher than the inheritance part: CKA" in found.sentence


@pytest.mark.slow
def test_a_run_without_a_lift_has_one_row(plain: Path, tmp_path: Path) -> None:
    run = _copy(plain, tmp_path)
    found = diagnose(run, noise=[0.2], seeds=2, images=30)
    assert [part.part for part in found.taps[0].parts] == ["all"]
    assert found.taps[0].difference is None
    assert found.taps[0].chance is None
    assert "kd splits no channels" in found.sentence
    assert found.images == 30
    assert (run / "diagnosis.json").exists()
    assert not (run / "report.html").exists()


@pytest.mark.slow
def test_a_split_by_relevance_comes_from_the_checkpoint(by_relevance: Path, tmp_path: Path) -> None:
    run = _copy(by_relevance, tmp_path)
    found = diagnose(run, noise=[0.2], seeds=2)
    assert len(found.taps) == 2
    assert found.taps[0].stage < found.taps[1].stage
    assert found.sentence.count("At stage") == 2
    assert [[part.part for part in tap.parts] for tap in found.taps] == [["inheritance", "exploration", "all"]] * 2
    channels = [tap.student_shape[0] for tap in found.taps]
    file = run / "checkpoints" / "student" / "last.pt"
    stored = torch.load(file, weights_only=True)["task"]
    for tap, split in enumerate(open_run(run).splits(channels)):
        assert split is not None
        assert torch.equal(split.inherit, stored[f"objective.lifts.{tap}.inherit_index"])
        natural = split_channels(channels[tap], 0.5, "natural", 0)
        assert not torch.equal(split.inherit, natural[0]), "a split by relevance that is the natural one proves nothing"
    with pytest.raises(RunFolderError, match="other taps"):
        open_run(run).splits(channels[:1])
    file.write_bytes(b"nothing")
    with pytest.raises(RunFolderError, match="damaged"):
        open_run(run).splits(channels)
    file.unlink()
    refused(command("diagnose", str(run)), "last.pt", "--split natural or random")


def _made_up_run(folder: Path, **changes: object) -> FinishedRun:
    return FinishedRun(folder, make_config({"teacher": "a", "student": "b", **changes}), "")


@pytest.mark.parametrize(("split", "seed"), [("natural", 0), ("random", 0), ("random", 5)])
def test_without_a_checkpoint_the_settings_give_the_split(tmp_path: Path, split: str, seed: int) -> None:
    run = _made_up_run(tmp_path, objective="ie-at+kd", split=split, seed=seed, inherit_fraction=0.25)
    (found,) = run.splits([16])
    assert found is not None
    expected = split_channels(16, 0.25, split, seed)
    assert len(found.inherit) == 4
    assert torch.equal(found.inherit, expected[0])
    assert torch.equal(found.explore, expected[1])


@pytest.mark.parametrize(
    "changes", [{"objective": "kd"}, {"objective": "ft+kd"}, {"objective": "dml"}, {"inherit_fraction": 1.0}]
)
def test_without_a_lift_there_is_no_split(tmp_path: Path, changes: dict[str, object]) -> None:
    assert _made_up_run(tmp_path, **changes).splits([16, 8]) == [None, None]


def test_of_two_networks_that_trained_together_the_student_is_the_second(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "student" / "last.pt"
    file.parent.mkdir(parents=True)
    task = {}
    for network, size in ((0, 6), (1, 4)):
        for part, index in zip(("inherit", "explore"), torch.arange(size).flip(0).chunk(2), strict=True):
            task[f"lifts.{network}.0.{part}_index"] = index
    torch.save({"task": task}, file)
    (found,) = _made_up_run(tmp_path, objective="ie-dml").splits([4])
    assert found is not None
    assert found.inherit.tolist() == [3, 2]
    file.unlink()
    (found,) = _made_up_run(tmp_path, objective="ie-dml").splits([4])
    assert found is not None
    assert found.inherit.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("settings", "pruned", "ships", "qat", "expected"),
    [
        ({}, False, None, None, ("student", "student", "ie-ft+kd", "fp32")),
        ({"prune": 0.5}, False, None, None, ("student", "student", "ie-ft+kd", "fp32")),
        ({"prune": 0.5, "prune_steps": 3}, True, None, None, ("pruned", "pruned2", "ie-ft+kd", "fp32")),
        ({}, False, "student-int8", None, ("student", "student", "ie-ft+kd", "int8")),
        (
            {"prune": 0.5, "prune_steps": 1},
            True,
            "student-int8",
            {"ships": False},
            ("pruned", "pruned0", "ie-ft+kd", "int8"),
        ),
        ({"prune": 0.5}, True, "student-int8", {"ships": True}, ("variants/qat", "qat", "ie-ft+kd", "int8")),
        ({"objective": "ie-dml"}, False, "student-int8", {"ships": True}, ("variants/qat", "qat", "kd", "int8")),
        ({"prune": 0.5}, True, "student", {"ships": True}, ("pruned", "pruned1", "ie-ft+kd", "fp32")),
    ],
)
def test_what_ships_is_what_is_diagnosed(
    tmp_path: Path,
    settings: dict[str, object],
    pruned: bool,
    ships: str | None,
    qat: dict[str, bool] | None,
    expected: tuple[str, str, str, str],
) -> None:
    config = make_config({"teacher": "a", "student": "b", "objective": "ie-ft+kd", **settings})
    precisions = {"student": "fp32", "student-int8": "int8"}
    models = {
        name: {"precision": text, "retained": {"value": 1}, "latency": {"median": {"value": 1 if name == ships else 2}}}
        for name, text in precisions.items()
    }
    files: dict[str, object] = {"variants/student-int8.json": {"qat": qat}}
    if pruned:
        files["pruned/model.json"] = {}
    if ships:
        files["benchmark/benchmark.json"] = {"models": models}
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value))
    found = shipped(tmp_path, config)
    assert found == expected
    assert ("int8, the network float32" in found.remark) == (expected[3] == "int8")
    assert bool(found.remark) == (expected[0] != "student" or expected[3] != "fp32")


@pytest.mark.slow
def test_a_diagnosis_of_other_networks_is_not_kept(lifted: Path, tmp_path: Path) -> None:
    run = _copy(lifted, tmp_path)
    assert kept_diagnosis(run) is None
    found = diagnose(run, noise=[0.2], seeds=2)
    assert kept_diagnosis(run) == found
    artefact = load_artefact(run / "student")
    with torch.no_grad():
        next(artefact.network.parameters()).add_(1)
    save_artefact(run / "student", artefact)
    assert kept_diagnosis(run) is None
    (run / "diagnosis.json").write_text("{}")
    with pytest.raises(InputError, match=r"diagnosis\.json is damaged"):
        kept_diagnosis(run)


# Errors


@pytest.mark.slow
def test_bad_input_is_one_line(lifted: Path, plain: Path, tmp_path: Path) -> None:
    refused(command("diagnose", "nowhere", cwd=tmp_path), "nowhere is not a run folder", "--out")
    refused(command("diagnose", str(lifted), "--noise", "much"), "--noise 'much'")


@pytest.mark.slow
def test_runs_that_cannot_be_diagnosed(lifted: Path, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="-1 standard deviations"):
        diagnose(lifted, noise=[-1])
    with pytest.raises(InputError, match="--seeds 1"):
        diagnose(lifted, seeds=1)
    with pytest.raises(InputError, match="5 validation images"):
        diagnose(lifted, images=5)
    run = _copy(plain, tmp_path)
    with FileLock(run / ".lock"), pytest.raises(RunFolderError, match="another run is writing"):
        diagnose(run)
    state = json.loads((run / "run.json").read_text())
    other = {**state, "identity": {"data": "0" * 64}}
    (run / "run.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match="from other data than"):
        diagnose(lifted, against=run)
    with pytest.raises(RunFolderError, match="changed since"):
        diagnose(run)
    del state["stages"]["distill"]
    for text, words in (
        (json.dumps(state), "has not finished its training"),
        (json.dumps({**state, "format": 99}), "newer"),
        ("{}", "damaged"),
        ("[1]", "damaged"),
    ):
        (run / "run.json").write_text(text)
        with pytest.raises(RunFolderError, match=words):
            diagnose(run)
    assert not (run / "diagnosis.json").exists()


def test_levels_of_noise_in_words() -> None:
    assert parse_levels("0.1, 0.2,1e-2") == (0.1, 0.2, 0.01)
    with pytest.raises(InputError, match=r"--noise '0\.1;2'"):
        parse_levels("0.1;2")


# Words and pictures


def _tap(low: float, high: float, stage: int = 4, chance: float = 0.01) -> TapDiagnosis:
    middle = Interval(value=0.5, low=0.4, high=0.6)
    parts = [
        PartDiagnosis(part=part, channels=10, active=9, cka=middle) for part in ("inheritance", "exploration", "all")
    ]
    difference = Interval(value=(low + high) / 2, low=low, high=high)
    shape = [10, 4, 4]
    return TapDiagnosis(
        stage=stage,
        teacher_shape=shape,
        student_shape=shape,
        rectified=True,
        parts=parts,
        difference=difference,
        chance=chance,
    )


def _diagnosis(taps: list[TapDiagnosis], name: str = "student of other") -> Diagnosis:
    levels = [NoiseLevel(relative_std=std, accuracies=[0.9], mean=0.9 - std, spread=0.02) for std in (0, 0.1, 0.3)]
    return Diagnosis(
        images=60,
        objective="ie-ft",
        artefacts={},
        taps=taps,
        noise=[NoiseCurve(name="student", levels=levels), NoiseCurve(name=name, levels=levels)],
        sentence=in_a_sentence(taps, "ie-ft"),
    )


@pytest.mark.parametrize(
    ("low", "high", "chance", "words"),
    [
        (0.1, 0.2, 0.005, "exploration part is less like the teacher than the inheritance part:"),
        (0.1, 0.2, 0.3, "exploration part is less like the teacher than the inheritance part, but no more so than"),
        (-0.1, 0.2, 0.01, "exploration part is not measurably less like the teacher than"),
        (-0.2, -0.1, 1.0, "exploration part is more like the teacher than"),
    ],
)
def test_the_sentence_follows_from_the_interval_and_chance(low: float, high: float, chance: float, words: str) -> None:
    text = in_a_sentence([_tap(low, high, chance=chance)], "ie-ft")
    assert f"{chance:.1%} of random splits" in text
    assert words in text
    assert f"(95 %: {low:.3f} to {high:.3f})" in text


def test_silent_channels_are_said_to_be_silent() -> None:
    tap = _tap(0.1, 0.2)
    tap.parts[1].cka, tap.parts[1].active, tap.difference, tap.chance = None, 0, None, None
    assert "exploration channels say the same of every image" in in_a_sentence([tap], "ie-ft")
    assert 'aria-label="Likeness of each part to the teacher"' in render(_with(_diagnosis([tap])))
    for part in tap.parts:
        part.cka = None
    assert 'aria-label="Likeness of each part to the teacher"' not in render(_with(_diagnosis([tap])))


def _with(found: Diagnosis) -> Report:
    return sample_report().model_copy(update={"diagnosis": found})


def test_the_page_and_the_table_say_what_was_diagnosed(capsys: pytest.CaptureFixture[str]) -> None:
    found = _diagnosis([_tap(0.1, 0.2)]).model_copy(update={"network": "pruned", "remark": "Diagnosed is another one."})
    assert "Diagnosed is another one." in render(_with(found))
    Console(width=400).print(diagnosis_table(found))
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[-2:]] == [found.remark, found.sentence]


def test_the_page_shows_the_diagnosis_and_no_one_s_markup() -> None:
    page = render(_with(_diagnosis([_tap(0.1, 0.2, 3), _tap(0.1, 0.2, 4)], "student of $x_1$ <b>&")))
    assert page.count('<section id="learned">') == 1
    assert "<b>&" not in page
    assert "student of $x_1$ &lt;b&gt;&amp;" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"#0[0-9]0[0-9]0[0-9]\b", page)) == set(), "a placeholder colour is left"
    assert 'id="learned"' not in render(sample_report())
