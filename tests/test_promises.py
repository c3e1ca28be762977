"""What the pages on security and reliability name is there, and is as they say."""

import importlib
import re

import pytest
from campaigns.chaos.disturbances import DISTURBANCES
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


def test_the_tests_that_reliability_names_are_there():
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = set(re.findall(r"`(tests/[\w/.]+)`", page))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_disturbance_is_on_the_page():
    page = (ROOT / "docs" / "reliability.md").read_text()
    assert [name for name in DISTURBANCES if f"`{name}`" not in page] == []
