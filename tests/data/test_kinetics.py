import csv
import os
import random
import re
from pathlib import Path
from urllib.parse import unquote

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d.classes import KINETICS_400, KINETICS_600, ClassList
from i3d.data.kinetics import VIDEO_SUFFIXES, Video, read_dataset
from i3d.data.kinetics.read import _keys
from i3d.errors import DatasetError, UsageError

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


@pytest.fixture
def tree(tmp_path):
    """Writes files given as {path: text} under a folder, and returns the folder."""

    def make(files, top="data"):
        for name, text in files.items() if isinstance(files, dict) else ((n, "") for n in files):
            path = tmp_path / top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / top

    return make


def table(dataset):
    """What matters of the videos: key, index, name under the root's parent."""
    return [(v.key, v.index, Path(v.location).name) for v in dataset.videos]


# Class folders


def test_class_folders_use_the_full_list(tree):
    root = tree(["zumba/b.mp4", "zumba/a.MKV", "playing_cricket/x_-y.webm", "digging/q.mp4"])
    dataset = read_dataset(root)
    assert dataset.layout == "folders"
    assert dataset.classes.name == "kinetics400"
    assert table(dataset) == [
        ("digging/q", KINETICS_400.index("digging"), "q.mp4"),
        ("playing_cricket/x_-y", 227, "x_-y.webm"),
        ("zumba/a", 399, "a.MKV"),
        ("zumba/b", 399, "b.mp4"),
    ]
    assert dataset.videos[1] == Video(
        "playing_cricket/x_-y",
        f"{root}/playing_cricket/x_-y.webm",
        "playing cricket",
        227,
    )
    assert dataset.missing == dataset.warnings == ()
    assert dataset.description == (
        f"folders: 4 videos in 3 class folders of {root}; 400 classes of kinetics400"
    )


def test_subset_of_both_lists_must_be_told(tree):
    root = tree(["zumba/a.mp4", "abseiling/b.mp4"])
    with pytest.raises(DatasetError, match=r"ambiguous.*--classes kinetics400 or --classes kinet"):
        read_dataset(root)
    assert [v.index for v in read_dataset(root, classes="kinetics400").videos] == [0, 399]
    assert [v.index for v in read_dataset(root, classes="kinetics600").videos] == [0, 599]


def test_an_empty_class_folder_tells_the_list(tree):
    root = tree(["zumba/a.mp4"])
    (root / "luge").mkdir()
    (root / "my notes").mkdir()
    assert read_dataset(root).videos[0].index == 599


def test_unknown_folder_lists_the_nearest(tree):
    root = tree(["zumba/a.mp4", "playing crickt/b.mp4", "digging/c.mp4"])
    with pytest.raises(DatasetError, match=r"'playing crickt'.*'playing cricket'"):
        read_dataset(root)
    with pytest.raises(DatasetError, match=r"data/playing crickt: .*'playing cricket'"):
        read_dataset(root, classes="kinetics400")


def test_sorted_folders_come_with_a_warning(tree):
    root = tree(["walk/a.mp4", "Run/b.mp4", "annotations/notes.txt"])
    (root / "jump").mkdir()
    dataset = read_dataset(root, classes="folders")
    assert dataset.classes == ClassList("folders", ("Run", "jump", "walk"))
    assert [v.index for v in dataset.videos] == [0, 2]
    assert "sorted list of these folders" in dataset.warnings[0]
    assert "no videos for 1 class folder, such as 'jump'" in dataset.warnings[1]


def test_class_file(tree):
    root = tree({"data/walk/a.mp4": "", "data/jump_high/b.mp4": "", "c.txt": "jump high\nwalk\n"})
    dataset = read_dataset(root / "data", classes=root / "c.txt")
    assert [(v.class_name, v.index) for v in dataset.videos] == [("jump high", 0), ("walk", 1)]
    assert dataset.classes.name == "c"


def test_what_is_no_video_is_ignored_and_counted(tree):
    root = tree(
        [
            "digging/a.mp4",
            "digging/._a.mp4",
            "digging/b.mp4.part",
            "digging/c.jpg",
            "digging/.hidden/d.mp4",
            "digging/deeper/e.mp4",
            ".cache/f.mp4",
            "readme.txt",
        ]
    )
    dataset = read_dataset(root)
    assert [v.key for v in dataset.videos] == ["digging/a"]
    assert ", 6 other files ignored;" in dataset.description


