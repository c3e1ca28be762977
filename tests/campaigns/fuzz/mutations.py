"""What is done to a file: to its bytes, the numbers in them, JSON values, names, pickled programs.

All of it depends on the ``Random`` alone, so that a case is its target, seed and number.
"""

import copy
import io
import json
import pickletools
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

# A sample is a small folder: relative path -> content.
Files = dict[str, bytes]
Mutator = Callable[[Random, Files, Sequence[Files]], Files]

BOUNDARIES = sorted(
    {base + offset for bits in (0, 7, 8, 15, 16, 24, 31, 32, 40, 53, 62, 63, 64)
     for base in (1 << bits, -(1 << bits)) for offset in (-1, 0, 1)}
)  # fmt: skip
TRAVERSALS = ["../../x", "/etc/passwd", "..", ".", "a/../../b", "file:///etc/passwd", "~root/x"]
STRANGE = ["", " ", "\x00", "\x1b[31mred\x1b[0m", "a\nb\nc\nd", "a\r\nb", "\u202etxt", "\ud800"]
STRANGE += [
    "\x85",
    "日本",
    "e\u0301",
    "%2e%2e%2f",
    "{}",
    "%s%n",
    "'\"`;",
    "x" * 10_000,
    "\x07" * 300,
]
NAMES = TRAVERSALS + STRANGE
NOT_UTF8 = [b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"a\x80b", b"\xf5" * 50]


def hostile_bytes(random: Random) -> bytes:
    """A name as bytes, not always text."""
    if random.random() < 0.3:
        return random.choice(NOT_UTF8)
    return random.choice(NAMES).encode("utf-8", "surrogatepass")


def boundary(random: Random, width: int) -> bytes:
    """An integer at a boundary, of so many bytes, in either order."""
    value = random.choice(BOUNDARIES) & ((1 << 8 * width) - 1)
    return value.to_bytes(width, random.choice(["little", "big"]))


# --- bytes ----------------------------------------------------------------------------------------


def _position(random: Random, size: int) -> int:
    """Half of them where headers and directories are."""
    if size == 0:
        return 0
    near = min(size, random.choice([16, 64, 256, 1024]))
    return random.choice(
        [random.randrange(size), random.randrange(size), random.randrange(near),
         size - 1 - random.randrange(near)]
    )  # fmt: skip


def _length(random: Random, rest: int) -> int:
    return min(rest, random.choice([1, 1, 2, 4, 8, 16, 64, 512, 4096, rest]))


def damage(random: Random, data: bytes, others: Sequence[bytes] = (b"",)) -> bytes:
    """One to four changes of the bytes."""
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        data = _damage_once(random, data, random.choice(others))
    return data


def _damage_once(random: Random, data: bytes, other: bytes) -> bytes:
    at = _position(random, len(data))
    size = _length(random, len(data) - at)
    before, part, after = data[:at], data[at : at + size], data[at + size :]
    match random.randrange(12):
        case 0:
            byte = data[at] ^ 1 << random.randrange(8) if data else 1
            return before + bytes([byte]) + data[at + 1 :]
        case 1:
            return before + bytes([random.choice([0, 255, random.randrange(256)])]) + data[at + 1 :]
        case 2 | 3:
            number = boundary(random, random.choice([1, 2, 4, 8]))
            return before + number + data[at + len(number) :]
        case 4:
            return before  # cut short
        case 5:
            return before + after  # taken out
        case 6:
            return before + part * random.choice([2, 3, 100 if size < 64 else 2]) + after
        case 7:
            return before + random.randbytes(min(size, 4096)) + part + after
        case 8:
            return before + random.randbytes(size) + after
        case 9:
            return before + bytes([random.choice([0, 255])]) * size + after
        case 10:  # splice
            from_ = _position(random, len(other))
            return before + other[from_ : from_ + _length(random, len(other) - from_)] + after
        case _:
            to = _position(random, len(data))
            rest = before + after
            return rest[:to] + part + rest[to:]


def damage_in_place(random: Random, data: bytes) -> bytes:
    """As `damage`, with the length that it had."""
    return damage(random, data)[: len(data)].ljust(len(data), b"\0")


