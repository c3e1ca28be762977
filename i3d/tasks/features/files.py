"""Feature files: one a video in a folder, or all videos in one Parquet or HDF5 file.

    OUTPUT/features.json          the settings: written first, never changed, sealed
    OUTPUT/NAME.npz               rgb, flow: float32 (rows, ...); start_seconds, end_seconds:
                                  float64 (rows,); about: a JSON text
    OUTPUT/NAME.npy               float32 (rows, ...), RGB before flow; the rest in NAME.npy.json
    OUTPUT/NAME.error.json        why the video has no features
    OUTPUT/failures.csv           video,reason of all these; written when every video has an outcome

NAME is the video's path below the dataset's folder without its suffix. One file for all is made
from such a folder (``FILE.parts``) when every video has an outcome, in the order of the keys. Every
file appears whole. Nothing in them depends on time, machine, absolute paths or the number of
processes. Rows go through unnamed temporary files, so memory does not depend on their number.
"""

import csv
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import numpy as np

from i3d import files
from i3d.data.shards import FAILURES_FILE, Failure
from i3d.errors import DatasetError, UsageError
from i3d.parallel.pool import temporary_file
from i3d.presets import Stream
from i3d.records import plain, sealed, split_seal
from i3d.tasks.evaluate.predictions import UsedCheckpoint

KIND = "i3d features 1"
FAILURE_KIND = "i3d feature failure 1"
SETTINGS_FILE = "features.json"
MERGED = {".parquet": "parquet", ".h5": "hdf5", ".hdf5": "hdf5"}  # by OUTPUT's suffix
BLOCK_BYTES = 1 << 24  # of rows in memory at a time
MAX_JSON_BYTES = 1 << 29
MAX_NAME_BYTES = 200  # file systems take 255; the rest is for suffixes and temporary names


