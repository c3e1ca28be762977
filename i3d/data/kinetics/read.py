"""A video dataset on disk -> labelled videos.

Four layouts, told apart by looking (or by `layout=`):

    folders   root/<class name>/<file>.mp4         the official crawler, torchvision, mmaction
    cvdf      root/<id>_<start>_<end>.mp4 + CSV    CVDF's mirror: val/ beside annotations/val.csv
    list      lines of `path label`                mmaction's .txt, SlowFast's .csv
    flat      root/<file>.mp4                      no labels; only where labels are optional

The CSV of Kinetics has the columns ``label,youtube_id,time_start,time_end[,split][,is_cc]``.
Everything may lie behind a URL. Files are listed, never opened or stat'ed: a damaged video shows
when it is decoded.

A video's key is its portable name: the path under the root (cvdf: the clip's name) without the
suffix, percent-encoded except for letters, digits, spaces and ``_ - ~ / ' ( )``. Dots are encoded
too, since WebDataset takes what follows a base name's first dot for a suffix. Files that differ in
their suffix alone keep it: ``a.mp4`` beside ``a.mkv`` gives ``a%2Emp4`` and ``a%2Emkv``. So
``urllib.parse.unquote`` gives the name back, and no two files share a key.
"""

import csv
import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, takewhile
from typing import Literal, NamedTuple, get_args
from urllib.parse import quote

from i3d import files
from i3d.classes import (
    CLASS_LISTS,
    ClassList,
    class_list,
    detect,
    normalize,
    read_lines,
    readable,
    unquote_field,
)
from i3d.errors import DatasetError, UsageError
from i3d.files import Location

Layout = Literal["folders", "cvdf", "list", "flat"]
Labels = Literal["required", "optional"]

_SUFFIXES = ["mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "mpeg", "flv", "wmv", "3gp", "ogv"]
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES)  # compared in lower case

# Kinetics-400 and 600 say "val", Kinetics-700 "validate"; mmaction's folders say "videos_val".
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

# CVDF's archive of good copies of damaged videos, which its scripts unpack into `replacement/`.
_REPLACEMENT = "replacement_for_corrupted_k400"
_NOT_CLASSES = frozenset({"annotations", "replacement", _REPLACEMENT})

_CSV_COLUMNS = ("youtube_id", "time_start", "time_end")
_MAX_SECONDS = 1_000_000  # file names have six digits

_SCAN_THREADS = 16  # on S3, listing 600 folders one after the other takes a minute

# The path ends with the line's last video suffix, so both it and the label may hold spaces.
_LIST_LINE = re.compile(
    rf'"?(?P<path>.+\.(?:{"|".join(_SUFFIXES)}))"?(?:[\s,]+(?P<label>\S.*))?', re.IGNORECASE
)
_LIST_HEADER = re.compile(r"(video_?)?(path|name|file|filename)?[\s,]+(label|class)", re.IGNORECASE)
_FRAME_FOLDER = re.compile(r"(?P<path>.+?)\s+\d+\s+-?\d+")


@dataclass(frozen=True, slots=True)
class Video:
    """One video, or a stretch of one, and its label.

    Attributes:
        key: unique portable name, safe as a tar member's: see the module's docstring.
        location: path or URL of the file.
        class_name: the name in the class list; None when unlabelled.
        index: the position of that name in the class list.
        start_seconds: where to cut an untrimmed video; None for the whole file.
        end_seconds: as above.
    """

    key: str
    location: str
    class_name: str | None = None
    index: int | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True)
class Dataset:
    """What `read_dataset` found.

    Attributes:
        videos: sorted by key.
        classes: the class list that `Video.index` refers to; None when unlabelled.
        layout: "folders", "cvdf", "list" or "flat".
        missing: (key, reason) of every clip that the annotations name and that has no usable file.
        description: one line that says what was understood, for people: it holds paths.
        warnings: what the user should know, one line each.
    """

    videos: tuple[Video, ...]
    classes: ClassList | None
    layout: Layout
    missing: tuple[tuple[str, str], ...]
    description: str
    warnings: tuple[str, ...]


