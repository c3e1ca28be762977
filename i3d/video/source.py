"""Path, URL, bytes or file object -> the bytes of a video, as FFmpeg reads them."""

import io
import os
from typing import IO

from i3d import files
from i3d.errors import StorageError, UsageError, VideoError, hide_secrets

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]


class SourceFile:
    """The file that FFmpeg is given: ``read``, ``seek``, ``tell``, ``seekable``.

    There is no ``name``, so that the format is found from the content alone: FFmpeg would play any
    file called ``.txt`` as a film of its text.

    Args:
        source: path, URL that fsspec understands, bytes, or a binary file object, which is left
            open.

    Attributes:
        label: the path, the URL without its password, or a description of the object.
        size: bytes; None for what cannot seek.
    """

    def __init__(self, source: Source) -> None:
        self._owned = True
        if isinstance(source, bytes | bytearray | memoryview):
            self.label = f"<{len(source)} bytes>"
            self._file: IO[bytes] = io.BytesIO(source)
        elif isinstance(source, str | os.PathLike):
            self.label = hide_secrets(os.fspath(source))
            self._file = open_location(source)
        elif hasattr(source, "read"):
            name = getattr(source, "name", None)
            self.label = name if isinstance(name, str) else f"<{type(source).__name__}>"
            self._file = source
            self._owned = False
        else:
            raise UsageError(
                f"a video is a path, a URL, bytes or a binary file object, not {source!r}"
            )
        self._guard = _Guard(self._file)
        # Python delivers Ctrl-C where Python code begins to run, which must then not be a function
        # that FFmpeg calls; these files' own methods are C.
        in_c = type(self._file) in (io.BufferedReader, io.BytesIO)
        called = self._file if in_c else self._guard
        self.read, self.seek = called.read, called.seek
        self.size = self._measure()
        if self.size == 0:
            self.close()
            raise VideoError(f"{self.label} is empty (0 bytes); download or copy it again")

    def _measure(self) -> int | None:
        if not self.seekable():
            return None
        try:
            return int(self._file.seek(0, os.SEEK_END))
        except Exception as error:
            self.close()
            files.blame_storage(self.label, error)
            raise VideoError(f"cannot read {self.label}: {files.explain(error)}") from error

    def seekable(self) -> bool:
        """Whether the file can be read from any place."""
        test = getattr(self._file, "seekable", None)
        return hasattr(self._file, "seek") if test is None else bool(test())

    def rewind(self) -> None:
        """Go back to the beginning, if the file can."""
        if self.seekable():
            self._file.seek(0)

    def tell(self) -> int:
        """The place in the file, in bytes."""
        return self._file.tell()

    def peek(self, position: int, size: int) -> bytes:
        """Up to ``size`` bytes from a position, with the file left where FFmpeg expects it.

        Raises:
            VideoError: the file cannot be read.
            StorageError: a URL's server fails.
        """
        here = self._guard.seek(0, os.SEEK_CUR)
        self._guard.seek(position)
        data = b""
        while len(data) < size and (more := self._guard.read(size - len(data))):
            data += more
        self._guard.seek(here)
        self.check()
        return data

    def check(self) -> None:
        """Raise what went wrong while FFmpeg was reading."""
        error, self._guard.error = self._guard.error, None
        if error is None:
            return
        if not isinstance(error, Exception):
            raise error
        if files.is_url(self.label):  # it was there when it was opened
            raise StorageError(f"cannot read {self.label}: {files.explain(error)}") from error
        remedy = "; open the file in binary mode" if isinstance(error, TypeError) else ""
        raise VideoError(f"cannot read {self.label}: {error}{remedy}") from error

    def close(self) -> None:
        """Close the file, unless it is the caller's file object."""
        if self._owned:
            self._file.close()


class _Guard:
    """Keeps the errors of a file written in Python, Ctrl-C included.

    An exception cannot travel through FFmpeg's C code, where it would look like the end of the
    file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: BaseException | None = None

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._file.read(size))
        except BaseException as error:
            self.error = error
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -1  # damaged files point outside of themselves
        except BaseException as error:
            self.error = error
            return -1


def open_location(location: files.Location) -> IO[bytes]:
    """Open a path or URL for reading and seeking.

    Raises:
        VideoError: there is no such file, or it is none, or it may not be read.
        StorageError: the server or disk fails (`files.blame_storage`).
        UsageError: a package for this kind of URL is not installed, which is no video's fault.
    """
    name = os.fspath(location)
    try:
        return files.open_read(location)
    except FileNotFoundError as error:
        if name.startswith(("http://", "https://")):  # what the server said
            raise VideoError(f"cannot open {name}: {files.explain(error)}") from error
        raise VideoError(f"there is no file {name}") from error
    except IsADirectoryError as error:
        raise VideoError(f"{name} is a folder; give a video file") from error
    except Exception as error:  # fsspec's file systems raise errors of their own
        if isinstance(error, UsageError) and isinstance(error.__cause__, ImportError):
            raise
        files.blame_storage(location, error)
        raise VideoError(f"cannot open {name}: {files.explain(error)}") from error
