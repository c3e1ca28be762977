"""Lists of paths and labels: names, numbers, spaces, repeats."""

from pathlib import Path

import pytest

from i3d.data.kinetics import read_dataset
from i3d.errors import DatasetError


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
