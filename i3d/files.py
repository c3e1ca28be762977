"""Paths and URLs alike: open for reading, and write so that nothing half-written is ever visible.

Local files are opened directly; everything with a ``scheme://`` goes through fsspec
(``hdfs://``, ``s3://``, ``gs://``, ``https://``, ``memory://``).
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

Location = str | os.PathLike[str]


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
    """The fsspec file system of a URL, and the URL's path on it."""
    import fsspec

    return fsspec.core.url_to_fs(os.fspath(url))


def join(folder: Location, *parts: str) -> str:
    """``folder/part/...`` for a path or a URL."""
    return "/".join([os.fspath(folder).rstrip("/"), *parts])


def exists(location: Location) -> bool:
    """Whether a file or folder is there."""
    path = local_path(location)
    if path is not None:
        return path.exists()
    fs, name = filesystem(location)
    return bool(fs.exists(name))


def is_dir(location: Location) -> bool:
    """Whether ``location`` is a folder."""
    path = local_path(location)
    if path is not None:
        return path.is_dir()
    fs, name = filesystem(location)
    return bool(fs.isdir(name))


def size(location: Location) -> int:
    """Size of a file in bytes."""
    path = local_path(location)
    if path is not None:
        return path.stat().st_size
    fs, name = filesystem(location)
    return int(fs.size(name))


def names_in(folder: Location) -> list[str]:
    """The sorted names (without the folder) of what is in a folder."""
    path = local_path(folder)
    if path is not None:
        return sorted(p.name for p in path.iterdir())
    fs, name = filesystem(folder)
    return sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in fs.ls(name, detail=False))


def open_read(location: Location) -> IO[bytes]:
    """Open a file or URL for reading bytes; the result can seek."""
    path = local_path(location)
    if path is not None:
        return path.open("rb")
    fs, name = filesystem(location)
    return fs.open(name, "rb")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed.

    On any error, Ctrl-C included, the temporary file is removed and ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers such as numpy append theirs when it is missing.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # the umask's; some writers make their files private
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
