"""Copies in the temporary folder of what a server sends and cannot be read in place.

How much comes is the server's word, or nobody's: a live stream has no end. So a copy has a limit,
and leaves room on the disk.
"""

import errno
import math
import os
import shutil
import tempfile
from collections.abc import Iterable
from typing import IO, Any

from i3d.errors import UsageError

LIMIT_VARIABLE = "I3D_MAX_COPY_GIB"
LIMIT_GIB = 4.0  # a film in full HD
FREE_BYTES = 1 << 28  # that a copy leaves on the disk, for whatever else writes there
_LOOK_BYTES = 1 << 24  # how often the room is looked at


def keep_copy(
    chunks: Iterable[bytes],
    *,
    total: int | None,
    where: str,
    origin: str = "from a server without byte ranges",
    remedy: str = "download the file",
) -> IO[bytes]:
    """A temporary file without a name, at its start, that holds all of the chunks.

    Args:
        chunks: what comes.
        total: bytes that are announced; None where nobody says.
        where: the URL, for messages.
        origin: why it must be copied, for messages.
        remedy: what the user can do in place of it, for messages.

    Raises:
        OSError: EFBIG, more than the limit; ENOSPC, the disk would be full.
        UsageError: the limit that the environment gives is no number.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 (its reader closes it)
    try:
        fill_copy(file, chunks, total=total, where=where, origin=origin, remedy=remedy)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


class ShortReads:
    """A file of which nobody reads more than it has: Python would take the memory first.

    Args:
        file: open for reading.
        size: its bytes.
        most: in one reading, beyond which it is refused; None: any number.
    """

    def __init__(self, file: IO[bytes], size: int, *, most: int | None = None) -> None:
        self._file, self._size, self._most = file, size, most

    def read(self, count: int = -1) -> bytes:
        """As the file's.

        Raises:
            ValueError: more was asked for than ``most``.
        """
        left = max(0, self._size - self._file.tell())
        if self._most is not None and count > self._most:
            raise ValueError(f"a header of {count} bytes")
        return self._file.read(left if count < 0 else min(count, left))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fill_copy(
    file: IO[bytes],
    chunks: Iterable[bytes],
    *,
    total: int | None,
    where: str,
    origin: str,
    remedy: str,
) -> None:
    """Write all of the chunks to a file in the temporary folder; arguments as of `keep_copy`.

    Raises:
        OSError: EFBIG, more than the limit; ENOSPC, the disk would be full.
        UsageError: the limit that the environment gives is no number.
    """
    limit = _read_limit()
    _check(total or 0, limit, where, origin, remedy)
    size = looked = 0
    try:
        for chunk in chunks:
            size += len(chunk)
            if size > limit or size >= looked + _LOOK_BYTES:
                _check(size, limit, where, origin, remedy, written=size - len(chunk))
                looked = size
            file.write(chunk)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_room(size, where, origin) from error
        raise


def _read_limit() -> int:
    """Bytes of the largest copy."""
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        limit = float(text) if text else LIMIT_GIB
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise UsageError(f"{LIMIT_VARIABLE} is {text!r}; it must be a number of GiB above 0")
    return int(limit * (1 << 30))


def _check(
    size: int, limit: int, where: str, origin: str, remedy: str, *, written: int = 0
) -> None:
    """Refuse a copy of this size, of which some bytes are on the disk already."""
    if size > limit:
        raise OSError(
            errno.EFBIG,
            f"more than {limit / (1 << 30):.3g} GiB, {origin}, which must "
            f"be copied; {remedy}, or set {LIMIT_VARIABLE}",
            where,
        )
    if shutil.disk_usage(tempfile.gettempdir()).free - (size - written) < FREE_BYTES:
        raise _no_room(size, where, origin)


def _no_room(size: int, where: str, origin: str) -> OSError:
    return OSError(
        errno.ENOSPC,
        f"no room in {tempfile.gettempdir()} for a copy of {size >> 20} MiB or more, {origin}; set "
        "TMPDIR to a larger disk",
        where,
    )