def test_unlabelled_when_optional(tree):
    root = tree(["batch 1/a.mp4", "batch 2/a.mp4"])
    dataset = read_dataset(root, labels="optional")
    assert [(v.key, v.index) for v in dataset.videos] == [("batch 1/a", None), ("batch 2/a", None)]
    assert dataset.classes is None
    assert "labels are ignored: 'batch 1' (and 1 more) is no class" in dataset.warnings[0]


def test_order_does_not_depend_on_the_listing(tree, monkeypatch):
    root = tree([f"{c}/{i}.mp4" for c in ("digging", "zumba", "vault") for i in range(20)])
    expected = read_dataset(root)
    real = os.scandir

    class Shuffled:
        def __init__(self, path):
            with real(path) as entries:
                self.entries = list(entries)
            random.Random(len(str(path))).shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *args):
            return None

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert read_dataset(root) == expected
    assert [v.key for v in expected.videos] == sorted(v.key for v in expected.videos)


def test_links(tree):
    root = tree(["digging/a.mp4"])
    (root / "loop").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "digging/self.mp4").symlink_to(root / "digging/self.mp4")
    (root / "digging/gone.mp4").symlink_to(root / "nowhere.mp4")
    (root / "vault").symlink_to(root / "digging")
    # A broken link is a video that does not decode: it must show as skipped, not vanish.
    assert [v.key for v in read_dataset(root).videos] == [
        "digging/a",
        "digging/gone",
        "digging/self",
        "vault/a",
        "vault/gone",
        "vault/self",
    ]


def test_nothing_there(tree, tmp_path):
    with pytest.raises(DatasetError, match=r"cannot read .*none"):
        read_dataset(tmp_path / "none")
    root = tree(["videos/digging/a.mp4", "notes.txt"])
    with pytest.raises(
        DatasetError, match=r"no videos in it or in its 1 folder.*is the dataset in"
    ):
        read_dataset(root)
    (tmp_path / "empty").mkdir()
    for layout in (None, "folders", "flat"):
        with pytest.raises(DatasetError, match="no videos"):
            read_dataset(tmp_path / "empty", layout=layout)
    with pytest.raises(DatasetError, match="no CSV in or beside it"):
        read_dataset(tmp_path / "empty", layout="cvdf")


def test_splits(tree):
    root = tree(["train/digging/a.mp4", "val/vault/b.mp4", "videos_test/vault/c.mp4"])
    with pytest.raises(DatasetError, match=r"the splits train, val, videos_test; pass one: /"):
        read_dataset(root)
    assert [v.key for v in read_dataset(root, split="val").videos] == ["vault/b"]
    assert [v.key for v in read_dataset(root, split="test").videos] == ["vault/c"]
    with pytest.raises(DatasetError, match="no folder for the split 'train'"):
        read_dataset(root / "train", split="train")
    (root / "validation").mkdir()
    with pytest.raises(DatasetError, match="could be val or validation"):
        read_dataset(root, split="val")


# Keys


def test_keys_keep_the_suffix_only_where_needed(tree):
    root = tree(
        ["digging/a.mp4", "digging/a.mkv", "digging/a.mp4.mp4", "digging/b.v2.mp4", "vault/a.mp4"]
    )
    assert [(v.key, unquote(v.key)) for v in read_dataset(root).videos] == [
        ("digging/a%2Emkv", "digging/a.mkv"),
        ("digging/a%2Emp4", "digging/a.mp4"),
        ("digging/a%2Emp4%2Emp4", "digging/a.mp4.mp4"),
        ("digging/b%2Ev2", "digging/b.v2"),
        ("vault/a", "vault/a"),
    ]


def test_names_that_are_no_utf8(tree):
    root = tree(["digging/a.mp4"])
    Path(os.fsdecode(os.fsencode(root) + b"/digging/\xff\n.mp4")).touch()
    dataset = read_dataset(root)
    assert [v.key for v in dataset.videos] == ["digging/%FF%0A", "digging/a"]
    assert Path(dataset.videos[0].location).exists()


names = st.binary(min_size=1, max_size=6).map(os.fsdecode).filter(lambda n: not set("/\0") & set(n))
paths = st.builds(
    "{}/{}{}".format,
    st.sampled_from(["digging", "a.b", ".."]),
    st.one_of(names, st.sampled_from(["a", "a.mp4", "a%2Emp4", "a.mkv", "."])),
    st.sampled_from(["", ".mp4", ".MP4", ".mkv"]),
).map(lambda name: name + ".mp4")


