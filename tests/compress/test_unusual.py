"""What is unusual and legitimate: networks, numbers of processes, files.  Each of these once ended in a defect."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_networks
import torch
from accelerate import Accelerator
from quantization_samples import CLASSES, SIZE, images, labelled
from small import search_settings, settings
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from iekd.compress import bench, distill, tools
from iekd.compress.bench import Modes, bench_files
from iekd.compress.config_input import make_config
from iekd.compress.learning_rate import DELICATE, SHORT, peak_rate
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.compress.quantize import QuantizeSettings, quantize
from iekd.compress.quantizers.candidates import Candidate as File
from iekd.compress.quantizers.candidates import as_accurate
from iekd.compress.quantizers.simulated import GRIDS, Simulated
from iekd.compress.search import search
from iekd.compress.searching.latency_table import LatencyTable
from iekd.compress.searching.settings import SearchSettings
from iekd.compress.searching.space import Candidate, Space, identity_of
from iekd.compress.searching.storage import open_storage
from iekd.compress.searching.study import Study
from iekd.compress.sensitivity import exceeds, fewest_kept
from iekd.compress.trainer import FitSettings, fit
from iekd.compress.training_state import resume
from iekd.deploy import precision
from iekd.deploy.export import export_onnx
from iekd.errors import InputError, VerificationError
from iekd.models.checkpoint import Artefact, load_artefact, save_artefact
from iekd.models.ensemble import Ensemble
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import Architecture, count_macs
from iekd.models.taps import Tapped


class Expanded(nn.Module):
    """Hands a submodule a view of a parameter, as networks with a class token or a learned query do."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, 4))
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.mix(self.query.expand(len(batch), -1, -1))[:, 0])


def test_macs_are_counted_where_a_view_of_a_parameter_goes_into_a_layer() -> None:
    network = Expanded().train()
    assert count_macs(network, 8) == 4 * 4 + 4 * 3
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"task": self.layer(batch).square().mean()}


def fit_task(folder: Path, epochs: int, accelerator: Any, images: int = 8) -> Task:
    task = Task()
    fit(
        task,
        lambda _: DataLoader(TensorDataset(torch.ones(images, 2)), batch_size=4, drop_last=True),
        FitSettings(epochs=epochs, lr=0.1),
        name="toy",
        folder=folder,
        accelerator=accelerator,
        observer=Observer(),
    )
    return task


def test_where_no_process_gets_a_whole_batch_nothing_is_said_to_be_trained(tmp_path: Path) -> None:
    """Two processes with batches of 64 of 100 images had none each, and kept 100 % of an untrained teacher."""
    with pytest.raises(InputError, match="toy: there are fewer images than a batch for each of 1 processes"):
        fit_task(tmp_path, 1, Accelerator(cpu=True), images=3)


def test_a_checkpoint_is_read_whatever_the_processor_is_called(tmp_path: Path) -> None:
    """Of several processes each has ``cpu:0``, which PyTorch does not read to."""
    fit_task(tmp_path, 1, Accelerator(cpu=True))
    numbered: Any = SimpleNamespace(scaler=None, device=torch.device("cpu:0"))
    task = Task()
    optimizer = create_optimizer_v2(task, opt="adamw", lr=0.1, weight_decay=FitSettings.weight_decay)
    assert resume(tmp_path / "last.pt", task, optimizer, numbered).epochs == 1


class Grouped(nn.Module):
    """Normalised by groups of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8)
        self.last, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.last(self.norm(self.stem(batch)).relu()).mean((2, 3)))


@pytest.mark.parametrize("scheme", GRIDS)
def test_networks_with_group_norm_train_under_simulated_int8(scheme: str) -> None:
    pytest.importorskip("nncf")
    tapped = Tapped(Grouped(), (-1,), 16).train()
    simulated = Simulated(tapped, torch.randn(4, 3, 16, 16), GRIDS[scheme]).train()
    simulated(torch.randn(4, 3, 16, 16)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in simulated.network.parameters())
    assert tapped.training, "what was given stays as it is"


def test_what_nncf_cannot_place_is_told_with_the_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    nncf = pytest.importorskip("nncf")

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("shape '[64]' is invalid")

    monkeypatch.setattr(nncf, "quantize", refuse)
    with pytest.raises(InputError, match=r"Grouped cannot be trained .* shape '\[64\]' is invalid") as caught:
        Simulated(Tapped(Grouped(), (-1,), 16), torch.zeros(1, 3, 16, 16), GRIDS["int8-tensorrt"])
    assert "--qat never" in caught.value.hint


class Tokens(nn.Module):
    """Feature maps with a residual path and layer normalisation over their channels, as Swin's and ConvNeXt's kin."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, len(CLASSES))

    def forward(self, batch: Tensor) -> Tensor:
        maps = self.stem(batch).permute(0, 2, 3, 1)
        return self.head((maps + self.mix(self.norm(maps))).mean((1, 2)))


