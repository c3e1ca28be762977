"""Logits of every video of a dataset, on disk: Parquet or CSV for people, parts for resuming.

One row a video: ``video``, ``class``, ``index`` (the truth) and of each stream ``rgb_logits`` or
``flow_logits``, float32: a list in Parquet, the columns ``rgb_logits_0`` and on in CSV. What was
evaluated and how (`About`) travels with them: in Parquet's metadata under ``i3d``, beside a CSV as
``NAME.csv.json``. So streams that were evaluated on different days can be fused and still say what
they are.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from i3d import files
from i3d.clips import Views
from i3d.data.shards import Failure
from i3d.errors import DatasetError, UsageError
from i3d.presets import STREAMS, Stream
from i3d.records import parse, plain
from i3d.tasks.network import UsedCheckpoint

KIND = "i3d predictions 1"
MAX_BYTES = 1 << 34  # Kinetics-700's 650,000 videos with both streams have 4 GB of logits
MAX_ABOUT_BYTES = 1 << 29


@dataclass(frozen=True)
class About:
    """What was evaluated and how.

    Attributes:
        dataset: name of the videos' folder.
        classes: class names in the order of the logits.
        preset: name of the preprocessing.
        frames: length of each clip.
        clips: number from each video.
        crops: number from each clip.
        precision: ``fp32``, or what autocast used.
        checkpoints: stream -> network.
        versions: software, and what made the shards.
        found: videos of the plan; those with logits and those skipped together.
        skipped: the videos without logits, and why; sorted.
    """

    dataset: str
    classes: tuple[str, ...]
    preset: str
    frames: int
    clips: int
    crops: int
    precision: str
    checkpoints: Mapping[str, UsedCheckpoint]
    versions: Mapping[str, str]
    found: int = 0
    skipped: tuple[Failure, ...] = ()

    @property
    def views(self) -> Views:
        """What was seen of each video."""
        return Views(self.frames, self.clips, self.crops)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two runs comparable: neither versions nor the outcome."""
        left_out = ("versions", "found", "skipped", "checkpoints")
        kept = {name: value for name, value in plain(self).items() if name not in left_out}
        weights = {s: used.weights_sha256 for s, used in sorted(self.checkpoints.items())}
        return {**kept, "weights_sha256": weights}


@dataclass(frozen=True)
class Predictions:
    """A table of logits.

    Attributes:
        about: what they are.
        videos: keys.
        targets: int64 (N,), the true classes.
        logits: stream -> float32 (N, num_classes).
    """

    about: About
    videos: tuple[str, ...]
    targets: np.ndarray
    logits: dict[Stream, np.ndarray]

    def __len__(self) -> int:
        return len(self.videos)


def check_location(location: files.Location) -> None:
    """Refuse, before hours of work, a file that cannot be written at their end.

    Raises:
        UsageError: another suffix, or Parquet without its library.
    """
    text = str(location)
    if text.endswith(".parquet"):
        _parquet()
    elif not text.endswith(".csv"):
        raise UsageError(f"{text}: predictions go into a .parquet or .csv file")


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "Parquet needs pyarrow: pip install pyarrow, or name a .csv file"
        ) from error
    return pyarrow


def write_predictions(location: files.Location, predictions: Predictions) -> None:
    """Write ``.parquet`` or ``.csv``, atomically.

    Raises:
        UsageError: another suffix, or Parquet without its library.
    """
    check_location(location)
    about = json.dumps({"format": KIND, **plain(predictions.about)}).encode("ascii")
    names = [predictions.about.classes[t] for t in predictions.targets]
    if str(location).endswith(".parquet"):
        pa = _parquet()
        columns: dict[str, Any] = {
            "video": list(predictions.videos),
            "class": names,
            "index": predictions.targets.astype(np.int64),
        }
        for stream, logits in predictions.logits.items():
            ends = np.arange(len(logits) + 1, dtype=np.int32) * logits.shape[1]
            columns[f"{stream}_logits"] = pa.ListArray.from_arrays(ends, logits.ravel())
        table = pa.table(columns).replace_schema_metadata({"i3d": about})
        files.write_by(
            location, lambda path: pa.parquet.write_table(table, path, compression="zstd")
        )
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["video", "class", "index"]
    for stream, logits in predictions.logits.items():
        header += [f"{stream}_logits_{i}" for i in range(logits.shape[1])]
    writer.writerow(header)
    for row, video in enumerate(predictions.videos):
        # str of a float32 is the shortest text that reads back as the same number
        values = [str(x) for logits in predictions.logits.values() for x in logits[row]]
        writer.writerow([video, names[row], int(predictions.targets[row]), *values])
    files.write(f"{location}.json", about)
    files.write(location, text.getvalue().encode())


def read_predictions(location: files.Location) -> Predictions:
    """Read what `write_predictions` wrote.

    Raises:
        DatasetError: missing, damaged, or without the columns.
    """
    check_location(location)
    name = str(location)
    try:
        if files.size(location) > MAX_BYTES:
            raise DatasetError(f"{name} has more than {MAX_BYTES >> 30} GiB")
        if name.endswith(".parquet"):
            return _read_parquet(location)
        return _read_csv(location)
    except FileNotFoundError:
        raise DatasetError(f"{name}: no such file; i3d evaluate --predictions writes it") from None


