"""Where a video comes from: paths, servers, bytes, objects; whose fault it is when they fail."""

import errno
import io
import os
import signal
import sys

import fsspec
import numpy as np
import pytest
from support.videos import LEVELS, noise_images, video_bytes, which, write_video
from support.web import WebServer

from i3d import files, web
from i3d.errors import StorageError, UsageError, VideoError
from i3d.video import read_video


@pytest.mark.parametrize("ranges", [True, False])
def test_http(ranges):
    with WebServer() as server:
        server.ranges = ranges
        server.files["/v.mp4"] = data = video_bytes(60)
        url = f"{server.url}/v.mp4"
        np.testing.assert_array_equal(read_video(url), read_video(data))
        np.testing.assert_array_equal(
            read_video(url, start_seconds=1, end_seconds=1.4), read_video(data)[25:35]
        )
        with pytest.raises(
            VideoError, match=r"cannot open http.*missing\.mp4: no such file \(HTTP 404"
        ):
            read_video(url.replace("v.mp4", "missing.mp4"))


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_http_failures_are_no_videos_fault(status):
    with WebServer() as server:
        server.failures["/v.mp4"] = (status, {"Retry-After": "3600"})
        message = rf"cannot read {server.url}/v\.mp4: HTTP {status} "
        with pytest.raises(StorageError, match=message):
            read_video(f"{server.url}/v.mp4")


def test_a_server_that_breaks_in_the_middle(monkeypatch):
    """A connection that broke off is taken up again; what lasts is the server's fault."""
    monkeypatch.setattr(web, "BLOCK_BYTES", 1 << 15)
    data = video_bytes(noise_images(40, 320, 240), options={"crf": "10"})
    assert len(data) > 10 * web.BLOCK_BYTES
    with WebServer() as server:
        server.files["/v.mp4"] = data

        def after_three(failure):
            server.asked.clear()
            server.failures["/v.mp4"] = [None] * 3 + [failure] * 1000

        after_three(server.hang_up)
        del server.failures["/v.mp4"][5:]
        np.testing.assert_array_equal(read_video(f"{server.url}/v.mp4"), read_video(data))
        after_three((503, {"Retry-After": "3600"}))
        with pytest.raises(StorageError, match=r"v\.mp4: HTTP 503"):
            read_video(f"{server.url}/v.mp4")


def test_what_is_no_file_is_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.mp4")
    with pytest.raises(VideoError, match=r"cannot open .*x\.mp4: not a regular file \(a FIFO\)$"):
        read_video(tmp_path / "x.mp4")
    with pytest.raises(VideoError, match="is a folder"):
        read_video(tmp_path)


def test_a_missing_package_is_no_videos_fault(monkeypatch):
    """Else every video of a dataset on S3 would count as damaged."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"pip install s3fs"):
        read_video("s3://b/x.mp4")


def test_every_kind_of_source(tmp_path):
    path = write_video(tmp_path / "v.mp4", 10)
    data = path.read_bytes()
    with fsspec.open("memory://folder/v.mp4", "wb") as file:
        file.write(data)
    expected = read_video(path)
    for source in (str(path), f"file://{path}", "memory://folder/v.mp4", data, bytearray(data),
                   memoryview(data)):  # fmt: skip
        np.testing.assert_array_equal(read_video(source), expected)
    file = io.BytesIO(data)
    file.seek(100)
    np.testing.assert_array_equal(read_video(file), expected)
    assert not file.closed
    with path.open("rb") as file:
        np.testing.assert_array_equal(read_video(file, start_seconds=0.2), expected[5:])


def test_a_stream_that_cannot_seek():
    class Pipe(io.RawIOBase):
        def __init__(self, data):
            self.data = io.BytesIO(data)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.data.readinto(buffer)

    data = video_bytes(50, container="matroska", gop=5)
    frames = read_video(Pipe(data), start_seconds=1)
    assert which(frames) == [i % LEVELS for i in range(25, 50)]


def test_a_server_that_fails_is_no_videos_fault(monkeypatch):
    """Neither when it is asked first nor in the middle: a job must end, not skip its videos."""

    def refused(_):
        raise ConnectionRefusedError("connection refused")

    monkeypatch.setattr(files, "open_read", refused)
    with pytest.raises(StorageError, match=r"cannot read s3://b/x\.mp4: connection refused"):
        read_video("s3://b/x.mp4")

    class Fails(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > len(data) // 2:
                raise ConnectionResetError("the server hung up")
            return super().read(size)

    data = video_bytes(noise_images(40, 640, 480), options={"crf": "10"})
    monkeypatch.setattr(files, "open_read", lambda _: Fails(data))
    with pytest.raises(StorageError, match=r"cannot read s3://b/long\.mp4: the server hung up"):
        read_video("s3://b/long.mp4")


def test_errors_of_the_file_are_not_its_end():
    class Failing(io.BytesIO):
        error = OSError(errno.EIO, "the disk is gone")

        def read(self, size=-1):
            if self.tell() > 200_000:
                raise self.error
            return super().read(size)

    data = video_bytes(noise_images(30, 320, 240), container="matroska", codec="ffv1")
    assert len(data) > 1_000_000
    with pytest.raises(VideoError, match="the disk is gone"):
        read_video(Failing(data))
    Failing.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        read_video(Failing(data))


@pytest.mark.parametrize("wrap", [bytes, io.BytesIO])
def test_interrupts_are_never_lost(wrap):
    data = video_bytes(noise_images(300, 320, 240), options={"preset": "ultrafast"})
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for trial in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.002 * trial)
            with pytest.raises(KeyboardInterrupt):
                for _ in range(20):
                    read_video(wrap(data))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
