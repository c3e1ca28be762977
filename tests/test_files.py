"""Files: whole or not at all, on paths and URLs."""

import threading

import pytest

from i3d import files


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
