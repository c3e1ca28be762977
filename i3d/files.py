"""Paths and URLs alike: open for reading, and write so that nothing half-written is ever visible.

Local files are opened directly; everything with a ``scheme://`` is opened by `remote`: ``https://``
and whatever fsspec knows (``hdfs://``, ``s3://``, ``gs://``, ``memory://``).

**Several writers.** The same job may run twice at once, on purpose or not. Each writes under a
temporary name of its own and renames; both make the same bytes, so the last rename wins and nothing
that has its final name is removed. Whoever finds a job complete removes the temporary files that
are left (`remove_leftovers`), a living writer's too: on NFS and HDFS nothing tells it from one that
was killed. A writer whose temporary file is gone writes again (`write`, `write_by`), or takes what
is there. So no lock is needed, and none can be left behind.
"""

import errno
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from i3d import remote
from i3d.errors import StorageError

Location = remote.Location
FileState = remote.FileState

_SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
# Errors that tell of the file or its name, whatever the disk or server.
_OF_THE_FILE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_OF_THE_NAME = frozenset({errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG})

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # on the disk, or by a limit
_ABSENT = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP}
_TOGETHER = 256  # files that a thread asks for at a time
WRITES = 5  # of a file whose temporary name others remove: each costs them a whole run

_PIECE_BYTES = 1 << 20
_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{12}\.tmp(?P<suffix>\.[^.]+)?")


def is_url(location: Location) -> bool:
    """Whether ``location`` names something that fsspec must open."""
    return "://" in os.fspath(location)


def local_path(location: Location) -> Path | None:
    """The local path that ``location`` names (``file://`` included), or None for a remote URL."""
    text = os.fspath(location)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if is_url(text):
        return None
    # `~x.mp4` is a file's name, and no user's home folder
    return Path(text).expanduser() if text == "~" or text.startswith("~/") else Path(text)


def join(folder: Location, *parts: str) -> str:
    """``folder/part/...`` for a path or a URL."""
    return "/".join([os.fspath(folder).rstrip("/"), *parts])


def exists(location: Location) -> bool:
    """Whether a file or folder is there."""
    path = local_path(location)
    return remote.exists(location) if path is None else path.exists()


def is_dir(location: Location) -> bool:
    """Whether ``location`` is a folder."""
    path = local_path(location)
    return remote.is_dir(location) if path is None else path.is_dir()


def size(location: Location) -> int:
    """Size of a file in bytes."""
    path = local_path(location)
    return remote.size(location) if path is None else path.stat().st_size


def find_states(locations: Sequence[Location]) -> list[FileState]:
    """Size of every file, and its ETag where a server keeps one; nothing of a file that is absent.

    A folder behind a URL is listed once where its listing has sizes; over http(s), whose has none,
    each file costs a request.

    Raises:
        OSError: the server or the disk fails.
    """
    known = remote.find_states([x for x in locations if local_path(x) is None])

    def find(some: Sequence[Location]) -> list[FileState]:
        return [known.get(os.fspath(x)) or _find_local_state(x) for x in some]

    parts = [locations[i : i + _TOGETHER] for i in range(0, len(locations), _TOGETHER)]
    with ThreadPoolExecutor(remote.THREADS) as pool:  # network file systems take a moment for each
        return [state for states in pool.map(find, parts) for state in states]


def _find_local_state(location: Location) -> FileState:
    path = local_path(location)
    assert path is not None
    try:
        return FileState(path.stat().st_size)
    except OSError as error:
        if error.errno in _ABSENT:
            return FileState()
        raise


def identify(locations: Sequence[Location]) -> list[str | None]:
    """What tells each file from one that took its place; None where nothing does.

    Of a local file that is path, size, times of change and inode, as Git has it, behind a URL its
    ETag. A file that cannot be looked at has none.

    Raises:
        OSError: the server fails.
    """
    states = remote.find_states([x for x in locations if local_path(x) is None])
    return [_identify(location, states) for location in locations]


def _identify(location: Location, states: Mapping[str, FileState]) -> str | None:
    path = local_path(location)
    if path is None:
        state = states.get(os.fspath(location))
        return None if state is None or state.etag is None else f"{location} {state.etag}"
    try:
        found = path.stat()
    except OSError:
        return None
    times = f"{found.st_mtime_ns} {found.st_ctime_ns}"
    return f"{path.absolute()} {found.st_size} {times} {found.st_ino}"


def names_in(folder: Location) -> list[str]:
    """The sorted names (without the folder) of what is in a folder."""
    return [name for name, _ in list_folder(folder)]


