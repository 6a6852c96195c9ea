"""``bench --batch N``: engines are built for it, and a file that does not take it is refused before it is measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tiny_networks
from engine_doubles import Workshop

from iekd.compress.bench import Modes, bench_files
from iekd.compress.data import load_data
from iekd.deploy.backends import BACKENDS, get_backend
from iekd.deploy.engine import BuildSettings, build
from iekd.deploy.export import export_onnx
from iekd.errors import InputError
from iekd.models.preprocessing import Preprocessing


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    workshop = Workshop()
    workshop.install(monkeypatch)
    return workshop


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    classes = load_data("digits").classes
    return export_onnx(
        tiny_networks.student(len(classes)).eval(),
        tmp_path / "student.onnx",
        preprocessing=Preprocessing(size=16),
        classes=classes,
        name="student",
    )


def bench(file: Path, batch: int, folder: Path, *, backend: str = "tensorrt", modes: Modes | None = None) -> None:
    bench_files(
        [file],
        data="digits",
        val_fraction=None,
        batch=batch,
        seconds=0.02,
        threads=1,
        backend=backend,
        output=folder,
        modes=modes,
    )


@pytest.mark.parametrize(("batch", "profile"), [(1, (1, 1, 8)), (8, (1, 1, 8)), (9, (1, 9, 9)), (32, (1, 32, 32))])
def test_an_engine_is_built_for_the_batch_that_is_measured(
    shop: Workshop, onnx: Path, tmp_path: Path, batch: int, profile: tuple[int, int, int]
) -> None:
    bench(onnx, batch, tmp_path / "bench")
    assert [settings.batch for settings in shop.settings] == [profile]
    measured = json.loads((tmp_path / "bench" / "bench.json").read_text())["models"]["student"]
    assert measured["latency"]["batch"] == batch


def test_the_profile_is_part_of_the_cache_s_key(shop: Workshop, onnx: Path) -> None:
    backend = get_backend("tensorrt")
    for batch in (1, 16, 8, 16, 9):
        assert backend.load(onnx, batch=batch).batch_range == (1, batch if batch > 8 else 8)
    assert [settings.batch for settings in shop.settings] == [(1, 1, 8), (1, 16, 16), (1, 9, 9)]


def test_wider_settings_stay_as_they_are() -> None:
    wide = BuildSettings(batch=(2, 4, 64), tf32=False)
    assert wide.covering(64) is wide
    assert wide.covering(65) == dataclasses.replace(wide, batch=(2, 65, 65))


def test_an_engine_that_ends_below_the_batch_is_refused_with_what_would_serve(
    shop: Workshop, onnx: Path, tmp_path: Path
) -> None:
    engine = build(onnx, BuildSettings(batch=(2, 4, 8))).path
    for batch in (16, 1):
        with pytest.raises(InputError, match=rf"takes 2 to 8 images a call; {batch} were asked for") as caught:
            bench(engine, batch, tmp_path / "bench")
        assert f"--batch 1,{batch},{batch}" in caught.value.hint
    assert not (tmp_path / "bench").exists(), "nothing was measured before"
    engine = build(onnx, BuildSettings(batch=(2, 4, 7))).path
    with pytest.raises(InputError, match="2 to 7 images a call; 8 were asked for"):
        bench(engine, 2, tmp_path / "bench", modes=Modes(publishable=0.02))


def test_an_engine_is_measured_with_the_preprocessing_of_its_file(shop: Workshop, onnx: Path, tmp_path: Path) -> None:
    engine = build(onnx).copy_to(tmp_path / "mine.engine")
    bench(engine, 4, tmp_path / "bench")
    assert shop.opened[-1] == engine
    onnx.write_bytes(onnx.read_bytes() + b"\0")
    with pytest.raises(InputError, match="is missing or has changed"):
        bench(engine, 4, tmp_path / "bench")


def test_a_file_of_one_batch_is_refused_on_any_backend(tmp_path: Path, onnx: Path) -> None:
    import onnx as library

    model = library.load(str(onnx))
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.shape.dim[0].dim_value = 4
    del model.graph.value_info[:]
    fixed = tmp_path / "fixed.onnx"
    library.save(model, str(fixed))
    with pytest.raises(InputError, match=r"takes 4 images a call; 16 were asked for\.") as caught:
        bench(fixed, 16, tmp_path / "bench", backend="onnxruntime")
    assert "export it with an open one" in caught.value.hint
    bench(fixed, 4, tmp_path / "bench", backend="onnxruntime")


@pytest.mark.parametrize("name", [name for name in BACKENDS if name in ("onnxruntime", "openvino")])
def test_other_runtimes_take_the_batch_as_it_comes(onnx: Path, name: str) -> None:
    pytest.importorskip(name)
    assert get_backend(name).load(onnx, batch=100).batch_range == (1, None)
