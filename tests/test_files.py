"""Files: whole or not at all, on paths and URLs."""

import errno
import os
import shutil
import socket
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from i3d import files, remote, web
from i3d.errors import StorageError


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "new" / "folder")
    return f"memory://{tmp_path.name}/{request.param}"


def test_atomic_file_appears_whole(folder):
    name = files.join(folder, "a.bin")
    with files.atomic_file(name) as path:
        path.write_bytes(b"one")
        assert not files.exists(name)
    assert files.read_range(name, 0, 10) == b"one"
    files.write(name, b"two")  # replaced
    assert files.read_range(name, 0, 10) == b"two"
    assert files.names_in(folder) == ["a.bin"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_atomic_file_leaves_nothing_after_an_error(folder, error):
    name = files.join(folder, "a.bin")
    files.write(name, b"before")
    with pytest.raises(error), files.atomic_file(name) as path:
        path.write_bytes(b"half")
        raise error
    assert files.names_in(folder) == ["a.bin"]
    assert files.read_range(name, 0, 10) == b"before"


def test_create_never_replaces(folder):
    name = files.join(folder, "a.bin")
    files.create(name, b"first")
    with pytest.raises(FileExistsError):
        files.create(name, b"second")
    assert files.read_range(name, 0, 10) == b"first"
    assert files.names_in(folder) == ["a.bin"]


def test_of_many_creators_one_succeeds(tmp_path, monkeypatch):
    name = str(tmp_path / "a.bin")
    monkeypatch.setattr(files, "exists", lambda _: False)  # all have looked before any has written
    barrier = threading.Barrier(8)
    won = []

    def creator(i):
        barrier.wait()
        try:
            files.create(name, bytes([i]))
            won.append(i)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=creator, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "a.bin").read_bytes() == bytes(won)
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_create_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    files.create(tmp_path / "a.bin", b"x")
    assert (tmp_path / "a.bin").read_bytes() == b"x"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_read_range(folder):
    name = files.join(folder, "a.bin")
    files.write(name, bytes(range(100)))
    assert files.read_range(name, 0, 3) == bytes([0, 1, 2])
    assert files.read_range(name, 98, 10) == bytes([98, 99])
    assert files.read_range(name, 50, 0) == b""
    files.remove(name)
    files.remove(name)
    assert files.names_in(folder) == []


def test_final_name(tmp_path):
    for name in ("shard-00000.tar", "x.npy.json", "without"):
        with files.atomic_path(tmp_path / name) as path:
            path.touch()
            assert files.final_name(path.name) == name
            assert path.name.endswith((tmp_path / name).suffix)  # writers look at it
    for name in ("shard-00000.tar", ".hidden", ".a.tmp.tar", ".a.0123.tmp.tar"):
        assert files.final_name(name) is None


@pytest.mark.parametrize("times", [1, 2, files.WRITES])
def test_a_writer_whose_temporary_file_is_removed_writes_again(tmp_path, times):
    """By another run of the same job, which is over and tidies up; or with its folder."""
    name, calls = tmp_path / "folder" / "a.bin", []

    def fill(path):
        path.write_bytes(b"whole")
        calls.append(path)
        if len(calls) <= times:
            shutil.rmtree(name.parent) if len(calls) % 2 else files.remove_leftovers([name])

    if times == files.WRITES:  # something else is at work here
        with pytest.raises(FileNotFoundError):
            files.write_by(name, fill)
        return
    files.write_by(name, fill)
    assert len(calls) == times + 1 and len(set(calls)) == len(calls)
    assert name.read_bytes() == b"whole"
    assert [p.name for p in name.parent.iterdir()] == ["a.bin"]


def test_leftovers_of_these_files_alone_are_removed(folder):
    left = ".a.0123456789ab.tmp.npz"
    for place in (folder, files.join(folder, "inner")):
        for name in (left, ".b.0123456789ab.tmp.npz", ".a.0123456789ab.tmp", "a.npz", ".a.tmp.npz"):
            files.write(files.join(place, name), b"")
    files.remove_leftovers([files.join(folder, "a.npz"), files.join(folder, "absent", "a.npz")])
    assert left not in files.names_in(folder)
    assert {".b.0123456789ab.tmp.npz", "a.npz", ".a.tmp.npz"} < set(files.names_in(folder))
    assert left in files.names_in(files.join(folder, "inner"))


def test_leftovers_beside_a_file_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".a.0123456789ab.tmp.npz").touch()
    files.remove_leftovers(["a.npz"])
    assert list(tmp_path.iterdir()) == []


def test_states_of_many_files(folder):
    names = [files.join(folder, "inner", f"{i}.mp4") for i in range(3)]
    for i, name in enumerate(names):
        files.write(name, bytes(i))
    absent = files.join(folder, "inner", "absent.mp4")
    found = files.find_states([*names, absent, names[1]])
    assert [state.size for state in found] == [0, 1, 2, None, 1]


class Server(BaseHTTPRequestHandler):
    def do_HEAD(self):
        name = self.path.rpartition("/")[2]
        self.send_response({"a.mp4": 200, "long.mp4": 200, "absent.mp4": 404}.get(name, 503))
        self.send_header("Content-Length", "1234")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"x"' if name == "a.mp4" else "y" * 999)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