@dataclass(frozen=True)
class FeatureSettings:
    """What the features are; all that changes their bytes.

    Attributes:
        dataset: name of the videos' folder.
        container: of the videos' files: ``npz`` or ``npy``.
        preset: name of the preprocessing.
        fps: frames a second of the preset.
        endpoint: ``clip``, ``steps`` or the name of a layer.
        classes: names in the order of the logits; empty for other endpoints.
        window_frames: frames of a window.
        step_frames: from one window's start to the next one's; in seconds it may be a fraction.
        rest: what becomes of frames after the last whole window: ``drop`` or ``keep``.
        short: what becomes of a video shorter than a window: ``loop`` or ``error``.
        precision: ``fp32``, or what autocast used.
        checkpoints: stream -> network.
        versions: of the software, and of what made the shards.
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
        frames: at the preset's rate, before looping.
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


def output_format(output: files.Location, wanted: str | None) -> tuple[str, str]:
    """(format, format of the videos' files) of an output.

    Raises:
        UsageError: the format and the suffix contradict, or a library is missing.
    """
    text = os.fspath(output)
    suffix = text[text.rfind(".") :] if "." in text.rpartition("/")[2] else ""
    merged = MERGED.get(suffix)
    if merged is None:
        if wanted in MERGED.values():
            endings = " or ".join(s for s, f in MERGED.items() if f == wanted)
            raise UsageError(f"{text}: --format {wanted} makes one file; let it end in {endings}")
        return wanted or "npz", wanted or "npz"
    if wanted not in (None, merged):
        raise UsageError(f"{text} is one {merged} file; --format {wanted} needs a folder")
    _library(merged)
    return merged, "npz"


def _library(merged: str) -> Any:
    try:
        if merged == "parquet":
            import pyarrow.parquet

            return pyarrow
        import h5py

        return h5py
    except ImportError as error:
        package = {"parquet": "pyarrow", "hdf5": "h5py"}[merged]
        raise UsageError(
            f"{merged} needs {package}: pip install 'i3d[{merged}]', or name a folder"
        ) from error


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


class FeatureFolder:
    """The folder that holds a file a video.

    Args:
        folder: path or URL.
        settings: of all of them.
        keys: of the videos of the plan, in its order.

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
        if not files.exists(location) and self.done():
            raise UsageError(
                f"{self.folder} holds features without their {SETTINGS_FILE}; name another folder"
            )
        data = sealed(KIND, self.settings)
        try:
            files.create(location, data)
        except FileExistsError:
            compare(read_settings(location), self.settings, self.folder)

    def _location(self, i: int, suffix: str) -> str:
        return files.join(self.folder, f"{self.names[i]}{suffix}")

    def _listing(self) -> set[str]:
        """Paths below the folder of everything beside the videos' files."""
        parents = sorted({name.rpartition("/")[0] for name in self.names})
        found = set()
        for parent in parents:
            place = files.join(self.folder, parent) if parent else self.folder
            if files.exists(place):
                prefix = f"{parent}/" if parent else ""
                found |= {f"{prefix}{name}" for name in files.names_in(place)}
        return found

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
            files.write(self._location(i, ".npy.json"), json.dumps(document).encode("ascii"))
            with files.atomic_file(self._location(i, ".npy")) as path, path.open("wb") as file:
                _write_joined(file, list(rows.values()))
        else:
            with files.atomic_file(self._location(i, ".npz")) as path:
                _write_npz(path, document, spans, rows)
        files.remove(self._location(i, ".error.json"))

    def fail(self, i: int, reason: str) -> None:
        """Record why a video has no features."""
        document = {"format": FAILURE_KIND, "video": self.keys[i], "reason": reason}
        files.write(self._location(i, ".error.json"), json.dumps(document).encode("ascii"))

    def failures(self) -> dict[int, str]:
        """Number -> reason of the videos that were tried and have no features."""
        there, found = self._listing(), {}
        for i, name in enumerate(self.names):
            if f"{name}.error.json" in there and f"{name}{self.suffix}" not in there:
                document = _read_json(self._location(i, ".error.json"), FAILURE_KIND)
                found[i] = str(document.get("reason", ""))
        return found

    def finish(self) -> bool:
        """If every video has an outcome, write ``failures.csv`` and remove what was left behind.

        Every process calls it after its last video; the last one finds all. When two do, both
        write the same bytes.

        Returns:
            Whether every video has an outcome.
        """
        failures = self.failures()
        if len(self.done() | failures.keys()) < len(self.keys):
            return False
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["video", "reason"])
        writer.writerows((self.keys[i], failures[i]) for i in sorted(failures))
        data = text.getvalue().encode(errors="backslashreplace")
        files.write(files.join(self.folder, FAILURES_FILE), data)
        stems = {f"{name.rpartition('/')[2]}" for name in self.names}
        stems |= {f"{stem}{more}" for stem in stems for more in (".npy", ".error")}
        for path in self._listing():
            if files.temporary_stem(path.rpartition("/")[2]) in stems | {"features", "failures"}:
                files.remove(files.join(self.folder, path))
        return True

    @contextmanager
    def open(self, i: int) -> Iterator["StoredVideo"]:
        """Read a video's ``.npz`` again."""
        location = self._location(i, ".npz")
        try:
            with files.open_read(location) as file, zipfile.ZipFile(file) as archive:
                yield StoredVideo(archive)
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            if isinstance(error, UsageError):
                raise
            raise DatasetError(f"{location} is damaged ({error}); delete it and run again") from (
                error
            )


