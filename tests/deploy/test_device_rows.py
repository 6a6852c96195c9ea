"""A board's result beside the host's: what is taken, what is refused, what the report shows."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from bundle_samples import sample_bundle
from report_samples import sample_report

from iekd.deploy.device import run as board
from iekd.deploy.device_results import DeviceResult, device_rows, read_device_result, read_devices
from iekd.deploy.device_rows import add_device_result
from iekd.deploy.report import render, write_report
from iekd.deploy.results import Report
from iekd.errors import InputError

ENERGY = {
    "watts": 12.5,
    "rest_watts": 7.25,
    "joules_per_inference": 0.01575,
    "joules_above_rest": 0.0066,
    "calls": 2400,
    "seconds": 3.0,
    "samples": 60,
    "source": "INA power monitors",
    "rails": ["VDD_IN"],
    "celsius": {"tj": 61.5, "gpu": 60.0},
    "throttled": [],
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A result that run.py really wrote, of this machine."""
    folder = tmp_path_factory.mktemp("board")
    with zipfile.ZipFile(sample_bundle(folder)) as archive:
        archive.extractall(folder)
    arguments = ["--backend", "onnxruntime", "--seconds", "0.05", "--threads", "1"]
    assert board.main(arguments, folder / "brightness-bundle") == 0
    value: dict[str, Any] = json.loads((folder / "brightness-bundle" / "result.json").read_text())
    return value


def report_of(measured: dict[str, Any]) -> Report:
    """The report of the run that the bundle was made from."""
    report = sample_report(names=("big", "brightness"))
    fp32 = next(model["sha256"] for model in measured["models"] if model["precision"] == "fp32")
    return report.model_copy(update={"student": report.student.model_copy(update={"sha256": fp32})})


@pytest.fixture
def run(tmp_path: Path, measured: dict[str, Any]) -> Path:
    """A finished run, of which only the report matters here."""
    write_report(report_of(measured), tmp_path / "run")
    return tmp_path / "run"


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def on_a_jetson(measured: dict[str, Any]) -> dict[str, Any]:
    """The result as a Jetson would have written it; figures made up."""
    value: dict[str, Any] = json.loads(json.dumps(measured))
    value["board"] |= {"name": "Jetson <Orin> & co", "power_mode": "MAXN", "l4t": "36.4.3"}
    value["board"]["clocks"] = {
        "state": "locked",
        "hertz": {
            unit: {"min": current, "max": current, "current": current}
            for unit, current in (("cpu0", 729_600_000), ("cpu1", 2_201_600_000), ("GPU", 1_300_500_000))
        },
    }
    value["models"][0]["energy"] = ENERGY
    value["celsius"] = {"before": {"tj": 45.0}, "after": {"tj": 50.0}}
    value["failed"] = {"fp8": "needs SM 8.9"}
    value["throttled"] = ["gpu-throttle-alert"]
    return value


def test_what_run_py_writes_is_the_schema(tmp_path: Path, measured: dict[str, Any]) -> None:
    result = read_device_result(written(tmp_path / "result.json", measured))
    assert result.verdict.winner in {"fp32", "fp16"}
    assert json.loads(result.model_dump_json(exclude_unset=True)) == measured


def test_rows(tmp_path: Path, measured: dict[str, Any]) -> None:
    result = DeviceResult.model_validate(on_a_jetson(measured))
    rows = device_rows([result])
    assert {row.precision for row in rows} == {"fp32", "fp16"}
    assert rows[0].wins
    assert not rows[1].wins
    assert rows[0].median.value <= rows[1].median.value
    with_energy = next(row for row in rows if row.energy)
    assert (with_energy.power_mode, with_energy.celsius) == ("MAXN", 61.5)
    assert with_energy.clocks == "locked (CPU 2202 MHz, GPU 1300 MHz)"
    value = on_a_jetson(measured)
    value["board"]["clocks"] = {"state": "unknown", "hertz": {}}
    assert device_rows([DeviceResult.model_validate(value)])[0].clocks == "unknown"
    other = next(row for row in rows if not row.energy)
    assert other.celsius == 50.0
    fp32 = next(row for row in rows if row.precision == "fp32")
    assert (fp32.host_median_ms, fp32.host_accuracy) == (0.5, 0.95)


