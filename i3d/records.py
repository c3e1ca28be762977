"""Dataclasses as JSON: sealed on the way out, distrusted on the way in, compared to go on.

A file is one JSON object: ``format`` first, then the dataclass's fields, then ``sha256``, the seal,
which is the SHA-256 of every byte before its line. So any change is noticed, and coreutils check
it: ``head -n -2 FILE | sha256sum``. Reading builds the dataclass by its type hints and refuses what
does not fit; sizes are bounded.
"""

import dataclasses
import hashlib
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import IO, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from i3d.errors import DatasetError, UsageError

# Bounds for files that come from elsewhere, far above what is written.
MAX_TEXT = 1 << 13  # characters
_MAX_ITEMS = 1 << 24
_MAX_INTEGER = 1 << 53

REDO = "delete it and run the same command again"  # what a part of a job's work is made again by

SEAL = ' "sha256": "{}"\n}}\n'
_SEAL_BYTES = len(SEAL.format("")) + 64

_T = TypeVar("_T")
_ADDED = "i3d.added"


def added() -> Any:
    """A dataclass's field that its format had not from the start: left out where it is None."""
    return dataclasses.field(default=None, metadata={_ADDED: True})


@cache
def _added_fields(cls: type) -> frozenset[str]:
    return frozenset(field.name for field in fields(cls) if _ADDED in field.metadata)


def plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, all the way down; mappings by sorted keys."""
    if is_dataclass(value):
        optional = _added_fields(cast(type, type(value)))
        items = ((field.name, getattr(value, field.name)) for field in fields(value))
        return {
            name: plain(item) for name, item in items if item is not None or name not in optional
        }
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in sorted(value.items())}
    return value


def _lines(value: Any, indent: str) -> str:
    """JSON with one item of a list a line; objects in lists stay on theirs."""
    if not isinstance(value, list) or not value:
        return json.dumps(value, allow_nan=False)
    items = ",\n".join(f"{indent} {_lines(item, indent + ' ')}" for item in value)
    return f"[\n{items}\n{indent}]"


def seal(kind: str, value: Any) -> bytes:
    """A dataclass as JSON, one field a line, with the format first and the seal last."""
    document = {"format": kind, **plain(value)}
    head = "".join(
        f" {json.dumps(name, allow_nan=False)}: {_lines(v, ' ')},\n" for name, v in document.items()
    )
    head = "{\n" + head
    return (head + SEAL.format(hashlib.sha256(head.encode()).hexdigest())).encode("ascii")


def split_seal(data: bytes) -> tuple[bytes, str]:
    """What is sealed, and its SHA-256; the second is "" where the seal is not the right one."""
    head, tail = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    digest = hashlib.sha256(head).hexdigest()
    return head, digest if tail == SEAL.format(digest).encode("ascii") else ""


def read_sealed(kind: str | Sequence[str], cls: type[_T], data: bytes, where: str) -> _T:
    """Read what `seal` wrote; of one of several formats, the newest last."""
    head, digest = split_seal(data)
    if not digest:
        raise DatasetError(f"{where} is damaged or was edited: its seal does not match; restore it")
    return parse(kind, cls, head.removesuffix(b",\n") + b"}", where)


def parse(kind: str | Sequence[str], cls: type[_T], data: bytes, where: str) -> _T:
    """A dataclass from a JSON object of this format, or one of these, with exactly its fields."""
    kinds = (kind,) if isinstance(kind, str) else tuple(kind)
    try:
        document = json.loads(data)
        found = document.pop("format", None) if isinstance(document, dict) else None
        if found not in kinds:
            raise DatasetError(
                f"format {found!r:.50} is not {kinds[-1]!r}: another version of i3d wrote it; "
                "update, or make it again"
            )
        return cast(_T, _build(cls, document, ""))
    except (ValueError, RecursionError) as e:  # a DatasetError is a ValueError
        raise DatasetError(f"{where}: {e}") from e


def pick(cls: type[_T], document: Any) -> _T:
    """A dataclass from a JSON object that may hold more than its fields.

    Fields with a default may be absent.

    Raises:
        DatasetError: no object, or a field that is absent or does not fit.
    """
    if type(document) is not dict:
        raise DatasetError(f"the whole is {document!r:.50}; expected an object")
    for field in fields(cast(Any, cls)):
        if field.name not in document and field.default is MISSING:
            raise DatasetError(f"{field.name} is absent")
    hints = _hints(cast(type, cls)).items()
    return cls(**{name: _build(h, document[name], name) for name, h in hints if name in document})


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _build(hint: Any, value: Any, name: str) -> Any:
    """A JSON value as what the type hint says; anything else is refused."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is UnionType:
        if value is None and NoneType in args:
            return None
        hint = type(value) if type(value) in args else args[0]
        return _build(hint, value, name)
    if origin is tuple and type(value) is list and len(value) <= _MAX_ITEMS:
        return tuple(_build(args[0], item, name) for item in value)
    if origin is Mapping and type(value) is dict and len(value) <= _MAX_ITEMS:
        return {key: _build(args[1], item, f"{name}.{_short(key)}") for key, item in value.items()}
    if origin is Literal and value in args:
        return value
    expected = getattr(hint, "__name__", str(hint))
    if isinstance(hint, type) and is_dataclass(hint):
        hints = _hints(hint)
        names = set(value) if type(value) is dict else set()
        if hints.keys() - _added_fields(hint) <= names <= hints.keys():
            return hint(**{key: _build(hints[key], item, key) for key, item in value.items()})
        expected = f"an object with {', '.join(hints)}"
    elif type(value) is hint:
        if hint is str and len(value) <= MAX_TEXT:
            return value
        if hint is int and abs(value) < _MAX_INTEGER:
            return value
        if hint is bool or (hint is float and math.isfinite(value)):
            return value
    raise DatasetError(f"{name or 'the whole'} is {value!r:.50}; expected {expected}")