def read_dataset(
    root: Location,
    *,
    classes: Location | ClassList | None = None,
    annotations: Location | None = None,
    layout: Layout | None = None,
    split: str | None = None,
    trim: bool = False,
    labels: Labels = "required",
) -> Dataset:
    """The videos at `root` with their labels, in an order that depends on their names alone.

    Args:
        root: folder or URL that holds the videos; or a list file or CSV that lies with them.
        classes: "kinetics400", "kinetics600", a file of names, a `ClassList`, or "folders" (the
            sorted folder names). By default the one Kinetics list that has all the names.
        annotations: the CSV or list file. By default a CSV in the folder or its `annotations/`,
            then ``annotations/<folder>.csv`` and ``<folder>.csv`` beside it.
        layout: forces a layout instead of looking.
        split: "train", "val" or "test": the folder of that name under `root`, and the rows of
            the CSV with that `split`.
        trim: the videos are whole (``<id>.mp4``): cut them by the CSV's times.
        labels: "optional" also takes videos without a label.

    Raises:
        DatasetError: nothing there; files that cannot be understood; an unknown or ambiguous
            class. The message names file, line and value.
        UsageError: arguments that are unknown or contradict each other.
    """
    if layout is not None and layout not in get_args(Layout):
        raise UsageError(f"layout {layout!r} is not one of {', '.join(get_args(Layout))}")
    if labels not in get_args(Labels):
        raise UsageError(f"labels {labels!r} is not one of {', '.join(get_args(Labels))}")
    if split is not None and _split_of(split) is None:
        raise UsageError(f"split {split!r} is not one of train, val, test")
    if layout in ("folders", "flat") and (annotations is not None or trim):
        raise UsageError(f"layout {layout!r} takes neither annotations nor trim")

    top = _clean(root)
    table = None if annotations is None else _clean(annotations)
    if table is None and layout not in ("folders", "flat") and _is_file(top):
        top, table = _parent(top) or top, top
    folder = _scan(top)
    split_folder = None if split is None else _split_folder(folder, split)
    if split_folder is not None:
        folder = _scan(files.join(top, split_folder))

    needed = layout in ("cvdf", "list") or trim
    if table is None and (needed or (layout is None and _may_have_annotations(folder))):
        table = _find_annotations(folder, split)
        if table is None and needed:
            raise DatasetError(f"{folder.location}: no CSV in or beside it; pass --annotations")
    lines = [] if table is None else read_lines(table)
    found = layout or _detect_layout(folder, table, lines)

    if trim and found != "cvdf":
        raise DatasetError(f"{table}: trim needs a CSV with times; this is a list of paths")
    if split is not None and split_folder is None and found != "cvdf":
        raise DatasetError(f"{top}: no folder for the split {split!r}; pass the folder itself")
    source = _Source(folder, found, classes, labels == "required", table or "", lines)
    if found == "cvdf":
        # A CSV of one split may lack the column once a folder has selected the split.
        return _read_cvdf(source, split=split, split_optional=split_folder is not None, trim=trim)
    return {"folders": _read_folders, "list": _read_list, "flat": _read_flat}[found](source)


class _Folder(NamedTuple):
    location: str
    videos: list[str]  # sorted names of the files that look like a video
    folders: list[str]  # sorted names
    others: list[str]  # sorted names of the other files
    hidden: int


class _Source(NamedTuple):
    """What the readers of the layouts share."""

    folder: _Folder
    layout: Layout
    classes: Location | ClassList | None
    labels_required: bool
    table: str  # location of the CSV or list file
    lines: list[str]


# Listing


def _clean(location: Location) -> str:
    """A local path without ``~`` and ``file://``, or the URL without a slash at its end."""
    path = files.local_path(location)
    return str(path) if path is not None else os.fspath(location).rstrip("/")


def _absolute(location: str) -> str:
    """The location without ``.``, ``..`` and doubled slashes; links are not followed."""
    scheme, mark, path = location.rpartition("://")
    if mark:
        return f"{scheme}{mark}{posixpath.normpath(path)}"
    return os.path.abspath(path)  # noqa: PTH100 (Path.resolve would follow links)


def _parent(location: str) -> str | None:
    """The folder that `location` lies in; None at the top of a URL."""
    scheme, mark, path = _absolute(location).rpartition("://")
    parent = posixpath.dirname(path)
    return f"{scheme}{mark}{parent}" if parent else None


