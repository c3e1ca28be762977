"""Footage in a zip or tar, read in place: folders of pictures, or video files.

    zip                its directory is read once, block by block
    tar                its headers are read once
    .tar.gz, .tgz      unpacked to a temporary tar: gzip can be read from its beginning alone
      --> where every picture or video lies, as a table on the disk that all workers map

Only the numbers of that table are followed: no member's name is ever a path, and nothing is written
under one.
"""

import gzip
import shutil
import tarfile
import tempfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from i3d import copies, files
from i3d.classes import readable
from i3d.data.footage.frames import is_picture, suffix_of
from i3d.data.footage.pictures import MAX_PICTURE_BYTES, OpenPictures, order_frames
from i3d.data.footage.survey import Survey, is_array
from i3d.data.footage.videos import OpenVideoFile, identify_files
from i3d.data.kinetics.dataset import is_video
from i3d.data.zip_directory import (
    Member,
    find_content,
    find_directory,
    read_entries,
    read_members,
)
from i3d.errors import DatasetError, StorageError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_MEMBERS = 1 << 22  # 10,000 videos of 400 frames
MAX_NAME_BYTES = 512
MAX_VIDEO_BYTES = 1 << 40  # a video file
_PIECE_BYTES = 1 << 20
_REMEDY = "make the archive again"

_ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("stored", "<i8"),
        ("size", "<i8"),
        ("crc32", "<u4"),
        ("method", "<u2"),
        ("name", "<i8"),
        ("name_bytes", "<i4"),
    ]
)


@dataclass(frozen=True)
class Index:
    """Where the members lie: a table of `_ROW`, and the names.

    Attributes:
        where: path or URL of the archive, as the user named it.
        location: the same, or what it was unpacked to.
        folder: of the two files, which are there as long as the archive is open.
        starts: first row of every video, and the end of the last one.
        is_zip: whether members have headers of a zip's.
    """

    where: str
    location: str
    folder: Path
    starts: np.ndarray
    is_zip: bool

    def members(self, i: int) -> list[Member]:
        """The members of video i."""
        rows = np.load(self.folder / "rows.npy", mmap_mode="r")
        found = []
        with (self.folder / "names").open("rb") as names:
            for row in rows[self.starts[i] : self.starts[i + 1]]:
                names.seek(int(row["name"]))
                name = names.read(int(row["name_bytes"])).decode("utf-8", "surrogateescape")
                numbers = (int(row[c]) for c in ("offset", "stored", "size", "crc32", "method"))
                found.append(Member(name, *numbers))
        return found

    def read(self, member: Member) -> bytes:
        """The contents of a picture."""
        if self.is_zip:
            return read_members(self.location, [member])[0]
        with readable(self.location):
            data = files.read_range(self.location, member.offset, member.size)
        if len(data) < member.size:
            raise DatasetError(f"{member.name} is cut short; {_REMEDY}")
        return data

    def identify(self, videos: Sequence[int]) -> list[str | None]:
        """By the archive's file; see `Footage.identify`."""
        return identify_files([self.where]) * len(videos)

    @contextmanager
    def open_member(self, member: Member) -> Iterator[IO[bytes]]:
        """A video file, to be read from any place; what is compressed is unpacked for as long."""
        begin = find_content(self.location, member) if self.is_zip else member.offset
        with readable(self.location):
            archive = files.open_read(self.location)
        name = f"{self.where}: {member.name}"
        with archive:
            if not member.method:
                yield cast(IO[bytes], _Part(archive, begin, member.size, name))
                return
            with tempfile.TemporaryFile() as file:
                _inflate(archive, begin, member, file)
                yield cast(IO[bytes], _Part(file, 0, member.size, name))


class _Part:
    """Some bytes of a file, as a file.

    Attributes:
        name: what messages call it.
    """

    def __init__(self, file: IO[bytes], start: int, size: int, name: str) -> None:
        self.name = name
        self._file, self._start, self._size = file, start, size
        self._at = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self._size)[whence]
        if at < 0:
            raise ValueError(f"cannot seek to {at}")
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


