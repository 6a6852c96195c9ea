from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from iekd.compress.clipping import clip, clip_groups
from iekd.compress.observer import Observer
from iekd.compress.pace import Pace
from iekd.compress.trainer import FitSettings, fit, learning_rate
from iekd.compress.training_state import History, load_best
from iekd.errors import DivergenceError, RunFolderError


class Task(nn.Module):
    def __init__(self, blow_up_after: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.blow_up_after = blow_up_after
        self.calls = 0

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        logits = self.network(inputs)
        pull = logits.square().mean()
        if self.blow_up_after is not None and self.calls > self.blow_up_after:
            pull = pull * float("nan")
        return {"task": nn.functional.cross_entropy(logits, targets), "pull": pull}


def batches(epoch: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(epoch)
    inputs = torch.randn(32, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=8)


def train(
    task: Task,
    folder: Path,
    epochs: int,
    *,
    observer: Observer | None = None,
    evaluate: Callable[[], Any] | None = None,
    accelerator: Accelerator | None = None,
) -> History:
    return fit(
        task,
        batches,
        FitSettings(epochs=epochs, lr=1e-2),
        name="toy",
        folder=folder,
        accelerator=accelerator or Accelerator(cpu=True),
        observer=observer or Observer(),
        evaluate=evaluate,
    )


class StopAt(Observer):
    """Leaves training in the middle of an epoch, as a killed process would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stage_advanced(self, name: str, done: int, detail: str) -> None:
        if done == self.step:
            raise KeyboardInterrupt


def test_loss_falls(tmp_path: Path) -> None:
    history = train(Task(), tmp_path, 8)
    losses = history.figures["loss"]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert history.figures["task"][-1] + history.figures["pull"][-1] == pytest.approx(losses[-1])


@pytest.mark.parametrize("step", [1, 4, 6, 11])
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, step: int) -> None:
    whole = Task()
    history = train(whole, tmp_path / "whole", 4)
    with pytest.raises(KeyboardInterrupt):
        train(Task(), tmp_path / "cut", 4, observer=StopAt(step))
    resumed = Task()
    again = train(resumed, tmp_path / "cut", 4)
    assert again.figures == history.figures
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


class Waiting(Task):
    """Has a second term in two steps of its first and third epoch only."""

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        terms = super().forward(inputs, targets)
        pull = terms.pop("pull")
        step = self.calls - 1
        return {**terms, "pull": 0 * pull + 1 + step % 4} if step // 4 in (0, 2) and step % 4 < 2 else terms


def test_a_term_that_some_steps_lack_is_the_mean_of_those_that_had_it(tmp_path: Path) -> None:
    history = train(Waiting(), tmp_path, 4)
    assert history.figures["pull"] == [1.5, None, 1.5, None]
    assert history.epochs == 4
    kept = torch.load(tmp_path / "last.pt", weights_only=True)["history"]
    assert json.loads(kept, parse_constant=pytest.fail) == history.figures


def test_a_quantity_that_comes_late_stands_in_its_own_epochs() -> None:
    history = History()
    for figures in ({"loss": 3.0}, {"loss": 2.0, "pull": 7.0}, {"loss": 1.0}):
        history.append(figures)
    assert history.figures == {"loss": [3.0, 2.0, 1.0], "pull": [None, 7.0, None]}


class HalfTask(Task):
    """Its gradients pass through half precision, and overflow where the loss is scaled by too much."""

    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.register_hook(lambda gradient: gradient.half().float())


def scaling() -> Accelerator:
    """With a loss scale that grows fast, so that steps overflow in every epoch, as under fp16 on a GPU."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", growth_factor=8.0, growth_interval=2)
    return accelerator


@pytest.mark.parametrize("step", [6, 9, 13])
def test_the_loss_scale_is_resumed(tmp_path: Path, step: int) -> None:
    whole = HalfTask()
    history = train(whole, tmp_path / "whole", 4, accelerator=scaling())
    with pytest.raises(KeyboardInterrupt):
        train(HalfTask(), tmp_path / "cut", 4, observer=StopAt(step), accelerator=scaling())
    resumed = HalfTask()
    again = train(resumed, tmp_path / "cut", 4, accelerator=scaling())
    assert again.figures == history.figures
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_loss_scale_of_one_stage_does_not_reach_the_next(tmp_path: Path) -> None:
    alone, after, accelerator = HalfTask(), HalfTask(), scaling()
    train(alone, tmp_path / "alone", 2, accelerator=scaling())
    train(HalfTask(), tmp_path / "before", 3, accelerator=accelerator)
    assert accelerator.scaler.get_scale() != 2.0**16
    train(after, tmp_path / "after", 2, accelerator=accelerator)
    assert all(torch.equal(one, other) for one, other in zip(alone.parameters(), after.parameters(), strict=True))


def test_a_finished_training_is_read_back(tmp_path: Path) -> None:
    first, second = Task(), Task()
    train(first, tmp_path, 2)
    train(second, tmp_path, 2)
    assert second.calls == 0
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_term_that_is_not_finite_stops_at_once_and_is_named(tmp_path: Path) -> None:
    task = Task(blow_up_after=6)
    with pytest.raises(DivergenceError, match=r"'pull' of stage 'toy' became nan in epoch 2, step 3") as caught:
        train(task, tmp_path, 4)
    assert str(tmp_path / "last.pt") in str(caught.value)
    good = Task()
    train(good, tmp_path / "good", 1)
    kept = torch.load(tmp_path / "last.pt", weights_only=True)["task"]
    assert all(bool(torch.isfinite(value).all()) for value in kept.values())


def test_best_is_the_epoch_of_the_highest_accuracy(tmp_path: Path) -> None:
    task, accuracies, seen = Task(), [0.2, 0.9, 0.5], []

    def evaluate() -> dict[str, float]:
        seen.append({name: value.clone() for name, value in task.state_dict().items()})
        return {"accuracy": accuracies[len(seen) - 1]}

    train(task, tmp_path, 3, evaluate=evaluate)
    load_best(task, tmp_path)
    assert all(torch.equal(value, task.state_dict()[name]) for name, value in seen[1].items())


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(RunFolderError, match=r"last\.pt is damaged"):
        train(Task(), tmp_path, 1)


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    settings = FitSettings(epochs=10, lr=1.0)
    rates = [learning_rate(settings, step, 20) for step in range(200)]
    assert rates.index(max(rates)) in (19, 20)
    assert rates[0] == pytest.approx(0.05)
    assert rates[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(rates[20:]))


class Pair(nn.Module):
    """Two networks with a loss each; the second's is steep, or left out."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)
        self.steepness = steepness

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        terms = {"a": 7 * nn.functional.cross_entropy(self.a(inputs), targets)}
        if self.steepness:
            terms["b"] = self.steepness * nn.functional.cross_entropy(self.b(inputs), targets)
        return terms


def clipped(task: Pair, folder: Path, *, apart: bool, limit: float | None = 5.0) -> History:
    return fit(
        task,
        batches,
        FitSettings(epochs=2, lr=1e-2, optimizer="sgd", clip_norm=limit),
        name="pair",
        folder=folder,
        accelerator=Accelerator(cpu=True),
        observer=Observer(),
        apart=[list(task.a.parameters()), list(task.b.parameters())] if apart else (),
    )


def test_networks_apart_are_not_slowed_by_each_other(tmp_path: Path) -> None:
    alone, apart, together = Pair(0), Pair(1e4), Pair(1e4)
    history = clipped(alone, tmp_path / "alone", apart=True)
    assert 0 < sum(history.figures["clipped"]) < len(history.figures["clipped"]), "some steps are, some are not"
    assert clipped(apart, tmp_path / "apart", apart=True).figures["clipped"] == [1.0, 1.0]
    clipped(together, tmp_path / "together", apart=False)
    assert torch.equal(alone.a.weight, apart.a.weight)
    assert not torch.allclose(alone.a.weight, together.a.weight)


def paced(folder: Path, factor: float, epochs: int = 2) -> Pair:
    """A pair whose first network learns at ``factor`` times the rate."""
    task = Pair(1.0)
    settings = FitSettings(epochs=epochs, lr=1e-2, optimizer="sgd", clip_norm=None)
    pace = Pace(list(task.a.parameters()), factor)
    given = {"name": "pair", "folder": folder, "accelerator": Accelerator(cpu=True), "observer": Observer()}
    fit(task, batches, settings, pace=pace, **given)  # type: ignore[arg-type]  # of four kinds, each as fit names it
    return task


def test_a_network_learns_at_its_own_rate_and_its_checkpoint_is_read_back(tmp_path: Path) -> None:
    same, slow = paced(tmp_path / "same", 1.0), paced(tmp_path / "slow", 1e-9)
    assert torch.equal(same.b.weight, slow.b.weight)
    assert torch.allclose(slow.a.weight, Pair(1.0).a.weight)
    assert not torch.allclose(same.a.weight, slow.a.weight)
    assert torch.equal(same.b.weight, paced(tmp_path / "slow", 1e-9).b.weight)


def test_a_checkpoint_whose_groups_were_parted_otherwise_is_told(tmp_path: Path) -> None:
    paced(tmp_path, 1.0, epochs=1)
    with pytest.raises(RunFolderError, match=r"last\.pt is of another training.*Delete it"):
        paced(tmp_path, 0.3)


def test_one_network_is_clipped_as_a_whole() -> None:
    task, limit = Pair(3.0), 0.1
    whole, lone = clip_groups(task), clip_groups(task, [[task.a.weight, task.a.bias]])
    assert [len(group) for group in whole] == [4]
    assert [{id(p) for p in group} for group in lone] == [
        {id(p) for p in network.parameters()} for network in (task.a, task.b)
    ]
    inputs, targets = next(iter(batches(0)))
    torch.stack(list(task(inputs, targets).values())).sum().backward()
    before = [parameter.grad.clone() for parameter in task.parameters() if parameter.grad is not None]
    assert clip(whole, 1e6) == 0
    assert clip(whole, limit) == 1
    share = limit / torch.cat([gradient.flatten() for gradient in before]).norm()
    for parameter, gradient in zip(task.parameters(), before, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, share * gradient, rtol=1e-4, atol=1e-8)


def test_a_network_that_waits_is_not_clipped() -> None:
    task = Pair(0)
    inputs, targets = next(iter(batches(0)))
    task(inputs, targets)["a"].backward()
    assert clip(clip_groups(task, [list(task.b.parameters())]), 1e-3) == 1
    assert task.b.weight.grad is None


def test_what_is_not_clipped_is_not_counted(tmp_path: Path) -> None:
    assert "clipped" not in clipped(Pair(1.0), tmp_path, apart=False, limit=None).figures


def test_events_are_written(tmp_path: Path) -> None:
    task = Task()
    fit(
        task,
        batches,
        FitSettings(epochs=1, lr=1e-2),
        name="toy",
        folder=tmp_path / "c",
        accelerator=Accelerator(cpu=True),
        observer=Observer(),
        events=tmp_path / "events",
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert {"task", "pull", "loss"} <= set(events.Tags()["scalars"])