def _is_file(location: str) -> bool:
    with readable(location):
        return files.exists(location) and not files.is_dir(location)


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _is_video(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _scan(location: str) -> _Folder:
    """What is in a folder; nothing in it is opened."""
    with readable(location):
        names = sorted(_entries(location))
    folder = _Folder(location, [], [], [], hidden=sum(n.startswith(".") for n, _ in names))
    for name, is_folder in names:
        if not name.startswith("."):
            others = folder.videos if _is_video(name) else folder.others
            (folder.folders if is_folder else others).append(name)
    return folder


def _entries(location: str) -> Iterator[tuple[str, bool]]:
    """The name of everything in a folder, and whether it is a folder."""
    path = files.local_path(location)
    if path is not None:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    yield entry.name, entry.is_dir()
                except OSError:  # a link to itself
                    yield entry.name, False
        return
    fs, top = files.filesystem(location)
    for info in fs.ls(top, detail=True):
        if info["name"].strip("/") != top.strip("/"):  # S3 lists a folder's own marker
            yield info["name"].rstrip("/").rpartition("/")[2], info["type"] == "directory"


def _scan_folders(folder: _Folder) -> dict[str, _Folder]:
    """By name, the folders of a folder that may be classes. One level deep: no loop of links."""
    names = [name for name in folder.folders if name not in _NOT_CLASSES]
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        scans = pool.map(_scan, [files.join(folder.location, name) for name in names])
        return dict(zip(names, scans, strict=True))


def _replacements(folder: _Folder) -> dict[str, str]:
    """Location by stem of CVDF's good copies of damaged videos, if they lie in or beside."""
    for place in (folder.location, _parent(folder.location)):
        for inner in (_REPLACEMENT, f"replacement/{_REPLACEMENT}"):
            with readable(folder.location):
                there = place is not None and files.is_dir(files.join(place, inner))
            if place is not None and there:
                good = _scan(files.join(place, inner))
                return {_stem(name): files.join(good.location, name) for name in good.videos}
    return {}


# Telling splits and layouts apart


@lru_cache(1024)  # a CSV asks for every row
def _split_of(name: str) -> str | None:
    return _SPLITS.get(normalize(name).removeprefix("videos"))


def _split_folder(folder: _Folder, split: str) -> str | None:
    names = [name for name in folder.folders if _split_of(name) == _split_of(split)]
    if len(names) > 1:
        raise DatasetError(
            f"{folder.location}: the split {split!r} could be {' or '.join(names)}; pass the"
            " folder itself"
        )
    return names[0] if names else None


def _may_have_annotations(folder: _Folder) -> bool:
    return bool(folder.videos) or _NOT_CLASSES.issuperset(folder.folders)


def _find_annotations(folder: _Folder, split: str | None) -> str | None:
    """The CSV in the folder, in its `annotations/`, or of the folder's name beside it."""
    name = posixpath.basename(_absolute(folder.location))
    wanted = _split_of(split or name)
    inner = [folder]
    if "annotations" in folder.folders:
        inner.append(_scan(files.join(folder.location, "annotations")))
    for place in inner:
        tables = [other for other in place.others if other.lower().endswith(".csv")]
        if len(tables) > 1:
            of_split = [t for t in tables if wanted and _split_of(_stem(t)) == wanted]
            if len(of_split) != 1:
                raise DatasetError(
                    f"{place.location}: {len(tables)} files could be the annotations"
                    f" ({', '.join(tables[:3])}, ...); pass --annotations"
                )
            tables = of_split
        if tables:
            return files.join(place.location, tables[0])
    parent = _parent(folder.location)
    spellings = [name, *(s for s in _SPLITS if _SPLITS[s] == wanted and s != name)]
    for beside in [] if parent is None else [files.join(parent, "annotations"), parent]:
        for spelling in spellings:
            table = files.join(beside, f"{spelling}.csv")
            if _is_file(table):
                return table
    return None


def _detect_layout(folder: _Folder, table: str | None, lines: Sequence[str]) -> Layout:
    if table is not None:
        header = next((line.lower() for line in lines if line.strip()), "")
        # A header with a time but no id is for the reader of the CSV to complain about.
        return "cvdf" if "youtube_id" in header or "time_start" in header else "list"
    if not folder.videos:
        return "folders"
    mixed = [name for name, inner in _scan_folders(folder).items() if inner.videos]
    if mixed:
        raise DatasetError(
            f"{folder.location} holds videos itself and in folders such as {mixed[0]!r};"
            " pass --layout folders or --layout flat"
        )
    return "flat"


# Keys and labels


def _escape(name: str) -> str:
    # Names on disk that are no UTF-8 come as surrogate escapes and are encoded as their bytes.
    return quote(name, safe=" /_-~'()", errors="surrogateescape").replace(".", "%2E")


def _keys(paths: Sequence[str]) -> list[str]:
    """The keys of distinct relative paths of videos; see the module's docstring."""
    stems = [_stem(path) for path in paths]
    uses = Counter(stems)
    # A stem that itself ends like a video (a.mp4.mp4) would meet a kept suffix.
    return [
        _escape(path if uses[stem] > 1 or _is_video(stem) else stem)
        for path, stem in zip(paths, stems, strict=True)
    ]


class _Labeller:
    """The class list of a dataset, and the class of every label in it.

    Args:
        source: says which list was asked for.
        places: every label of the dataset, and where it was seen.
        also: more names by which to recognise the list.

    Raises:
        DatasetError: no single list has all the labels.
    """

    def __init__(
        self, source: _Source, places: Mapping[str, str], *, also: Collection[str] = ()
    ) -> None:
        if source.classes == "folders":
            raise UsageError(f"--classes folders needs class folders; this is a {source.layout}")
        self.warnings: list[str] = []
        self.classes: ClassList | None = None
        self._indices: dict[str, int] = {}
        if source.classes is not None:
            self.classes = class_list(source.classes)
        elif places or source.labels_required:
            try:
                self.classes = detect({*places, *also})
            except DatasetError as e:
                if source.labels_required:
                    raise DatasetError(f"{source.table or source.folder.location}: {e}") from e
                self.warnings.append(f"labels are ignored: {e}")
        if self.classes is None:
            return
        for label, place in places.items():
            try:
                self._indices[label] = self.classes.index(label)
            except DatasetError as e:
                raise DatasetError(f"{place}: {e}") from e

    def __call__(self, label: str | int | None) -> tuple[str | None, int | None]:
        """Class name and index; both None for a video without a label."""
        if self.classes is None or label is None:
            return None, None
        index = label if isinstance(label, int) else self._indices[label]
        return self.classes.names[index], index


def _dataset(
    source: _Source,
    videos: Iterable[Video],
    labeller: _Labeller,
    *,
    understood: str,
    replaced: int = 0,
    missing: Iterable[tuple[str, str]] = (),
    warnings: Iterable[str] = (),
) -> Dataset:
    ordered = sorted(videos, key=lambda video: video.key)
    for one, other in pairwise(ordered):
        if one.key == other.key:
            raise DatasetError(f"{one.location} and {other.location} have the same key {one.key}")
    labelled = sum(video.index is not None for video in ordered)
    classes = labeller.classes if labelled else None
    parts = [f"{source.layout}: {understood}"]
    if replaced:
        parts.append(f"{replaced} taken from {_REPLACEMENT}")
    parts.append("no labels" if classes is None else f"{len(classes)} classes of {classes.name}")
    if 0 < labelled < len(ordered):
        parts.append(f"{len(ordered) - labelled} without a label")
    return Dataset(
        videos=tuple(ordered),
        classes=classes,
        layout=source.layout,
        missing=tuple(sorted(missing)),
        description="; ".join(parts),
        warnings=(*labeller.warnings, *warnings),
    )


def _count(number: int, noun: str) -> str:
    """``1 video``, ``2 videos``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _ignored(folders: Iterable[_Folder]) -> str:
    count = sum(len(folder.others) + folder.hidden for folder in folders)
    return f", {_count(count, 'other file')} ignored" if count else ""


# Class folders, flat folder


def _read_folders(source: _Source) -> Dataset:
    top = source.folder
    inner = _scan_folders(top)
    full = {name: folder for name, folder in inner.items() if folder.videos}
    splits = [name for name in inner if _split_of(name)]
    if splits and len(splits) == len(inner):
        raise DatasetError(
            f"{top.location} holds the splits {', '.join(splits)};"
            f" pass one: {files.join(top.location, splits[-1])}"
        )
    if not full:
        deep = next((folder for folder in inner.values() if folder.folders), None)
        hint = f"; is the dataset in {deep.location}?" if deep else ""
        raise DatasetError(
            f"{top.location}: no videos in it or in its {_count(len(inner), 'folder')}; expected"
            f" <class name>/<file>.mp4, or <id>_<start>_<end>.mp4 with a CSV{hint}"
        )

    warnings = []
    if top.videos:
        warnings.append(f"left out: {_count(len(top.videos), 'video')} outside the class folders")
    if source.classes == "folders":
        source = source._replace(classes=ClassList("folders", tuple(inner)))
        warnings.append(
            "class indices are positions in the sorted list of these folders; another copy of the"
            " data with other folders gets other indices"
        )
        if empty := [name for name in inner if name not in full]:
            warnings.append(
                f"no videos for {_count(len(empty), 'class folder')}, such as {empty[0]!r}"
            )
    # A known class without videos here still tells which Kinetics it is; a stray folder does not.
    known = [n for n in inner if any(c.find(n) is not None for c in CLASS_LISTS.values())]
    places = {name: folder.location for name, folder in full.items()}
    labeller = _Labeller(source, places, also=known)
    good = _replacements(top)
    replaced = 0
    videos = []
    paths = [f"{name}/{video}" for name, folder in full.items() for video in folder.videos]
    for path, key in zip(paths, _keys(paths), strict=True):
        folder_name, _, video = path.partition("/")
        location = good.get(_stem(video))
        replaced += location is not None
        videos.append(
            Video(key, location or files.join(top.location, path), *labeller(folder_name))
        )
    understood = (
        f"{_count(len(videos), 'video')} in {_count(len(full), 'class folder')} of {top.location}"
        f"{_ignored([top, *inner.values()])}"
    )
    return _dataset(
        source, videos, labeller, understood=understood, replaced=replaced, warnings=warnings
    )


def _read_flat(source: _Source) -> Dataset:
    folder = source.folder
    if not folder.videos:
        raise DatasetError(f"{folder.location}: no videos in it")
    if source.labels_required:
        raise DatasetError(
            f"{folder.location}: {_count(len(folder.videos), 'video')} without labels; no CSV is in"
            " it, in annotations/ or beside it: pass --annotations, or use class folders"
        )
    good = _replacements(folder)
    videos = [
        Video(key, good.get(_stem(name)) or files.join(folder.location, name))
        for name, key in zip(folder.videos, _keys(folder.videos), strict=True)
    ]
    return _dataset(
        source,
        videos,
        _Labeller(source, {}),
        understood=f"{_count(len(videos), 'video')} in {folder.location}{_ignored([folder])}",
        replaced=sum(_stem(name) in good for name in folder.videos),
    )


# CVDF: flat folder and CSV


class _Row(NamedTuple):
    line: int
    stem: str  # of the trimmed clip's file
    youtube_id: str
    start_seconds: float
    end_seconds: float
    label: str | None


def _records(table: str, lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
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
    source: _Source, *, split: str | None, split_optional: bool
) -> tuple[list[_Row], dict[str, str]]:
    """The rows of the split; and the labels of all rows, each with the place of its first use."""
    table = source.table
    records = _records(table, source.lines)
    number, header = next(records, (1, []))
    columns = {name.lower(): i for i, name in enumerate(header)}
    needed = [*_CSV_COLUMNS]
    if source.labels_required:
        needed.append("label")
    if split is not None and not split_optional:
        needed.append("split")
    if lacking := [name for name in needed if name not in columns]:
        raise DatasetError(
            f"{table}, line {number}: no column {', '.join(lacking)}; it has {', '.join(header)}"
        )
    id_at, start_at, end_at = (columns[name] for name in _CSV_COLUMNS)
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
        if split and split_at is not None and _split_of(fields[split_at]) != _split_of(split):
            continue
        if not label and source.labels_required:
            raise DatasetError(f"{table}, line {number}: no label for {fields[id_at]!r}")
        if not fields[id_at] or "/" in fields[id_at]:
            raise DatasetError(f"{table}, line {number}: {fields[id_at]!r} is no youtube_id")
        start, end = (_seconds(fields[at], table, number) for at in (start_at, end_at))
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


def _seconds(text: str, table: str, line: int) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < _MAX_SECONDS:
        raise DatasetError(f"{table}, line {line}: {text!r} is not a time in seconds")
    return seconds


def _read_cvdf(source: _Source, *, split: str | None, split_optional: bool, trim: bool) -> Dataset:
    table, top = source.table, source.folder
    rows, places = _read_rows(source, split=split, split_optional=split_optional)
    labeller = _Labeller(source, places)

    # Some archives of Kinetics-600 hold class folders, so those are searched too.
    folders = {"": top, **_scan_folders(top)}
    stored: dict[str, list[tuple[str, str]]] = {}  # stem -> folder's name, location
    for name, folder in folders.items():
        for video in folder.videos:
            location = files.join(folder.location, video)
            stored.setdefault(_stem(video), []).append((name, location))
    good = _replacements(top)

    clips: dict[str, _Row] = {}
    contradicted: dict[str, _Row] = {}
    for row in rows:
        first = clips.setdefault(row.stem, row)
        if first[1:] != row[1:]:
            contradicted[row.stem] = row
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
            location = good.get(stem) or _best(candidates, row.label)
            times = (row.start_seconds, row.end_seconds) if cut and trim else (None, None)
            videos.append(Video(_escape(stem), location, *labeller(row.label), *times))
            continue
        missing.append((_escape(stem), reason))
    if not videos or used.isdisjoint(stored):  # replacements alone are no dataset
        raise DatasetError(
            f"{top.location} has no video for the {_count(len(clips), 'clip')} of {table};"
            f" the first would be {next(iter(clips))}.mp4"
        )

    warnings = []
    if repeated := len(rows) - len(clips):
        warnings.append(f"left out: {_count(repeated, 'line')} of {table} that repeat a clip")
    if extra := len(stored.keys() - used):
        warnings.append(
            f"left out: {_count(extra, 'video')} of {top.location} that are not in {table}"
        )
    understood = (
        f"{_count(len(videos), 'video')} in {top.location} for {_count(len(clips), 'clip')}"
        f" of {table}{_ignored(folders.values())}"
    )
    return _dataset(
        source,
        videos,
        labeller,
        understood=understood,
        replaced=len(good.keys() & clips.keys()),
        missing=missing,
        warnings=warnings,
    )


def _best(candidates: Sequence[tuple[str, str]], label: str | None) -> str:
    """The location of a clip that may lie in several folders: rather the one of its class."""
    if len(candidates) > 1:
        wanted = normalize(label or "")
        candidates = sorted(candidates, key=lambda c: (normalize(c[0]) != wanted, c))
    return candidates[0][1]


# Lists


class _Entry(NamedTuple):
    line: int
    path: str  # as written
    location: str
    absolute: str
    label: str  # empty when there is none


def _entries_of_list(source: _Source) -> Iterator[_Entry]:
    """Every line of a list that names a video."""
    for number, line in enumerate(source.lines, start=1):
        text = line.strip()
        if not text or text.startswith("#") or (number == 1 and _LIST_HEADER.fullmatch(text)):
            continue
        match = _LIST_LINE.fullmatch(text)
        if match is None:
            what = "does not name a video"
            if _FRAME_FOLDER.fullmatch(text):
                what = "names a folder of frames; make a list of the videos themselves"
            raise DatasetError(f"{source.table}, line {number}: {text[:120]!r} {what}")
        path = match["path"]
        elsewhere = files.is_url(path) or path.startswith("/")
        location = _clean(path) if elsewhere else files.join(source.folder.location, path)
        label = unquote_field(match["label"] or "")
        yield _Entry(number, path, location, _absolute(location), label)


def _read_list(source: _Source) -> Dataset:
    table = source.table
    found: dict[str, _Entry] = {}
    repeated = 0
    for entry in _entries_of_list(source):
        first = found.setdefault(entry.absolute, entry)
        repeated += first is not entry
        if first.label != entry.label:
            raise DatasetError(
                f"{table}, line {entry.line}: {entry.path} has the label {entry.label!r}, but on"
                f" line {first.line} {first.label!r}"
            )
        if not entry.label and source.labels_required:
            raise DatasetError(f"{table}, line {entry.line}: no label for {entry.path!r}")
    if not found:
        raise DatasetError(f"{table}: no videos; expected lines of `path label`")

    entries = list(found.values())
    first_uses: dict[str, _Entry] = {}
    for entry in entries:
        if entry.label:
            first_uses.setdefault(entry.label, entry)
    warnings = (
        [f"left out: {_count(repeated, 'line')} of {table} that repeat a video"] if repeated else []
    )
    numbers = _numbers(source, first_uses)
    if numbers is None:
        places = {label: f"{table}, line {entry.line}" for label, entry in first_uses.items()}
        labeller = _Labeller(source, places)
        classes_of = {label: labeller(label) for label in places}
    else:
        labeller = _Labeller(source._replace(labels_required=False), {})
        if labeller.classes is None:
            warnings.append("labels are ignored: they are numbers; pass --classes to name them")
        else:
            _check_numbers(table, entries, numbers, labeller.classes)
            warnings.append(f"labels are numbers: positions in {labeller.classes.name}, from 0")
        classes_of = {label: labeller(number) for label, number in numbers.items()}

    top = source.folder.location
    keys = _keys(_relative(_absolute(top), list(found)))
    return _dataset(
        source,
        [
            Video(key, entry.location, *classes_of.get(entry.label, (None, None)))
            for key, entry in zip(keys, entries, strict=True)
        ],
        labeller,
        understood=f"{_count(len(entries), 'video')} of {table}, relative to {top}",
        warnings=warnings,
    )


def _numbers(source: _Source, labels: Collection[str]) -> dict[str, int] | None:
    """The labels as class indices; None when they are names."""
    if not labels or not all(re.fullmatch("[0-9]{1,6}", label) for label in labels):
        return None
    if source.classes is None:
        if source.labels_required:
            raise DatasetError(
                f"{source.table}: the labels are numbers; pass --classes kinetics400,"
                " --classes kinetics600 or a file with the names in their order"
            )
    elif source.classes != "folders":
        names = class_list(source.classes).names
        if all(label in names for label in labels):  # classes that are called "0", "1", ...
            return None
    return {label: int(label) for label in labels}


def _check_numbers(
    table: str, entries: Sequence[_Entry], numbers: Mapping[str, int], classes: ClassList
) -> None:
    """Refuses numbers outside the class list, and those that the class folders contradict.

    Lists count their classes in various orders, and the order is nowhere in the list; but most
    paths have the class in them.
    """
    by_folder: dict[str, int | None] = {}
    for entry in entries:
        number = numbers.get(entry.label)
        if number is None:
            continue
        if number >= len(classes):
            raise DatasetError(
                f"{table}, line {entry.line}: label {number}, but {classes.name} has"
                f" {len(classes)} classes, counted from 0"
            )
        folder = posixpath.basename(posixpath.dirname(entry.path))
        if folder not in by_folder:
            by_folder[folder] = classes.find(folder)
        if by_folder[folder] not in (None, number):
            raise DatasetError(
                f"{table}, line {entry.line}: label {number} is {classes.names[number]!r} in"
                f" {classes.name}, but the folder is {folder!r} ({by_folder[folder]}); pass"
                " --classes a file with the names in the order of this list"
            )


def _relative(top: str, paths: Sequence[str]) -> list[str]:
    """The paths relative to `top`, or to the deepest folder that has them all."""
    if all(path.startswith(f"{top}/") for path in paths):
        return [path[len(top) + 1 :] for path in paths]
    parts = [path.split("/") for path in paths]
    folders = [names[:-1] for names in parts]
    # What the first and the last in order share, all share.
    same = takewhile(lambda pair: pair[0] == pair[1], zip(min(folders), max(folders), strict=False))
    common = len(list(same))
    return ["/".join(filter(None, names[common:])) for names in parts]