def _inflate(archive: IO[bytes], begin: int, member: Member, target: IO[bytes]) -> None:
    """Unpack a zip's member, of which no more than its declared size is taken."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if member.size > free - copies.FREE_BYTES:
        raise StorageError(
            f"{member.name} unpacks to {member.size >> 20} MiB and {tempfile.gettempdir()} has "
            f"{free >> 20} MiB free; set TMPDIR to a larger disk, or zip videos with -0"
        )
    inflate, left, size, checksum = zlib.decompressobj(-zlib.MAX_WBITS), member.stored, 0, 0
    archive.seek(begin)
    try:
        while left and not inflate.eof:
            data = archive.read(min(_PIECE_BYTES, left))
            left -= len(data)
            while data or inflate.unconsumed_tail:
                piece = inflate.decompress(data or inflate.unconsumed_tail, _PIECE_BYTES)
                data = b""
                size, checksum = size + len(piece), zlib.crc32(piece, checksum)
                if size > member.size:
                    raise DatasetError(f"{member.name} is larger than declared; {_REMEDY}")
                target.write(piece)
                if not piece:
                    break
    except zlib.error as error:
        raise DatasetError(f"{member.name} is damaged ({error}); {_REMEDY}") from error
    if size != member.size or checksum != member.crc32:
        raise DatasetError(f"{member.name} is damaged: its checksum or size does not match")


@dataclass(frozen=True)
class ArchiveFrames:
    """Folders of pictures in an archive; see `i3d.data.footage.frames.FrameFootage`."""

    keys: tuple[str, ...]
    index: Index
    origin: str

    @contextmanager
    def open(self, i: int) -> Iterator[OpenPictures]:
        """Video i; see `Footage.open`."""
        members = self.index.members(i)
        names = [member.name.rpartition("/")[2] for member in members]
        order = order_frames(names)
        yield OpenPictures(
            [names[place] for place in order],
            lambda number: self.index.read(members[order[number]]),
        )

    def identify(self, videos: Sequence[int]) -> list[str | None]:
        """See `Footage.identify`."""
        return self.index.identify(videos)


@dataclass(frozen=True)
class ArchiveVideos:
    """Video files in an archive; see `i3d.data.footage.videos.FileFootage`."""

    keys: tuple[str, ...]
    index: Index
    origin = "files"

    @contextmanager
    def open(self, i: int) -> Iterator[OpenVideoFile]:
        """Video i; see `Footage.open`."""
        with self.index.open_member(self.index.members(i)[0]) as file:
            yield OpenVideoFile(file)

    def identify(self, videos: Sequence[int]) -> list[str | None]:
        """See `Footage.identify`."""
        return self.index.identify(videos)


# --- what is in an archive ------------------------------------------------------------------------


@contextmanager
def open_archive(where: str) -> Iterator[tuple[Survey, Index]]:
    """Look at all members of an archive; the index is there for as long.

    Raises:
        DatasetError: no archive, a damaged one, one with too many members or with names that lead
            out of it.
        StorageError: a compressed tar does not fit on the disk; the server or disk fails.
    """
    with tempfile.TemporaryDirectory(prefix="i3d-") as temporary:
        folder, location = Path(temporary), where
        with readable(where):
            if not files.exists(where):
                raise DatasetError(f"{where}: no such file")
            files.check_regular(where)
        if where.lower().endswith((".gz", ".tgz")):
            location = str(_unpack(where, folder / "unpacked.tar"))
        is_zip = where.lower().endswith(".zip")
        members = _zip_members(where) if is_zip else _tar_members(location, where)
        yield _make_index(location, where, members, folder, is_zip=is_zip)


def _make_index(
    location: str,
    where: str,
    members: Iterator[Member],
    folder: Path,
    *,
    is_zip: bool,
) -> tuple[Survey, Index]:
    owners: dict[str, int] = {}  # folder of pictures, or video -> its number by appearance
    owner_of, columns = array("q"), [array("q") for _ in _ROW.names or ()]
    survey = Survey()
    count = written = 0
    with (folder / "names").open("wb") as names:
        for member in members:
            count += 1
            if count > MAX_MEMBERS:
                raise DatasetError(f"{where} has more than {MAX_MEMBERS:,} members; split it")
            path, name = _checked(member.name, where), member.name.rpartition("/")[2]
            if name.startswith(".") or path.startswith("__MACOSX/"):
                continue
            if is_picture(name):
                owner, limit = path.rpartition("/")[0], MAX_PICTURE_BYTES
                survey.suffixes.add(suffix_of(name))
            elif is_video(name):
                owner, limit = path, MAX_VIDEO_BYTES
                if path in owners:
                    raise DatasetError(f"{where}: member {name!r:.80} is there twice; {_REMEDY}")
                survey.videos.append(path)
            elif is_array(name):
                survey.arrays.append(path)
                continue
            else:
                continue
            if member.size > limit:
                raise DatasetError(
                    f"{where}: member {name!r:.80} has {member.size:,} bytes; at most {limit:,} "
                    "are read"
                )
            raw = member.name.encode("utf-8", "surrogateescape")
            owner_of.append(owners.setdefault(owner, len(owners)))
            row = (*member[1:4], member.crc32, member.method, written, len(raw))
            for column, value in zip(columns, row, strict=True):
                column.append(value)
            names.write(raw)
            written += len(raw)
    rows = np.empty(len(owner_of), _ROW)
    for name, column in zip(_ROW.names or (), columns, strict=True):
        rows[name] = np.frombuffer(column, np.int64) if len(column) else 0
    # videos are sorted by their paths, and their members lie together
    paths = sorted(owners)
    place = np.empty(len(owners), np.int64)
    place[[owners[path] for path in paths]] = np.arange(len(owners))
    sorted_owner = place[np.frombuffer(owner_of, np.int64)] if len(owner_of) else place
    order = np.argsort(sorted_owner, kind="stable")
    np.save(folder / "rows.npy", rows[order])
    starts = np.searchsorted(sorted_owner[order], np.arange(len(owners) + 1))
    films = set(survey.videos)
    survey.videos.sort()
    survey.folders.extend(path for path in paths if path not in films)
    return survey, Index(where, location, folder, starts, is_zip)


def _checked(name: str, where: str) -> str:
    """A member's path, without ``./``.

    Raises:
        DatasetError: it leads out of the archive.
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise DatasetError(
            f"{where}: member {name!r:.80} has a name that leads out of the archive; {_REMEDY}"
        )
    return "/".join(part for part in parts if part not in ("", "."))