def test_int8_for_tensorrt_leaves_the_residual_paths_of_normalised_channels_in_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = export_onnx(
        Tokens().eval(), tmp_path / "t.onnx", preprocessing=Preprocessing(size=SIZE), classes=CLASSES, name="tokens"
    )
    found, labels = labelled(source, 96)
    made = quantize(
        source,
        tmp_path / "q.onnx",
        scheme="int8-tensorrt",
        images=found[:64],
        labels=labels[:64],
        held_out=(found[64:], labels[64:]),
        settings=QuantizeSettings(calibration_images=32, methods=("minmax",), max_drop=None, threads=1),
    )
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(str(made.file)).graph.node}


# what the student lacks is told before its teacher is trained


@pytest.fixture
def artefact(tmp_path: Path) -> Callable[..., str]:
    """Saves a network of ``tiny_networks`` as an artefact of these classes."""

    def save(function: str, classes: tuple[str, ...], size: int = 16) -> str:
        network = getattr(tiny_networks, function)(len(classes))
        kept = Artefact(
            network, Architecture("function", f"tiny_networks:{function}"), classes, Preprocessing(size=size), {}
        )
        save_artefact(tmp_path / function, kept)
        return str(tmp_path / function)

    return save


def refused_before_training(tmp_path: Path, **changes: Any) -> InputError:
    own = {"teacher": "tiny_networks:teacher", "student": "tiny_networks:student", "tap": "4", "image_size": 16}
    config = make_config(settings(**{**own, **changes}, out=str(tmp_path / "run")))
    with pytest.raises(InputError) as caught:
        run_stages(config, config.teacher, config.student, config.data, Observer(), until="distill")
    assert not (tmp_path / "run" / "teacher").exists()
    return caught.value


def test_a_student_of_other_classes(tmp_path: Path, artefact: Callable[..., str]) -> None:
    error = refused_before_training(tmp_path, student=artefact("student", ("cat", "dog")))
    assert "was trained for 2 classes (cat, dog, ...), the data has 10" in error.message


def test_weights_of_another_network(tmp_path: Path) -> None:
    torch.save(tiny_networks.teacher(10).state_dict(), tmp_path / "other.pth")
    error = refused_before_training(tmp_path, student_weights=str(tmp_path / "other.pth"))
    assert "other.pth" in error.message


def test_an_artefact_of_a_fixed_size_at_another(tmp_path: Path, artefact: Callable[..., str]) -> None:
    folder = artefact("fixed", tuple("0123456789"))
    error = refused_before_training(tmp_path, student=folder, image_size=24, objective="kd", tap="-1")
    assert "24 x 24" in error.message


def test_a_search_leaves_out_an_artefact_at_a_size_that_it_does_not_take(
    tmp_path: Path, artefact: Callable[..., str]
) -> None:
    folder = artefact("transformer", tuple("0123456789"))
    config = make_config(search_settings(tmp_path / "study", student="any", threads=1))
    wanted = [Candidate(folder, 0.0, size) for size in (16, 24)]
    found = LatencyTable(config, 10).look_up(wanted)
    assert "latency" in found[wanted[0]]
    assert "24 x 24" in found[wanted[1]]["refused"]


# learning rate, search


def test_an_ensemble_learns_at_the_rate_of_its_most_delicate_member() -> None:
    convolutional, transformer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), tiny_networks.transformer(10)
    assert peak_rate(lambda: Ensemble([convolutional, transformer]), "scratch", 88) == DELICATE
    assert peak_rate(lambda: Ensemble([convolutional, convolutional]), "scratch", 88) == SHORT


partial = functools.partial(tiny_networks.student)


def test_a_student_may_be_any_callable() -> None:
    assert identity_of(f"{__name__}:partial") == identity_of(f"{__name__}:Grouped") != ""


def test_any_seed_searches(tmp_path: Path) -> None:
    Study("s", open_storage(None, tmp_path), Space(("a",), (0.0,), (16,)), {}, seed=5_000_000_000)


def test_a_folder_whose_name_would_part_teachers_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a comma parts the names of several teachers"):
        search(search_settings(tmp_path / "a,b", max_latency="1us"), SearchSettings(prunes="0", sizes="16"))
    assert not (tmp_path / "a,b").exists()


def test_factors_that_runs_share_are_trained_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers trained them side by side, from other first weights, and the last one's lay there."""
    locked: list[Path] = []
    lock = distill.FileLock
    monkeypatch.setattr(distill, "FileLock", lambda path: locked.append(Path(path)) or lock(path))
    own = {"teacher": "tiny_networks:teacher", "student": "tiny_networks:student", "tap": "4", "image_size": 16}
    config = make_config(settings(**own, train_limit=64, out=str(tmp_path / "first")))
    run_stages(config, config.teacher, config.student, config.data, Observer(), until="distill")
    assert locked == []
    teacher = str(tmp_path / "first" / "teacher")
    config = dataclasses.replace(config, teacher=teacher, teacher_epochs=0, out=str(tmp_path / "second"))
    run_stages(config, teacher, config.student, config.data, Observer(), until="distill", shared=tmp_path / "shared")
    assert [path.parent.parent for path in locked] == [tmp_path / "shared" / "checkpoints"]


