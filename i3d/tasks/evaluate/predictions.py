"""Logits of every video of a dataset, on disk: Parquet or CSV for people, parts for resuming.

One row a video: ``video``, ``class``, ``index`` (the truth) and of each stream ``rgb_logits`` or
``flow_logits``, float32: a list in Parquet, the columns ``rgb_logits_0`` and on in CSV. What was
evaluated and how (`About`) travels with them: in Parquet's metadata under ``i3d``, beside a CSV as
``NAME.csv.json``. So streams that were evaluated on different days can be fused and still say what
they are.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, NoReturn

import numpy as np

from i3d import files
from i3d.clips import Views
from i3d.data.shards import Failure
from i3d.errors import DatasetError, UsageError
from i3d.presets import STREAMS, Stream
from i3d.records import parse, plain
from i3d.spreadsheet import read_cell, write_table
from i3d.tasks.network import UsedCheckpoint

KIND = "i3d predictions 1"
MAX_BYTES = 1 << 34  # Kinetics-700's 650,000 videos with both streams have 4 GB of logits
MAX_ABOUT_BYTES = 1 << 29
MAX_LOGIT = 1e30  # the sum of two streams' is finite


@dataclass(frozen=True, order=True)
class Damaged:
    """A video that was evaluated though part of it was lost, and what."""

    key: str
    damage: str


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
        damaged: the videos with logits of which something was lost; sorted.
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
    damaged: tuple[Damaged, ...] = ()

    @property
    def views(self) -> Views:
        """What was seen of each video."""
        return Views(self.frames, self.clips, self.crops)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two runs comparable: neither versions nor the outcome."""
        left_out = ("versions", "found", "skipped", "damaged", "checkpoints")
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
    document = {"format": KIND, **plain(predictions.about)}
    about = json.dumps(document, allow_nan=False).encode("ascii")
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

    def row(i: int, video: str) -> list[Any]:
        # str of a float32, which write_table takes, is the shortest text that reads back as it
        values = [x for logits in predictions.logits.values() for x in logits[i]]
        return [video, names[i], int(predictions.targets[i]), *values]

    streams = [s for s in STREAMS if s in predictions.logits]
    rows = (row(i, video) for i, video in enumerate(predictions.videos))
    data = write_table(_csv_header(streams, len(predictions.about.classes)), rows)
    files.write(f"{location}.json", about)
    files.write(location, data)


def _csv_header(streams: Sequence[Stream], classes: int) -> list[str]:
    return [
        "video",
        "class",
        "index",
        *(f"{s}_logits_{i}" for s in streams for i in range(classes)),
    ]


def read_predictions(location: files.Location) -> Predictions:
    """Read what `write_predictions` wrote.

    Raises:
        DatasetError: missing, damaged, changed, or another program's.
    """
    check_location(location)
    name = str(location)
    try:
        if files.is_dir(location):
            raise DatasetError(f"{name} is a folder; name the file that --predictions wrote")
        if files.size(location) > MAX_BYTES:
            raise DatasetError(f"{name} has more than {MAX_BYTES >> 30} GiB")
        if name.endswith(".parquet"):
            return _read_parquet(location)
        return _read_csv(location)
    except FileNotFoundError:
        raise DatasetError(f"{name}: no such file; i3d evaluate --predictions writes it") from None


REMEDY = "restore it, or evaluate again with --predictions"
_BATCH_ROWS = 1024  # of Parquet in memory beside the table; 3 MB of 400 classes and both streams


# --- Parquet --------------------------------------------------------------------------------------


# What Arrow raises over damaged bytes beside exceptions of its own.
_ARROWS_OWN = (UnicodeDecodeError, OverflowError, MemoryError)


def _read_parquet(location: files.Location) -> Predictions:
    pa = _parquet()
    where = str(location)
    with files.open_read(location) as file:
        try:
            # In this thread alone: Arrow's own would still hold the file when Python ends, and
            # then abort the process.
            return _read_columns(pa, pa.parquet.ParquetFile(file, pre_buffer=False), where)
        except (pa.ArrowException, OSError, *_ARROWS_OWN) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the storage's; Arrow's own, of damaged bytes, have no number
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise DatasetError(
                f"{where}: not a readable Parquet file ({reason}); {REMEDY}"
            ) from None


def _read_columns(pa: Any, file: Any, where: str) -> Predictions:
    """The table; types and sizes are looked at before anything is decoded."""
    schema = file.schema_arrow
    metadata = (schema.metadata or {}).get(b"i3d")
    if metadata is None:
        raise DatasetError(f"{where}: i3d did not write this file: it has no i3d metadata")
    about = parse(KIND, About, metadata, where)
    streams = [s for s in STREAMS if f"{s}_logits" in schema.names]
    types = {"video": pa.string(), "class": pa.string(), "index": pa.int64()}
    types |= {f"{s}_logits": pa.list_(pa.float32()) for s in streams}
    for name, expected in types.items():
        found = [field.type for field in schema if field.name == name]
        if len(found) != 1 or not _same_type(pa, found[0], expected):
            shown = ", ".join(str(t)[:100] for t in found) or "absent"
            raise DatasetError(
                f"{where}: column {name} is {shown}, and has to be {expected}; {REMEDY}"
            )
    table = _Table(about, streams, where)
    if file.metadata.num_rows != table.expected:
        table.refuse_count(file.metadata.num_rows)
    for batch in file.iter_batches(_BATCH_ROWS, columns=list(types), use_threads=False):
        columns = {name: batch.column(name) for name in types}
        lengths = {s: columns[f"{s}_logits"].value_lengths().to_numpy(False) for s in streams}
        flat = {s: columns[f"{s}_logits"].flatten() for s in streams}
        for name, column in [*columns.items(), *((f"{s}_logits", flat[s]) for s in streams)]:
            if column.null_count:
                raise DatasetError(f"{where}: column {name} has empty cells; {REMEDY}")
        for stream, counts in lengths.items():
            for i in np.flatnonzero(counts != len(about.classes))[:1]:
                raise DatasetError(
                    f"{where}, row {table.count + i + 1}: {stream}_logits has {counts[i]} values "
                    f"for {len(about.classes)} classes; {REMEDY}"
                )
        names = [columns[name].to_pylist() for name in ("video", "class", "index")]
        rows = zip(*names, strict=True)
        values = np.concatenate(
            [flat[s].to_numpy(False).reshape(len(batch), -1) for s in streams], axis=1
        )
        for (video, name, index), logits in zip(rows, values, strict=True):
            table.add(video, name, index, logits, f"row {table.count + 1}")
    return table.finish()


def _same_type(pa: Any, found: Any, expected: Any) -> bool:
    """Whether a column has a type; what a list calls its items is the writer's own business."""
    if pa.types.is_list(expected):
        return bool(pa.types.is_list(found) and found.value_type == expected.value_type)
    return bool(found == expected)


# --- CSV ------------------------------------------------------------------------------------------


def _read_csv(location: files.Location) -> Predictions:
    where, beside = str(location), f"{location}.json"
    if not files.exists(beside):
        raise DatasetError(f"{where}: {beside} is missing; it says what the logits are")
    with files.open_read(beside) as file:
        about = parse(KIND, About, files.read_bounded(file, MAX_ABOUT_BYTES), beside)
    with files.open_read(location) as file:
        reader = csv.reader(_lines(file, about, where), strict=True)
        try:
            header = next(reader, [])
            streams = [s for s in STREAMS if f"{s}_logits_0" in header]
            expected = _csv_header(streams, len(about.classes))
            if header != expected:
                i = next(
                    (i for i, (a, b) in enumerate(zip(header, expected, strict=False)) if a != b),
                    None,
                )
                what = (
                    f"{len(header)} columns"
                    if i is None
                    else f"column {i + 1} is {header[i]!r:.80}"
                )
                raise DatasetError(
                    f"{where}: its columns are not those that {beside} announces: {what}; {REMEDY}"
                )
            table = _Table(about, streams, where)
            for row in reader:
                line = f"line {reader.line_num}"
                if len(row) != len(expected):
                    raise DatasetError(
                        f"{where}, {line}: {len(row)} columns, and there are {len(expected)} "
                        f"above; {REMEDY}"
                    )
                index = _number(int, row[2], f"{where}, {line}, column index")
                try:
                    logits = np.array(row[3:], np.float32)
                except ValueError:
                    for name, text in zip(header[3:], row[3:], strict=True):
                        _number(np.float32, text, f"{where}, {line}, column {name}")
                    raise
                table.add(read_cell(row[0]), read_cell(row[1]), index, logits, line)
        except csv.Error as error:
            raise DatasetError(
                f"{where}, line {reader.line_num}: not CSV ({error}); {REMEDY}"
            ) from None
    return table.finish()