def _zip_members(where: str) -> Iterator[Member]:
    directory = find_directory(where)
    bounds = {"name_bytes": MAX_NAME_BYTES, "max_member_bytes": MAX_VIDEO_BYTES}
    for entries in read_entries(where, directory.start, directory.stop, **bounds):
        for row in range(len(entries)):
            if entries.name_bytes[row] > MAX_NAME_BYTES:
                shown = entries.show_name(row)[:80]
                raise DatasetError(f"{where}: member {shown} has too long a name; {_REMEDY}")
            member = entries.member(row)
            if not member.name.endswith("/"):
                yield member


def _tar_members(location: str, where: str) -> Iterator[Member]:
    with readable(location):
        size = files.size(location)
        file = files.open_read(location)
    short = cast(IO[bytes], copies.ShortReads(file, size, most=_PIECE_BYTES))
    try:
        with file, tarfile.open(fileobj=short, mode="r:", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # which would hold them all
                looks_wanted = is_picture(info.name) or is_video(info.name)
                if looks_wanted and not info.isreg() and not info.isdir():
                    raise DatasetError(
                        f"{where}: member {info.name!r:.80} is a link or a device; {_REMEDY}"
                    )
                if not info.isreg():
                    continue
                inside = 0 <= info.offset_data <= info.offset_data + info.size <= size
                if info.issparse() or info.size < 0 or not inside:
                    raise DatasetError(
                        f"{where}: member {info.name!r:.80} is sparse, or lies outside of the "
                        f"archive, which may be cut short; {_REMEDY}"
                    )
                name = info.name.encode("utf-8", "surrogateescape")
                if len(name) > MAX_NAME_BYTES:
                    raise DatasetError(
                        f"{where}: member {info.name!r:.80} has too long a name; {_REMEDY}"
                    )
                yield Member(info.name, info.offset_data, info.size, info.size, 0, 0)
    except DatasetError:
        raise
    except (tarfile.TarError, ValueError, EOFError, RecursionError, UnicodeError, OSError) as error:
        files.blame_storage(where, error)
        reason = files.explain(error)
        raise DatasetError(f"{where} is no readable tar ({reason}); {_REMEDY}") from error


def _unpack(where: str, path: Path) -> Path:
    """A compressed tar as a tar in the temporary folder, within `copies.LIMIT_GIB`."""

    def chunks(file: Any) -> Iterator[bytes]:
        while data := file.read(_PIECE_BYTES):
            yield data

    try:
        with readable(where):
            source = files.open_read(where)
        with source, gzip.GzipFile(fileobj=source) as unpacked, path.open("wb") as target:
            copies.fill_copy(
                target,
                chunks(unpacked),
                total=None,
                where=where,
                origin="unpacked from a compressed tar",
                remedy="gunzip it",
            )
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetError(f"{where} is no readable .tar.gz ({error}); {_REMEDY}") from error
    except OSError as error:
        files.blame_storage(where, error)
        raise DatasetError(f"cannot read {where}: {files.explain(error)}") from error
    return path
