"""Zip archives from outside: their lists of members, and contents of members, within bounds.

``.npz`` and PyTorch's files are such archives. Python's reader takes as much memory as a list of
members says that it has, and as BZIP2 or LZMA may grow to; both are bounded here. What a member
declares as its size is a promise: read it in pieces, which end there.
"""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

MAX_READ_BYTES = 1 << 20  # of an archive at once; a network's list of 350 members has 40 kB

METHODS = {zipfile.ZIP_DEFLATED: "DEFLATE", zipfile.ZIP_BZIP2: "BZIP2", zipfile.ZIP_LZMA: "LZMA"}


class _ShortReads(io.BufferedReader):
    """A file of which nothing longer than `MAX_READ_BYTES` is read at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        asked = MAX_READ_BYTES + 1 if size is None or size < 0 else size
        data = super().read(min(asked, MAX_READ_BYTES + 1))
        if len(data) > MAX_READ_BYTES:
            raise zipfile.BadZipFile(f"its list of members has more than {MAX_READ_BYTES:,} bytes")
        return data


@contextmanager
def open_archive(file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Open an archive; ``file`` stays open.

    Its members are to be read in pieces of at most `MAX_READ_BYTES`.

    Raises:
        zipfile.BadZipFile: it is damaged, or its list of members is too long; and whatever else
            Python's reader raises then.
    """
    reader = _ShortReads(cast(io.RawIOBase, file))
    try:
        with zipfile.ZipFile(reader) as archive:
            yield archive
    finally:
        reader.detach()  # it would close the file


def check_members(archive: zipfile.ZipFile, *, deflate: bool) -> None:
    """Refuse what is compressed, but for DEFLATE's if ``deflate``, and names that are there twice.

    Raises:
        zipfile.BadZipFile: names the member.
    """
    methods = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} if deflate else {zipfile.ZIP_STORED}
    names = set()
    for member in archive.infolist():
        shown = f"member {member.filename!r:.100}"
        if member.compress_type not in methods:
            method = METHODS.get(member.compress_type, f"method {member.compress_type}")
            known = "only DEFLATE is" if deflate else "nothing compressed is"
            raise zipfile.BadZipFile(f"{shown} is compressed by {method}; {known} read")
        if member.filename in names:
            raise zipfile.BadZipFile(f"{shown} is there twice")
        names.add(member.filename)
