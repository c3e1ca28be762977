"""The directory of a zip with hundreds of thousands of members, in bounded memory.

`zipfile` makes an object of every member: of 10,000 videos, whose zips have 7.5 million, gigabytes
and half a minute. Here the entries are columns of numbers, read block by block.

    member, member, ..., [entry, entry, ...], (zip64 end, its locator), end
                          the directory

Everything is checked against the file's size, and nothing in a name is ever a path.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from i3d import files
from i3d.classes import readable
from i3d.errors import DatasetError

REMEDY = "copy the zip again, or move it out of the folder"

# Bounds for files that come from elsewhere, far above what the program wrote.
MAX_DIRECTORY_BYTES = 1 << 30  # 128 samples of ten seconds have 8 MB
MAX_MEMBER_BYTES = 1 << 22  # a JPEG of 340x256 pixels has 60 kB
MAX_READ_BYTES = 1 << 31  # of members that are wanted at once; ten seconds have 12 MB
_BLOCK_BYTES = 1 << 20  # 14,000 entries, whose columns take 7 MB
_JOINED_GAP = 1 << 16  # bytes between two members up to which one request reads both
_JOINED_BYTES = 1 << 26  # of a request

NAME_BYTES = 40  # the longest name of ours has 38: sample_123456789/flow_x/123456789.jpg
_ENTRY = np.dtype(
    [
        ("signature", "<u4"),
        ("versions", "<u4"),
        ("flags", "<u2"),
        ("method", "<u2"),
        ("time", "<u4"),
        ("crc32", "<u4"),
        ("stored", "<u4"),
        ("size", "<u4"),
        ("name", "<u2"),
        ("extra", "<u2"),
        ("comment", "<u2"),
        ("disk", "<u2"),
        ("attributes", "S6"),
        ("offset", "<u4"),
    ]
)
_SIGNATURE = b"PK\1\2"
_END = struct.Struct("<4sHHHHIIH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_TAIL = 0xFFFF + _END.size + _LOCATOR.size
_ENCRYPTED = 1
_STORED, _DEFLATED = 0, 8
_LOCAL_SLACK = 256  # bytes that a member's own extra field may have; the program wrote none


@dataclass(frozen=True)
class Directory:
    """Where a zip's directory lies: bytes ``start`` to ``stop``, and how many entries it has."""

    start: int
    stop: int
    entries: int
    zip_bytes: int


@dataclass(frozen=True)
class Entries:
    """Consecutive entries of a directory, as columns of N rows.

    Attributes:
        start: int64, where each entry begins in the file.
        stop: int64, where it ends.
        name: uint8 (N, kept bytes), zeros behind its end.
        name_bytes: int64, its length.
        offset: int64, where the member lies.
        stored: int64, bytes that it takes.
        size: int64, bytes that it has.
        crc32: uint32, its checksum.
        method: uint16, how it is compressed.
    """

    start: np.ndarray
    stop: np.ndarray
    name: np.ndarray
    name_bytes: np.ndarray
    offset: np.ndarray
    stored: np.ndarray
    size: np.ndarray
    crc32: np.ndarray
    method: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def show_name(self, row: int) -> str:
        """A name for messages: quoted, its control characters escaped, cut where it is long."""
        text = self.name[row, : self.name_bytes[row]].tobytes().decode("utf-8", "backslashreplace")
        return repr(text + "..." if self.name_bytes[row] > self.name.shape[1] else text)

    def member(self, row: int) -> "Member":
        """The member of an entry."""
        columns = self.offset, self.stored, self.size, self.crc32, self.method
        name = self.name[row, : self.name_bytes[row]].tobytes()
        text = name.decode("utf-8", "surrogateescape")
        return Member(text, *(int(column[row]) for column in columns))


class Member(NamedTuple):
    """A file in a zip; see `Entries`."""

    name: str
    offset: int
    stored: int
    size: int
    crc32: int
    method: int


def find_directory(location: str) -> Directory:
    """Where the directory of a zip is.

    Raises:
        DatasetError: not a zip, cut short, or too large a directory.
        StorageError: the disk or server fails.
    """
    with readable(location):
        size = files.size(location)
        start = max(0, size - _TAIL)
        tail = files.read_range(location, start, size - start)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise DatasetError(f"{location} is no zip, or cut short: it has no end; {REMEDY}")
    _, disk, first_disk, _, entries, length, offset, comment = _END.unpack_from(tail, at)
    end = start + at
    if disk or first_disk or at + _END.size + comment != len(tail):
        raise DatasetError(f"{location}: the zip's end is damaged; {REMEDY}")
    locator = max(0, at - _LOCATOR.size)
    is_large = entries == 0xFFFF or length == 0xFFFFFFFF or offset == 0xFFFFFFFF
    if is_large and tail.startswith(b"PK\6\7", locator):
        end = _LOCATOR.unpack_from(tail, locator)[2]
        entries, length, offset = _read_end_64(location, end, start + at)
    if offset + length > end or length < entries * _ENTRY.itemsize:
        raise DatasetError(f"{location}: the zip's directory lies outside of it; {REMEDY}")
    if length > MAX_DIRECTORY_BYTES:
        raise DatasetError(
            f"{location}: the zip's directory has {length:,} bytes; at most"
            f" {MAX_DIRECTORY_BYTES:,} are read; {REMEDY}"
        )
    return Directory(offset, offset + length, entries, size)


