"""Clips by a CSV: which video each has, and what is wrong with a CSV."""

import csv
from pathlib import Path

import pytest
from support.kinetics import HEADER, ROW

from i3d.classes import KINETICS_400
from i3d.data.kinetics import read_dataset
from i3d.errors import DatasetError


def test_cvdf(k400):
    dataset = read_dataset(k400 / "val")
    assert dataset.layout == "cvdf"
    assert dataset.classes.name == "kinetics400"
    # What the csv module and a look at the folder say.
    files = {p.stem: p for p in sorted(k400.rglob("*.*")) if p.suffix != ".csv"}
    with (k400 / "annotations/val.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    expected = {}
    for row in rows:
        start, end = float(row["time_start"]), float(row["time_end"])
        key = f"{row['youtube_id']}_{start:06.0f}_{end:06.0f}"
        if key in files:
            expected[key] = (KINETICS_400.index(row["label"]), row["label"])
    assert {v.key: (v.index, v.class_name) for v in dataset.videos} == expected
    assert {v.start_seconds for v in dataset.videos} == {None}
    assert dataset.missing == (("gone-_-gone_000001_000011", "no such file"),)
    assert len(dataset.videos) + len(dataset.missing) == len(rows) == 6
    places = {v.key: Path(v.location).parent.name for v in dataset.videos}
    assert places.pop("replaced000_000002_000012") == "replacement_for_corrupted_k400"
    assert places.pop("replaced111_000003_000013") == "replacement_for_corrupted_k400"
    assert set(places.values()) == {"val"}
    assert "5 videos in" in dataset.description
    assert "for 6 clips of" in dataset.description
    assert "2 taken from replacement_for" in dataset.description
    assert dataset.warnings[0].startswith("left out: 1 video of ")


def test_cvdf_is_found_in_many_ways(k400):
    expected = read_dataset(k400 / "val").videos
    assert read_dataset(k400, split="val").videos == expected
    assert read_dataset(k400, split="validate").videos == expected
    assert read_dataset(k400 / "val", annotations=k400 / "annotations/val.csv").videos == expected
    assert read_dataset(k400 / "val", layout="cvdf").videos == expected
    (k400 / "annotations/val.csv").rename(k400 / "val/labels.csv")
    assert read_dataset(k400 / "val").videos == expected
    # Given as the dataset itself, the CSV says where the videos are.
    assert read_dataset(k400 / "val/labels.csv").videos == expected


def test_cvdf_split_column(tree):
    root = tree(
        {
            "all.csv": HEADER
            + "digging,aaaaaaaaaaa,0,10,train,0\nvault,bbbbbbbbbbb,0,10,validate,0\n",
            "aaaaaaaaaaa_000000_000010.mp4": "",
            "bbbbbbbbbbb_000000_000010.mp4": "",
        }
    )
    assert len(read_dataset(root).videos) == 2
    dataset = read_dataset(root, split="val")
    assert [v.class_name for v in dataset.videos] == ["vault"]
    with pytest.raises(DatasetError, match="no rows of the split 'test'"):
        read_dataset(root, split="test")


def test_cvdf_classes_come_from_the_whole_csv(k400):
    """The rows without a video and of other splits also tell which list it is."""
    path = k400 / "annotations/val.csv"
    path.write_text(path.read_text().replace("digging", "abseiling"))
    with pytest.raises(DatasetError, match=r"val\.csv: ambiguous"):
        read_dataset(k400 / "val")
    path.write_text(path.read_text() + "luge,ccccccccccc,0,10,train,0\n")
    assert read_dataset(k400 / "val").classes.name == "kinetics600"


def test_cvdf_class_folders(tree):
    """Kinetics-600 unpacks into a flat folder with a few class folders."""
    root = tree(
        {
            "val.csv": HEADER + "luge,aaaaaaaaaaa,0,10,val,0\nzumba,bbbbbbbbbbb,0,10,val,0\n",
            "aaaaaaaaaaa_000000_000010.mp4": "",
            "luge/bbbbbbbbbbb_000000_000010.mp4": "",
            "zumba/bbbbbbbbbbb_000000_000010.mp4": "",
        }
    )
    assert [v.location for v in read_dataset(root).videos] == [
        f"{root}/aaaaaaaaaaa_000000_000010.mp4",
        f"{root}/zumba/bbbbbbbbbbb_000000_000010.mp4",
    ]


def test_untrimmed(tree):
    root = tree(
        {
            "val.csv": HEADER
            + "digging,aaaaaaaaaaa,2.5,12.5,val,0\n"
            + "vault,bbbbbbbbbbb,0,10,val,0\n"
            + "zumba,bbbbbbbbbbb,20,30,val,0\n"
            + "zumba,ccccccccccc,7,17,val,0\n",
            "aaaaaaaaaaa.mp4": "",
            "bbbbbbbbbbb.mp4": "",
            "ccccccccccc_000007_000017.mp4": "",
        }
    )
    dataset = read_dataset(root, trim=True)
    assert [(v.key, v.start_seconds, v.end_seconds) for v in dataset.videos] == [
        ("aaaaaaaaaaa_000002_000012", 2.5, 12.5),
        ("bbbbbbbbbbb_000000_000010", 0, 10),
        ("bbbbbbbbbbb_000020_000030", 20, 30),
        ("ccccccccccc_000007_000017", None, None),  # its name says that it is trimmed
    ]
    assert dataset.warnings == ()
    # Without trim a file is one clip, and which one must be clear.
    dataset = read_dataset(root)
    assert [(v.key, v.start_seconds) for v in dataset.videos] == [
        ("aaaaaaaaaaa_000002_000012", None),
        ("ccccccccccc_000007_000017", None),
    ]
    reason = "2 clips share one file; trim would cut them out"
    assert dataset.missing == (
        ("bbbbbbbbbbb_000000_000010", reason),
        ("bbbbbbbbbbb_000020_000030", reason),
    )


def test_repeated_and_contradicting_rows(tree):
    root = tree(
        {
            "val.csv": HEADER
            + "digging,aaaaaaaaaaa,0,10,val,0\n" * 2
            + "vault,bbbbbbbbbbb,0,10,val,0\n"
            + "zumba,bbbbbbbbbbb,0,10,val,0\n",
            "aaaaaaaaaaa_000000_000010.mp4": "",
            "bbbbbbbbbbb_000000_000010.mp4": "",
        }
    )
    dataset = read_dataset(root)
    assert [v.class_name for v in dataset.videos] == ["digging"]
    assert dataset.missing == (
        ("bbbbbbbbbbb_000000_000010", "lines 4 and 5 of the CSV contradict"),
    )
    assert "2 lines of" in dataset.warnings[0]


def test_csv_without_labels(tree):
    """The test set of Kinetics-600."""
    root = tree(
        {
            "test/a-aaaaaaaaa_000000_000010.mp4": "",
            "annotations/test.csv": "youtube_id,time_start,time_end,split\na-aaaaaaaaa,0,10,test\n",
        }
    )
    with pytest.raises(DatasetError, match=r"test\.csv, line 1: no column label; it has youtube"):
        read_dataset(root / "test")
    dataset = read_dataset(root / "test", labels="optional")
    assert [(v.key, v.index) for v in dataset.videos] == [("a-aaaaaaaaa_000000_000010", None)]
    assert dataset.classes is None
    assert dataset.description.endswith("; no labels")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,time_start,time_end\n", "line 1: no column youtube_id; it has label, time_start"),
        ("label,youtube_id\n", "line 1: no column time_start, time_end"),
        (HEADER, "no rows"),
        (HEADER + ROW + "digging,aaaaaaaaaaa,0\n", "line 3: 3 fields, but the header has 6"),
        (HEADER + "a, b,aaaaaaaaaaa,0,10,val,0\n", "line 2: 7 fields.*double quotes"),
        (HEADER + "\n" + ROW.replace("10", "ten"), "line 3: 'ten' is not a time"),
        (HEADER + ROW.replace(",0,10", ",nan,10"), "line 2: 'nan' is not a time"),
        (HEADER + ROW.replace("10", "1e300"), "line 2: '1e300' is not a time"),
        (HEADER + ROW.replace(",0,10", ",-1,10"), "line 2: '-1' is not a time"),
        (HEADER + ROW.replace(",0,10", ",10,10"), "line 2: time_end 10 is not after time_start 10"),
        (HEADER + ROW.replace("aaaaaaaaaaa", ""), "line 2: '' is no youtube_id"),
        (HEADER + ROW.replace("aaaaaaaaaaa", "../../etc"), r"line 2: '../../etc' is no youtube_id"),
        (HEADER + ROW.replace("digging", ""), "line 2: no label for 'aaaaaaaaaaa'"),
        (HEADER + ROW.replace("digging", "diging"), "'diging' is no class.*nearest: 'digging'"),
        (HEADER + ROW + '"dig' + ROW + ROW, "line 3: a double quote is not closed"),
        (HEADER + '"dig"x,aaaaaaaaaaa,0,10,val,0\n', "line 2: .*expected after"),
        (HEADER + ROW * 9 + '"' + "x\n" * 90_000, "line 11: a double quote is not closed"),
        (HEADER + "x" * 70_000, "line 2 has 70,000 characters"),
        (HEADER + ROW + "dig\0ging", "line 3: a NUL byte"),
        (HEADER.encode() + b"\n\xe9t\xe9", "line 3: byte 0xe9 is not UTF-8"),
    ],
)
def test_bad_csv(tree, text, message):
    root = tree({"aaaaaaaaaaa_000000_000010.mp4": "", "val.csv": text})
    with pytest.raises(DatasetError, match=message) as error:
        read_dataset(root)
    assert "val.csv" in str(error.value)
    assert len(str(error.value)) < 500


def test_unknown_label_names_its_line(k400):
    path = k400 / "annotations/val.csv"
    path.write_text(path.read_text().replace("zumba", "zumbah"))
    with pytest.raises(DatasetError, match=r"val\.csv, line 5: class 'zumbah'.*'zumba'"):
        read_dataset(k400 / "val", classes="kinetics400")


def test_no_video_of_the_csv(tree):
    root = tree({"val.csv": HEADER + ROW, "bbbbbbbbbbb_000000_000010.mp4": ""})
    with pytest.raises(
        DatasetError, match=r"no video for the 1 clip of.*aaaaaaaaaaa_000000_000010\.mp4"
    ):
        read_dataset(root)