def test_a_result_is_added_to_the_report(run: Path, tmp_path: Path, measured: dict[str, Any]) -> None:
    plain = (run / "report.html").read_text()
    assert 'id="device"' not in plain
    path = add_device_result(run, written(tmp_path / "result.json", on_a_jetson(measured)))
    assert path == run / "devices" / "jetson-orin-co-maxn-onnxruntime.json"
    assert len(read_devices(run)) == 1
    page = (run / "report.html").read_text()
    section = page[page.index('<section id="device">') :].split("</section>")[0]
    for words in (
        "On the device",
        "Jetson &lt;Orin&gt; &amp; co",
        "power mode MAXN, clocks locked (CPU 2202 MHz, GPU 1300 MHz)",
        "15.75 mJ",
        "12.5 W, at rest 7.2 W",
        "95.00%",
        "0.500 ms",
        "62 °C",
        "could not run fp8: needs SM 8.9",
        "was throttled: gpu-throttle-alert",
    ):
        assert words in section, words
    before, rest = page.split('<section id="device">')
    assert (before + rest.split("</section>", 1)[1]).split() == plain.split(), "nothing else changes"

    write_report(report_of(measured), run)
    assert 'id="device"' in (run / "report.html").read_text(), "a report written anew keeps the boards"


def test_the_same_board_again_is_replaced_and_another_is_not(
    run: Path, tmp_path: Path, measured: dict[str, Any]
) -> None:
    path = written(tmp_path / "result.json", measured)
    add_device_result(run, path)
    add_device_result(run, path)
    assert len(read_devices(run)) == 1
    assert add_device_result(run, path, name="Board No. 2").name == "board-no.-2.json"
    assert len(read_devices(run)) == 2
    with pytest.raises(InputError, match="cannot be the name of a device"):
        add_device_result(run, path, name="../..")


def test_the_same_board_in_another_power_mode_is_another(run: Path, tmp_path: Path, measured: dict[str, Any]) -> None:
    value = on_a_jetson(measured)
    for mode in ("MAXN", "15W", "15W"):
        value["board"]["power_mode"] = mode
        add_device_result(run, written(tmp_path / "result.json", value))
    assert {result.board.power_mode for result in read_devices(run)} == {"MAXN", "15W"}
    assert len(read_devices(run)) == 2


@pytest.mark.parametrize("name", ["other", "brightness"])
def test_the_result_of_another_student_is_refused(tmp_path: Path, measured: dict[str, Any], name: str) -> None:
    """Of another name, and of the same one with other weights."""
    write_report(sample_report(names=("big", name)), tmp_path / "run")
    words = f"is of brightness, whose files are none of this run's: its student is {name}, SHA-256 000000000000"
    with pytest.raises(InputError, match=words):
        add_device_result(tmp_path / "run", written(tmp_path / "result.json", measured))
    assert not (tmp_path / "run" / "devices").exists()


def test_a_precision_that_only_the_board_runs_is_the_run_s(tmp_path: Path, measured: dict[str, Any]) -> None:
    """The float32 file did not run there, and the host's report knows no other."""
    run = tmp_path / "run"
    write_report(sample_report(names=("big", "brightness")), run)
    (run / "variants").mkdir()
    (run / "variants" / "student-fp16.onnx").write_bytes(b"cast")
    digest = hashlib.sha256(b"cast").hexdigest()
    value = {**measured, "models": [{**measured["models"][0], "sha256": digest}]}
    assert add_device_result(run, written(tmp_path / "result.json", value)).is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"complete": False}, "did not end"),
        ({"schema_version": 99}, "schema version 99"),
        ({"models": [{"precision": "fp32"}]}, r"damaged at models\.0\.sha256"),
        ({"verdict": None}, "damaged at verdict"),
        ({"surprise": 1}, "damaged at surprise"),
    ],
)
def test_damaged_results_are_refused(
    tmp_path: Path, measured: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        read_device_result(written(tmp_path / "result.json", {**measured, **change}))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "{}"])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="no device result"):
        read_device_result(tmp_path / "absent.json")
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(InputError, match="is not a device result"):
        read_device_result(tmp_path / "result.json")


def test_a_page_without_boards_is_as_before() -> None:
    assert render(sample_report()) == render(sample_report(), [])
