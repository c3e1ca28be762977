"""Paths and URLs alike: open for reading, and write so that nothing half-written is ever visible.

Local files are opened directly; everything with a ``scheme://`` goes through fsspec
(``hdfs://``, ``s3://``, ``gs://``, ``https://``, ``memory://``).

Every call asks fsspec for the file system object of its process and thread.
"""

import errno
import io
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from i3d.errors import UsageError

Location = str | os.PathLike[str]

# A file appears here as a whole or not at all. Elsewhere it is uploaded beside and renamed.
OBJECT_STORES = frozenset(
    ["s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "cos", "obs", "hf"]
)
_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{12}\.tmp(?P<suffix>\.[^.]+)?")

# hdfs-native cannot be used in a process forked from one that has used it: reads wait forever, even
# with a new client, and so does dropping the parent's client, as fsspec does at the fork. So what
# was opened is kept, and its use in the child is an error.
_HDFS = frozenset(["hdfs", "viewfs"])
_NOT_AFTER_FORK = _HDFS
_users: dict[str, int] = {}  # protocol -> the first process that used it, a parent perhaps
_opened: dict[int, Any] = {}

# hdfs-native and s3fs are patient with a server that does not answer: half a minute to minutes, or
# forever if it accepts the connection. In a job's tenth hour that is right; a mistyped address is
# to be told at once. So each process makes one call with a time limit before all others.
ANSWER_SECONDS = 10
_MUST_ANSWER = _HDFS | {"s3", "s3a"}
_IMPATIENT = {"dfs.client.failover.max.attempts": "2"}
# hdfs-native gives up a file whose first DataNode has just died; asked again, the NameNode may
# name others.
WRITE_AGAIN_SECONDS = (1, 10)

_answered: set[tuple[int, str]] = set()  # (process, server)


def is_url(location: Location) -> bool:
    """Whether ``location`` names something that fsspec must open."""
    return "://" in os.fspath(location)


def local_path(location: Location) -> Path | None:
    """The local path that ``location`` names (``file://`` included), or None for a remote URL."""
    text = os.fspath(location)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if is_url(text) else Path(text).expanduser()


def filesystem(url: Location) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the URL's path on it.

    Raises:
        RuntimeError: HDFS in a process that was forked from one that has used it.
        UsageError: no such protocol, or its package is not installed.
        OSError: the server does not answer, or gives an error.
    """
    import fsspec

    text = os.fspath(url)
    protocol, _, rest = text.partition("://")
    if protocol in _NOT_AFTER_FORK and _users.setdefault(protocol, os.getpid()) != os.getpid():
        raise RuntimeError(
            f"{text}: {protocol} was used before this process was forked, and would hang;"
            " start worker processes with 'spawn' or 'forkserver'"
        )
    if protocol in _HDFS and (odd := re.search("[?#;]", rest)):
        # hdfs-native drops the rest of the name, and so would read or replace another file.
        reason = f"a name with {odd[0]!r} cannot be used on HDFS; rename it"
        raise OSError(errno.EINVAL, reason, text)  # of this file, not of the server
    try:
        fs, name = fsspec.core.url_to_fs(text)
    except ImportError as error:
        extra = {"s3a": "s3", "viewfs": "hdfs"}.get(protocol, protocol)
        remedy = f"; pip install 'i3d[{extra}]'" if extra in ("s3", "hdfs") else ""
        raise UsageError(f"{text}: {error}{remedy}") from error
    except ValueError as error:
        raise UsageError(f"{text}: {error}") from error
    except RuntimeError as error:  # hdfs-native's, of an address without a port or configuration
        raise OSError(f"{text}: {_first_line(error)}") from error
    if protocol in _NOT_AFTER_FORK:
        _opened[id(fs)] = fs
    if protocol in _MUST_ANSWER:
        _await_answer(fs, name, f"{protocol}://{rest.partition('/')[0]}")
    return fs, name


def _await_answer(fs: Any, name: str, server: str) -> None:
    """Refuse a server that does not answer this process's first call in time."""
    if (os.getpid(), server) in _answered:
        return
    if fs.protocol in _HDFS:
        fs = type(fs)(fs.host, fs.port, skip_instance_cache=True, **_IMPATIENT)
    outcome: list[Exception | None] = []

    def call() -> None:
        try:
            fs.exists(name)
            outcome.append(None)
        except (FileNotFoundError, PermissionError):
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)  # it may never return
    thread.start()
    thread.join(ANSWER_SECONDS)
    if not outcome:
        raise OSError(f"{server} does not answer within {ANSWER_SECONDS} s; check host and port")
    if outcome[0] is not None:
        reason = _first_line(outcome[0])
        raise OSError(f"{server} does not answer: {reason}") from outcome[0]
    _answered.add((os.getpid(), server))