def _read_end_64(location: str, at: int, before: int) -> tuple[int, int, int]:
    """Entries, length and offset of the directory of a large zip."""
    if at + _END_64.size > before:
        raise DatasetError(f"{location}: the zip's end is damaged; {REMEDY}")
    with readable(location):
        data = files.read_range(location, at, _END_64.size)
    if len(data) < _END_64.size or not data.startswith(b"PK\6\6"):
        raise DatasetError(f"{location}: the zip's end is damaged; {REMEDY}")
    return _END_64.unpack(data)[-3:]


def read_entries(
    location: str,
    start: int,
    stop: int,
    *,
    name_bytes: int = NAME_BYTES,
    max_member_bytes: int = MAX_MEMBER_BYTES,
) -> Iterator[Entries]:
    """The entries in bytes ``start`` to ``stop`` of a file, some thousands at a time.

    Args:
        location: path or URL of the zip.
        start: where the entries begin.
        stop: where they end.
        name_bytes: of a name that are kept.
        max_member_bytes: of a member.

    Raises:
        DatasetError: they are damaged, or a member is encrypted, compressed in an unknown way, too
            large, or lies outside of the zip.
    """
    rest = b""
    while start < stop or rest:
        length = min(_BLOCK_BYTES, stop - start)
        with readable(location):
            data = rest + files.read_range(location, start, length)
        where, start = start - len(rest), start + length
        ends = _find_entries(data)
        rest = data[ends[-1] :]
        if len(ends) == 1 and (rest or start < stop):
            raise DatasetError(f"{location}: the zip's directory is damaged; {REMEDY}")
        if start >= stop and rest:
            raise DatasetError(f"{location}: the zip's directory is cut short; {REMEDY}")
        if len(ends) > 1:
            yield _parse(location, data, ends, where, name_bytes, max_member_bytes)


def _find_entries(data: bytes) -> np.ndarray:
    """Where the whole entries at the beginning of the data begin, and where the last one ends."""
    view = np.frombuffer(data, np.uint8)
    starts = np.flatnonzero(view[: max(0, len(view) - _ENTRY.itemsize + 1)] == _SIGNATURE[0])
    for i, letter in enumerate(_SIGNATURE[1:], 1):
        starts = starts[view[starts + i] == letter]
    lengths = np.full(len(starts), _ENTRY.itemsize)
    for at in (28, 30, 32):  # of name, extra field and comment
        lengths += view[starts + at].astype(np.int64) + 256 * view[starts + at + 1].astype(np.int64)
    ends = starts + lengths
    if not len(starts) or starts[0] or (starts[1:] != ends[:-1]).any():
        # The signature's letters may also stand inside an entry; one follows another, though.
        end_of = dict(zip(starts.tolist(), ends.tolist(), strict=True))
        chain = [0]
        while chain[-1] in end_of:
            chain.append(end_of[chain[-1]])
    else:
        chain = [0, *ends.tolist()]
    return np.array([end for end in chain if end <= len(data)], np.int64)


def _parse(
    location: str, data: bytes, ends: np.ndarray, where: int, kept: int, max_member_bytes: int
) -> Entries:
    """Entries from their bytes, which begin at ``where`` in the file."""
    places = ends[:-1]
    padded = np.frombuffer(data + bytes(kept), np.uint8)
    heads = sliding_window_view(padded, _ENTRY.itemsize)[places].view(_ENTRY)[:, 0]
    name_bytes = heads["name"].astype(np.int64)
    name = sliding_window_view(padded, kept)[places + _ENTRY.itemsize]
    name[np.arange(kept) >= name_bytes[:, None]] = 0
    large = {field: heads[field].astype(np.int64) for field in ("size", "stored", "offset")}
    for row in np.flatnonzero(np.any([n == 0xFFFFFFFF for n in large.values()], axis=0)):
        begin = int(places[row]) + _ENTRY.itemsize + int(name_bytes[row])
        extra = data[begin : begin + int(heads["extra"][row])]
        _read_extra_64(extra, [n for n in large.values() if n[row] == 0xFFFFFFFF], int(row))
    entries = Entries(
        start=where + places,
        stop=where + ends[1:],
        name=name,
        name_bytes=name_bytes,
        offset=large["offset"],
        stored=large["stored"],
        size=large["size"],
        crc32=heads["crc32"],
        method=heads["method"],
    )
    refused = {
        "is encrypted": (heads["flags"] & _ENCRYPTED) > 0,
        "is compressed in an unknown way": ~np.isin(entries.method, (_STORED, _DEFLATED)),
        "lies outside of the zip": (entries.offset < 0)
        | (entries.stored < 0)
        | (entries.stored > where)
        | (entries.offset > where - _LOCAL.size - entries.stored),
        f"has more than {max_member_bytes:,} bytes": (entries.size < 0)
        | (np.maximum(entries.size, entries.stored) > max_member_bytes),
        "has two sizes": (entries.method == _STORED) & (entries.size != entries.stored),
    }
    for what, rows in refused.items():
        if rows.any():
            shown = entries.show_name(int(rows.argmax()))
            raise DatasetError(f"{location}: member {shown} {what}; {REMEDY}")
    return entries


