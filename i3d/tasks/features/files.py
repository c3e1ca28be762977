"""Feature files: one a video in a folder, or all videos in one Parquet or HDF5 file.

    OUTPUT/features.json          the settings: written first, never changed, sealed
    OUTPUT/NAME.npz               rgb, flow: float32 (rows, ...); start_seconds, end_seconds:
                                  float64 (rows,); about: a JSON text; sealed (`i3d.records`)
    OUTPUT/NAME.npy               float32 (rows, ...), RGB before flow; the rest in NAME.npy.json
    OUTPUT/NAME.error.json        why the video has no features
    OUTPUT/failures.csv           video,reason of all these; written when every video has an outcome

NAME is the video's path below the dataset's folder without its suffix. One file for all is made
from such a folder (``FILE.parts``, without ``failures.csv``) when every video has an outcome, in
the order of the keys. Every file appears whole. Nothing in them depends on time, machine, absolute
paths or the number of processes. Rows go through unnamed temporary files, so memory does not depend
on their number.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import unquote

import numpy as np

from i3d import files
from i3d.data.shards import FAILURES_FILE
from i3d.errors import DatasetError, UsageError
from i3d.parallel.pool import temporary_file
from i3d.presets import STREAMS, Stream
from i3d.records import (
    REDO,
    check_archive,
    differences,
    pick,
    plain,
    refuse_other_settings,
    seal,
    seal_archive,
    split_seal,
)
from i3d.spreadsheet import write_table
from i3d.tasks.network import UsedCheckpoint

_T = TypeVar("_T")

KIND = "i3d features 1"
FAILURE_KIND = "i3d feature failure 1"
SETTINGS_FILE = "features.json"
BLOCK_BYTES = 1 << 24  # of rows in memory at a time
MAX_JSON_BYTES = 1 << 29
_THREADS = 16  # for small files: a request to S3 takes 20 ms or more
# What Python's zipfile raises over an archive, beside OSError and ValueError.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
MAX_NAME_BYTES = 200  # file systems take 255; the rest is for suffixes and temporary names


@dataclass(frozen=True)
class FeatureSettings:
    """What the features are; all that changes their bytes.

    Attributes:
        dataset: name of the videos' folder.
        container: ``npz`` or ``npy``, a file a video.
        preset: name of the preprocessing.
        fps: frames a second of the preset.
        endpoint: ``clip``, ``steps`` or the name of a layer.
        classes: names in the order of the logits; empty for other endpoints.
        window_frames: frames of a window.
        step_frames: distance of two windows' starts; one in seconds may be a fraction.
        rest: what becomes of frames after the last whole window: ``drop`` or ``keep``.
        short: what becomes of a video shorter than a window: ``loop`` or ``error``.
        precision: ``fp32``, or what autocast used.
        checkpoints: stream -> network.
        versions: software, and what made the shards.
    """

    dataset: str
    container: str
    preset: str
    fps: int
    endpoint: str
    classes: tuple[str, ...]
    window_frames: int
    step_frames: float
    rest: str
    short: str
    precision: str
    checkpoints: Mapping[str, UsedCheckpoint]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class VideoAbout:
    """What stands beside a video's rows.

    Attributes:
        video: its key.
        source: its path below the dataset's folder.
        frames: number at the preset's rate, before looping.
        seconds: their duration.
        looped: whether it was shorter than a window and repeated.
        damage: what was lost of a damaged file, or None.
    """

    video: str
    source: str
    frames: int
    seconds: float
    looped: bool
    damage: str | None


@dataclass(frozen=True)
class _Spans:
    """When the rows of a ``.npy`` begin and end."""

    start_seconds: tuple[float, ...]
    end_seconds: tuple[float, ...]


class Rows:
    """Rows of one array, float32 (n, ...), in a temporary file."""

    def __init__(self) -> None:
        self._file = temporary_file()
        self.count = 0
        self.row_shape: tuple[int, ...] = ()

    def add(self, rows: np.ndarray) -> None:
        """Append float32 (n, ...)."""
        self._file.write(rows.astype("<f4", copy=False).tobytes())
        self.count += len(rows)
        self.row_shape = rows.shape[1:]

    def blocks(self, *, rows: int) -> Iterator[np.ndarray]:
        """All of them, so many rows at a time."""
        self._file.seek(0)
        yield from _blocks(self._file, (self.count, *self.row_shape), np.dtype("<f4"), rows)

    def close(self) -> None:
        """Give the file's room back."""
        self._file.close()