def list_folder(folder: Location) -> list[tuple[str, bool]]:
    """(name without the folder, whether it is a folder itself) of what is in a folder, sorted."""
    path = local_path(folder)
    if path is None:
        return remote.list_folder(folder)
    with os.scandir(path) as entries:
        return sorted((entry.name, _leads_to_folder(entry)) for entry in entries)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def check_regular(location: Location) -> None:
    """Refuse what is no file on a disk: a FIFO would wait for a writer, a device may never end.

    Links are followed. A URL is left to its server.

    Raises:
        OSError: EINVAL, a FIFO, a socket or a device; EISDIR; ENOENT.
    """
    path = local_path(location)
    if path is None:
        return
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(location))
    if kind != stat.S_IFREG:
        what = _SPECIAL.get(kind, "something else")
        raise OSError(errno.EINVAL, f"not a regular file ({what})", os.fspath(location))


def open_read(location: Location) -> IO[bytes]:
    """Open a file or URL for reading bytes; the result can seek.

    Raises:
        OSError: as `check_regular`; the disk or server fails (`blame_storage`).
        UsageError: no such protocol, or its package is not installed.
    """
    path = local_path(location)
    if path is None:
        return remote.open_read(location)
    check_regular(location)
    return path.open("rb")


def explain(error: BaseException) -> str:
    """The reason that an error gives, in one line, without its number and the file's name."""
    reason = error.strerror if isinstance(error, OSError) else None
    line = reason or str(error).strip().partition("\n")[0] or type(error).__name__
    return line[: remote.MAX_REASON_CHARS]


def blame_storage(location: Location, error: BaseException) -> None:
    """Raise a StorageError if an error is the server's or the disk's; else return.

    Where a file is absent, no file or misnamed, the file is at fault. So is one on this machine
    that may not be read; a server that refuses wants another password, and would refuse the next.

    Args:
        location: path or URL that was read.
        error: whatever was raised; what is no OSError is never the storage's.
    """
    if not isinstance(error, OSError) or isinstance(error, _OF_THE_FILE):
        return
    local = local_path(location) is not None
    if error.errno in _OF_THE_NAME or (local and isinstance(error, PermissionError)):
        return
    if local and error.errno is None:  # a parser's, which has never asked the disk
        return
    raise StorageError(f"cannot read {os.fspath(location)}: {explain(error)}") from error


def read_range(location: Location, start: int, length: int) -> bytes:
    """Bytes ``start`` to ``start + length`` of a file: one request. Fewer where the file ends."""
    if length == 0:
        return b""
    path = local_path(location)
    if path is None:
        return remote.read_range(location, start, length)
    with open_read(location) as f:
        f.seek(start)
        return f.read(length)


def read_bounded(file: IO[bytes], max_bytes: int) -> bytes:
    """The rest of a file, but ``max_bytes`` of it at most.

    Memory is taken as bytes come: ``file.read(n)`` itself takes n bytes at once, also of a short
    file, and fails where the machine has not as many.
    """
    data = io.BytesIO()
    while data.tell() < max_bytes:
        piece = file.read(min(_PIECE_BYTES, max_bytes - data.tell()))
        if not piece:
            break
        data.write(piece)
    return data.getvalue()


def sha256(location: Location) -> str:
    """SHA-256 of a file's bytes: 64 hexadecimal digits."""
    with open_read(location) as f:
        return hashlib.file_digest(cast(Any, f), "sha256").hexdigest()


def remove(location: Location) -> None:
    """Remove a file if it is there."""
    path = local_path(location)
    if path is None:
        remote.remove(location)
    else:
        path.unlink(missing_ok=True)


def remove_folder(folder: Location) -> None:
    """Remove a folder and all that is in it, if it is there.

    What another process writes meanwhile may stay, and is removed when that one ends.
    """
    path = local_path(folder)
    if path is None:
        remote.remove_folder(folder)
    else:
        shutil.rmtree(path, ignore_errors=True)


def final_name(name: str) -> str | None:
    """``shard-00000.tar`` for ``.shard-00000.0123456789ab.tmp.tar``, a temporary file's name.

    None where the name is not one of a temporary file of this module.
    """
    match = _TEMPORARY.fullmatch(name)
    return f"{match['stem']}{match['suffix'] or ''}" if match else None


def remove_leftovers(locations: Iterable[Location]) -> None:
    """Remove what killed writers of these files left beside them; see the module's docstring.

    One listing a folder. A folder that is not there has nothing left in it.
    """
    names: dict[str, set[str]] = {}
    for location in locations:
        text = os.fspath(location)
        name = text.rpartition("/")[2]
        names.setdefault(text[: len(text) - len(name)], set()).add(name)
    for folder, finals in names.items():
        with suppress(FileNotFoundError):
            for name in names_in(folder):
                if final_name(name) in finals:
                    remove(f"{folder}{name}")