@contextmanager
def _plain_errors(doing: str = "") -> Iterator[None]:
    """Turns what remote file systems raise into an OSError of one line.

    Some have errors of their own, and HDFS sends the server's Java stack along.
    """
    try:
        yield
    except Exception as error:
        builtin = (c for c in type(error).__mro__ if c.__module__ == "builtins")
        kind = next((c for c in builtin if issubclass(c, OSError)), OSError)
        raise kind(doing + _first_line(error)) from error


MAX_REASON_CHARS = 300


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    # HDFS lists all that it knows of every DataNode
    return line if len(line) <= MAX_REASON_CHARS else f"{line[:MAX_REASON_CHARS]}..."


def _fresh(url: Location) -> tuple[Any, str]:
    """As `filesystem`, and what it remembers of this folder is forgotten: others write there."""
    fs, name = filesystem(url)
    fs.invalidate_cache(name)
    return fs, name


def join(folder: Location, *parts: str) -> str:
    """``folder/part/...`` for a path or a URL."""
    return "/".join([os.fspath(folder).rstrip("/"), *parts])


def exists(location: Location) -> bool:
    """Whether a file or folder is there."""
    path = local_path(location)
    if path is not None:
        return path.exists()
    fs, name = _fresh(location)
    with _plain_errors():
        return bool(fs.exists(name))


def is_dir(location: Location) -> bool:
    """Whether ``location`` is a folder."""
    path = local_path(location)
    if path is not None:
        return path.is_dir()
    fs, name = filesystem(location)
    with _plain_errors():
        return bool(fs.isdir(name))


def size(location: Location) -> int:
    """Size of a file in bytes."""
    path = local_path(location)
    if path is not None:
        return path.stat().st_size
    fs, name = _fresh(location)
    with _plain_errors():
        return int(fs.size(name))


def names_in(folder: Location) -> list[str]:
    """The sorted names (without the folder) of what is in a folder."""
    path = local_path(folder)
    if path is not None:
        return sorted(p.name for p in path.iterdir())
    fs, name = _fresh(folder)
    with _plain_errors():
        return sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in fs.ls(name, detail=False))


def open_read(location: Location) -> IO[bytes]:
    """Open a file or URL for reading bytes; the result can seek."""
    path = local_path(location)
    if path is not None:
        return path.open("rb")
    fs, name = filesystem(location)
    with _plain_errors():
        file = fs.open(name, "rb")
    return cast(IO[bytes], _HdfsFile(file) if fs.protocol in _HDFS else file)


