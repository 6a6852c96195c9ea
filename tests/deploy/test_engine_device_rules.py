"""``deploy/device`` travels to boards that have the standard library, numpy and TensorRT, and Python 3.10."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

DEVICE = Path(__file__).parents[2] / "deploy" / "device"
ALLOWED = sys.stdlib_module_names - {"tomllib"} | {"numpy", "tensorrt"}


def forbidden_imports(source: str) -> list[str]:
    """What a file may not import: anything absolute that a board lacks, or relative beyond the folder."""
    found = []
    for node in ast.walk(ast.parse(source, feature_version=(3, 10))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] not in ALLOWED]
        elif isinstance(node, ast.ImportFrom):
            if node.level > 1:
                found.append("." * node.level + (node.module or ""))
            elif node.level == 0 and (node.module or "").split(".")[0] not in ALLOWED:
                found.append(node.module or "")
    return found


@pytest.mark.parametrize("path", sorted(DEVICE.glob("*.py")), ids=lambda path: path.name)
def test_only_what_a_board_has_is_imported(path: Path) -> None:
    optional = ["PIL"] if path.name == "images.py" else []  # image files need it, arrays do not
    assert forbidden_imports(path.read_text(encoding="utf-8")) == optional


def test_a_forbidden_import_is_found() -> None:
    lines = ["import torch", "from iekd.errors import InputError", "from ..files import write_json"]
    source = "\n".join([*lines, "from . import cuda", "import os"])
    assert forbidden_imports(source) == ["torch", "iekd.errors", "..files"]


def test_no_optional_part_is_loaded_on_import() -> None:
    """TensorRT is asked for only when something is built or run, so that its absence can be explained."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.modules['tensorrt'] = None\n"
        "import device.engine, device.session, device.explain\n"
        "print(sorted({'torch', 'onnx', 'iekd', 'PIL'} & {name.split('.')[0] for name in sys.modules}))"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(DEVICE.parent)], capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr
