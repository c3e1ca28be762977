"""Class lists: Kinetics-400 and 600 in the order of the logits, lists from files, name matching.

An index is the position of a name in the full list, never in the list of what happens to be there.
Copies of Kinetics write one class in many ways; `normalize` maps them to one form:

    massaging person's head    the annotation files, sometimes in double quotes
    massaging_person's_head    folders of mmaction, CVDF's archives
    massaging_persons_head     folders of torchvision
    massaging_person-s_head    folders of video-nonlocal-net and mmaction's older scripts
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from os import fspath
from pathlib import Path, PurePosixPath

from i3d import files
from i3d.errors import DatasetError, I3DError
from i3d.files import Location

MAX_TEXT_BYTES = 1 << 28  # 256 MiB; the annotations of Kinetics-600's training set are 25 MB
MAX_LINE_CHARS = 1 << 13  # the longest path of Linux is 4,096 bytes

# Index and name on one line, in either order: `0 abseiling`, `0,"abseiling"`, `abseiling<TAB>0`.
_INDEX_NAME = re.compile(r"(?P<index>\d{1,6})(?:\s*[,:]\s*|\s+)(?P<name>\S.*)")
_NAME_INDEX = re.compile(r"(?P<name>.*\S)(?:\s*[,:]\s*|\s+)(?P<index>\d{1,6})")


def normalize(name: str) -> str:
    """The form in which names are compared: letters and digits only, without case.

    Spaces, underscores, hyphens, quotes, parentheses and slashes all go; no two names within
    Kinetics-400 or within Kinetics-600 become the same.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in folded if c.isalnum() or unicodedata.category(c)[0] == "M")


