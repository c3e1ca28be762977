"""What differs from server to server: renames, object stores, forks."""

import io
import multiprocessing

import fsspec
import pytest
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.memory import MemoryFileSystem

from i3d import files, remote
from i3d.classes import readable
from i3d.errors import StorageError, VideoError
from i3d.video import read_video


class Hdfs(MemoryFileSystem):
    """Refuses to rename over a file, as HDFS does."""

    protocol = "hdfslike"
    store, pseudo_dirs = {}, [""]
    broken = False

    def mv(self, path1, path2, **kwargs):
        if self.exists(path2):
            raise FileExistsError(path2)
        super().mv(path1, path2)

    def put_file(self, lpath, rpath, **kwargs):
        super().put_file(lpath, rpath, **kwargs)
        if self.broken:
            raise ConnectionError("lost")


@pytest.fixture
def hdfs(monkeypatch):
    fsspec.register_implementation("hdfslike", Hdfs, clobber=True)
    monkeypatch.setattr(Hdfs, "store", {})
    return "hdfslike://x"


def test_a_file_system_whose_rename_refuses_to_replace(hdfs):
    name = f"{hdfs}/a.bin"
    files.write(name, b"one")
    files.write(name, b"two")
    with pytest.raises(FileExistsError):
        files.create(name, b"three")
    assert files.read_range(name, 0, 10) == b"two"
    assert len(Hdfs.store) == 1


def test_a_failed_upload_leaves_nothing(hdfs, monkeypatch):
    monkeypatch.setattr(Hdfs, "broken", True)
    with pytest.raises(ConnectionError):
        files.write(f"{hdfs}/a.bin", b"one")
    assert not Hdfs.store


def test_object_stores_get_one_put(hdfs, monkeypatch):
    monkeypatch.setattr(remote, "OBJECT_STORES", frozenset(["hdfslike"]))
    monkeypatch.setattr(Hdfs, "mv", None)
    files.write(f"{hdfs}/a.bin", b"one")
    files.write(f"{hdfs}/a.bin", b"two")
    with pytest.raises(FileExistsError):
        files.create(f"{hdfs}/a.bin", b"three")
    assert files.read_range(f"{hdfs}/a.bin", 1, 10) == b"wo"


def test_hdfs_after_a_fork_is_an_error_not_a_hang(hdfs, monkeypatch):
    monkeypatch.setattr(remote, "_NOT_AFTER_FORK", frozenset(["hdfslike"]))
    monkeypatch.setattr(remote, "_users", {})
    files.write(f"{hdfs}/a.bin", b"one")
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool, pytest.raises(RuntimeError, match="with 'spawn'"):
        pool.apply(files.exists, [f"{hdfs}/a.bin"])
    monkeypatch.setattr(remote, "_users", {})
    with context.Pool(1) as pool:  # the parent has not used it
        assert pool.apply(files.exists, [f"{hdfs}/a.bin"])


class Refusing(MemoryFileSystem):
    """Raises what it is told to."""

    protocol = "refusing"
    store, pseudo_dirs = {}, [""]
    error = None

    def _open(self, path, *arguments, **options):
        if self.error is not None:
            raise self.error
        return super()._open(path, *arguments, **options)


@pytest.fixture
def refusing(monkeypatch):
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    monkeypatch.setattr(Refusing, "store", {})
    return "refusing://me:s3cret@b/x.mp4"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("Access Denied to me"), "Access Denied"),
        (FSTimeoutError(), "FSTimeoutError"),
        (ConnectionError("refused\nJava stack"), "refused$"),
        (KeyError("of the client's own"), "client's own"),
    ],
)
def test_what_a_server_refuses_is_no_videos_fault(refusing, monkeypatch, error, message):
    monkeypatch.setattr(Refusing, "error", error)
    cause = rf"cannot read refusing://\*\*\*@b/x\.mp4: .*{message}"
    with pytest.raises(StorageError, match=cause):
        read_video(refusing)
    with pytest.raises(StorageError, match=message), readable(refusing):
        files.open_read(refusing)
    monkeypatch.setattr(Refusing, "error", FileNotFoundError("x.mp4"))
    with pytest.raises(VideoError, match="there is no file"):
        read_video(refusing)


def test_what_cannot_seek_is_copied(monkeypatch):
    class Stream(io.BytesIO):
        def seek(self, *_):
            raise ValueError("cannot seek")

    fsspec.register_implementation("refusing", Refusing, clobber=True)
    monkeypatch.setattr(Refusing, "_open", lambda *_, **__: Stream(b"0123456789"))
    with files.open_read("refusing://b/x") as file:
        assert file.seek(-2, 2) == 8
        assert file.read() == b"89"
    monkeypatch.setenv("I3D_MAX_COPY_GIB", "0.000000001")
    with pytest.raises(OSError, match="I3D_MAX_COPY_GIB"):
        files.open_read("refusing://b/x")
