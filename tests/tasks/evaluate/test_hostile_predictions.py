"""Predictions files that were damaged, changed or made to do harm: one line, with the place."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.command import exit_code

from i3d.data.shards import Failure
from i3d.errors import DatasetError
from i3d.tasks.evaluate.predictions import (
    About,
    Predictions,
    read_predictions,
    write_predictions,
)
from i3d.tasks.network import UsedCheckpoint

CLASSES = ("=1+1", "'quoted", "-x\ny")
REMEDY = "restore it, or evaluate again with --predictions"


@pytest.fixture
def table():
    """Three videos of three classes, whose names a spreadsheet would compute; one was skipped."""
    about = About(
        dataset="val",
        classes=CLASSES,
        preset="kinetics-i3d",
        frames=250,
        clips=1,
        crops=1,
        precision="fp32",
        checkpoints={"rgb": UsedCheckpoint("rgb.npz", "", "r" * 64)},
        versions={},
        found=4,
        skipped=(Failure("d", "damaged"),),
    )
    logits = np.arange(9, dtype=np.float32).reshape(3, 3) / 3 - 1
    return Predictions(about, ("@SUM(A1)", "-1", "plain"), np.arange(3), {"rgb": logits})


@pytest.fixture
def csv_file(tmp_path, table):
    write_predictions(tmp_path / "p.csv", table)
    return tmp_path / "p.csv"


def refusal(path):
    with pytest.raises(DatasetError) as caught:
        read_predictions(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text
    return text


def test_names_that_a_spreadsheet_computes_are_inert_and_read_back(csv_file, table):
    lines = csv_file.read_text().splitlines()
    assert lines[1].startswith("'@SUM(A1),'=1+1,0,-1.0,")
    assert lines[2].startswith("'-1,''quoted,1,0.0,")
    read = read_predictions(csv_file)
    assert (read.videos, read.about.classes) == (table.videos, CLASSES)
    np.testing.assert_array_equal(read.logits["rgb"], table.logits["rgb"])


CSV = {  # what is replaced, by what, and what is said
    "not UTF-8": (b"plain", b"pl\xffin", "line 4: not UTF-8"),
    "header not UTF-8": (b"class", b"cl\xffss", "line 1: not UTF-8"),
    "too wide": (b"-1.0,", b"-1.0,0,", "line 2: 7 columns, and there are 6 above"),
    "too narrow": (b",0,-1.0,", b",0,", "line 2: 5 columns, and there are 6 above"),
    "a word": (b"-1.0", b"minus", "line 2, column rgb_logits_0: 'minus' is not a number"),
    "NaN": (b"-1.0", b"nan", "line 2: rgb_logits, class 0 is nan, which is no logit"),
    "infinity": (b"-1.0", b"-inf", "line 2: rgb_logits, class 0 is -inf, which is no logit"),
    "too large": (
        b"-1.0",
        b"1e31",
        "line 2: rgb_logits, class 0 is 9.999999848243207e+30, which is no logit",
    ),
    "negative index": (b",0,-1.0", b",-1,-1.0", "line 2: index is -1, not one of its 3 classes"),
    "large index": (b",0,-1.0", b",%d,-1.0" % (1 << 80), f"line 2: index is {1 << 80}, not one of"),
    "no index": (b",0,-1.0", b",,-1.0", "line 2, column index: '' is not a number"),
    "long index": (b",0,-1.0", b"," + b"9" * 5000 + b",-1.0", "line 2, column index: '9999"),
    "another class": (b",0,-1.0", b",1,-1.0", "line 2: class is '=1+1', and 1 is \"'quoted\""),
    "a video twice": (b"'-1,", b"'@SUM(A1),", "line 3: '@SUM(A1)' is there twice, first in line 2"),
    "an open quote": (b"plain", b'"plain', "line 4: not CSV (',' expected after '\"')"),
    "no end of a quote": (b",2,", b',"2,', "line 5: not CSV (unexpected end of data)"),
    "a long cell": (
        b"plain",
        b"x" * 131073,
        "line 4: not CSV (field larger than field limit (131072))",
    ),
    "a long line": (b"plain", b"x" * 200000, "line 4: over 131264 bytes"),
    "another header": (b"class", b"label", "column 2 is 'label'"),
    "no streams": (b"rgb_logits_0", b"rgb_logits_5", "6 columns"),
}


@pytest.mark.parametrize(("old", "new", "words"), CSV.values(), ids=CSV)
def test_csv(csv_file, old, new, words):
    data = csv_file.read_bytes()
    assert old in data
    csv_file.write_bytes(data.replace(old, new, 1))
    text = refusal(csv_file)
    assert words in text and text.endswith(REMEDY)


def test_csv_with_rows_missing_or_too_many(csv_file):
    data = csv_file.read_bytes()
    csv_file.write_bytes(data.replace(b"plain", b"plane", 1) + data.splitlines(keepends=True)[-2])
    refusal(csv_file)
    csv_file.write_bytes(data.rsplit(b"plain", 1)[0])
    assert "2 rows and 1 skipped videos are not the 4 that were found" in refusal(csv_file)
    csv_file.write_bytes(data + data[data.index(b"plain") :].replace(b"plain", b"more"))
    assert "4 or more rows and 1 skipped videos are not the 4" in refusal(csv_file)
    csv_file.write_bytes(b"")
    assert "0 columns" in refusal(csv_file)


def test_checkpoints_of_other_streams_are_named_on_the_line(tmp_path, csv_file):
    about = json.loads((tmp_path / "p.csv.json").read_text())
    about["checkpoints"]["a\nb"] = about["checkpoints"]["rgb"]
    (tmp_path / "p.csv.json").write_text(json.dumps(about))
    assert "names checkpoints of 'a\\nb', 'rgb'" in refusal(csv_file)


def test_a_folder_and_what_stands_beside(tmp_path, csv_file):
    (tmp_path / "f.csv").mkdir()
    assert "is a folder" in refusal(tmp_path / "f.csv")
    for content in (b"", b"[]", b"\xff", b"[" * 100_000, b'{"format": NaN}'):
        (tmp_path / "p.csv.json").write_bytes(content)
        with pytest.raises(DatasetError) as caught:
            read_predictions(csv_file)
        assert str(caught.value).startswith(f"{csv_file}.json") and "\n" not in str(caught.value)


def columns(**changes):
    """Function: the Parquet table with other columns."""

    def change(parquet):
        for name, make in changes.items():
            old = parquet.column(name)
            parquet = parquet.set_column(parquet.column_names.index(name), name, make(old))
        return parquet

    return change


def rows(column):
    return column.to_pylist()


LIST = pa.list_(pa.float32())
WRONG = {  # column, what becomes of it, what is said
    "texts for logits": (
        "rgb_logits",
        lambda c: pa.array([[str(x) for x in row] for row in rows(c)]),
        "column rgb_logits is list<",
    ),
    "doubles": ("rgb_logits", lambda c: c.cast(pa.list_(pa.float64())), "and has to be list<"),
    "a dictionary": ("video", lambda c: c.dictionary_encode(), "column video is dictionary<"),
    "numbers for names": ("class", lambda c: pa.array([1, 2, 3]), "column class is int64"),
    "other integers": ("index", lambda c: c.cast(pa.int8()), "column index is int8"),
    "lists of other lengths": (
        "rgb_logits",
        lambda c: pa.array([rows(c)[0], [1.0], rows(c)[2]], LIST),
        "row 2: rgb_logits has 1 values for 3 classes",
    ),
    "an empty list": (
        "rgb_logits",
        lambda c: pa.array([rows(c)[0], rows(c)[1], []], LIST),
        "row 3: rgb_logits has 0 values",
    ),
    "no list": ("rgb_logits", lambda c: pa.array([None, *rows(c)[1:]], LIST), "has empty cells"),
    "a value missing": (
        "rgb_logits",
        lambda c: pa.array([[None, 1.0, 2.0], *rows(c)[1:]], LIST),
        "column rgb_logits has empty cells",
    ),
    "no name": ("video", lambda c: pa.array(["a", None, "b"]), "column video has empty cells"),
    "NaN": (
        "rgb_logits",
        lambda c: pa.array([*rows(c)[:2], [1.0, float("nan"), 2.0]], LIST),
        "row 3: rgb_logits, class 1 is nan, which is no logit",
    ),
    "a negative index": ("index", lambda c: pa.array([0, -1, 2]), "row 2: index is -1"),
    "a large index": ("index", lambda c: pa.array([0, 1, 3]), "row 3: index is 3"),
    "a video twice": ("video", lambda c: pa.array(["a", "b", "a"]), "'a' is there twice, first in"),
    "another class": ("class", lambda c: pa.array(["=1+1"] * 3), "row 2: class is '=1+1', and 1"),
}


@pytest.mark.parametrize(("name", "make", "words"), WRONG.values(), ids=WRONG)
def test_parquet(tmp_path, table, name, make, words):
    path = tmp_path / "p.parquet"
    write_predictions(path, table)
    pq.write_table(columns(**{name: make})(pq.read_table(path)), path)
    text = refusal(path)
    assert words in text and text.endswith(REMEDY)


@pytest.mark.parametrize("what", [b"plain", b"video"])
def test_parquet_that_is_not_utf_8(tmp_path, table, what):
    """A value, and a column's name."""
    path = tmp_path / "p.parquet"
    write_predictions(path, table)
    columns = pq.read_table(path)
    pq.write_table(columns, path, compression="none", use_dictionary=False)
    data = path.read_bytes()
    assert what in data
    path.write_bytes(data.replace(what, b"\xff" + what[1:]))
    assert refusal(path).endswith(REMEDY)