def _read_extra_64(extra: bytes, columns: Sequence[np.ndarray], row: int) -> None:
    """Put the numbers of a zip64 extra field in their places; -1 where there are none."""
    for column in columns:
        column[row] = -1
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            numbers = extra[4 : 4 + length]
            for i, column in enumerate(columns):  # in the order of the format
                if len(numbers) >= 8 * i + 8:
                    column[row] = struct.unpack_from("<q", numbers, 8 * i)[0]
            return
        extra = extra[4 + length :]


# --- members --------------------------------------------------------------------------------------


def read_members(location: str, members: Sequence[Member]) -> list[bytes]:
    """The contents of members, verified; neighbours are read by one request.

    Raises:
        DatasetError: damage, or more than `MAX_READ_BYTES`.
    """
    if (total := sum(member.size for member in members)) > MAX_READ_BYTES:
        raise DatasetError(
            f"{location}: {len(members):,} members such as {members[0].name!r} have {total:,}"
            f" bytes; at most {MAX_READ_BYTES:,} are read; {REMEDY}"
        )
    contents: list[bytes] = [b""] * len(members)
    for group in _join_neighbours(members):
        first, last = members[group[0]], members[group[-1]]
        stop = last.offset + _LOCAL.size + len(last.name) + _LOCAL_SLACK + last.stored
        with readable(location):
            data = files.read_range(location, first.offset, stop - first.offset)
        for i in group:
            contents[i] = _cut_member(location, data, members[i], first.offset)
    return contents


def _join_neighbours(members: Sequence[Member]) -> Iterator[list[int]]:
    """Numbers of members that one request reads, in the order of their places."""
    group: list[int] = []
    for i in sorted(range(len(members)), key=lambda i: members[i].offset):
        if group:
            first, last = members[group[0]], members[group[-1]]
            gap = members[i].offset - last.offset - last.stored
            if gap > _JOINED_GAP or members[i].offset - first.offset > _JOINED_BYTES:
                yield group
                group = []
        group.append(i)
    if group:
        yield group


def find_content(location: str, member: Member) -> int:
    """Where a member's own bytes begin.

    Raises:
        DatasetError: it is not where the zip's directory says.
    """
    with readable(location):
        head = files.read_range(location, member.offset, _LOCAL.size)
        name = member.name.encode("utf-8", "surrogateescape")
        found = files.read_range(location, member.offset + _LOCAL.size, len(name))
    if len(head) < _LOCAL.size or not head.startswith(b"PK\3\4") or found != name:
        raise DatasetError(
            f"{location}: member {member.name!r} is not where the zip's directory says; {REMEDY}"
        )
    return member.offset + _LOCAL.size + sum(_LOCAL.unpack(head)[-2:])


def _cut_member(location: str, data: bytes, member: Member, where: int) -> bytes:
    """A member's contents, from bytes of the zip that begin at ``where``."""

    def refuse(what: str) -> DatasetError:
        return DatasetError(f"{location}: member {member.name!r} {what}; {REMEDY}")

    at = member.offset - where
    if at < 0 or at + _LOCAL.size > len(data) or not data.startswith(b"PK\3\4", at):
        raise refuse("is not where the zip's directory says")
    name, extra = _LOCAL.unpack_from(data, at)[-2:]
    begin = at + _LOCAL.size + name + extra
    stored = data[begin : begin + member.stored]
    wanted = member.name.encode("utf-8", "surrogateescape")
    if len(stored) != member.stored or data[at + _LOCAL.size :][:name] != wanted:
        raise refuse("is not where the zip's directory says")
    if member.method == _DEFLATED:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflate.decompress(stored, member.size + 1)
        except zlib.error as error:
            raise refuse(f"is damaged ({error})") from error
    else:
        content = stored
    if len(content) != member.size:
        raise refuse("has another size than the zip's directory says")
    if zlib.crc32(content) != member.crc32:
        raise refuse("is damaged: its checksum (CRC-32) does not match")
    return content