def test_states_over_http_have_the_etag(monkeypatch):
    monkeypatch.setattr(web, "PATIENCE_SECONDS", 0.2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/videos"
        found = files.find_states([f"{url}/{n}.mp4" for n in ("a", "long", "absent")])
        assert found == [(1234, '"x"'), (1234, None), (None, None)]
        with pytest.raises(OSError, match="503"):  # which tells nothing of the file
            files.find_states([f"{url}/broken.mp4"])
    finally:
        server.shutdown()
        server.server_close()


def test_a_folder_on_a_server_is_listed_once(monkeypatch):
    names = [f"memory://states/{i % 2}/{i}.mp4" for i in range(40)]
    for name in names:
        files.write(name, b"123")
    calls = []
    memory = type(remote.filesystem("memory://states")[0])
    for method in ("ls", "info"):
        real = getattr(memory, method)

        def counted(self, path, *rest, _real=real, _method=method, **more):
            calls.append((_method, path))
            return _real(self, path, *rest, **more)

        monkeypatch.setattr(memory, method, counted)
    assert {state.size for state in files.find_states(names)} == {3}
    assert sorted(calls) == [("ls", "/states/0"), ("ls", "/states/1")]


def special(folder, kind):
    """A file of a kind that no program of ours may wait for."""
    path = folder / "x.mp4"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "a character device":
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a character device"])
def test_only_regular_files_are_opened(tmp_path, kind):
    path = special(tmp_path, kind)
    (tmp_path / "link.mp4").symlink_to(path)
    for name in (path, f"file://{path}", tmp_path / "link.mp4"):
        for call in (files.open_read, files.sha256, lambda n: files.read_range(n, 0, 1)):
            with pytest.raises(OSError, match=rf"not a regular file \({kind}\)") as caught:
                call(name)
            files.blame_storage(name, caught.value)  # raises nothing
    with pytest.raises(OSError, match="not a regular file"), files.atomic_path(path):
        pass  # neither are they replaced
    with pytest.raises(IsADirectoryError):
        files.open_read(tmp_path)
    (tmp_path / "real").write_bytes(b"1")
    (tmp_path / "good.mp4").symlink_to(tmp_path / "real")
    assert files.read_range(tmp_path / "good.mp4", 0, 2) == b"1"


@pytest.mark.parametrize("name", ["~x.mp4", "~root", "-x", "50%.mp4", "a#b?c.mp4", "a b\n*c.mp4"])
def test_a_name_is_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    files.write(name, b"one")
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208 (what the system says)
    for location in (name, f"./{name}", str(tmp_path / name), f"file://{tmp_path / name}"):
        assert files.exists(location)
        with files.open_read(location) as file:
            assert file.read() == b"one"
    assert files.list_folder(".") == [(name, False)]


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    files.write("~/a.bin", b"one")
    assert files.names_in("~") == files.names_in("~/") == ["a.bin"]


@pytest.mark.parametrize(
    ("location", "error", "fails"),
    [
        ("a.bin", OSError(errno.EIO, "x"), True),
        ("a.bin", OSError(errno.ESTALE, "x"), True),
        ("a.bin", OSError(errno.EMFILE, "x"), True),
        ("a.bin", PermissionError(errno.EACCES, "x"), False),
        ("a.bin", FileNotFoundError(errno.ENOENT, "x"), False),
        ("a.bin", OSError("of a parser"), False),
        ("a.bin", ValueError("x"), False),
        ("s3://b/a.bin", PermissionError("x"), True),
        ("s3://b/a.bin", TimeoutError("x"), True),
        ("s3://b/a.bin", OSError("x"), True),
        ("s3://b/a.bin", FileNotFoundError("x"), False),
        ("s3://b/a.bin", OSError(errno.EINVAL, "x"), False),
        ("file:///a.bin", PermissionError(errno.EACCES, "x"), False),
    ],
)
def test_what_is_the_storages_fault(location, error, fails):
    if fails:
        with pytest.raises(StorageError, match=f"cannot read {location}: "):
            files.blame_storage(location, error)
    else:
        files.blame_storage(location, error)


def test_a_short_file_takes_little_memory_whatever_the_bound(tmp_path):
    """Python's own read(n) takes n bytes at once."""
    path = tmp_path / "a"
    path.write_bytes(b"x" * 3_000_000)
    tracemalloc.start()
    try:
        for bound in (1 << 40, 3_000_000, 2_000_000):
            with path.open("rb") as file:
                assert len(files.read_bounded(file, bound)) == min(bound, 3_000_000)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    with path.open("rb") as file:
        assert files.read_bounded(file, 0) == b""
        assert file.tell() == 0


def save_state(file):
    torch.save({"weight": torch.zeros(1 << 18)}, file)


def save_program(file):
    torch.export.save(torch.export.export(torch.nn.Linear(64, 64), (torch.zeros(1, 64),)), file)


def save_arrays(file):
    with h5py.File(file, "w") as stored:
        stored["rows"] = np.zeros(1 << 18)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("save", [save_state, save_program, save_arrays])
def test_a_library_that_writes_to_a_full_disk_does_not_hide_it(save):
    """On a file of Python's own PyTorch raises a RuntimeError or aborts, and HDF5 crashes."""
    with pytest.raises(OSError) as caught, files.open_for_library(Path("/dev/full")) as file:
        save(file)
    assert caught.value.errno == errno.ENOSPC


def test_a_librarys_file_is_what_it_wrote(tmp_path):
    with files.open_for_library(tmp_path / "a.h5") as file:
        save_arrays(file)
    with h5py.File(tmp_path / "a.h5") as stored:
        assert stored["rows"].shape == (1 << 18,)
    with pytest.raises(KeyError), files.open_for_library(tmp_path / "b.h5"):
        raise KeyError  # of the library itself
