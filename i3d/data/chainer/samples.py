"""The names in the zips -> which videos there are, and where the pictures of one are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from i3d.data.zip_directory import (
    NAME_BYTES,
    REMEDY,
    Entries,
    Member,
    find_directory,
    read_entries,
    read_members,
)
from i3d.errors import DatasetError

KINDS = ("label", "rgb", "flow_x", "flow_y")
MAX_LABEL = 99_999
_LABEL, _RGB, _FLOW_X, _FLOW_Y = range(len(KINDS))
_FOREIGN, _FOLDER = -1, -2  # other kinds of names
_DIGITS = 9
_MAX_LABEL_BYTES = 16

# rgb, flow_x and flow_y -> the members, in the order of the frames
PictureMembers = Mapping[str, Sequence[Member]]


class Names(NamedTuple):
    """What N names say, int64 each: sample, place in `KINDS` (negative: none of them), frame."""

    sample: np.ndarray
    kind: np.ndarray
    frame: np.ndarray


def parse_names(entries: Entries, *, samples: bool) -> Names:
    """Read ``sample_12/flow_x/3.jpg`` and its like; without samples, ``3.jpg`` as RGB's."""
    rows = np.arange(len(entries))
    text = np.pad(entries.name, ((0, 0), (0, NAME_BYTES)))

    def follows(at: np.ndarray, word: str) -> np.ndarray:
        letters, found = np.frombuffer(word.encode(), np.uint8), np.zeros(len(rows), bool)
        for place in np.flatnonzero(np.bincount(at)):  # of a few: by how many digits stand before
            here = at == place
            found[here] = (text[here, place : place + len(word)] == letters).all(1)
        return found

    def read_number(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, going = np.zeros(len(rows), np.int64), np.ones(len(rows), bool)
        for _ in range(_DIGITS):
            digit = text[rows, at].astype(np.int64) - ord("0")
            going &= (digit >= 0) & (digit <= 9)
            value = np.where(going, 10 * value + digit, value)
            at = at + going
            if not going.any():
                break
        return value, at

    at = np.zeros(len(rows), np.int64)
    sample, frame, kind = at.copy(), at.copy(), np.full(len(rows), _FOREIGN)
    named = np.ones(len(rows), bool)
    if samples:
        begin = at + len("sample_")
        sample, behind = read_number(begin)
        named, at = follows(at, "sample_") & (behind > begin), behind
        ends = at + len("/label") == entries.name_bytes
        kind[named & follows(at, "/label") & ends] = _LABEL
    folders = {k: f"/{KINDS[k]}/" for k in (_RGB, _FLOW_X, _FLOW_Y)} if samples else {_RGB: ""}
    for which, folder in folders.items():
        begin = at + len(folder)
        number, end = read_number(begin)
        fits = named & follows(at, folder) & (end > begin) & follows(end, ".jpg")
        fits &= end + len(".jpg") == entries.name_bytes
        kind[fits], frame[fits] = which, number[fits]
    last = text[rows, np.clip(entries.name_bytes, 1, NAME_BYTES) - 1]
    kind[(kind == _FOREIGN) & (entries.name_bytes <= NAME_BYTES) & (last == ord("/"))] = _FOLDER
    return Names(sample, kind, frame)


def _read_names(
    location: str, start: int, stop: int, *, samples: bool
) -> Iterator[tuple[Entries, Names]]:
    """Entries and what their names say.

    Raises:
        DatasetError: damaged, or a member that the program did not write.
    """
    for entries in read_entries(location, start, stop):
        names = parse_names(entries, samples=samples)
        foreign = names.kind == _FOREIGN
        if foreign.any():
            shown = entries.show_name(int(foreign.argmax()))
            raise DatasetError(
                f"{location}: member {shown} is none that the Chainer program wrote; {REMEDY}"
            )
        yield entries, names


# --- all samples of a zip -------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleTable:
    """The samples of a zip, in the order of their numbers: int64 columns of S rows.

    Attributes:
        number: k of ``sample_k``.
        start: where the entries of the sample begin in the zip's directory.
        stop: where they end.
        label: as stored; -1 where it cannot be used.
        frames: number of its RGB frames.
        flows: number of its flows.
        bad_labels: row -> why its label cannot be used.
        zip_bytes: size of the zip.
    """

    number: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    label: np.ndarray
    frames: np.ndarray
    flows: np.ndarray
    bad_labels: Mapping[int, str]
    zip_bytes: int


def read_table(location: str) -> SampleTable:
    """The samples of a zip: its directory, and a small read for each sample's label.

    Raises:
        DatasetError: damaged, a member that the program did not write, or no samples.
    """
    directory = find_directory(location)
    parts: list[np.ndarray] = []
    labels: dict[int, Member] = {}
    found = 0
    for entries, names in _read_names(location, directory.start, directory.stop, samples=True):
        found += len(entries)
        known = names.kind >= 0
        kinds = [names.kind == k for k in (_RGB, _FLOW_X)]
        rows = [names.sample, entries.start, entries.stop, *kinds]
        parts.append(_add_up(np.stack([np.asarray(row, np.int64)[known] for row in rows])))
        for row in np.flatnonzero(names.kind == _LABEL).tolist():
            labels[int(names.sample[row])] = entries.member(row)
    if found != directory.entries:
        raise DatasetError(
            f"{location}: the zip's directory has {found:,} entries and not the"
            f" {directory.entries:,} that it says; {REMEDY}"
        )
    columns = _add_up(np.concatenate(parts, 1)) if parts else np.zeros((5, 0), np.int64)
    number, start, stop, frames, flows = columns
    if not len(number):
        raise DatasetError(f"{location}: there are no samples in it; {REMEDY}")
    label = np.full(len(number), -1)
    bad: dict[int, str] = {}
    for row, k in enumerate(map(int, number)):
        try:
            label[row] = _read_label(location, labels.get(k), k)
        except DatasetError as error:
            bad[row] = str(error)
    return SampleTable(number, start, stop, label, frames, flows, bad, directory.zip_bytes)


def _add_up(columns: np.ndarray) -> np.ndarray:
    """Rows of the same sample as one: first start, last stop, sums of frames and flows."""
    number, row = np.unique(columns[0], return_inverse=True)
    start, stop = np.full(len(number), np.iinfo(np.int64).max), np.zeros(len(number), np.int64)
    np.minimum.at(start, row, columns[1])
    np.maximum.at(stop, row, columns[2])
    sums = [np.bincount(row, column, len(number)).astype(np.int64) for column in columns[3:]]
    return np.stack([number, start, stop, *sums])


def _read_label(location: str, member: Member | None, number: int) -> int:
    if member is None:
        raise DatasetError(f"sample_{number} has no label")
    if member.size > _MAX_LABEL_BYTES:
        raise DatasetError(f"{member.name} has {member.size} bytes; it must be a decimal number")
    text = read_members(location, [member])[0]
    if not text.strip().isdigit() or int(text) > MAX_LABEL:
        raise DatasetError(f"{member.name} is {text!r}; it must be a number up to {MAX_LABEL}")
    return int(text)


# --- the pictures of one video --------------------------------------------------------------------


def find_sample_pictures(
    location: str, start: int, stop: int, *, number: int, parts: Sequence[str]
) -> PictureMembers:
    """The pictures of a sample, whose entries lie between two places of the zip's directory.

    Args:
        location: the zip.
        start: where the entries begin.
        stop: where they end.
        number: k of ``sample_k``.
        parts: which of rgb, flow_x and flow_y.

    Raises:
        DatasetError: damaged, or pictures are missing or there twice.
    """
    found: dict[str, dict[int, Member]] = {kind: {} for kind in KINDS[1:]}
    for entries, names in _read_names(location, start, stop, samples=True):
        for row in np.flatnonzero((names.sample == number) & (names.kind > _LABEL)):
            _put(found[KINDS[names.kind[row]]], int(names.frame[row]), entries.member(int(row)))
    return {part: _in_order(found[part], f"sample_{number}/{part}") for part in parts}


def find_zip_pictures(location: str) -> Sequence[Member]:
    """The pictures of a zip that holds one stream of one video.

    Raises:
        DatasetError: damaged, or pictures are missing or there twice.
    """
    directory = find_directory(location)
    found: dict[int, Member] = {}
    for entries, names in _read_names(location, directory.start, directory.stop, samples=False):
        for row in np.flatnonzero(names.kind == _RGB):
            _put(found, int(names.frame[row]), entries.member(int(row)))
    return _in_order(found, location)


def _put(members: dict[int, Member], frame: int, member: Member) -> None:
    if frame in members:
        raise DatasetError(f"{member.name!r} is there twice; {REMEDY}")
    members[frame] = member


def _in_order(members: Mapping[int, Member], where: str) -> list[Member]:
    missing = next((t for t in range(len(members)) if t not in members), None)
    if missing is not None:
        raise DatasetError(f"{where}/{missing}.jpg is missing, and {len(members)} others are there")
    return [members[t] for t in range(len(members))]