@given(st.sets(paths, max_size=12).map(sorted))
def test_keys_are_unique_portable_and_reversible(paths):
    keys = _keys(paths)
    assert len(set(keys)) == len(paths)
    for key, path in zip(keys, paths, strict=True):
        assert re.fullmatch(r"[A-Za-z0-9 /_~'()%-]+", key)
        name = unquote(key, errors="surrogateescape")
        assert path == name or path == name + Path(path).suffix


# CVDF


@pytest.fixture
def k400(tree):
    """The layout of CVDF's mirror, three classes of it."""
    rows = [
        ("digging", "-_a-b_c-d_e", 5, 15, "val"),
        ('"arm wrestling"', "abcdefghijk", 0, 10, "val"),
        ('"passing American football (in game)"', "0_-0_-0_-00", "30.0", "40.0", "val"),
        ("zumba", "gone-_-gone", 1, 11, "val"),
        ("zumba", "replaced000", 2, 12, "val"),
        ("zumba", "replaced111", 3, 13, "val"),
    ]
    text = HEADER + "".join(",".join(map(str, row)) + ",0\n" for row in rows)
    good = "replacement/replacement_for_corrupted_k400"
    return tree(
        {
            "annotations/val.csv": text,
            "annotations/train.csv": HEADER,
            "val/-_a-b_c-d_e_000005_000015.mp4": "",
            "val/abcdefghijk_000000_000010.mkv": "",
            "val/0_-0_-0_-00_000030_000040.webm": "",
            "val/replaced000_000002_000012.mp4": "",
            "val/unlisted000_000000_000010.mp4": "",
            f"{good}/replaced000_000002_000012.mp4": "",
            f"{good}/replaced111_000003_000013.mp4": "",
            f"{good}/elsewhere00_000003_000013.mp4": "",
        },
        "k400",
    )


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


ROW = "digging,aaaaaaaaaaa,0,10,val,0\n"


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


def test_which_csv(tree):
    root = tree({"a.csv": HEADER, "b.csv": HEADER, "x.mp4": ""})
    with pytest.raises(DatasetError, match=r"2 files could be the annotations \(a.csv, b.csv"):
        read_dataset(root)
    root = tree({"a.csv": HEADER, "val.csv": HEADER + ROW, "aaaaaaaaaaa.mp4": ""}, "val")
    assert len(read_dataset(root).videos) == 1


# Lists


def test_list_of_names_and_paths_with_spaces(tree):
    root = tree(
        {
            "list.txt": "# made by hand\n"
            "playing guitar/a b.mp4 playing guitar\n"
            "\n"
            "playing_guitar/a.mp4.mp4\tplaying_guitar\r\n"
            '"digging, deep/c.mp4","digging"\n'
        }
    )
    dataset = read_dataset(root / "list.txt", classes="kinetics400")
    assert dataset.layout == "list"
    assert [(v.key, v.class_name) for v in dataset.videos] == [
        ("digging%2C deep/c", "digging"),
        ("playing guitar/a b", "playing guitar"),
        ("playing_guitar/a%2Emp4%2Emp4", "playing guitar"),
    ]
    assert dataset.videos[1].location == f"{root}/playing guitar/a b.mp4"
    assert dataset.missing == ()
    assert read_dataset(root, annotations=root / "list.txt").videos == dataset.videos


def test_list_of_numbers(tree):
    root = tree({"val.csv": "val/zumba/a.mp4 399\nval/x/b.mp4 0\n"})
    with pytest.raises(DatasetError, match=r"the labels are numbers; pass --classes kinetics400"):
        read_dataset(root)
    dataset = read_dataset(root, classes="kinetics400")
    assert [(v.key, v.class_name) for v in dataset.videos] == [
        ("val/x/b", "abseiling"),
        ("val/zumba/a", "zumba"),
    ]
    assert "positions in kinetics400, from 0" in dataset.warnings[0]
    assert read_dataset(root, labels="optional").videos[0].index is None


def test_numbers_in_another_order_are_refused(tree):
    root = tree({"val.csv": "val/abseiling/a.mp4 0\nval/air_drumming/b.mp4 2\n"})
    with pytest.raises(
        DatasetError,
        match=r"line 2: label 2 is 'answering questions' in kinetics400, but .* 'air_drumming' \(1",
    ):
        read_dataset(root, classes="kinetics400")
    root = tree({"val.csv": "a.mp4 400\n"}, "other")
    with pytest.raises(DatasetError, match="line 1: label 400, but kinetics400 has 400 classes"):
        read_dataset(root, classes="kinetics400")


