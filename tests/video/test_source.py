"""Where a video comes from: paths, servers, bytes, objects; whose fault it is when they fail."""

import errno
import http.server
import io
import signal
import threading

import fsspec
import numpy as np
import pytest
from support.videos import LEVELS, noise_images, video_bytes, which, write_video

from i3d import files
from i3d.errors import StorageError, VideoError
from i3d.video import read_video


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """Serves one file's bytes; answers ranges if the server says so."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        data = self.server.data
        if self.path != "/v.mp4":
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        if wanted and self.server.ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            first = int(first)
            last = min(int(last) if last else len(data) - 1, len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        else:
            self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def server(request):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler) as server:
        server.ranges = request.param
        server.data = video_bytes(60)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_http(server):
    url = f"http://127.0.0.1:{server.server_port}/v.mp4"
    np.testing.assert_array_equal(read_video(url), read_video(server.data))
    np.testing.assert_array_equal(
        read_video(url, start_seconds=1, end_seconds=1.4), read_video(server.data)[25:35]
    )
    with pytest.raises(VideoError, match=r"there is no file http.*missing\.mp4"):
        read_video(url.replace("v.mp4", "missing.mp4"))


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
    with pytest.raises(StorageError, match=r"cannot open s3://b/x\.mp4: connection refused"):
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
