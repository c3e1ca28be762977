"""Texts in CSV files: inert in a spreadsheet, and back as they were."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d.spreadsheet import read_cell, write_cell, write_table

FORMULAS = ["=HYPERLINK(1)", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "\uff1d1", "'=1", "'"]


@given(st.text())
def test_every_text_comes_back(text):
    assert read_cell(write_cell(text)) == text


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_begins_a_formula(text):
    data = write_table(["video", "reason"], [(text, f"{text} again")])
    _, row = csv.reader(io.StringIO(data.decode(), newline=""))
    assert row == [f"'{text}", f"'{text} again"]
    assert [read_cell(cell) for cell in row] == [text, f"{text} again"]


def test_numbers_are_numbers_and_other_texts_are_as_they_are():
    data = write_table(["a", "b"], [('a/b, "c"', -1), ("日本", np.float32(-0.1))])
    assert data.decode() == 'a,b\n"a/b, ""c""",-1\n日本,-0.1\n'


def test_a_name_that_is_no_text_is_written():
    assert write_table(["a"], [("x\udcff",)]) == b"a\nx\\udcff\n"
