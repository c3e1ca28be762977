"""Imports go one way, and what is slow is imported late."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import i3d

PACKAGE = Path(i3d.__file__).parent

# What a part of the package may import besides itself; tasks, cli and demo join the parts.
ALLOWED = {
    "errors": set(),
    "presets": {"errors"},
    "files": {"errors"},
    "console": set(),
    "distributed": {"errors"},
    "workers": set(),
    "memory": set(),
    "classes": {"errors", "files"},
    "video": {"errors", "files", "presets"},
    "flow": {"errors", "presets"},
    "clips": {"errors", "presets"},
    "metrics": {"errors"},
    "frechet": {"errors"},
    "data": {"errors", "files", "presets", "classes", "video", "flow", "clips", "workers"},
    "models": {"errors", "files", "presets", "classes", "console", "memory"},
}
JOINING = {"tasks", "cli", "demo", "__init__", "__main__"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "i3d":
                names = [f"i3d.{alias.name}" for alias in node.names]
            else:
                names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("i3d.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_go_one_way(path):
    part = part_of(path)
    if part in JOINING:
        return
    forbidden = imported_parts(path) - ALLOWED[part] - {part}
    assert not forbidden, f"{path.relative_to(PACKAGE)} imports {forbidden}"


def test_every_part_is_listed():
    parts = {part_of(p) for p in PACKAGE.rglob("*.py")}
    assert parts == set(ALLOWED) | JOINING


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("code", ["import i3d", "import i3d.cli"])
def test_nothing_heavy_is_imported_early(code):
    heavy = {"torch", "numba", "cv2", "av", "numpy", "matplotlib", "huggingface_hub", "fsspec"}
    assert not loaded_after(code) & heavy


def test_public_names_exist():
    for name in i3d.__all__:
        assert getattr(i3d, name) is not None
    assert set(i3d.__all__) <= set(dir(i3d))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = i3d.nothing