def damage_files(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Changes in one of the files, seals and checksums as they were."""
    name = random.choice(sorted(files))
    pool = [other[name] for other in others if name in other] or [b""]
    return files | {name: damage(random, files[name], pool)}


def swap_files(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """One file of another sample in the place of this one's, or under another's name."""
    name = random.choice(sorted(files))
    contents = [other[name] for other in others if name in other] or [b""]
    return files | {name: random.choice([*contents, files[random.choice(sorted(files))], b""])}


# --- JSON -----------------------------------------------------------------------------------------

_DEEP: list[Any] = []
for _ in range(200):
    _DEEP = [_DEEP]


def hostile_value(random: Random) -> Any:
    """A JSON value that nobody expects."""
    values: list[Any] = [None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, 5e-324, float("nan")]
    values += [float("inf"), [], {}, [[]], [None], {"": None}, _DEEP, [0] * 5000, "0", "nan"]
    choice = random.randrange(4)
    if choice == 0:
        return random.choice(BOUNDARIES)
    return random.choice(NAMES) if choice == 1 else random.choice(values)


def _near(random: Random, value: Any) -> Any:
    """Something of the same type."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return random.choice([value + 1, value - 1, -value, value * 2, value << 32, float(value)])
    if isinstance(value, float):
        return random.choice([-value, value * 1e9, value + 0.5, 1e308, int(value)])
    if isinstance(value, str):
        return random.choice([value + "x", value[:-1], value.upper(), value * 2, f"../{value}"])
    if isinstance(value, list) and value:
        i = random.randrange(len(value))
        return random.choice(
            [value[:i] + value[i + 1 :], [*value, value[i]], value[::-1], value * 2, value[:i]]
        )
    if isinstance(value, dict) and value:
        name = random.choice(sorted(value))
        less = {k: v for k, v in value.items() if k != name}
        return random.choice(
            [less, less | {random.choice(NAMES): value[name]}, value | {"more": value[name]}]
        )
    return hostile_value(random)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


def hostile_json(random: Random, document: Any) -> Any:
    """The document with one to three values replaced."""
    document = copy.deepcopy(document)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        places = _places(document)
        path = random.choice(places)
        if len(path) > 1 and random.random() < 0.5:
            path = random.choice([p for p in places if len(p) <= 2])  # fields rather than items
        target = document
        for key in path[:-1]:
            target = target[key]
        old = target[path[-1]] if path else document
        elsewhere = document
        for key in random.choice(places):
            elsewhere = elsewhere[key]
        new = random.choice([hostile_value(random), _near(random, old), _near(random, old)])
        if random.random() < 0.1:
            new = copy.deepcopy(elsewhere)
        if not path:
            document = new
        else:
            target[path[-1]] = new
    return document


def dump(document: Any) -> bytes:
    """As JSON, lone surrogates and NaN included."""
    return json.dumps(document).encode("ascii")


# --- pickles --------------------------------------------------------------------------------------

_PROGRAM = [b"0", b"1", b"2", b"(", b")", b"]", b"}", b"N", b"\x88", b"t", b"d", b"l", b"R", b"b"]
_PROGRAM += [b"s", b"u", b"a", b"e", b".", b"\x93", b"\x94", b"\x85", b"\x86", b"\x87", b"Q", b"o"]
_PROGRAM += [b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nndarray\n", b"ctorch\nempty\n"]
_PROGRAM += [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"]
_PROGRAM += [b"X\x04\0\0\0echo", b"\x8c\x02os\x8c\x06system\x93", b"I-1\n", b"L9999999999999999L\n"]
_PROGRAM += [b"\x96" + struct.pack("<Q", 1 << 40), b"\x8e" + struct.pack("<Q", 1 << 40)]
_PROGRAM += [b"B" + struct.pack("<I", (1 << 32) - 1), b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f"]
_PROGRAM += [b"\x8a\xff" + b"\xff" * 255, b"\x95" + struct.pack("<Q", 1 << 62), b"\x80\x05"]


def split_pickle(data: bytes) -> tuple[list[bytes], bytes]:
    """The instructions of one pickle, and what follows it."""
    stream = io.BytesIO(data)
    starts = [position for _, _, position in pickletools.genops(stream)]
    ends = [*starts[1:], stream.tell()]
    return [data[a:b] for a, b in zip(starts, ends, strict=True)], data[stream.tell() :]


def hostile_pickle(random: Random, data: bytes) -> bytes:
    """A pickle with instructions exchanged, and what follows it."""
    parts, rest = split_pickle(data)
    for _ in range(random.choice([1, 1, 2, 3])):
        i, j = random.randrange(len(parts)), random.randrange(len(parts))
        match random.randrange(8):
            case 0:
                parts[i] = b""
            case 1:
                parts[i] = parts[i] * random.choice([2, 3, 50])
            case 2:
                parts[i], parts[j] = parts[j], parts[i]
            case 3:
                parts[i] = parts[j]
            case 4 | 5:
                parts[i] += random.choice(_PROGRAM)
            case 6:
                parts[i] = damage_in_place(random, parts[i])
            case _:  # an integer argument
                width = {b"K": 1, b"M": 2, b"J": 4, b"h": 1, b"j": 4, b"\x95": 8}.get(parts[i][:1])
                width = width or max(1, len(parts[i]) - 1)
                parts[i] = parts[i][:1] + boundary(random, min(width, 8))
    return b"".join(parts) + rest


# --- tables of text -------------------------------------------------------------------------------

_CELLS = ["", '"', '""', ",", ",,", '"a\nb"', "1e400", "nan", "inf", "-1", "0x10", "1_0", "٣"]
_CELLS += (
    ["1" * 400] + [str(n) for n in BOUNDARIES[::7]] + ["\0", "\r", "\x1a", "\ufeff", "#", "=1+1"]
)


def hostile_table(random: Random, data: bytes, *, separator: str = ",") -> bytes:
    """Lines and cells exchanged; the rest is as it was."""
    rows = [line.split(separator) for line in data.decode().split("\n")]
    for _ in range(random.choice([1, 1, 2, 4])):
        i, k = random.randrange(len(rows)), random.randrange(len(rows))
        j = random.randrange(len(rows[i])) if rows[i] else 0
        match random.randrange(8):
            case 0:
                rows[i] = rows[k]
            case 1:
                rows.insert(i, list(rows[k]))
            case 2:
                del rows[i][j : j + 1]
            case 3:
                rows[i].insert(j, random.choice(_CELLS))
            case 4 | 5 if rows[i]:
                rows[i][j] = random.choice(random.choice([_CELLS, NAMES]))
            case 6 if rows[i] and rows[k]:
                rows[i][j] = random.choice(rows[k])
            case _:
                rows[i] = rows[i][::-1]
    text = "\n".join(separator.join(row) for row in rows).encode("utf-8", "surrogatepass")
    return damage(random, text) if random.random() < 0.2 else text