def _read_parquet(location: files.Location) -> Predictions:
    pa = _parquet()
    try:
        with files.open_read(location) as file:
            # In this thread alone: Arrow's own would still hold the file when Python ends, and
            # then abort the process.
            table = pa.parquet.ParquetFile(file, pre_buffer=False).read(use_threads=False)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{location}: not a readable Parquet file ({reason})") from None
    metadata = (table.schema.metadata or {}).get(b"i3d")
    if metadata is None:
        raise DatasetError(f"{location}: i3d did not write this file: it has no i3d metadata")
    about = parse(KIND, About, metadata, str(location))
    logits: dict[Stream, np.ndarray] = {}
    try:
        videos = tuple(str(video) for video in table["video"].to_pylist())
        targets = table["index"].to_numpy().astype(np.int64)
        for stream in STREAMS:
            if f"{stream}_logits" in table.column_names:
                values = table[f"{stream}_logits"].combine_chunks().flatten()
                flat = values.to_numpy(zero_copy_only=False).astype(np.float32)
                logits[stream] = flat.reshape(len(videos), len(about.classes))
    except (KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise DatasetError(f"{location}: its columns are not those of predictions ({error})") from (
            None
        )
    return _check(Predictions(about, videos, targets, logits), str(location))


def _read_csv(location: files.Location) -> Predictions:
    beside = f"{location}.json"
    if not files.exists(beside):
        raise DatasetError(f"{location}: {beside} is missing; it says what the logits are")
    with files.open_read(beside) as file:
        about = parse(KIND, About, files.read_bounded(file, MAX_ABOUT_BYTES), beside)
    count = len(about.classes)
    videos: list[str] = []
    targets: list[int] = []
    rows: list[np.ndarray] = []
    with files.open_read(location) as binary, io.TextIOWrapper(binary, newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        streams = [s for s in STREAMS if f"{s}_logits_0" in header]
        expected = ["video", "class", "index"]
        expected += [f"{s}_logits_{i}" for s in streams for i in range(count)]
        if header != expected:
            raise DatasetError(f"{location}: its columns are not those that {beside} announces")
        try:
            for row in reader:
                videos.append(row[0])
                targets.append(int(row[2]))
                rows.append(np.array(row[3:], np.float32))
            table = np.array(rows, np.float32).reshape(len(rows), len(streams) * count)
        except (ValueError, IndexError, csv.Error) as error:
            line = reader.line_num
            raise DatasetError(f"{location}, line {line}: not a row of logits ({error})") from None
    logits = {s: table[:, i * count : (i + 1) * count].copy() for i, s in enumerate(streams)}
    return _check(Predictions(about, tuple(videos), np.array(targets, int), logits), location)


def _check(predictions: Predictions, where: files.Location) -> Predictions:
    """Refuse a table that contradicts itself."""
    about, targets = predictions.about, predictions.targets
    if not predictions.logits or set(predictions.logits) != set(about.checkpoints):
        raise DatasetError(f"{where}: its logits are not of the checkpoints that it names")
    if len(targets) and not 0 <= targets.min() <= targets.max() < len(about.classes):
        raise DatasetError(f"{where}: a class index is not one of its {len(about.classes)} classes")
    if len(set(predictions.videos)) != len(predictions):
        raise DatasetError(f"{where}: a video is there twice")
    if about.found != len(predictions) + len(about.skipped):
        raise DatasetError(
            f"{where}: {len(predictions)} rows and {len(about.skipped)} skipped videos are not the "
            f"{about.found} that were found; the file was changed"
        )
    if not all(np.isfinite(logits).all() for logits in predictions.logits.values()):
        raise DatasetError(f"{where}: logits hold NaN or infinity")
    return predictions


def fuse(tables: Sequence[Predictions], names: Sequence[str]) -> Predictions:
    """Join streams that were evaluated apart: the videos that all tables have.

    A video that one of them lacks is skipped, with its reason there.

    Args:
        tables: different streams of one dataset.
        names: their files', for messages.

    Raises:
        UsageError: a stream twice, other classes, another truth, or other settings.
    """
    first = tables[0]
    logits: dict[Stream, np.ndarray] = {}
    checkpoints: dict[str, UsedCheckpoint] = {}
    rows = [{video: i for i, video in enumerate(table.videos)} for table in tables]
    common = [video for video in first.videos if all(video in row for row in rows)]
    for table, name, row in zip(tables, names, rows, strict=True):
        for setting in ("classes", "preset"):
            if getattr(table.about, setting) != getattr(first.about, setting):
                raise UsageError(f"{name} has other {setting} than {names[0]}; they do not fuse")
        twice = [stream for stream in table.logits if stream in logits]
        if twice:
            raise UsageError(f"{name} holds {twice[0]} logits as an earlier file does; give one")
        picked = [row[video] for video in common]
        targets = table.targets[picked]
        if not np.array_equal(targets, first.targets[[rows[0][video] for video in common]]):
            raise UsageError(f"{name} has another truth than {names[0]} for the same videos")
        logits |= {stream: values[picked] for stream, values in table.logits.items()}
        checkpoints |= table.about.checkpoints
    if not common:
        raise UsageError(f"{' and '.join(names)} have no video in common; they do not fuse")
    reasons = {s.key: s.reason for t in reversed(tables) for s in t.about.skipped}
    everything = {v for t in tables for v in t.videos} | set(reasons)
    missing = sorted(everything - set(common))
    about = replace(
        first.about,
        checkpoints=checkpoints,
        versions=first.about.versions,
        found=len(everything),
        skipped=tuple(Failure(v, reasons.get(v, "not in all of the fused files")) for v in missing),
    )
    ordered = {stream: logits[stream] for stream in STREAMS if stream in logits}
    truth = first.targets[[rows[0][video] for video in common]]
    return Predictions(about, tuple(common), truth, ordered)
