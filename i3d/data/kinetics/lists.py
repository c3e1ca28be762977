"""A list with lines of `path label`: mmaction's .txt, SlowFast's .csv."""

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from i3d import files
from i3d.classes import ClassList, class_list, unquote_field
from i3d.data.kinetics.dataset import SUFFIXES, Dataset, Video, make_keys
from i3d.data.kinetics.labels import Inputs, Labeller, assemble, count
from i3d.data.kinetics.listing import clean, make_absolute, without_login
from i3d.errors import DatasetError

# The path ends with the line's last video suffix, so both it and the label may hold spaces.
_LINE = re.compile(
    rf'"?(?P<path>.+\.(?:{"|".join(SUFFIXES)}))"?(?:[\s,]+(?P<label>\S.*))?', re.IGNORECASE
)
_HEADER = re.compile(r"(video_?)?(path|name|file|filename)?[\s,]+(label|class)", re.IGNORECASE)
_FRAME_FOLDER = re.compile(r"(?P<path>.+?)\s+\d+\s+-?\d+")


class _Entry(NamedTuple):
    line: int
    path: str  # as written
    location: str
    absolute: str
    label: str  # empty when there is none


def _parse_list(inputs: Inputs) -> Iterator[_Entry]:
    """Every line of a list that names a video."""
    for number, line in enumerate(inputs.lines, start=1):
        text = line.strip()
        if not text or text.startswith("#") or (number == 1 and _HEADER.fullmatch(text)):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            what = "does not name a video"
            if _FRAME_FOLDER.fullmatch(text):
                what = "names a folder of frames; make a list of the videos themselves"
            raise DatasetError(f"{inputs.table}, line {number}: {text[:120]!r} {what}")
        path = match["path"]
        elsewhere = files.is_url(path) or path.startswith("/")
        location = clean(path) if elsewhere else files.join(inputs.folder.location, path)
        label = unquote_field(match["label"] or "")
        yield _Entry(number, path, location, make_absolute(without_login(location)), label)


def read_list(inputs: Inputs) -> Dataset:
    """Read the videos that the lines of a list name."""
    table = inputs.table
    found: dict[str, _Entry] = {}
    repeated = 0
    for entry in _parse_list(inputs):
        first = found.setdefault(entry.absolute, entry)
        repeated += first is not entry
        if first.label != entry.label:
            raise DatasetError(
                f"{table}, line {entry.line}: {entry.path} has the label {entry.label!r}, but on"
                f" line {first.line} {first.label!r}"
            )
        if not entry.label and inputs.labels_required:
            raise DatasetError(f"{table}, line {entry.line}: no label for {entry.path!r}")
    if not found:
        raise DatasetError(f"{table}: no videos; expected lines of `path label`")

    entries = list(found.values())
    first_uses: dict[str, _Entry] = {}
    for entry in entries:
        if entry.label:
            first_uses.setdefault(entry.label, entry)
    warnings = (
        [f"left out: {count(repeated, 'line')} of {table} that repeat a video"] if repeated else []
    )
    numbers = _parse_numbers(inputs, first_uses)
    if numbers is None:
        places = {label: f"{table}, line {entry.line}" for label, entry in first_uses.items()}
        labeller = Labeller(inputs, places)
        classes_of = {label: labeller(label) for label in places}
    else:
        labeller = Labeller(inputs._replace(labels_required=False), {})
        if labeller.classes is None:
            warnings.append("labels are ignored: they are numbers; pass --classes to name them")
        else:
            _check_numbers(table, entries, numbers, labeller.classes)
            warnings.append(f"labels are numbers: positions in {labeller.classes.name}, from 0")
        classes_of = {label: labeller(number) for label, number in numbers.items()}

    top = inputs.folder.location
    keys = make_keys(_make_relative(make_absolute(without_login(top)), list(found)))
    return assemble(
        inputs,
        [
            Video(key, entry.location, *classes_of.get(entry.label, (None, None)))
            for key, entry in zip(keys, entries, strict=True)
        ],
        labeller,
        understood=f"{count(len(entries), 'video')} of {table}, relative to {top}",
        warnings=warnings,
    )


def _parse_numbers(inputs: Inputs, labels: Collection[str]) -> dict[str, int] | None:
    """The labels as class indices; None when they are names."""
    if not labels or not all(re.fullmatch("[0-9]{1,6}", label) for label in labels):
        return None
    if inputs.classes is None:
        if inputs.labels_required:
            raise DatasetError(
                f"{inputs.table}: the labels are numbers; pass --classes kinetics400,"
                " --classes kinetics600 or a file with the names in their order"
            )
    elif inputs.classes != "folders":
        names = class_list(inputs.classes).names
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


def _make_relative(top: str, paths: Sequence[str]) -> list[str]:
    """The paths relative to `top`, or to the deepest folder that has them all."""
    if all(path.startswith(f"{top}/") for path in paths):
        return [path[len(top) + 1 :] for path in paths]
    parts = [path.split("/") for path in paths]
    folders = [names[:-1] for names in parts]
    # What the first and the last in order share, all share.
    same = takewhile(lambda pair: pair[0] == pair[1], zip(min(folders), max(folders), strict=False))
    common = len(list(same))
    return ["/".join(filter(None, names[common:])) for names in parts]