def test_classes_whose_names_are_numbers(tree):
    root = tree({"val.txt": "a.mp4 7\nb.mp4 8\n", "classes.txt": '"7"\n"8"\n'})
    dataset = read_dataset(root / "val.txt", classes=root / "classes.txt")
    assert [v.index for v in dataset.videos] == [0, 1]


def test_list_anywhere_has_safe_keys(tree):
    root = tree({"list.txt": "/data/k/val/a.mp4 vault\n../../data/k/b.mp4 digging\n"}, "one/two")
    dataset = read_dataset(root / "list.txt")
    one = str(root.parent.parent)
    parts = Path(one).parts[1:]  # only "/" is common to both
    assert {v.key for v in dataset.videos} == {"data/k/val/a", "/".join((*parts, "data/k/b"))}
    root = tree({"list.txt": "/data/k/val/a.mp4 vault\n/data/k/b.mp4 digging\n"})
    assert [v.key for v in read_dataset(root / "list.txt").videos] == ["b", "val/a"]
    root = tree({"list.txt": "s3://b/k/v/../a.mp4 vault\ns3://b/k/b.mp4 digging\n"})
    assert [(v.key, v.location) for v in read_dataset(root / "list.txt").videos] == [
        ("a", "s3://b/k/v/../a.mp4"),
        ("b", "s3://b/k/b.mp4"),
    ]


def test_list_repeats(tree):
    root = tree({"list.txt": "a.mp4 vault\n./a.mp4 vault\nb.mp4 digging\n"})
    dataset = read_dataset(root / "list.txt")
    assert [v.key for v in dataset.videos] == ["a", "b"]
    assert dataset.warnings[0].startswith("left out: 1 line of ")
    (root / "list.txt").write_text("a.mp4 vault\nb.mp4 vault\nx/../a.mp4 digging\n")
    with pytest.raises(
        DatasetError, match=r"line 3: x/../a.mp4 has the label 'digging', but on li"
    ):
        read_dataset(root / "list.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("some/folder 300 5\n", "line 1: 'some/folder 300 5' names a folder of frames"),
        ("a.mp4 vault\nnot a video\n", "line 2: 'not a video' does not name a video"),
        ("a.mp4 vault\nb.mp4\n", "line 2: no label for 'b.mp4'"),
        ("a.mp4 valt\n", "'valt' is no class.*'vault'"),
        ("a.mp4 300 5\n", "'300 5' is no class"),
        ("# nothing\n", "no videos"),
    ],
)
def test_bad_list(tree, text, message):
    root = tree({"list.txt": text})
    with pytest.raises(DatasetError, match=message) as error:
        read_dataset(root / "list.txt")
    assert "list.txt" in str(error.value)


def test_list_header_and_missing_labels(tree):
    root = tree({"list.csv": "path,label\na.mp4,vault\nb.mp4\n"})
    dataset = read_dataset(root / "list.csv", labels="optional", classes="kinetics400")
    assert [v.class_name for v in dataset.videos] == ["vault", None]
    assert dataset.description.endswith("; 400 classes of kinetics400; 1 without a label")


# Flat folders


def test_flat_folder_needs_no_labels_only_when_told(tree):
    root = tree(["b.mp4", "a.mp4", "a.avi", "notes.txt"])
    with pytest.raises(DatasetError, match=r"3 videos without labels.*pass --annotations"):
        read_dataset(root)
    assert read_dataset(root, labels="optional", classes="kinetics400").classes is None
    dataset = read_dataset(root, labels="optional")
    assert dataset.layout == "flat"
    assert table(dataset) == [
        ("a%2Eavi", None, "a.avi"),
        ("a%2Emp4", None, "a.mp4"),
        ("b", None, "b.mp4"),
    ]
    assert dataset.description == (f"flat: 3 videos in {root}, 1 other file ignored; no labels")


def test_flat_and_class_folders_together(tree):
    root = tree(["a.mp4", "vault/b.mp4"])
    with pytest.raises(DatasetError, match=r"folders such as 'vault'; pass --layout"):
        read_dataset(root)
    dataset = read_dataset(root, layout="folders")
    assert [v.key for v in dataset.videos] == ["vault/b"]
    assert "1 video outside the class folders" in dataset.warnings[0]
    assert len(read_dataset(root, layout="flat", labels="optional").videos) == 1


# Calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "tree"}, "layout 'tree' is not one of folders, cvdf, list, flat"),
        ({"labels": "maybe"}, "labels 'maybe'"),
        ({"split": "dev"}, "split 'dev' is not one of train, val, test"),
        ({"layout": "folders", "trim": True}, "neither annotations nor trim"),
        ({"layout": "flat", "annotations": "x.csv"}, "neither annotations nor trim"),
        ({"classes": "folders", "labels": "optional"}, "needs class folders; this is a flat"),
    ],
)
def test_mistakes_in_the_call(tree, arguments, message):
    root = tree(["a.mp4"])
    with pytest.raises(UsageError, match=message):
        read_dataset(root, **arguments)


def test_trim_needs_times(tree):
    root = tree({"list.txt": "a.mp4 vault\n", "vault/a.mp4": ""})
    with pytest.raises(DatasetError, match="trim needs a CSV with times"):
        read_dataset(root / "list.txt", trim=True)
    with pytest.raises(DatasetError, match="no CSV in or beside it"):
        read_dataset(root, trim=True)


def test_relative_and_file_urls(tree, monkeypatch):
    root = tree({"vault/a.mp4": "", "digging/b.mp4": ""})
    monkeypatch.chdir(root.parent)
    keys = ["digging/b", "vault/a"]
    for place in ("data", "data/", "./data", f"file://{root}", f"{root}/"):
        dataset = read_dataset(place)
        assert [v.key for v in dataset.videos] == keys
        assert all(Path(v.location).exists() for v in dataset.videos)
    monkeypatch.chdir(root)
    assert [v.key for v in read_dataset(".").videos] == keys


# URLs


@pytest.fixture
def memory(k400, request):
    """The same tree behind a URL."""
    url = f"memory://{request.node.name}/k400"
    fs = fsspec.filesystem("memory")
    for path in k400.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{url}/{path.relative_to(k400)}", path.read_bytes())
    yield url
    fs.rm(url.rpartition("/")[0], recursive=True)


def test_url_gives_the_same_as_the_folder(k400, memory):
    local = read_dataset(k400 / "val")
    remote = read_dataset(f"{memory}/val/")
    assert [v.key for v in remote.videos] == [v.key for v in local.videos]
    assert remote.missing == local.missing
    for here, there in zip(local.videos, remote.videos, strict=True):
        assert there.location == here.location.replace(str(k400), memory)
        assert there.index == here.index
        assert fsspec.filesystem("memory").exists(there.location)
    assert read_dataset(memory, split="val").videos == remote.videos


def test_url_of_class_folders_and_lists(request):
    url = f"memory://{request.node.name}"
    fs = fsspec.filesystem("memory")
    fs.pipe({f"{url}/vault/a.mp4": b"", f"{url}/digging/b c.mp4": b""})
    expected = ["digging/b c", "vault/a"]
    assert [v.key for v in read_dataset(url).videos] == expected
    fs.pipe_file(f"{url}/list.txt", b"vault/a.mp4 vault\ndigging/b c.mp4 digging\n")
    dataset = read_dataset(f"{url}/list.txt")
    assert [v.key for v in dataset.videos] == expected
    assert dataset.videos[0].location == f"{url}/digging/b c.mp4"
    with pytest.raises(DatasetError, match="cannot read memory://nowhere/at/all: no such file"):
        read_dataset("memory://nowhere/at/all")
    fs.rm(url, recursive=True)


# Size


def test_many_videos_are_read_without_looking_at_each(tree, monkeypatch):
    """No call a file: at 240,000 videos each would cost seconds, on S3 hours."""
    rows = [(KINETICS_600[i % 600], f"{i:011d}", i % 90, i % 90 + 10) for i in range(3000)]
    files = {f"val/{key}_{start:06d}_{end:06d}.mp4": "" for _, key, start, end in rows}
    files["val.csv"] = HEADER + "".join(f'"{a}",{b},{c},{d},val,0\n' for a, b, c, d in rows)
    root = tree(files)
    calls = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda *a, **k: calls.append(a) or real(*a, **k))
    dataset = read_dataset(root / "val")
    assert len(calls) < 30
    assert len(dataset.videos) == 3000
    assert all(v.class_name == KINETICS_600[v.index] for v in dataset.videos)
    assert dataset.classes.name == "kinetics600"


def test_video_suffixes_are_lower_case():
    assert all(re.fullmatch(r"\.[a-z0-9]+", suffix) for suffix in VIDEO_SUFFIXES)
