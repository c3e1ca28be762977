"""Downloads of named checkpoints, from servers that misbehave."""

import contextlib
import http.server
import multiprocessing
import os
import re
import shutil
import threading
import time

import pytest

from i3d.errors import CheckpointError
from i3d.models import fetch
from i3d.models.checkpoints import load
from i3d.models.download import cached_path, download
from i3d.models.released import CHECKPOINTS, DATA_FILE, INDEX_FILE

NAME = "rgb_scratch_kinetics400"


FOLDER = "rgb_scratch"


class Server:
    """A local HTTP server; ``behave(handler, data, offset)`` may answer in its own way."""

    def __init__(self, root, *, ranges: bool = True) -> None:
        self.requests: list[tuple[str, int]] = []
        self.behave = None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args) -> None:
                pass

            def do_GET(self) -> None:
                path = root / self.path.lstrip("/")
                asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
                offset = int(asked[1]) if asked and ranges else 0
                outer.requests.append((path.name, offset))
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                if outer.behave and outer.behave(self, data, offset):
                    self.close_connection = True
                    return
                if offset > len(data):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.answer(data, offset)

            def answer(self, data, offset, upto=None) -> None:
                self.send_response(206 if offset else 200)
                self.send_header("Content-Length", str(len(data) - offset))
                self.end_headers()
                self.wfile.write(data[offset:upto])

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def data_offsets(self) -> list[int]:
        return [offset for name, offset in self.requests if name == DATA_FILE]


@contextlib.contextmanager
def serving(root, **options):
    server = Server(root, **options)
    thread = threading.Thread(target=server.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        thread.join()
        server.server.server_close()


def assert_complete(cache) -> None:
    """The cache holds the checkpoint under its final name and nothing half-done."""
    assert load(NAME).classes[0] == "abseiling"
    assert sorted(p.name for p in cache.iterdir() if p.is_file()) == [f"{NAME}.safetensors"]
    assert not any(p.is_dir() for p in (cache / "partial").iterdir())


def test_download_from_a_server(released, cache):
    with serving(released) as server:
        path = download(NAME, url=server.url)
        assert path == cached_path(NAME)
        assert download(NAME, url=server.url) == path
    assert server.requests == [(INDEX_FILE, 0), (DATA_FILE, 0)]
    assert_complete(cache)
    assert load(NAME).source == "deepmind/kinetics-i3d@0667e88 rgb_scratch"


@pytest.mark.parametrize("as_url", [False, True])
def test_download_from_a_local_folder(released, cache, monkeypatch, as_url):
    mirror = f"file://{released}" if as_url else str(released)
    monkeypatch.setenv("I3D_CHECKPOINT_URL", mirror)
    load(NAME)
    assert_complete(cache)


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_resumed(released, cache, ranges):
    cuts = iter([100_000, 250_000])

    def cut(handler, data, offset):
        if handler.path.endswith(DATA_FILE) and (upto := next(cuts, None)):
            handler.answer(data, offset, upto)
            return True
        return False

    with serving(released, ranges=ranges) as server:
        server.behave = cut
        download(NAME, url=server.url)
    offsets = server.data_offsets()
    assert len(offsets) == 3
    assert (offsets[1] > 0, offsets[2] > offsets[1]) == (ranges, ranges)
    assert_complete(cache)


def test_a_later_call_goes_on_where_the_last_one_gave_up(released, cache, monkeypatch):
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)

    def dies(handler, data, offset):
        if handler.path.endswith(DATA_FILE):
            if offset == 0:
                handler.answer(data, 0, 200_000)
            return True
        return False

    with serving(released) as server:
        server.behave = dies
        with pytest.raises(CheckpointError, match=rf"{DATA_FILE}.*connection"):
            download(NAME, url=server.url)
        assert not cached_path(NAME).exists()
        server.behave = None
        download(NAME, url=server.url)
    assert 150_000 < server.data_offsets()[-1] <= 200_000
    assert_complete(cache)


def test_wrong_bytes_are_found_and_fetched_again(released, cache):
    def flip(handler, data, offset):
        if handler.path.endswith(DATA_FILE):
            wrong = bytearray(data)
            wrong[12345] ^= 1
            handler.answer(bytes(wrong), offset)
            return True
        return False

    with serving(released) as server:
        server.behave = flip
        with pytest.raises(CheckpointError, match="wrong CRC32C of RGB/inception_i3d/"):
            download(NAME, url=server.url)
        assert not cached_path(NAME).exists()
        server.behave = None
        download(NAME, url=server.url)
    assert server.data_offsets() == [0, 0]
    assert_complete(cache)