def _write_joined(file: IO[bytes], arrays: Sequence[Rows]) -> None:
    """The rows of all streams side by side, as ``.npy``."""
    shapes = [rows.row_shape for rows in arrays]
    shape = (arrays[0].count, sum(s[0] for s in shapes), *shapes[0][1:])
    _write_header(file, shape, "<f4")
    size = block_rows(shape[1:])
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
            "about": np.array(json.dumps(document)),
        }
        for part, array in small.items():
            with archive.open(f"{part}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


class StoredVideo:
    """A video's ``.npz``, read in blocks."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.start_seconds = self._small("start_seconds")
        self.end_seconds = self._small("end_seconds")
        self.about: dict[str, Any] = json.loads(str(self._small("about")))

    def _small(self, name: str) -> np.ndarray:
        with self._archive.open(f"{name}.npy") as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    def shape(self, stream: Stream) -> tuple[int, ...]:
        """Of a stream's rows."""
        with self._archive.open(f"{stream}.npy") as member:
            return _read_header(member)

    def blocks(self, stream: Stream, *, rows: int) -> Iterator[np.ndarray]:
        """A stream's rows, so many at a time."""
        with self._archive.open(f"{stream}.npy") as member:
            yield from _blocks(member, _read_header(member), np.dtype("<f4"), rows)


def _read_header(file: IO[bytes]) -> tuple[int, ...]:
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another version of .npy")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype != np.dtype("<f4"):
        raise ValueError(f"features are {dtype}, not float32")
    return shape


# --- settings -------------------------------------------------------------------------------------


def _read_json(location: str, kind: str) -> dict[str, Any]:
    with files.open_read(location) as file:
        data = file.read(MAX_JSON_BYTES)
    return _document(data, kind, location)


def _document(data: bytes | str, kind: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where} is damaged ({error}); delete it") from error
    if not isinstance(document, dict) or document.get("format") != kind:
        raise DatasetError(f"{where} is not of the format {kind!r}; name another output")
    return document


def read_settings(location: str) -> dict[str, Any]:
    """What `FeatureFolder.begin` wrote.

    Raises:
        DatasetError: damaged, or of another format.
    """
    with files.open_read(location) as file:
        data = file.read(MAX_JSON_BYTES)
    head, digest = split_seal(data)
    if not digest:
        raise DatasetError(f"{location} is damaged or was edited: its seal does not match")
    return _document(head.removesuffix(b",\n") + b"}", KIND, location)


def compare(before: Mapping[str, Any], settings: FeatureSettings, where: str) -> None:
    """Refuse settings that differ.

    Raises:
        UsageError: with the differences.
    """
    now = plain(settings)
    lines = [
        f"{name} was {_short(before.get(name))} and is {_short(now[name])}"
        for name in now
        if name != "checkpoints" and before.get(name) != now[name]
    ]
    weights = {s: used["weights_sha256"] for s, used in now["checkpoints"].items()}
    known = before.get("checkpoints") or {}
    then = {s: used.get("weights_sha256") for s, used in known.items()}
    if then != weights:
        lines.append(f"the checkpoints' weights were {_short(then)} and are {_short(weights)}")
    if lines:
        raise UsageError(
            f"{where} was begun with other settings: {'; '.join(lines)}. Use the same settings, or "
            "another output"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."


# --- one file for all videos ----------------------------------------------------------------------


def merge(folder: FeatureFolder, output: files.Location, merged: str) -> None:
    """Write one file from a finished folder, in which some video has features.

    Raises:
        DatasetError: a file is damaged.
    """
    done, failures = sorted(folder.done()), folder.failures()
    write = {"parquet": _write_parquet, "hdf5": _write_hdf5}[merged]
    skipped = [Failure(folder.keys[i], reason) for i, reason in sorted(failures.items())]
    with files.atomic_file(output) as path:
        write(path, folder, done, skipped)


def _merged_about(
    folder: FeatureFolder, done: Sequence[int], skipped: Sequence[Failure]
) -> dict[str, Any]:
    looped, damaged = [], []
    for i in done:
        with folder.open(i) as video:
            if video.about["looped"]:
                looped.append(folder.keys[i])
            if video.about["damage"] is not None:
                damaged.append({"video": folder.keys[i], "damage": video.about["damage"]})
    with folder.open(done[0]) as video:
        shapes = {stream: list(video.shape(stream))[1:] for stream in _streams(folder)}
    return {
        "format": KIND,
        **plain(folder.settings),
        "row_shapes": shapes,
        "found": len(folder.keys),
        "skipped": [{"video": failure.key, "reason": failure.reason} for failure in skipped],
        "looped": looped,
        "damaged": damaged,
    }


def _streams(folder: FeatureFolder) -> list[Stream]:
    streams: list[Stream] = ["rgb", "flow"]
    return [stream for stream in streams if stream in folder.settings.checkpoints]


def _write_parquet(
    path: Path, folder: FeatureFolder, done: Sequence[int], skipped: Sequence[Failure]
) -> None:
    """One row a row: video, start_seconds, end_seconds, and a list of floats a stream."""
    pa = _library("parquet")
    about = _merged_about(folder, done, skipped)
    streams = _streams(folder)
    sizes = {s: int(np.prod(about["row_shapes"][s], dtype=np.int64)) for s in streams}
    columns = [("video", pa.string()), ("start_seconds", pa.float64())]
    columns += [("end_seconds", pa.float64())]
    columns += [(s, pa.list_(pa.float32(), sizes[s])) for s in streams]
    schema = pa.schema(columns, metadata={"i3d": json.dumps(about).encode("ascii")})
    waiting: list[Any] = []
    with pa.parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting.clear()

        for i in done:
            with folder.open(i) as video:
                start = 0
                size = min(block_rows(about["row_shapes"][s]) for s in streams)
                for blocks in zip(*(video.blocks(s, rows=size) for s in streams), strict=True):
                    end = start + len(blocks[0])
                    arrays = [
                        pa.array([folder.keys[i]] * (end - start)),
                        pa.array(video.start_seconds[start:end]),
                        pa.array(video.end_seconds[start:end]),
                        *(
                            pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), sizes[s])
                            for s, block in zip(streams, blocks, strict=True)
                        ),
                    ]
                    waiting.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
                    start = end
                    if sum(batch.nbytes for batch in waiting) > BLOCK_BYTES:
                        flush()
        flush()