def _lines(file: IO[bytes], about: About, where: str) -> Iterator[str]:
    """The lines of a CSV, none of which is longer than such a row can be.

    Raises:
        DatasetError: a longer one, or one that is not UTF-8.
    """
    most = (1 << 17) + 2 * 32 * len(about.classes)  # a float32 has 15 characters at most
    number = 0
    while line := file.readline(most):
        number += 1
        if len(line) == most:
            raise DatasetError(f"{where}, line {number}: over {most} bytes; {REMEDY}")
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise DatasetError(f"{where}, line {number}: not UTF-8 ({error}); {REMEDY}") from None


def _number(kind: Callable[[str], Any], text: str, where: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise DatasetError(f"{where}: {text!r:.50} is not a number; {REMEDY}") from None


# --- both -----------------------------------------------------------------------------------------


class _Table:
    """Rows of a file, each of which is refused where it contradicts what the file says of itself.

    Args:
        about: what the file says.
        streams: whose logits it has, in their order.
        where: the file, for messages.
    """

    def __init__(self, about: About, streams: Sequence[Stream], where: str) -> None:
        self.about, self.streams, self.where = about, streams, where
        self.expected = about.found - len(about.skipped)
        self._targets: list[int] = []
        self._rows: list[np.ndarray] = []
        self._videos: dict[str, str] = {}  # and the place of each
        if not streams or set(streams) != set(about.checkpoints):
            named = ", ".join(map(ascii, sorted(about.checkpoints)))[:200] or "none"
            raise DatasetError(
                f"{where}: it has logits of {', '.join(streams) or 'no stream'}, and names "
                f"checkpoints of {named}; {REMEDY}"
            )

    @property
    def count(self) -> int:
        """Rows so far."""
        return len(self._targets)

    def add(self, video: str, name: str, index: int, logits: np.ndarray, place: str) -> None:
        """Take a row: float32 (streams * classes,)."""
        classes = self.about.classes
        if not 0 <= index < len(classes):
            self._refuse(place, f"index is {index}, not one of its {len(classes)} classes")
        if name != classes[index]:
            self._refuse(place, f"class is {name!r:.80}, and {index} is {classes[index]!r:.80}")
        if video in self._videos:
            self._refuse(place, f"{video!r:.200} is there twice, first in {self._videos[video]}")
        if not (np.abs(logits) <= MAX_LOGIT).all():
            i = int(np.argmax(~(np.abs(logits) <= MAX_LOGIT)))
            stream = self.streams[i // len(classes)]
            column = f"{stream}_logits, class {i % len(classes)}"
            self._refuse(place, f"{column} is {logits[i]}, which is no logit")
        if self.count == self.expected:
            self.refuse_count(self.count + 1, "or more ")
        self._videos[video] = place
        self._targets.append(index)
        self._rows.append(logits)

    def _refuse(self, place: str, what: str) -> NoReturn:
        raise DatasetError(f"{self.where}, {place}: {what}; {REMEDY}")

    def refuse_count(self, rows: int, more: str = "") -> NoReturn:
        """Say that rows are missing or too many."""
        raise DatasetError(
            f"{self.where}: {rows} {more}rows and {len(self.about.skipped)} skipped videos are not "
            f"the {self.about.found} that were found; {REMEDY}"
        )

    def finish(self) -> Predictions:
        """All of it."""
        if self.count != self.expected:
            self.refuse_count(self.count)
        classes = len(self.about.classes)
        shape = self.count, len(self.streams) * classes
        table = np.array(self._rows, np.float32).reshape(shape)
        logits = {
            s: table[:, i * classes : (i + 1) * classes].copy() for i, s in enumerate(self.streams)
        }
        targets = np.array(self._targets, np.int64)
        return Predictions(self.about, tuple(self._videos), targets, logits)


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
    damages = {d.key: d for t in reversed(tables) for d in t.about.damaged}
    about = replace(
        first.about,
        checkpoints=checkpoints,
        versions=first.about.versions,
        found=len(everything),
        skipped=tuple(Failure(v, reasons.get(v, "not in all of the fused files")) for v in missing),
        damaged=tuple(damages[v] for v in sorted(damages.keys() & set(common))),
    )
    ordered = {stream: logits[stream] for stream in STREAMS if stream in logits}
    truth = first.targets[[rows[0][video] for video in common]]
    return Predictions(about, tuple(common), truth, ordered)