def _blocks(
    file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype, rows: int
) -> Iterator[np.ndarray]:
    """The array in C order that follows in ``file``, so many rows at a time."""
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    for start in range(0, shape[0], rows):
        count = min(rows, shape[0] - start)
        data = file.read(count * row_bytes)
        if len(data) != count * row_bytes:
            raise DatasetError("the array is cut short")
        yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


def block_rows(row_shape: Sequence[int]) -> int:
    """How many rows of a shape make a block."""
    return max(1, BLOCK_BYTES // (4 * max(1, int(np.prod(row_shape, dtype=np.int64)))))


# --- a folder of videos' files --------------------------------------------------------------------


def file_names(keys: Sequence[str], *, url: bool) -> list[str]:
    """The name of every video's file below the output folder, without a suffix.

    On a disk it is the name that the video has, so that lists of other programs fit; behind a URL,
    where ``#`` and ``?`` mean something, its key. A part that cannot be a name there (hidden, not
    printable, a path of its own) stays percent-encoded, and a long one is cut.

    Raises:
        DatasetError: two videos would share a file.
    """
    names = ["/".join(_file_name(part, url=url) for part in key.split("/")) for key in keys]
    folders = {name[:i] for name in names for i, c in enumerate(name) if c == "/"}
    taken: dict[str, str] = {}
    for key, name in zip(keys, names, strict=True):
        other = taken.setdefault(name, key)
        if other != key or not folders.isdisjoint({f"{name}.npz", f"{name}.npy"}):
            raise DatasetError(f"the features of {key!r} and another video would share {name!r}")
    return names


def _file_name(part: str, *, url: bool) -> str:
    name = part if url else unquote(part, errors="surrogateescape")
    if name.startswith(".") or "/" in name or not name.isprintable():
        name = part
    if len(name.encode()) > MAX_NAME_BYTES:
        name = f"{part[:100]}~{hashlib.sha256(part.encode()).hexdigest()[:16]}"
    return name


@dataclass(frozen=True)
class Outcomes:
    """What became of every video of a plan.

    Attributes:
        done: numbers of the videos with features, in order.
        failures: number -> reason of the others.
    """

    done: tuple[int, ...]
    failures: Mapping[int, str]


class FeatureFolder:
    """The folder that holds a file a video.

    Args:
        folder: path or URL.
        settings: what all of them have in common.
        keys: the plan's videos, in its order.

    Raises:
        UsageError: the folder was begun with other settings; the message names the differences.
        DatasetError: what is there is damaged, or two videos would share a file.
    """

    def __init__(
        self, folder: files.Location, settings: FeatureSettings, keys: Sequence[str]
    ) -> None:
        self.folder, self.settings, self.keys = os.fspath(folder), settings, tuple(keys)
        self.names = file_names(keys, url=files.local_path(folder) is None)
        self.suffix = f".{settings.container}"

    def begin(self) -> None:
        """Write the settings first of all, or compare with those that are there."""
        location = files.join(self.folder, SETTINGS_FILE)
        if not files.exists(location):  # somebody has removed it, or these are others' files
            for i in sorted(self.done()):
                self._refuse_others(i)
        data = seal(KIND, self.settings)
        try:
            files.create(location, data)
        except FileExistsError:
            refuse_other_features(self.folder, read_settings(location), self.settings)

    def _refuse_others(self, i: int) -> None:
        """Refuse a video's file that does not say itself that it is of this job."""
        location = self._location(i, self.suffix)
        try:
            if self.settings.container == "npz":
                with self.open(i) as video:
                    found = video.settings
            else:
                found = _read_json(f"{location}.json", KIND)
        except (DatasetError, FileNotFoundError) as error:
            raise UsageError(
                f"{self.folder} has no {SETTINGS_FILE}, and i3d features did not write {location} "
                f"({error}); name another folder"
            ) from error
        refuse_other_features(location, found, self.settings)

    def _location(self, i: int, suffix: str) -> str:
        return files.join(self.folder, f"{self.names[i]}{suffix}")

    def _listing(self) -> set[str]:
        """Paths below the folder of everything beside the videos' files."""
        parents = sorted({name.rpartition("/")[0] for name in self.names})
        found = set()
        for parent in parents:
            place = files.join(self.folder, parent) if parent else self.folder
            prefix = f"{parent}/" if parent else ""
            with suppress(FileNotFoundError, NotADirectoryError):
                found |= {f"{prefix}{name}" for name in files.names_in(place)}
        return found

    def outcomes(self) -> set[int]:
        """Numbers of the videos that have features, or the reason why not."""
        there = self._listing()
        endings = self.suffix, ".error.json"
        return {
            i for i, name in enumerate(self.names) if any(f"{name}{e}" in there for e in endings)
        }

    def measure(self, videos: Iterable[int]) -> tuple[int, int]:
        """Rows, and frames of the videos, in the files of some that are done."""

        def measure_one(i: int) -> tuple[int, int]:
            # of a file that is gone, another run has just merged them all
            with suppress(FileNotFoundError):
                return measure_file(i)
            return 0, 0

        def measure_file(i: int) -> tuple[int, int]:
            if self.settings.container == "npz":
                with self.open(i) as video:
                    return len(video.start_seconds), video.about.frames
            location = self._location(i, ".npy.json")
            document = _read_json(location, KIND)
            about = take(VideoAbout, document, location)
            return len(take(_Spans, document, location).start_seconds), about.frames

        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(measure_one, videos))
        return sum(rows for rows, _ in found), sum(frames for _, frames in found)

    def done(self) -> set[int]:
        """Numbers of the videos that have features."""
        there = self._listing()
        return {i for i, name in enumerate(self.names) if f"{name}{self.suffix}" in there}

    def write(
        self,
        i: int,
        about: VideoAbout,
        spans: np.ndarray,
        rows: Mapping[Stream, Rows],
    ) -> None:
        """Write a video's file.

        Args:
            i: number of the video.
            about: the video.
            spans: float64 (n, 2), start and end of every row in seconds.
            rows: stream -> n rows.
        """
        document = {"format": KIND, **plain(about), **plain(self.settings)}
        if self.settings.container == "npy":
            document |= {"start_seconds": spans[:, 0].tolist(), "end_seconds": spans[:, 1].tolist()}
            # What says that the video is done comes last.
            files.write(
                self._location(i, ".npy.json"),
                json.dumps(document, allow_nan=False).encode("ascii"),
            )
            joined = list(rows.values())
            files.write_by(self._location(i, ".npy"), lambda path: _write_joined(path, joined))
        else:
            files.write_by(
                self._location(i, ".npz"), lambda path: _write_npz(path, document, spans, rows)
            )
        files.remove(self._location(i, ".error.json"))

    def fail(self, i: int, reason: str) -> None:
        """Record why a video has no features."""
        document = {"format": FAILURE_KIND, "video": self.keys[i], "reason": reason}
        files.write(
            self._location(i, ".error.json"), json.dumps(document, allow_nan=False).encode("ascii")
        )

    def failures(self) -> dict[int, str]:
        """Number -> reason of the videos that were tried and have no features."""
        there, found = self._listing(), {}
        for i, name in enumerate(self.names):
            if f"{name}.error.json" in there and f"{name}{self.suffix}" not in there:
                with suppress(FileNotFoundError):  # another process has just made the features
                    document = _read_json(self._location(i, ".error.json"), FAILURE_KIND)
                    found[i] = str(document.get("reason", ""))
        return found

    def find_outcomes(self) -> Outcomes | None:
        """What became of every video; None if some have no outcome yet."""
        failures = self.failures()
        done = self.done()  # later: a failed video may have features by now
        if len(done | failures.keys()) < len(self.keys):
            return None
        return Outcomes(tuple(sorted(done)), {i: r for i, r in failures.items() if i not in done})

    def finish(self, outcomes: Outcomes) -> None:
        """Write ``failures.csv``, and remove temporary files and reasons that hold no more.

        Every process calls it that finds every video with an outcome after its own last one. When
        two do, both write the same bytes. Another run of the same plan may still be writing: it
        writes again what is removed here.
        """
        failures = outcomes.failures
        rows = ((self.keys[i], failures[i]) for i in sorted(failures))
        data = write_table(["video", "reason"], rows)
        files.write(files.join(self.folder, FAILURES_FILE), data)
        names = [
            f"{n}{end}" for n in self.names for end in (self.suffix, ".npy.json", ".error.json")
        ]
        names += [SETTINGS_FILE, FAILURES_FILE]
        files.remove_leftovers(files.join(self.folder, name) for name in names)
        there = self._listing()
        for i in outcomes.done:
            if f"{self.names[i]}.error.json" in there:
                files.remove(self._location(i, ".error.json"))

    def check(self, i: int) -> None:
        """Refuse a ``.npz`` that is not as it was written, or is of another video or job.

        Raises:
            DatasetError: names it and the remedy.
            UsageError: it is of other settings.
        """
        location = self._location(i, ".npz")
        with files.open_read(location) as file:
            check_archive(file, location)
        with self.open(i) as video:
            refuse_other_features(location, video.settings, self.settings)
            if video.about.video != self.keys[i]:
                raise ValueError(f"it is of {video.about.video!r:.200}")
            starts, ends = video.start_seconds, video.end_seconds
            streams = [s for s in STREAMS if s in self.settings.checkpoints]
            lengths = {ends.shape, *(video.shape(s)[:1] for s in streams)}
            if lengths != {(starts.size,)}:
                raise ValueError("its arrays have different lengths")
            if not (np.isfinite(ends).all() and (starts >= 0).all() and (ends >= starts).all()):
                raise ValueError("its times make no sense")

    @contextmanager
    def open(self, i: int) -> Iterator["StoredVideo"]:
        """Read a video's ``.npz`` again.

        Raises:
            DatasetError: it is damaged.
            StorageError: the disk or server fails.
        """
        location = self._location(i, ".npz")
        try:
            with files.open_read(location) as file, zipfile.ZipFile(file) as archive:
                yield StoredVideo(archive)
        except (UsageError, FileNotFoundError, PermissionError):
            raise
        except (*_ZIP_ERRORS, KeyError, ValueError, OSError) as error:
            files.blame_storage(location, error)  # zipfile's own have no number, or a seek's
            reason = files.explain(error)
            raise DatasetError(f"{location} is damaged ({reason}); {REDO}") from error