def test_parquet_rows(tmp_path, table):
    path = tmp_path / "p.parquet"
    write_predictions(path, table)
    whole = pq.read_table(path)
    pq.write_table(whole.slice(0, 2), path)
    assert "2 rows and 1 skipped videos are not the 4 that were found" in refusal(path)
    pq.write_table(whole.append_column("video", pa.array(["x"] * 3)), path)
    assert "column video is string, string" in refusal(path)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_parquet(tmp_path, table, seed):
    """A byte or a part of the file is other than it was: read as it was, or one line."""
    path = tmp_path / "p.parquet"
    write_predictions(path, table)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    start = int(rng.integers(len(data)))
    if seed % 3:
        data[start : start + 1 + seed % 5] = rng.bytes(1 + seed % 5)
    else:
        del data[start:]
    path.write_bytes(data)
    try:
        read_predictions(path)
    except DatasetError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)


def test_the_command_says_one_line(tmp_path, csv_file, capfd):
    csv_file.write_bytes(b"\xff" + os.urandom(100))
    assert exit_code("evaluate", "--fuse", csv_file, csv_file) == 1
    out, err = capfd.readouterr()
    assert (
        out == "" and err.startswith(f"i3d: {csv_file}, line 1: not UTF-8") and err.count("\n") == 1
    )


def test_more_than_one_gets_by_with_is_read_from_parts_of_the_file(tmp_path, table):
    """2,500 rows come in three batches, in their order."""
    count = 2500
    about = About(**{**vars(table.about), "found": count, "skipped": ()})
    logits = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    videos = tuple(f"v{i}" for i in range(count))
    many = Predictions(about, videos, np.arange(count) % 3, {"rgb": logits})
    for suffix in ("parquet", "csv"):
        write_predictions(tmp_path / f"p.{suffix}", many)
        read = read_predictions(tmp_path / f"p.{suffix}")
        assert read.videos == many.videos
        np.testing.assert_array_equal(read.targets, many.targets)
        np.testing.assert_array_equal(read.logits["rgb"], logits)
    json.loads((tmp_path / "p.csv.json").read_text())