# limits and files


def test_a_loss_of_exactly_the_limit_is_allowed() -> None:
    """1 - 0.99 is 0.010000000000000009."""
    assert not exceeds(1 - 0.99, 0.01)
    assert exceeds(1 - 0.989, 0.01)
    kept = as_accurate([File("a", "minmax", 0.99, 0.1), File("b", "minmax", 0.989, 0.1)], 1.0, 100, 0.01)
    assert [one.recipe for one in kept] == ["a"]
    ranking: Any = [SimpleNamespace(layer=name) for name in "abc"]
    assert fewest_kept(ranking, lambda _: 1 - 0.99, 0.01) == 1


def test_a_cast_looks_at_few_images_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    session: Any = SimpleNamespace(run=lambda batch: asked.append(len(batch)) or batch[:, 0, 0, :2])
    given = images(19)
    assert np.array_equal(precision._answers(session, given), given[:, 0, 0, :2])
    assert max(asked) <= 8
    assert sum(asked) == 19


def test_fp8_keeps_the_layers_that_are_named_and_no_others_that_begin_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("modelopt.onnx.quantization", reason="needs nvidia-modelopt")
    import re

    from iekd.compress.quantizers import modelopt as ours

    asked: list[list[str]] = []
    monkeypatch.setattr(
        "modelopt.onnx.quantization.quantize", lambda *_, nodes_to_exclude, **__: asked.append(nodes_to_exclude)
    )
    model = onnx.helper.make_model(
        onnx.helper.make_graph([], "g", [onnx.helper.make_tensor_value_info("images", 1, [1])], [])
    )
    calibration: Any = SimpleNamespace(model=model, images=images(2))
    ours.Fp8(calibration).write(tmp_path / "x.onnx", "max", ("blocks.0.attn/MatMul",))
    ((pattern,),) = asked
    assert re.match(pattern, "blocks.0.attn/MatMul")
    assert not re.match(pattern, "blocks.0.attn/MatMul_2")
    assert not re.match(pattern, "blocks_0.attn/MatMul")


@pytest.mark.parametrize(
    ("target", "checked"), [(None, True), ("tensorrt", True), ("jetson-orin", True), ("cuda", False)]
)
def test_a_cast_is_a_graph_for_tensorrt_where_tensorrt_reads_it(
    target: str | None, checked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise VerificationError("not for TensorRT")

    source = export_onnx(
        Tokens().eval(), tmp_path / "t.onnx", preprocessing=Preprocessing(size=SIZE), classes=CLASSES, name="tokens"
    )
    monkeypatch.setattr(precision, "require_tensorrt_graph", refuse)
    found, labels = labelled(source, 32)
    given: dict[str, Any] = {"images": found, "labels": labels, "held_out": (found, labels), "scheme": "fp16"}
    own = QuantizeSettings(calibration_images=16, max_drop=None, target=target, threads=1)
    if checked:
        with pytest.raises(VerificationError, match="not for TensorRT"):
            quantize(source, tmp_path / "c.onnx", settings=own, **given)
    else:
        assert quantize(source, tmp_path / "c.onnx", settings=own, **given).file.is_file()


def test_a_repetition_of_one_is_refused_before_hours_of_measuring(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measure_latency", lambda *_, **__: pytest.fail("measured"))
    files = [finished_run / "teacher.onnx", finished_run / "student.onnx"]
    how: dict[str, Any] = {"data": "digits", "val_fraction": None, "batch": 1, "seconds": 0.05, "threads": 1}
    with pytest.raises(InputError, match="needs two processes"):
        bench_files(files, backend="onnxruntime", output=tmp_path / "out", modes=Modes(repeat=1), **how)


class Counted(nn.Module):
    """Asks its images how many they are in the way that the exporter takes for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, len(CLASSES))

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(batch.mean((2, 3)).reshape(len(batch), 3))


def test_a_network_that_fixes_the_number_of_images_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="exported for one number of images alone") as caught:
        export_onnx(
            Counted().eval(),
            tmp_path / "c.onnx",
            preprocessing=Preprocessing(size=SIZE),
            classes=CLASSES,
            name="counted",
        )
    assert "images.shape[0]" in caught.value.hint


def test_an_export_that_fails_leaves_what_lay_there(
    tmp_path: Path, artefact: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise VerificationError("another answer")

    folder, file = Path(artefact("student", tuple("0123456789"))), tmp_path / "model.onnx"
    tools.export_artefact(folder, file)
    before = file.read_bytes()
    monkeypatch.setattr(tools, "verify", refuse)
    with pytest.raises(VerificationError):
        tools.export_artefact(folder, file)
    assert file.read_bytes() == before
    other = tmp_path / "model.xml"
    other.write_text("of the user's own")
    with pytest.raises(InputError, match="no name of an ONNX file"):
        tools.export_artefact(folder, other)
    assert other.read_text() == "of the user's own"
    assert load_artefact(folder).classes == tuple("0123456789")
