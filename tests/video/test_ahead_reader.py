"""Frames that a thread reads ahead are the video's, and the thread ends."""

import io
import threading
import time

import numpy as np
import pytest
from support.videos import noise_images, write_video

import i3d
from i3d.errors import UsageError, VideoError
from i3d.video import AheadReader
from i3d.video.ahead import AHEAD_FRAMES

COUNT = 3 * AHEAD_FRAMES


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "x.mp4"
    write_video(path, noise_images(COUNT, 64, 48))
    return path


def read(source, end_seconds=None):
    return AheadReader(source, end_seconds=end_seconds, fps=25, short_side=32)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "i3d-decode"]


@pytest.mark.parametrize("end_seconds", [None, 1.0])
def test_frames_are_the_videos(video, end_seconds):
    expected = i3d.read_video(video, short_side=32, end_seconds=end_seconds)
    with read(video, end_seconds) as ahead:
        frames = np.stack([frame.copy() for frame in ahead])
        assert ahead.reader.name == str(video) and ahead.reader.damage is None
    np.testing.assert_array_equal(frames, expected)
    assert not threads()


def test_it_reads_no_farther_ahead_than_it_may(video):
    with read(video) as ahead:
        deadline = time.monotonic() + 30
        while ahead._queue.qsize() < AHEAD_FRAMES and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)  # would be enough for the rest
        assert ahead._queue.qsize() == AHEAD_FRAMES
        assert len(list(ahead)) == COUNT
    assert not threads()


@pytest.mark.parametrize("taken", [0, 1, AHEAD_FRAMES + 1])
def test_it_is_closed_in_the_middle(video, taken):
    with video.open("rb") as file:
        with read(file) as ahead:
            for _, _ in zip(range(taken), ahead, strict=False):
                pass
        assert not threads()
        assert not file.closed  # the caller's


def test_it_is_read_once(video):
    with read(video) as ahead:
        assert len(list(ahead)) == COUNT
        with pytest.raises(UsageError, match="read already"):
            iter(ahead)


def test_a_priority_that_cannot_be_changed_costs_nothing(video, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.setpriority", refuse)
    with read(video) as ahead:
        assert len(list(ahead)) == COUNT


class Stalled(io.BytesIO):
    """A file whose bytes do not come before somebody lets them."""

    def __init__(self, data):
        super().__init__(data)
        self.go_on = threading.Event()

    def read(self, size=-1):
        self.go_on.wait(60)
        return super().read(size)


def test_who_leaves_in_a_hurry_waits_for_no_server(video):
    file = Stalled(video.read_bytes())
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), read(file) as ahead:
        raise KeyboardInterrupt
    assert time.monotonic() - start < 30  # the server's patience is longer
    file.go_on.set()
    ahead._thread.join(30)
    assert not threads()


def test_what_is_wrong_is_raised_where_frames_are_asked_for(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with read(tmp_path / "bad.mp4") as ahead, pytest.raises(VideoError, match=r"bad\.mp4"):
        list(ahead)
    with read(tmp_path / "none.mp4"):  # nobody asks
        pass
    assert not threads()
