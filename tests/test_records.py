"""Settings that a job was begun with, compared with those that it is asked for now."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from i3d.errors import DatasetError, UsageError
from i3d.records import differences, parse, refuse_other_settings


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        ({"a": 1, "b": [1, 2]}, {"b": (1, 2), "a": 1}, []),
        ({"a": 95}, {"a": 95.0}, ["a: 95, now 95.0"]),
        ({"a": 1}, {"a": True}, ["a: 1, now true"]),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}, []),
        ({}, {"a": None}, []),  # an option that is younger than the work, and not used
        ({"a": "x"}, {"b": "y"}, ['a: "x", now absent', 'b: absent, now "y"']),
        ({"a": "0" * 64}, {"a": "1" * 64}, ['a: "000000000000...", now "111111111111..."']),
    ],
)
def test_differences(before, now, lines):
    assert differences(before, now) == lines


def test_long_values_and_many_differences_are_cut():
    lines = differences({str(i): "x" * 1000 for i in range(9)}, {})
    assert len(lines) == 9 and all(len(line) < 250 for line in lines)
    with pytest.raises(
        UsageError, match=r"^out was begun with other settings: .*and 4 more\)"
    ) as e:
        refuse_other_settings("out", lines)
    assert str(e.value).endswith("Use the same settings, or another output")
    refuse_other_settings("out", [])


def test_a_name_of_a_file_stays_on_its_line():
    @dataclass(frozen=True)
    class Numbers:
        numbers: Mapping[str, int]

    with pytest.raises(DatasetError) as error:
        parse("k", Numbers, b'{"format": "k", "numbers": {"a\\nb": null}}', "it")
    assert str(error.value) == "it: numbers.'a\\nb' is None; expected int"


def test_names_and_values_stay_on_their_line():
    (line,) = differences({"version of a\nb": "c\nd"}, {})
    assert line.isprintable() and "a\\nb" in line and "c\\nd" in line


def test_peers_are_compared_in_other_words():
    assert differences({"a": 1}, {"a": 2}, between=" and ") == ["a: 1 and 2"]
