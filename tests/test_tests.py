"""The tests' own order: each file stands alone, and lies where the package has what it tests."""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.paths import ROOT, TESTS

FILES = sorted(TESTS.rglob("*.py"))
TEST_FILES = [path for path in FILES if path.name.startswith("test_")]
NAMES = {path.stem for path in TEST_FILES} | {"conftest"}
# Real servers, and campaigns of minutes to hours, which several parts of the package meet.
ONLY_HERE = {Path("storage"), Path("campaigns")}

IMPORT = re.compile(r"\b(?:from|import)\s+(?:\w+\.)*(\w+)")  # in code for another process


def name_of(path: Path) -> str:
    return path.relative_to(TESTS).as_posix()


def imported(source: str) -> set[str]:
    """Last names of the modules that a file imports, in its code or in code that it starts."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").split(".")[-1], *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[-1] for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(IMPORT.findall(node.value))
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_imports_a_test(path):
    """What two of them need is in tests/support."""
    others = imported(path.read_text()) & NAMES
    assert not others, f"{name_of(path)} imports {', '.join(sorted(others))}"


@pytest.mark.parametrize(
    "source",
    [
        "from test_{} import work",
        "import test_{}",
        "import os, tests.test_{}",
        "def f():\n    from tests import test_{}",
        "code = 'import sys; from test_{} import *'",
        "code = f'import {sys}; import test_{}'",
    ],
)
def test_every_way_to_import_one_is_seen(source):
    assert "test_pool" in imported(source.replace("test_{}", "test_pool"))


def test_no_helper_hides_a_module_of_the_standard_library():
    """A helper that is run as a script has its folder first on its path: ``html`` broke moto."""
    helpers = {path.stem for path in TESTS.rglob("*.py")} - NAMES
    assert not helpers & sys.stdlib_module_names


def test_file_names_are_unique():
    """Pytest imports a file of a folder without ``__init__.py`` by its name alone."""
    counts = Counter(path.name for path in TEST_FILES)
    assert [name for name, count in counts.items() if count > 1] == []


def test_folders_are_those_of_the_package():
    folders = {path.parent.relative_to(TESTS) for path in TEST_FILES}
    assert [str(f) for f in folders - ONLY_HERE if not (ROOT / "i3d" / f).is_dir()] == []
