"""Every JSON text is made with an answer to NaN, which JSON does not know."""

import ast

import pytest
from support.paths import ROOT

SHOWN = {"records.py"}  # where texts are compared and shown in messages, and never written


def dumps(path):
    """The calls of `json.dumps` and `json.dump` in a file: (line, value of ``allow_nan``)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr in ("dump", "dumps") and getattr(node.func.value, "id", "") == "json":
            values = [k.value.value for k in node.keywords if k.arg == "allow_nan"]
            yield node.lineno, values


@pytest.mark.parametrize("path", sorted((ROOT / "i3d").rglob("*.py")), ids=lambda p: p.stem)
def test_no_json_text_can_hold_nan(path):
    for line, values in dumps(path):
        allowed = [[False]] + [[True]] * (path.name in SHOWN)
        assert values in allowed, f"{path}:{line} writes NaN, which is no JSON"
