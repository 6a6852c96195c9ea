"""docs/benchmarking.md maps every rule of measuring to code and a test: both must exist under the names it gives."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "benchmarking.md").read_text(encoding="utf-8")
ROWS = [line.split(" | ") for line in TEXT.splitlines() if re.match(r"\| \d+ \|", line)]


def test_every_point_has_code_and_a_test() -> None:
    assert [int(row[0].strip("| ")) for row in ROWS] == list(range(1, 13))
    for row in ROWS:
        _, rule, code, test = row
        assert "`" in code, rule
        assert "test_" in test, rule


def test_every_test_and_file_that_is_named_exists() -> None:
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in set(re.findall(r"\btest_\w+\b(?!\.py)", TEXT)):
        assert f"def {name}(" in written, name
    for name in set(re.findall(r"`((?:\w+/)+\w+\.py)", TEXT)):
        assert (ROOT / name).is_file(), name
    for name in set(re.findall(r"\btest_\w+\.py", TEXT)):
        assert list((ROOT / "tests").rglob(name)), name


def test_every_name_of_the_code_exists() -> None:
    modules = {path.stem: path for path in (ROOT / "deploy").glob("*.py")}
    named = {found for found in re.findall(r"`(\w+)\.(\w+)`", TEXT) if found[0] in modules and found[1] != "py"}
    assert ("benchmark", "TimedSession") in named
    for module, name in named:
        assert re.search(rf"\b{name}\b", modules[module].read_text(encoding="utf-8")), f"{module}.{name}"