@contextmanager
def atomic_path(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed.

    On any error, Ctrl-C included, the temporary file is removed and ``path`` is untouched.

    Raises:
        FileExistsError: there is a file, and ``replace`` is false.
        OSError: there is a folder, or a device such as /dev/null, which is never replaced.
    """
    with suppress(FileNotFoundError):
        check_regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with naming(path, instead_of=temporary):
            yield temporary
            _flush(temporary)
            if replace or not _link(temporary, path):
                temporary.replace(path)
            _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(location: Location, *, instead_of: Location | None = None) -> Iterator[None]:
    """Let errors in here tell of which file they are: a write that fails does not say it.

    Args:
        location: the name that the user knows.
        instead_of: a temporary one, which says nothing to the user.
    """
    try:
        yield
    except OSError as error:
        unknown = (None, instead_of and os.fspath(instead_of))
        if error.errno is None or error.filename not in unknown:
            raise
        # a new one: libraries have some whose name cannot be changed
        raise OSError(error.errno, error.strerror, os.fspath(location)) from error


@contextmanager
def atomic_file(location: Location, *, replace: bool = True) -> Iterator[Path]:
    """As `atomic_path`, for a path or URL: a URL's file is written in the local temporary folder.

    On success it is uploaded: to object stores by one put, elsewhere under a temporary name that
    is then renamed.
    """
    path = local_path(location)
    if path is not None:
        with atomic_path(path, replace=replace) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="i3d-") as folder:
        local = Path(folder) / "file"
        yield local
        remote.upload(local, location, beside=_temporary_name, replace=replace)


def write(location: Location, data: bytes) -> None:
    """Write a small file atomically; what was there is replaced."""
    write_by(location, lambda path: path.write_bytes(data))


def write_by(location: Location, fill: Callable[[Path], object], *, replace: bool = True) -> None:
    """Write a file atomically, and again where another process removed it before its rename.

    Args:
        location: path or URL.
        fill: writes the file at the temporary path that it gets; may be called again.
        replace: whether a file that is there is replaced.

    Raises:
        FileExistsError: there is a file, and ``replace`` is false.
        OSError: it cannot be written.
    """
    for left in reversed(range(WRITES)):
        try:
            with atomic_file(location, replace=replace) as path:
                fill(path)
            return
        except OSError as error:
            if not left or not is_gone(error):
                raise


@contextmanager
def open_for_library(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that a library in C fills, and raise what went wrong when the block ends.

    When a write fails, PyTorch and HDF5 lose the cause, and may end the process as they close the
    file. So they hear of no failure.

    Raises:
        OSError: the first one.
    """
    with path.open("w+b", buffering=0) as file:
        filled = _Filled(file)
        try:
            yield cast(IO[bytes], filled)
        finally:  # what the library says of it is no better
            if filled.error is not None:
                raise filled.error


class _Filled(io.RawIOBase):
    """A file, and from its first error on one that takes all and gives zeros."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.error is None:
                rest = rest[self._file.write(rest) :]  # on a disk that fills up less than all
        except OSError as error:
            self.error = error
        if rest:
            self._file.seek(len(rest), io.SEEK_CUR)
        return size

    def readinto(self, buffer: Any) -> int:
        if self.error is None:
            return self._file.readinto(buffer)
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file whose readers take what is there, such as a log."""
    with naming(path), path.open("ab") as file:
        file.write(data)


def is_gone(error: BaseException) -> bool:
    """Whether a file or its folder was removed by another process while it was in use."""
    return isinstance(error, FileNotFoundError) or (
        isinstance(error, OSError) and error.errno == errno.ESTALE  # NFS, of a file that is open
    )


def create(location: Location, data: bytes) -> None:
    """Write a small file atomically, unless there is one.

    Of several processes that create the same file at once, one succeeds. (Object stores other than
    S3 and file systems without hard links may let the last one win.)

    Raises:
        FileExistsError: there is one, which is untouched.
    """
    if exists(location):
        raise FileExistsError(os.fspath(location))
    write_by(location, lambda path: path.write_bytes(data), replace=False)


def _temporary_name(name: str) -> str:
    # The suffix stays last: writers such as numpy append theirs when it is missing.
    return f".{Path(name).stem}.{uuid.uuid4().hex[:12]}.tmp{Path(name).suffix}"


def _link(temporary: Path, path: Path) -> bool:
    """Give a file its name by a hard link, which never replaces; False: there are none here."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


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