def _write_hdf5(
    path: Path, folder: FeatureFolder, done: Sequence[int], skipped: Sequence[Failure]
) -> None:
    """videos/KEY/rgb, flow, start_seconds, end_seconds; ``/`` in a key is ``%2F``; about beside."""
    h5py = _library("hdf5")
    about = _merged_about(folder, done, skipped)
    with h5py.File(path, "w") as file:
        file["about"] = json.dumps(about)
        videos = file.create_group("videos")
        for i in done:
            with folder.open(i) as video:
                # No key has a literal %2F of its own: a percent sign in a name is %25 there.
                group = videos.create_group(folder.keys[i].replace("/", "%2F"))
                group["start_seconds"] = video.start_seconds
                group["end_seconds"] = video.end_seconds
                for stream in _streams(folder):
                    stored = group.create_dataset(stream, video.shape(stream), "<f4")
                    start = 0
                    for block in video.blocks(stream, rows=block_rows(stored.shape[1:])):
                        stored[start : start + len(block)] = block
                        start += len(block)


def read_merged_about(location: files.Location) -> dict[str, Any]:
    """What stands beside the rows in a Parquet or HDF5 file.

    Raises:
        DatasetError: not a file of ours.
    """
    text = os.fspath(location)
    merged = next(kind for suffix, kind in MERGED.items() if text.endswith(suffix))
    library = _library(merged)
    data: bytes | str
    try:
        with files.open_read(location) as file:
            if merged == "parquet":
                data = (library.parquet.read_schema(file).metadata or {}).get(b"i3d", b"")
            else:
                with library.File(file, "r") as stored:
                    data = stored["about"][()]
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{text}: not a feature file ({reason}); name another output") from error
    return _document(data, KIND, text)
