"""One opener for videos, shards, lists and arrays."""

import numpy as np
import pytest
from support.videos import noise_images, write_video

from i3d.data.videos import VideoSet, open_videos
from i3d.errors import DatasetError, UsageError
from i3d.tasks.precompute import Settings, Work, precompute


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Videos in class folders, a list of them, shards of them, and arrays."""
    root = tmp_path_factory.mktemp("data")
    for name in ("a/one", "b/two"):
        write_video(root / "videos" / f"{name}.mp4", noise_images(10, 32, 24))
    (root / "list.txt").write_text("videos/a/one.mp4 0\nvideos/b/two.mp4 1\n")
    videos = VideoSet(root / "videos", classes="folders")
    with pytest.warns(UserWarning, match="sorted list of these folders"):
        settings = Settings(short_side=24, flow=False)
        precompute(videos, root / "shards", settings=settings, work=Work(workers=1))
    np.save(root / "videos.npy", np.zeros((2, 9, 8, 8, 3), np.uint8))
    return root


def test_a_folder_of_videos(root):
    lines = []
    videos = VideoSet(root / "videos", classes="folders")
    with open_videos(videos, labels="required", say=lines.append) as contents:
        assert [video.key for video in contents.videos] == ["a/one", "b/two"]
        assert contents.class_names() == ("a", "b")
        assert (contents.name, contents.preset, contents.streams) == (
            "videos",
            None,
            ("rgb", "flow"),
        )
        assert contents.shards is None and contents.arrays is None and not contents.single
    assert "2 videos in 2 class folders" in lines[0] and lines[1].startswith("warning: ")


def test_a_list(root):
    (root / "classes.txt").write_text("a\nb\n")
    videos = VideoSet(root / "list.txt", classes=str(root / "classes.txt"))
    with open_videos(videos, labels="required") as contents:
        assert [video.index for video in contents.videos] == [0, 1]


def test_one_video(root):
    with open_videos(root / "videos" / "a" / "one.mp4", labels="optional") as contents:
        assert [video.key for video in contents.videos] == ["one"]
        assert contents.single and contents.where == str(root / "videos" / "a")
        with pytest.raises(DatasetError, match="no labels"):
            contents.class_names()


def test_shards(root):
    with open_videos(root / "shards", labels="required") as contents:
        assert contents.class_names() == ("a", "b")
        assert (contents.name, contents.preset) == ("videos", "kinetics-i3d-24")
        assert all(name.startswith("shards: ") for name in contents.versions)
        with pytest.raises(UsageError, match="made without flow"):
            contents.require(["rgb", "flow"])
        with pytest.raises(UsageError, match="holds shards; this takes a dataset of videos"):
            _ = contents.videos


def test_arrays(root):
    with open_videos(root / "videos.npy", labels="optional") as contents:
        assert contents.arrays.only()[1].shape == (2, 9, 8, 8, 3)
        with pytest.raises(UsageError, match="holds arrays"):
            _ = contents.videos


@pytest.mark.parametrize(
    ("videos", "words"),
    [
        (VideoSet("shards", split="val"), "holds shards.*are for a folder of videos"),
        (VideoSet("videos.npy", classes="folders"), "holds arrays.*are for a folder of videos"),
        (VideoSet("videos", partial=True), "--partial is for shards"),
    ],
)
def test_settings_that_do_not_fit(root, monkeypatch, videos, words):
    monkeypatch.chdir(root)
    with pytest.raises(UsageError, match=words), open_videos(videos, labels="optional"):
        pass


def test_shards_are_no_input_of_precompute(root, tmp_path):
    with pytest.raises(UsageError, match="holds shards"):
        precompute(root / "shards", tmp_path / "out")
    assert not (tmp_path / "out").exists()
