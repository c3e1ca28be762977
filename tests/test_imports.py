"""Imports go one way and in no circle, and what is slow is imported late."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import i3d

PACKAGE = Path(i3d.__file__).parent

# What a room (a folder, or a file beside the folders) may import besides itself.
GROUND = {"errors", "lazy", "settings", "version"}
ALLOWED = {
    "errors": set(),
    "lazy": set(),
    "settings": set(),
    "version": set(),
    "presets": GROUND,
    "records": GROUND,
    "archives": GROUND,
    "torch_files": GROUND | {"archives", "copies"},
    "copies": GROUND,
    "web": GROUND | {"copies"},
    "remote": GROUND | {"copies", "web"},
    "spreadsheet": GROUND,
    "files": GROUND | {"remote"},
    "command": GROUND,
    "console": GROUND | {"files"},
    "classes": GROUND | {"files"},
    "parallel": GROUND,
    "video": GROUND | {"files", "presets"},
    "flow": GROUND | {"presets"},
    "clips": GROUND | {"presets"},
    "metrics": GROUND,
    "report": GROUND | {"files"},
    "data": GROUND
    | {
        "records",
        "torch_files",
        "spreadsheet",
        "copies",
        "files",
        "presets",
        "classes",
        "parallel",
        "video",
        "flow",
        "clips",
    },
    "models": GROUND
    | {"records", "archives", "torch_files", "files", "presets", "classes", "console", "web"},
}
BELOW = set(ALLOWED)
# The rooms that join the others, from the lower to the upper; the package's own names are lazy.
ALLOWED |= {"tasks": BELOW, "demo": BELOW | {"tasks"}, "cli": BELOW | {"tasks", "demo"}}
FACES = {"", "__main__"}


def module_of(path: Path) -> str:
    """``data.shards.reader``; a package's ``__init__`` is the package, ours is ``""``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it; a name's module is the name's home."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module.split(".")[0] != "i3d":
                continue
            home = node.module.partition(".")[2]
            for alias in node.names:
                deeper = f"{home}.{alias.name}".strip(".")
                found.add(deeper if deeper in FILES else home)
        elif isinstance(node, ast.Import):
            names = (alias.name.partition(".") for alias in node.names)
            found |= {rest for top, _, rest in names if top == "i3d"}
    return found


def room_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", sorted(set(FILES) - FACES))
def test_imports_go_one_way(module):
    rooms = {room_of(other) for other in imported(FILES[module])}
    forbidden = rooms - ALLOWED[room_of(module)] - {room_of(module)}
    assert not forbidden, f"{module} imports {forbidden}"


def test_every_room_is_listed():
    assert {room_of(module) for module in FILES} == set(ALLOWED) | FACES


def test_no_circle_of_imports():
    graph = {
        module: imported(path) - {"", module} for module, path in FILES.items() if module != ""
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_no_file_imports_its_own_rooms_face():
    """From inside a folder its files are named themselves: their order would be hidden."""
    for module, path in FILES.items():
        parents = {module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)}
        assert not imported(path) & parents, f"{module} imports its own package's names"


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