def test_another_index_is_refused(released, cache):
    index = released / FOLDER / INDEX_FILE
    index.write_bytes(index.read_bytes()[:-8] + b"12345678")
    with serving(released) as server, pytest.raises(CheckpointError, match="SHA-256 should be"):
        download(NAME, url=server.url)
    assert not cached_path(NAME).exists()


def test_a_stale_part_longer_than_the_file_is_dropped(released, cache):
    part = cache / "partial" / FOLDER / f"{DATA_FILE}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(CHECKPOINTS[NAME].data_bytes + 5))
    with serving(released) as server:
        download(NAME, url=server.url)
    assert_complete(cache)


def test_missing_file_is_said_at_once(released, cache):
    (released / FOLDER / DATA_FILE).unlink()
    start = time.monotonic()
    with serving(released) as server, pytest.raises(CheckpointError, match="404 Not Found"):
        download(NAME, url=server.url)
    assert time.monotonic() - start < 5
    assert server.data_offsets() == [0]


@pytest.mark.parametrize("base", ["http://127.0.0.1:9", "/no/such/folder"])
def test_without_a_network_the_error_says_what_to_put_where(released, cache, monkeypatch, base):
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    with pytest.raises(CheckpointError) as caught:
        download(NAME, url=base)
    for words in (INDEX_FILE, DATA_FILE, f"DIR/{FOLDER}", "I3D_CHECKPOINT_URL=DIR"):
        assert words in str(caught.value)
    assert not list(cache.glob("*.safetensors"))


def test_a_server_that_stalls_is_given_up(released, cache, monkeypatch):
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    monkeypatch.setattr("i3d.web.STALL_SECONDS", 0.2)
    release = threading.Event()

    def stall(handler, data, offset):
        if handler.path.endswith(DATA_FILE):
            handler.answer(data, offset, offset + 10)
            release.wait(10)
            return True
        return False

    with serving(released) as server:
        server.behave = stall
        with pytest.raises(CheckpointError, match=r"does not answer|no connection"):
            download(NAME, url=server.url)
        release.set()


def test_a_slow_server_is_waited_for(released, cache, monkeypatch):
    monkeypatch.setattr("i3d.web.STALL_SECONDS", 0.5)

    def slow(handler, data, offset):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for start in range(0, len(data), len(data) // 10 + 1):
            handler.wfile.write(data[start : start + len(data) // 10 + 1])
            handler.wfile.flush()
            time.sleep(0.08)
        return True

    with serving(released) as server:
        server.behave = slow
        download(NAME, url=server.url)
    assert_complete(cache)


def test_a_longer_file_is_not_swallowed(released, cache):
    data = released / FOLDER / DATA_FILE
    data.write_bytes(data.read_bytes() + bytes(1 << 20))
    with serving(released) as server, pytest.raises(CheckpointError, match="were expected"):
        download(NAME, url=server.url)


def test_server_errors_are_retried(released, cache):
    answers = iter([503, 429])

    def busy(handler, data, offset):
        if status := next(answers, None):
            handler.send_error(status)
            return True
        return False

    with serving(released) as server:
        server.behave = busy
        download(NAME, url=server.url)
    assert_complete(cache)


def _download_in_process(name, record, url, barrier, results):
    CHECKPOINTS[name] = record
    barrier.wait()
    results.put(str(download(name, url=url)))


def test_two_processes_at_once(released, cache):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    with serving(released) as server:
        arguments = (NAME, CHECKPOINTS[NAME], server.url, barrier, results)
        processes = [context.Process(target=_download_in_process, args=arguments) for _ in "ab"]
        for process in processes:
            process.start()
        paths = {results.get(timeout=60) for _ in processes}
        for process in processes:
            process.join()
    assert paths == {str(cached_path(NAME))}
    assert server.data_offsets() == [0]  # the second waited for the first
    assert_complete(cache)


def test_unwritable_cache_names_the_variable(released, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("I3D_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match="I3D_CACHE"):
        download(NAME, url=str(released))


def test_cache_folder_is_the_users(monkeypatch):
    monkeypatch.delenv("I3D_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert os.fspath(cached_path(NAME)) == f"/somewhere/cache/i3d/{NAME}.safetensors"


def test_disk_without_mirror_keeps_working(released, cache):
    download(NAME, url=str(released))
    shutil.rmtree(released)
    assert load(NAME).num_classes == 400