@dataclass(frozen=True)
class ClassList:
    """Class names in the order of the logits.

    Attributes:
        name: "kinetics400", "kinetics600", "folders", or the stem of the file it was read from.
        names: the names; a position in this tuple is the class index.

    Raises:
        DatasetError: no name, an empty one, or the same one twice.
    """

    name: str
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise DatasetError(f"class list {self.name!r} has no names")
        seen: dict[str, int] = {}
        for i, name in enumerate(self.names):
            if not name.strip():
                raise DatasetError(f"class list {self.name!r}: name {i} is empty")
            if seen.setdefault(name, i) != i:
                raise DatasetError(
                    f"class list {self.name!r}: {name!r} is there twice ({seen[name]} and {i})"
                )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_numbered(self) -> bool:
        """Whether the names are not known: see `numbered_classes`."""
        return self.name == NUMBERED

    @cached_property
    def _exact(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def _normal(self) -> dict[str, list[int]]:
        positions: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            positions.setdefault(normalize(name), []).append(i)
        return positions

    def find(self, name: str) -> int | None:
        """The index of `name`, or None when no one class has this name."""
        if name in self._exact:
            return self._exact[name]
        positions = self._normal.get(normalize(name) or name, [])
        return positions[0] if len(positions) == 1 else None

    def index(self, name: str) -> int:
        """The index of `name`, which may differ from the list in what `normalize` ignores.

        Raises:
            DatasetError: an unknown name, or one that could be several; lists the nearest names.
        """
        position = self.find(name)
        if position is not None:
            return position
        same = [self.names[i] for i in self._normal.get(normalize(name) or name, [])]
        if same:
            raise DatasetError(f"class {name!r} is ambiguous in {self.name}: {_quote(same)}")
        raise DatasetError(
            f"class {name!r} is not one of the {len(self)} classes of {self.name}"
            f"{_nearest_hint(self.nearest(name))}"
        )

    def nearest(self, name: str, *, count: int = 3) -> list[str]:
        """Up to `count` names that resemble `name`, the most similar first."""
        close = difflib.get_close_matches(normalize(name), self._normal, n=count, cutoff=0.6)
        return [self.names[i] for normal in close for i in self._normal[normal]][:count]


def _quote(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _nearest_hint(names: Sequence[str]) -> str:
    return f"; nearest: {_quote(names)}" if names else "; no name resembles it"


def _read_packaged(name: str) -> tuple[str, ...]:
    return tuple(Path(__file__).with_name(f"{name}.txt").read_text("ascii").splitlines())


# Source: data/label_map.txt and label_map_600.txt of deepmind/kinetics-i3d; both in ASCII order.
KINETICS_400 = _read_packaged("kinetics400")
KINETICS_600 = _read_packaged("kinetics600")

CLASS_LISTS = {
    "kinetics400": ClassList("kinetics400", KINETICS_400),
    "kinetics600": ClassList("kinetics600", KINETICS_600),
}


NUMBERED = "numbers"


def numbered_classes(count: int) -> ClassList:
    """The list of labels whose names are not known: ``"0"``, ``"1"``, ...

    They index the classes of the network that sees them.
    """
    return ClassList(NUMBERED, tuple(map(str, range(count))))


def known_name(names: Sequence[str]) -> str | None:
    """The name of the Kinetics list that has exactly these names in this order, if one has.

    Spelling is compared by `normalize`.
    """
    normal = [normalize(name) for name in names]
    for known in CLASS_LISTS.values():
        if normal == list(known._normal):
            return known.name
    return None


def detect(names: Iterable[str]) -> ClassList:
    """The one Kinetics list that has all these names.

    368 names are in both lists, so some subsets belong to either; those are refused.

    Raises:
        DatasetError: no names; a name that neither list has; names that no single list has, or
            that both have. The message says what to pass.
    """
    wanted = {normalize(name): name for name in sorted(names, reverse=True)}
    if not wanted:
        raise DatasetError("no class names; pass --classes")
    known = list(CLASS_LISTS.values())
    unknown = sorted(n for key, n in wanted.items() if not any(key in c._normal for c in known))
    if unknown:
        best = max(known, key=lambda c: len(wanted.keys() & c._normal.keys()))
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise DatasetError(
            f"{unknown[0]!r}{more} is no class of Kinetics-400 or Kinetics-600"
            f"{_nearest_hint(best.nearest(unknown[0]))}; rename it, or pass --classes folders or"
            " a file of names"
        )
    matching = [c for c in known if wanted.keys() <= c._normal.keys()]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise DatasetError(
            f"ambiguous: all {len(wanted)} class names are in Kinetics-400 and in Kinetics-600,"
            " under different indices; pass --classes kinetics400 or --classes kinetics600"
        )
    only = [min(n for key, n in wanted.items() if key not in c._normal) for c in known]
    raise DatasetError(
        f"no single list has all {len(wanted)} class names: {only[0]!r} is not in Kinetics-400,"
        f" {only[1]!r} is not in Kinetics-600; pass --classes folders or a file of names"
    )


def class_list(spec: Location | ClassList) -> ClassList:
    """A class list by name ("kinetics400", "kinetics600") or from a file or URL of names.

    A file has one name a line, in the order of the logits. Blank lines and lines that begin with
    ``#`` are skipped. Every line may also carry its index, before or after the name, separated by
    spaces, a tab or a comma, from 0 or from 1, under an optional header (``id,name``). Double
    quotes are taken off; a name that itself begins or ends with a number is kept whole by them.

    Raises:
        DatasetError: no such file, not text, no names, a name twice, indices with gaps.
    """
    if isinstance(spec, ClassList):
        return spec
    text = fspath(spec)
    if text in CLASS_LISTS:
        return CLASS_LISTS[text]
    if not files.is_url(text) and not files.exists(text):
        raise DatasetError(
            f"class list {text!r} is neither kinetics400, kinetics600 nor a file of names"
        )
    names = _parse_names(text)
    if known := known_name(names):
        return CLASS_LISTS[known]
    # A file called kinetics400.txt with other content must not pass for the real list.
    stem = PurePosixPath(text).stem
    taken = {*CLASS_LISTS, "folders", NUMBERED}
    return ClassList(f"file {stem}" if stem in taken else stem, names)


def _parse_names(location: str) -> tuple[str, ...]:
    rows = [
        (number, line.strip())
        for number, line in enumerate(read_lines(location), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not rows:
        raise DatasetError(f"{location}: no class names; write one a line")
    if rows[0][1][0] in "{[":
        raise DatasetError(f"{location}: this looks like JSON; write one class name a line")
    rows = _without_indices(rows, location)
    names: dict[str, int] = {}
    for number, text in rows:
        name = unquote_field(text)
        if not name:
            raise DatasetError(f"{location}, line {number}: an empty class name")
        if name in names:
            raise DatasetError(f"{location}, line {number}: {name!r} is also on line {names[name]}")
        names[name] = number
    return tuple(names)


def _without_indices(rows: list[tuple[int, str]], location: str) -> list[tuple[int, str]]:
    """Rows in the order of their indices and without them; unchanged when they carry none."""
    refused = None
    for pattern in (_INDEX_NAME, _NAME_INDEX):
        matches = [(number, pattern.fullmatch(text)) for number, text in rows]
        if len(rows) > 1 and matches[0][1] is None and rows[0][1].count(",") == 1:
            matches = matches[1:]  # a header such as `id,name`, if the others all match
        indexed = sorted((int(m["index"]), n, m["name"]) for n, m in matches if m is not None)
        if len(indexed) < len(matches):
            continue
        first = indexed[0][0]
        gap = next((row for i, row in enumerate(indexed, start=first) if row[0] != i), None)
        if gap is None and first in (0, 1):
            return [(number, name) for _, number, name in indexed]
        refused = refused or gap or indexed[0]
    if refused:
        raise DatasetError(
            f"{location}, line {refused[1]}: every line has a number, but with {refused[0]} they do"
            ' not count 0, 1, 2, ...; put names that contain numbers in double quotes ("100 m run")'
        )
    return rows


def unquote_field(text: str) -> str:
    """`text` without surrounding spaces and one pair of double quotes."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('""', '"').strip()
    return text


@contextmanager
def readable(location: str) -> Iterator[None]:
    """Turns what a file system raises into an error of ours: every remote one has its own.

    Raises:
        StorageError: the disk or server fails (`files.blame_storage`).
        DatasetError: the file is not there, not a file, or may not be read.
        UsageError: no such protocol, or its package is not installed.
    """
    try:
        yield
    except I3DError:
        raise
    except FileNotFoundError as e:
        raise DatasetError(f"cannot read {location}: no such file or folder") from e
    except Exception as e:
        files.blame_storage(location, e)
        raise DatasetError(f"cannot read {location}: {files.explain(e)}") from e


def read_lines(location: Location) -> list[str]:
    """The lines of a small UTF-8 text file or URL, without their line ends.

    Line i + 1 of the file is item i. A byte order mark is dropped.

    Raises:
        DatasetError: a file that cannot be read, is no UTF-8 text or holds NUL bytes, is larger
            than 256 MiB or has a line of more than 8,192 characters.
        StorageError: the disk or server fails.
    """
    name = fspath(location)
    with readable(name), files.open_read(name) as f:
        data = files.read_bounded(f, MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise DatasetError(f"{name} has more than {MAX_TEXT_BYTES >> 20} MiB; is it a text file?")
    if (nul := data.find(b"\0")) >= 0:
        raise DatasetError(
            f"{name}, line {data.count(10, 0, nul) + 1}: a NUL byte; the file must be UTF-8 text"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        # The error counts from behind a byte order mark, which holds no line end.
        line = data.count(10, 0, e.start) + 1
        raise DatasetError(
            f"{name}, line {line}: byte {e.object[e.start]:#04x} is not UTF-8; convert the file"
        ) from e
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    longest = max(range(len(lines)), key=lambda i: len(lines[i]))
    if (length := len(lines[longest])) > MAX_LINE_CHARS:
        raise DatasetError(
            f"{name}, line {longest + 1} has {length:,} characters; at most {MAX_LINE_CHARS:,}"
        )
    return lines
