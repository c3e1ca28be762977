"""Class folders and flat folders: what is listed, and under which class."""

import os
import random

import pytest
from support.kinetics import table

from i3d.classes import KINETICS_400, ClassList
from i3d.data.kinetics import Video, read_dataset
from i3d.errors import DatasetError


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
