"""Which layout, split and annotations are meant; URLs; mistakes in the call; size."""

import os
from pathlib import Path

import fsspec
import pytest
from support.kinetics import HEADER, ROW

from i3d.classes import KINETICS_600
from i3d.data.kinetics import read_dataset
from i3d.errors import DatasetError, UsageError


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


def test_which_csv(tree):
    root = tree({"a.csv": HEADER, "b.csv": HEADER, "x.mp4": ""})
    with pytest.raises(DatasetError, match=r"2 files could be the annotations \(a.csv, b.csv"):
        read_dataset(root)
    root = tree({"a.csv": HEADER, "val.csv": HEADER + ROW, "aaaaaaaaaaa.mp4": ""}, "val")
    assert len(read_dataset(root).videos) == 1


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
