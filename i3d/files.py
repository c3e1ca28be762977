"""Paths and URLs alike: open for reading, and write so that nothing half-written is ever visible.

Local files are opened directly; everything with a ``scheme://`` goes through fsspec
(``hdfs://``, ``s3://``, ``gs://``, ``https://``, ``memory://``), in `remote`.
"""

import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from i3d import remote

Location = remote.Location
filesystem = remote.filesystem

_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{12}\.tmp(?P<suffix>\.[^.]+)?")


def is_url(location: Location) -> bool:
    """Whether ``location`` names something that fsspec must open."""
    return "://" in os.fspath(location)


def local_path(location: Location) -> Path | None:
    """The local path that ``location`` names (``file://`` included), or None for a remote URL."""
    text = os.fspath(location)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if is_url(text) else Path(text).expanduser()


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


def names_in(folder: Location) -> list[str]:
    """The sorted names (without the folder) of what is in a folder."""
    path = local_path(folder)
    return remote.names_in(folder) if path is None else sorted(p.name for p in path.iterdir())


def open_read(location: Location) -> IO[bytes]:
    """Open a file or URL for reading bytes; the result can seek."""
    path = local_path(location)
    return remote.open_read(location) if path is None else path.open("rb")


def read_range(location: Location, start: int, length: int) -> bytes:
    """Bytes ``start`` to ``start + length`` of a file: one request. Fewer where the file ends."""
    if length == 0:
        return b""
    path = local_path(location)
    if path is None:
        return remote.read_range(location, start, length)
    with path.open("rb") as f:
        f.seek(start)
        return f.read(length)


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
    """Remove a folder and all that is in it, if it is there."""
    path = local_path(folder)
    if path is None:
        remote.remove_folder(folder)
    else:
        shutil.rmtree(path, ignore_errors=True)


def temporary_stem(name: str) -> str | None:
    """``shard-00000`` for ``.shard-00000.0123456789ab.tmp.tar``, what a killed writer left behind.

    None where the name is not one of a temporary file of this module.
    """
    match = _TEMPORARY.fullmatch(name)
    return match["stem"] if match else None


@contextmanager
def atomic_path(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed.

    On any error, Ctrl-C included, the temporary file is removed and ``path`` is untouched.

    Raises:
        FileExistsError: there is a file, and ``replace`` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        yield temporary
        _flush(temporary)
        if replace or not _link(temporary, path):
            temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        # A write that fails does not say where, and the temporary name says nothing to the user.
        if error.errno is not None and error.filename in (None, os.fspath(temporary)):
            error.filename = os.fspath(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


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
    with atomic_file(location, replace=False) as path:
        path.write_bytes(data)


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