def _write_joined(path: Path, arrays: Sequence[Rows]) -> None:
    """The rows of all streams side by side, as ``.npy``."""
    shapes = [rows.row_shape for rows in arrays]
    shape = (arrays[0].count, sum(s[0] for s in shapes), *shapes[0][1:])
    size = block_rows(shape[1:])
    with path.open("wb") as file:
        _write_header(file, shape, "<f4")
        for blocks in zip(*(rows.blocks(rows=size) for rows in arrays), strict=True):
            file.write(np.concatenate(blocks, axis=1).tobytes())


def _write_header(file: IO[bytes], shape: tuple[int, ...], descr: str) -> None:
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _write_npz(
    path: Path, document: Mapping[str, Any], spans: np.ndarray, rows: Mapping[Stream, Rows]
) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, stored in rows.items():
            # open() takes 1980 for the time, where write() takes the clock's
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_header(member, (stored.count, *stored.row_shape), "<f4")
                for block in stored.blocks(rows=block_rows(stored.row_shape)):
                    member.write(block.tobytes())
        small = {
            "start_seconds": spans[:, 0].astype("<f8"),
            "end_seconds": spans[:, 1].astype("<f8"),
            "about": np.array(json.dumps(document, allow_nan=False)),
        }
        for part, array in small.items():
            with archive.open(f"{part}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    with path.open("r+b") as file:
        seal_archive(file)


class StoredVideo:
    """A video's ``.npz``, read in blocks.

    Attributes:
        start_seconds: float64 (rows,).
        end_seconds: float64 (rows,).
        about: the video.
        settings: what the features are, as JSON values.

    Raises:
        ValueError: it is not what `FeatureFolder.write` writes; and what `zipfile` raises.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.start_seconds = self._seconds("start_seconds")
        self.end_seconds = self._seconds("end_seconds")
        document = parse_document(str(self._small("about")), KIND, "about")
        self.about = pick(VideoAbout, document)
        self.settings = document

    def _small(self, name: str) -> np.ndarray:
        with self._archive.open(f"{name}.npy") as member, _parsing(f"{name}.npy"):
            return np.lib.format.read_array(member, allow_pickle=False)

    def _seconds(self, name: str) -> np.ndarray:
        seconds = self._small(name)
        if seconds.ndim != 1 or seconds.dtype != np.dtype("<f8"):
            raise ValueError(f"{name} is {seconds.dtype} {seconds.shape}, not float64 (rows,)")
        return seconds

    def shape(self, stream: Stream) -> tuple[int, ...]:
        """Of a stream's rows."""
        with self._archive.open(f"{stream}.npy") as member:
            return _read_header(member)

    def blocks(self, stream: Stream, *, rows: int) -> Iterator[np.ndarray]:
        """A stream's rows, so many at a time."""
        with self._archive.open(f"{stream}.npy") as member:
            yield from _blocks(member, _read_header(member), np.dtype("<f4"), rows)


def _read_header(file: IO[bytes]) -> tuple[int, ...]:
    with _parsing("the array"):
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of .npy")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype != np.dtype("<f4") or not shape or min(shape) < 0:
        raise ValueError(f"features are {dtype} {shape}, not float32 (rows, ...)")
    return shape


@contextmanager
def _parsing(what: str) -> Iterator[None]:
    """Turn what NumPy raises over an array's header, a literal of Python's, into a ValueError."""
    try:
        yield
    except (*_ZIP_ERRORS, OSError, ValueError):
        raise
    except Exception as error:  # its tokenizer, its parser and its integers have kinds of their own
        raise ValueError(f"{what} is no plain array ({files.explain(error)})") from error


# --- settings -------------------------------------------------------------------------------------


def _read_json(location: str, kind: str) -> dict[str, Any]:
    with files.open_read(location) as file:
        data = files.read_bounded(file, MAX_JSON_BYTES)
    return parse_document(data, kind, location)


def parse_document(data: bytes | str, kind: str, where: str) -> dict[str, Any]:
    """A JSON object of our format.

    Raises:
        DatasetError: damaged, or of another format.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where} is damaged ({error}); delete it") from error
    if not isinstance(document, dict) or document.get("format") != kind:
        raise DatasetError(f"{where} is not of the format {kind!r}; name another output")
    return document


def take(cls: type[_T], document: Mapping[str, Any], where: str) -> _T:
    """A dataclass from the fields of its names in a document.

    Raises:
        DatasetError: one is absent or does not fit; names the file.
    """
    try:
        return pick(cls, document)
    except DatasetError as error:
        raise DatasetError(f"{where} is damaged or was edited: {error}; delete it") from None


def read_settings(location: str) -> dict[str, Any]:
    """What `FeatureFolder.begin` wrote.

    Raises:
        DatasetError: damaged, or of another format.
    """
    with files.open_read(location) as file:
        data = files.read_bounded(file, MAX_JSON_BYTES)
    head, digest = split_seal(data)
    if not digest:
        raise DatasetError(f"{location} is damaged or was edited: its seal does not match")
    return parse_document(head.removesuffix(b",\n") + b"}", KIND, location)


def refuse_other_features(where: str, before: Mapping[str, Any], settings: FeatureSettings) -> None:
    """Refuse to go on with features of other settings.

    Raises:
        UsageError: names the differences.
        DatasetError: what was found are no settings.
    """

    def comparable(settings: FeatureSettings) -> dict[str, Any]:
        values = plain(settings)
        used, versions = values.pop("checkpoints"), values.pop("versions")
        return {
            **values,
            # under whatever name a checkpoint was given
            **{f"weights of {s}": used[s]["weights_sha256"] for s in sorted(used)},
            **{f"version of {name}": versions[name] for name in sorted(versions)},
        }

    found = take(FeatureSettings, before, where)
    refuse_other_settings(where, differences(comparable(found), comparable(settings)))
