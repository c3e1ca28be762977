"""Files: whole or not at all, on paths and URLs."""

import errno
import os
import socket
import threading

import pytest

from i3d import files
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


def test_temporary_stem(tmp_path):
    with files.atomic_path(tmp_path / "shard-00000.tar") as path:
        path.touch()
        assert files.temporary_stem(path.name) == "shard-00000"
        assert path.suffix == ".tar"
    for name in ("shard-00000.tar", ".hidden", ".a.tmp.tar", ".a.0123.tmp.tar"):
        assert files.temporary_stem(name) is None


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
