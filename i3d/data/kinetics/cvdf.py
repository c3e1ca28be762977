"""A flat folder and a CSV, as CVDF's mirror has them."""

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from i3d import files
from i3d.classes import normalize, unquote_field
from i3d.data.kinetics.dataset import Dataset, Video, escape, stem_of
from i3d.data.kinetics.labels import Inputs, Labeller, assemble, count, mention_ignored
from i3d.data.kinetics.listing import Folder, find_replacements, scan_class_folders, split_of
from i3d.errors import DatasetError

_COLUMNS = ("youtube_id", "time_start", "time_end")
_MAX_SECONDS = 1_000_000  # file names have six digits


class _Row(NamedTuple):
    line: int
    stem: str  # of the trimmed clip's file
    youtube_id: str
    start_seconds: float
    end_seconds: float
    label: str | None


def _parse_csv(table: str, lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row of a CSV, the header first."""
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    line = 1
    try:
        for fields in reader:
            if reader.line_num != line:
                raise csv.Error
            if fields:
                yield line, [field.strip() for field in fields]
            line += 1
    except csv.Error as e:
        reason = e if reader.line_num == line else "a double quote is not closed"
        raise DatasetError(f"{table}, line {line}: {reason}") from e


def _read_rows(
    inputs: Inputs, *, split: str | None, split_optional: bool
) -> tuple[list[_Row], dict[str, str]]:
    """The rows of the split; and the labels of all rows, each with the place of its first use."""
    table = inputs.table
    records = _parse_csv(table, inputs.lines)
    number, header = next(records, (1, []))
    columns = {name.lower(): i for i, name in enumerate(header)}
    needed = [*_COLUMNS]
    if inputs.labels_required:
        needed.append("label")
    if split is not None and not split_optional:
        needed.append("split")
    if lacking := [name for name in needed if name not in columns]:
        raise DatasetError(
            f"{table}, line {number}: no column {', '.join(lacking)}; it has {', '.join(header)}"
        )
    id_at, start_at, end_at = (columns[name] for name in _COLUMNS)
    label_at, split_at = columns.get("label"), columns.get("split")

    rows: list[_Row] = []
    places: dict[str, str] = {}
    for number, fields in records:
        if len(fields) != len(header):
            raise DatasetError(
                f"{table}, line {number}: {len(fields)} fields, but the header has {len(header)};"
                " put a label with a comma in double quotes"
            )
        label = "" if label_at is None else unquote_field(fields[label_at])
        if label and label not in places:
            places[label] = f"{table}, line {number}"
        if split and split_at is not None and split_of(fields[split_at]) != split_of(split):
            continue
        if not label and inputs.labels_required:
            raise DatasetError(f"{table}, line {number}: no label for {fields[id_at]!r}")
        if not fields[id_at] or "/" in fields[id_at]:
            raise DatasetError(f"{table}, line {number}: {fields[id_at]!r} is no youtube_id")
        start, end = (_parse_seconds(fields[at], table, number) for at in (start_at, end_at))
        if end <= start:
            raise DatasetError(
                f"{table}, line {number}: time_end {end:g} is not after time_start {start:g}"
            )
        # File names have whole seconds.
        stem = f"{fields[id_at]}_{int(start):06d}_{int(end):06d}"
        rows.append(_Row(number, stem, fields[id_at], start, end, label or None))
    if not rows:
        raise DatasetError(f"{table}: no rows" + (f" of the split {split!r}" if split else ""))
    return rows, places


def _parse_seconds(text: str, table: str, line: int) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < _MAX_SECONDS:
        raise DatasetError(f"{table}, line {line}: {text!r} is not a time in seconds")
    return seconds


def read_cvdf(inputs: Inputs, *, split: str | None, split_optional: bool, trim: bool) -> Dataset:
    """Read the clips that the rows of a CSV name.

    Args:
        inputs: what the folder and the CSV hold.
        split: the rows to take; None for all.
        split_optional: whether a CSV without the column is taken whole.
        trim: the videos are whole: cut them by the rows' times.
    """
    table, top = inputs.table, inputs.folder
    rows, places = _read_rows(inputs, split=split, split_optional=split_optional)
    labeller = Labeller(inputs, places)

    # Some archives of Kinetics-600 hold class folders, so those are searched too.
    folders = {"": top, **scan_class_folders(top)}
    stored = _group_by_stem(folders)
    good = find_replacements(top)

    clips, contradicted = _merge_rows(rows)
    clips_of = Counter(row.youtube_id for row in clips.values())

    videos, missing = [], []
    used = set()
    for stem, row in clips.items():
        cut = stem not in stored and stem not in good  # the whole video may be there
        source_stem = row.youtube_id if cut else stem
        candidates = stored.get(source_stem, [])
        used.add(source_stem)
        if stem in contradicted:
            reason = f"lines {row.line} and {contradicted[stem].line} of the CSV contradict"
        elif stem not in good and not candidates:
            reason = "no such file"
        elif cut and not trim and clips_of[row.youtube_id] > 1:
            reason = f"{clips_of[row.youtube_id]} clips share one file; trim would cut them out"
        else:
            location = good.get(stem) or _choose_location(candidates, row.label)
            times = (row.start_seconds, row.end_seconds) if cut and trim else (None, None)
            videos.append(Video(escape(stem), location, *labeller(row.label), *times))
            continue
        missing.append((escape(stem), reason))
    if not videos or used.isdisjoint(stored):  # replacements alone are no dataset
        raise DatasetError(
            f"{top.location} has no video for the {count(len(clips), 'clip')} of {table};"
            f" the first would be {next(iter(clips))}.mp4"
        )

    warnings = []
    if repeated := len(rows) - len(clips):
        warnings.append(f"left out: {count(repeated, 'line')} of {table} that repeat a clip")
    if extra := len(stored.keys() - used):
        warnings.append(
            f"left out: {count(extra, 'video')} of {top.location} that are not in {table}"
        )
    understood = (
        f"{count(len(videos), 'video')} in {top.location} for {count(len(clips), 'clip')}"
        f" of {table}{mention_ignored(folders.values())}"
    )
    return assemble(
        inputs,
        videos,
        labeller,
        understood=understood,
        replaced=len(good.keys() & clips.keys()),
        missing=missing,
        warnings=warnings,
    )


def _merge_rows(rows: Sequence[_Row]) -> tuple[dict[str, _Row], dict[str, _Row]]:
    """By stem the first row of every clip, and the last of those that contradict it."""
    clips: dict[str, _Row] = {}
    contradicted: dict[str, _Row] = {}
    for row in rows:
        first = clips.setdefault(row.stem, row)
        if first[1:] != row[1:]:
            contradicted[row.stem] = row
    return clips, contradicted


def _group_by_stem(folders: Mapping[str, Folder]) -> dict[str, list[tuple[str, str]]]:
    """By stem, the name of the folder and the location of every video."""
    stored: dict[str, list[tuple[str, str]]] = {}
    for name, folder in folders.items():
        for video in folder.videos:
            place = name, files.join(folder.location, video)
            stored.setdefault(stem_of(video), []).append(place)
    return stored


def _choose_location(candidates: Sequence[tuple[str, str]], label: str | None) -> str:
    """The location of a clip that may lie in several folders: rather the one of its class."""
    if len(candidates) > 1:
        wanted = normalize(label or "")
        candidates = sorted(candidates, key=lambda c: (normalize(c[0]) != wanted, c))
    return candidates[0][1]
