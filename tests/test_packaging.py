"""What is installed, what importing costs, and what the documents promise."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from small import arguments

from iekd.compress import cli

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """The packages are symbolic links in the source tree: a build that missed one would install without it."""
    expected = {"iekd/__init__.py", "iekd/errors.py", "iekd/files.py", "iekd/py.typed"}
    for part in ("compress", "deploy", "models"):
        files = (path for path in (ROOT / part).rglob("*") if path.suffix in (".py", ".j2", ".typed"))
        expected |= {f"iekd/{path.relative_to(ROOT)}" for path in files if "__pycache__" not in path.parts}
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_the_wheel_declares_its_command_and_its_extras(wheel: zipfile.ZipFile) -> None:
    entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "iekd-compress = iekd.compress.cli:main" in wheel.read(entry).decode()
    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    extras = set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE))
    assert {"cpu", "gpu", "dev"} <= extras
    for extra in ("cpu", "gpu"):
        brought = [line for line in metadata.splitlines() if line.endswith(f'extra == "{extra}"')]
        assert any("iekd-compress[search]" in line for line in brought), "the main command searches"
    plain = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra" not in line]
    assert not [line for line in plain if "onnxruntime" in line], "the runtime is the user's choice: [cpu] or [gpu]"


def _rule(target: str) -> tuple[str, str]:
    """Prerequisites and recipe of a target of the Makefile, its variables put in."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for _ in range(3):  # variables that name variables
        for name, value in re.findall(r"^(\w+) \??:?= (.*)$", text, re.MULTILINE):
            text = text.replace(f"$({name})", value)
    found = re.search(rf"^{re.escape(target)}:(.*)\n((?:\t.*\n)*)", text, re.MULTILINE)
    assert found, target
    return found.group(1).strip(), found.group(2)


def test_the_gpu_s_tests_have_an_environment_and_the_gpu_to_themselves() -> None:
    """With [cpu] every one of them is skipped; beside another test what they measure is that test's too."""
    environment, recipe = _rule("gpu-test")
    assert '-m pytest -m "gpu or tensorrt"' in recipe
    assert not re.search(r"-n\b|--dist|xdist", recipe)
    assert environment == ".venv-gpu/installed-dev"
    assert recipe.strip().startswith(".venv-gpu/bin/python ")
    made = _rule(environment)[1]
    assert "-m venv .venv-gpu\n" in made
    assert "'.[gpu,dev]'" in made
    for other in (".venv/installed", ".venv/installed-dev"):
        assert "gpu" not in _rule(other)[1]
    assert ".venv-gpu/" in (ROOT / ".gitignore").read_text().splitlines()
    assert ".venv-gpu " in _rule("clean")[1]


def test_the_light_modules_import_nothing_heavy() -> None:
    code = (
        "import sys, iekd, iekd.errors, iekd.files, iekd.compress.config, iekd.compress.cli, iekd.models.aliases\n"
        "import iekd.compress.objectives.catalogue, iekd.deploy.doctor\n"
        "print(sorted({'torch', 'timm', 'numpy', 'onnx', 'pydantic', 'sklearn', 'matplotlib'} & sys.modules.keys()))\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_banned_imports_are_banned(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text('"""Doc."""\n\nfrom deploy import export\n\n__all__ = ["export"]\n')
    command = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), str(bad)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert "TID251" in answer.stdout


def _commands(document: Path) -> list[str]:
    """The ``iekd-compress`` commands in a document's shell blocks, continued lines joined."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip().removeprefix("$ ") for line in lines if "iekd-compress " in line]


DOCUMENTED = [
    (document.name, line)
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for line in _commands(document)
    if line.startswith("iekd-compress")
]


@pytest.mark.parametrize(("document", "line"), DOCUMENTED)
def test_documented_commands_take_the_options_that_they_show(document: str, line: str) -> None:
    """Every command in the documents is understood: parsed with its options, without running the job."""
    code = (
        "import sys; from iekd.compress import cli, config_input\n"
        "config_input.read_config_file = lambda _: {}\n"
        "cli._run = cli.run_search = lambda *_, **__: sys.exit(77)\n"
        "sys.argv = sys.argv[1:]; cli.main()"
    )
    words = shlex.split(line)
    trains = {"teacher", "distill"}
    sub = {command.name or command.callback.__name__ for command in cli.app.registered_commands} - trains
    sub &= set(words[1:2])
    if sub:
        words = [*words[:2], "--help"]
    answer = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert answer.returncode == (0 if sub or "--help" in words or "--version" in words else 77), answer.stderr


@pytest.mark.slow
def test_the_readme_s_main_command_runs(tmp_path: Path) -> None:
    """The README's first command, word for word, with options added that make it small."""
    line = next(line for name, line in DOCUMENTED if name == "README.md" and "--teacher resnet50" in line)
    small = arguments()
    for flag in ("--teacher", "--student"):
        at = small.index(flag)
        del small[at : at + 2]
    words = [sys.executable, "-m", "iekd.compress.cli", *shlex.split(line)[1:], *small]
    answer = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "runs").is_dir()


def test_no_document_links_to_a_missing_file() -> None:
    missing = []
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if "://" not in target and not (document.parent / target).exists():
                missing.append(f"{document.relative_to(ROOT)}: {target}")
    assert not missing