# --- archives of arrays ---------------------------------------------------------------------------

_ARCHIVE_SEAL_BYTES = 64
_BLOCK_BYTES = 1 << 20


def seal_archive(file: IO[bytes]) -> None:
    """Seal a ``.npz``, or another zip archive: its comment becomes the SHA-256 of all before it.

    So ``head -c -64 FILE | sha256sum`` prints what ``tail -c 64 FILE`` does.

    Args:
        file: open for reading and writing.
    """
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = bytes(_ARCHIVE_SEAL_BYTES)
    digest = _digest_archive(file)
    file.seek(-_ARCHIVE_SEAL_BYTES, os.SEEK_END)
    file.write(digest)


def check_archive(file: IO[bytes], where: str) -> None:
    """Refuse an archive that is not as `seal_archive` left it; the file then stands at its start.

    Raises:
        DatasetError: it is damaged or was edited.
    """
    digest = _digest_archive(file)
    if file.read(_ARCHIVE_SEAL_BYTES + 1) != digest:
        raise DatasetError(f"{where} is damaged or was edited: its seal does not match; {REDO}")
    size = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DatasetError(f"{where} is damaged ({error}); {REDO}") from error
    if unpacked > size:  # it would fill the memory; ours are not compressed
        raise DatasetError(f"{where} would unpack to {unpacked:,} bytes from {size:,}; {REDO}")
    file.seek(0)


def _digest_archive(file: IO[bytes]) -> bytes:
    """SHA-256 of all but the seal, before which the file then stands; hexadecimal."""
    left = max(file.seek(0, os.SEEK_END) - _ARCHIVE_SEAL_BYTES, 0)
    file.seek(0)
    sha256 = hashlib.sha256()
    while left and (block := file.read(min(left, _BLOCK_BYTES))):
        sha256.update(block)
        left -= len(block)
    return sha256.hexdigest().encode("ascii")


# --- settings that a job was begun with -----------------------------------------------------------

_SHOWN = 5  # differences in a message
_LONGEST = 200  # characters of a value in it


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, between: str = ", now "
) -> list[str]:
    """``name: was, now is`` for every value that differs, in the order of the names."""
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{_short(name)}: {_spoken(before, name)}{between}{_spoken(now, name)}"
        for name in names
        # as JSON: 95 is not 95.0, and True is not 1
        if _json(before.get(name)) != _json(now.get(name))
    ]


def refuse_other_settings(where: Any, lines: Sequence[str], *, what: str = "settings") -> None:
    """Refuse to go on with a job that was begun with other settings.

    Args:
        where: what holds the work done so far.
        lines: what `differences` found; nothing is refused where it is empty.
        what: the differences are of these.

    Raises:
        UsageError: names the differences.
    """
    if not lines:
        return
    more = f" (and {len(lines) - _SHOWN} more)" if len(lines) > _SHOWN else ""
    raise UsageError(
        f"{where} was begun with other {what}: {'; '.join(lines[:_SHOWN])}{more}. Use the same "
        f"{what}, or another output"
    )


def _spoken(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return "absent"
    value = settings[name]
    if isinstance(value, str) and len(value) == 64:
        value = f"{value[:12]}..."  # a SHA-256
    return _short(json.dumps(value, ensure_ascii=False, allow_nan=True))  # never written


def _short(text: str) -> str:
    """On one line; names of versions, too, are what a file says."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=True)  # compared, never written