class _HdfsFile(io.RawIOBase):
    """What hdfs-native opened, with a ``seek`` as Python's: says where it is, may pass the end."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._size = len(file)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"cannot seek to {start + offset}")
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._size - self._position, 0)
        length = left if size is None or size < 0 else min(size, left)
        with _plain_errors():
            data = bytes(self._file.read_range(self._position, length)) if length else b""
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def read_range(location: Location, start: int, length: int) -> bytes:
    """Bytes ``start`` to ``start + length`` of a file: one request. Fewer where the file ends."""
    if length == 0:
        return b""
    path = local_path(location)
    if path is not None:
        with path.open("rb") as f:
            f.seek(start)
            return f.read(length)
    fs, name = filesystem(location)
    with _plain_errors():
        return bytes(fs.cat_file(name, start=start, end=start + length))


def remove(location: Location) -> None:
    """Remove a file if it is there."""
    path = local_path(location)
    if path is not None:
        path.unlink(missing_ok=True)
        return
    fs, name = _fresh(location)
    with suppress(FileNotFoundError), _plain_errors(f"cannot remove {location}: "):
        fs.rm_file(name)


def remove_folder(folder: Location) -> None:
    """Remove a folder and all that is in it, if it is there."""
    path = local_path(folder)
    if path is not None:
        shutil.rmtree(path, ignore_errors=True)
        return
    fs, name = _fresh(folder)
    with suppress(FileNotFoundError), _plain_errors(f"cannot remove {folder}: "):
        fs.rm(name, recursive=True)


def temporary_stem(name: str) -> str | None:
    """``shard-00000`` for ``.shard-00000.0123456789ab.tmp.tar``, what a killed writer left behind.

    None where the name is not one of a temporary file of this module.
    """
    match = _TEMPORARY.fullmatch(name)
    return match["stem"] if match else None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed.

    On any error, Ctrl-C included, the temporary file is removed and ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_file(location: Location) -> Iterator[Path]:
    """As `atomic_path`, for a path or URL: a URL's file is written in the local temporary folder.

    On success it is uploaded: to object stores by one put, elsewhere under a temporary name that
    is then renamed. What was there is replaced.
    """
    path = local_path(location)
    if path is not None:
        with atomic_path(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="i3d-") as folder:
        local = Path(folder) / "file"
        yield local
        _upload(local, location, replace=True)


def write(location: Location, data: bytes) -> None:
    """Write a small file atomically; what was there is replaced."""
    with atomic_file(location) as path:
        path.write_bytes(data)


def create(location: Location, data: bytes) -> None:
    """Write a small file atomically, unless there is one.

    Of several processes that create the same file at once, one succeeds. (Object stores other than
    S3 and file systems without hard links may let the last one win.)

    Raises:
        FileExistsError: there is one, which is untouched.
    """
    if exists(location):
        raise FileExistsError(os.fspath(location))
    path = local_path(location)
    if path is None:
        with tempfile.TemporaryDirectory(prefix="i3d-") as folder:
            local = Path(folder) / "file"
            local.write_bytes(data)
            _upload(local, location, replace=False)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        temporary.write_bytes(data)
        _flush(temporary)
        try:
            path.hardlink_to(temporary)  # unlike a rename, it never replaces
        except FileExistsError:
            raise
        except OSError:
            temporary.replace(path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_name(name: str) -> str:
    # The suffix stays last: writers such as numpy append theirs when it is missing.
    return f".{Path(name).stem}.{uuid.uuid4().hex[:12]}.tmp{Path(name).suffix}"


def _flush_folder(folder: Path) -> None:
    """The names in a folder to disk: what was renamed earlier survives if what came later does."""
    with suppress(OSError):  # some network file systems have no such thing
        _flush(folder)


def _flush(path: Path) -> None:
    """A file's bytes to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _upload(local: Path, url: Location, *, replace: bool) -> None:
    fs, name = filesystem(url)
    with _plain_errors(f"cannot write {os.fspath(url)}: "):
        for seconds in WRITE_AGAIN_SECONDS if fs.protocol in _HDFS else ():
            try:
                return _put(local, fs, name, replace=replace)
            except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError):
                raise
            except Exception:
                time.sleep(seconds)
        _put(local, fs, name, replace=replace)


def _put(local: Path, fs: Any, name: str, *, replace: bool) -> None:
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if not protocols.isdisjoint(OBJECT_STORES):
        if replace:
            fs.put_file(str(local), name)
            return
        try:
            fs.pipe_file(name, local.read_bytes(), mode="create")
        except Exception as error:
            fs.invalidate_cache(name)
            if not fs.exists(name):
                raise
            raise FileExistsError(name) from error  # S3 calls it a failed precondition
        return
    folder, _, base = name.rpartition("/")
    temporary = f"{folder}/{_temporary_name(base)}"
    fs.makedirs(folder, exist_ok=True)
    try:
        fs.put_file(str(local), temporary)
        if replace and not protocols.isdisjoint(_HDFS):
            fs.mv(temporary, name, overwrite=True)  # in one step: two processes may do it at once
            return
        try:
            fs.mv(temporary, name)
        except FileExistsError:
            if not replace:
                raise
            fs.rm_file(name)
            fs.mv(temporary, name)
    except BaseException:
        with suppress(Exception):  # the first error says what happened
            fs.rm_file(temporary)
        raise
