"""SECURITY.md's table is true: each constant is there, and has the value that the page tells."""

import importlib
import re

import pytest
from support.paths import ROOT

UNITS = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
ROW = re.compile(
    r"\| [^|]*\| ([\d,]+)(?: (KiB|MiB|GiB))? \| [^|]+ \| `(\w+)` \| `(i3d/[\w/]+\.py)` \|"
)

LINES = (ROOT / "SECURITY.md").read_text().splitlines()
ROWS = [match for match in map(ROW.fullmatch, LINES) if match]


def test_the_whole_table_is_read():
    rows = [line for line in LINES if line.startswith("|")]
    assert len(ROWS) == len(rows) - 2 > 40  # its head has two lines


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[4]}-{row[3]}")
def test_a_bound_is_what_the_page_says(row):
    number, unit, name, path = row.groups()
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    value = getattr(module, name)
    value = int(value * UNITS["GiB"]) if name.endswith("_GIB") else value
    assert value == int(number.replace(",", "")) * UNITS[unit]
