"""What is behind a URL: fsspec's file systems, the patience of HDFS and S3, whole uploads.

`files` is the door to it, for paths and URLs alike. Every call asks fsspec for the file system
object of its process and thread. Of http(s) URLs `web` takes care: fsspec's calls a file absent
whatever the server answers.
"""

import errno
import io
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple, cast

from i3d.copies import keep_copy
from i3d.errors import UsageError, hide_secrets

Location = str | os.PathLike[str]

COPY_BYTES = 1 << 16  # read at a time
THREADS = 16  # for small requests: one to S3 takes 20 ms or more
MAX_ETAG_CHARS = 200  # of a server that is not trusted; they have 34
MAX_REASON_CHARS = 300  # HDFS lists all that it knows of every DataNode

# A file appears here as a whole or not at all. Elsewhere it is uploaded beside and renamed.
OBJECT_STORES = frozenset(
    ["s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "cos", "obs", "hf"]
)

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


def _web(url: Location) -> ModuleType | None:
    """The module for http(s) URLs, or None for another one."""
    if not os.fspath(url).lower().startswith(("http://", "https://")):
        return None
    from i3d import web

    return web


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
        packages = {"s3": "s3fs", "s3a": "s3fs", "hdfs": "hdfs-native", "viewfs": "hdfs-native"}
        remedy = f"; pip install {packages[protocol]}" if protocol in packages else ""
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
def _use(url: Location, doing: str = "", *, fresh: bool = True) -> Iterator[tuple[Any, str]]:
    """As `filesystem`, and what goes wrong inside is an OSError of one line.

    Some file systems raise errors of their own, and HDFS sends the server's Java stack along.

    Args:
        url: a file or folder.
        doing: beginning of that line.
        fresh: forget what is remembered of this folder: others write there.
    """
    fs, name = filesystem(url)
    if fresh:
        fs.invalidate_cache(name)
    with _plain_errors(doing):
        yield fs, name


@contextmanager
def _plain_errors(doing: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as error:
        builtin = (c for c in type(error).__mro__ if c.__module__ == "builtins")
        kind = next((c for c in builtin if issubclass(c, OSError)), OSError)
        raise kind(doing + _first_line(error)) from error


def _first_line(error: Exception) -> str:
    line = hide_secrets(str(error).strip().partition("\n")[0]) or type(error).__name__
    return line if len(line) <= MAX_REASON_CHARS else f"{line[:MAX_REASON_CHARS]}..."


def exists(url: Location) -> bool:
    """Whether a file or folder is there."""
    if web := _web(url):
        return bool(web.exists(os.fspath(url)))
    with _use(url) as (fs, name):
        return bool(fs.exists(name))


def is_dir(url: Location) -> bool:
    """Whether it is a folder."""
    if web := _web(url):
        return bool(web.is_dir(os.fspath(url)))
    with _use(url, fresh=False) as (fs, name):
        return bool(fs.isdir(name))


def size(url: Location) -> int:
    """Size of a file in bytes."""
    if web := _web(url):
        return int(web.size(os.fspath(url)))
    with _use(url) as (fs, name):
        return int(fs.size(name))


def list_folder(folder: Location) -> list[tuple[str, bool]]:
    """(name without the folder, whether it is a folder itself) of what is in a folder, sorted."""
    if web := _web(folder):
        return sorted(web.list_folder(os.fspath(folder)))
    with _use(folder) as (fs, name):
        return sorted(
            (info["name"].rstrip("/").rpartition("/")[2], info["type"] == "directory")
            for info in fs.ls(name, detail=True)
            if info["name"].strip("/") != name.strip("/")  # S3 lists a folder's own marker
        )


def open_read(url: Location) -> IO[bytes]:
    """Open for reading bytes; the result can seek, if need be in a copy (`keep_copy`)."""
    if web := _web(url):
        return cast(IO[bytes], web.open_read(os.fspath(url)))
    with _use(url, fresh=False) as (fs, name):
        file = fs.open(name, "rb")
    if fs.protocol in _HDFS:
        return cast(IO[bytes], _HdfsFile(file))
    try:
        file.seek(0, os.SEEK_END)
        file.seek(0)
    except (OSError, ValueError):
        with file:
            return keep_copy(_chunks(file), total=None, where=hide_secrets(os.fspath(url)))
    return cast(IO[bytes], file)


def _chunks(file: Any) -> Iterator[bytes]:
    while True:
        with _plain_errors():
            data = bytes(file.read(COPY_BYTES))
        if not data:
            return
        yield data


def read_range(url: Location, start: int, length: int) -> bytes:
    """Bytes ``start`` to ``start + length`` of a file: one request. Fewer where the file ends."""
    if web := _web(url):
        return bytes(web.read_range(os.fspath(url), start, length))
    with _use(url, fresh=False) as (fs, name):
        return bytes(fs.cat_file(name, start=start, end=start + length))


def remove(url: Location) -> None:
    """Remove a file if it is there."""
    _refuse_to_write(url)
    with _use(url, f"cannot remove {url}: ") as (fs, name), suppress(FileNotFoundError):
        fs.rm_file(name)


def remove_folder(folder: Location) -> None:
    """Remove a folder and all that is in it, if it is there."""
    _refuse_to_write(folder)
    with _use(folder, f"cannot remove {folder}: ") as (fs, name), suppress(FileNotFoundError):
        fs.rm(name, recursive=True)


def _refuse_to_write(url: Location) -> None:
    if _web(url):
        raise UsageError(f"{os.fspath(url)}: http(s) is for reading; write to a folder, S3 or HDFS")


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


def upload(local: Path, url: Location, *, beside: Callable[[str], str], replace: bool) -> None:
    """Put a local file at a URL: to object stores by one put, elsewhere by a rename.

    Args:
        local: what to upload.
        url: where it appears, as a whole or not at all.
        beside: a fresh name in the same folder until the rename, from the file's own.
        replace: whether a file that is there is replaced.

    Raises:
        FileExistsError: there is one.
        OSError: the server's error.
        UsageError: an http(s) URL.
    """
    _refuse_to_write(url)
    with _use(url, f"cannot write {os.fspath(url)}: ", fresh=False) as (fs, name):
        for seconds in WRITE_AGAIN_SECONDS if fs.protocol in _HDFS else ():
            try:
                return _put(local, fs, name, beside=beside, replace=replace)
            except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError):
                raise
            except Exception:  # whatever it is, the last try tells it
                time.sleep(seconds)
        _put(local, fs, name, beside=beside, replace=replace)


def _put(local: Path, fs: Any, name: str, *, beside: Callable[[str], str], replace: bool) -> None:
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
    temporary = f"{folder}/{beside(base)}"
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


# --- what tells a replaced file -------------------------------------------------------------------


class FileState(NamedTuple):
    """What tells whether a file was replaced.

    Attributes:
        size: bytes; None where the file is absent or the server does not say.
        etag: the server's name for this version of the file; None without.
    """

    size: int | None = None
    etag: str | None = None


def find_states(urls: Sequence[Location]) -> dict[str, FileState]:
    """URL -> state of the file. A folder of several whose listing has sizes is listed once.

    Raises:
        OSError: the server fails.
    """
    texts = list(dict.fromkeys(os.fspath(url) for url in urls))
    together = Counter(text.rpartition("/")[0] for text in texts)
    web = ("http://", "https://")  # whose listings have no sizes
    folders = [f for f, count in together.items() if count > 1 and not f.startswith(web)]
    with ThreadPoolExecutor(THREADS) as pool:
        listed = dict(zip(folders, pool.map(_list_states, folders), strict=True))

        def find(text: str) -> FileState:
            folder, _, name = text.rpartition("/")
            state = listed.get(folder, {}).get(name, FileState())
            return _ask_state(text) if state.size is None else state

        return dict(zip(texts, pool.map(find, texts), strict=True))


def _list_states(folder: str) -> dict[str, FileState]:
    """Name -> state of what is in a folder."""
    with _use(folder) as (fs, name):
        try:
            infos = fs.ls(name, detail=True)
        except FileNotFoundError:
            return {}
        return {info["name"].rstrip("/").rpartition("/")[2]: _read_state(info) for info in infos}


def _ask_state(url: str) -> FileState:
    if web := _web(url):
        return _make_state(*web.find_state(url))
    with _use(url, f"{url}: ", fresh=False) as (fs, name):
        try:
            return _read_state(fs.info(name))
        except (FileNotFoundError, PermissionError):
            return FileState()


def _read_state(info: dict[str, Any]) -> FileState:
    """The state that fsspec tells."""
    return _make_state(info.get("size"), info.get("ETag") or info.get("etag"))


def _make_state(size: Any, etag: Any) -> FileState:
    """What a server says, which is not trusted."""
    sound = isinstance(etag, str) and etag.isprintable() and len(etag) <= MAX_ETAG_CHARS
    return FileState(None if size is None else int(size), etag if sound else None)
