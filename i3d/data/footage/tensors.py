"""Files of arrays -> where in a file on this machine each array lies, so that it can be mapped.

    .npy .npz        NumPy's: `i3d.data.arrays`
    .pt .pth         a tensor, or a dict of them, as torch.save writes them
    .safetensors     tensors by name

No pickle is loaded. PyTorch's file is a zip: the small program in it that makes the tensors is
never run but read, instruction by instruction, for the few that describe tensors; the numbers
themselves lie in the zip as they are, since torch.save compresses nothing.
"""

import json
import math
import pickletools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from i3d import files
from i3d.classes import readable
from i3d.data.arrays import fetch_file, open_arrays
from i3d.data.zip_directory import Member, find_content, find_directory, read_entries, read_members
from i3d.errors import DatasetError

ARRAY_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors")
NAMES = ("video", "videos", "frames")  # of the array that is meant, where there are several

MAX_HEADER_BYTES = 8 << 20  # of .safetensors
MAX_PROGRAM_BYTES = 1 << 20  # that makes a file's tensors; one tensor's has 200
MAX_TENSORS = 1024  # of a file
MAX_AXES = 8
_MEMBER_BYTES = 1 << 44
_NAME_BYTES = 256

_SAFETENSORS = {"U8": "uint8", "F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_SAFETENSORS |= {"F64": "float64", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
_SAFETENSORS |= {"BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64"}
_STORAGES = {"Byte": "uint8", "Half": "float16", "BFloat16": "bfloat16", "Float": "float32"}
_STORAGES |= {"Double": "float64", "Char": "int8", "Short": "int16", "Int": "int32"}
_STORAGES |= {"Long": "int64", "Bool": "bool"}
_TORCH_REMEDY = "save the tensor alone: torch.save(videos, PATH)"


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, which is mapped where it is read.

    Attributes:
        path: a file on this machine.
        offset: bytes before its first element.
        dtype: NumPy's type of an element; of bfloat16, which NumPy has not, that of its bits.
        shape: as NumPy's.
        strides: bytes from element to element along each axis.
        kind: name of the type.
    """

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: str

    @classmethod
    def of(cls, path: Path, array: np.ndarray) -> "StoredArray":
        """An array that NumPy has mapped of a ``.npy`` file."""
        assert isinstance(array, np.memmap)
        kind = array.dtype.name
        return cls(path, array.offset, array.dtype.str, array.shape, array.strides, kind)

    def __str__(self) -> str:
        return f"{self.kind} {self.shape}"

    def map(self) -> np.ndarray:
        """The array, read-only; of bfloat16 its bits."""
        whole = np.memmap(self.path, np.uint8, "r")
        return np.ndarray(self.shape, self.dtype, whole, self.offset, self.strides)

    def values(self, part: np.ndarray) -> np.ndarray:
        """A copy of part of the map as numbers: bfloat16 as float32."""
        if self.kind != "bfloat16":
            return np.array(part)
        return (part.astype(np.uint32) << 16).view(np.float32)


@contextmanager
def open_array_file(location: files.Location) -> Iterator[dict[str, StoredArray]]:
    """The arrays of a file by name; what is behind a URL or in an ``.npz`` is copied for as long.

    Raises:
        DatasetError: no such file, a damaged one, or one that holds more than arrays.
        StorageError: it would fill the disk; the server or disk fails.
    """
    where = str(location)
    if where.lower().endswith((".npy", ".npz")):
        with open_arrays(where) as arrays:
            yield {name: StoredArray.of(arrays.paths[name], a) for name, a in arrays.arrays.items()}
        return
    with readable(where):
        if not files.exists(where):
            raise DatasetError(f"{where}: no such file")
        files.check_regular(where)
    read = _read_safetensors if where.lower().endswith(".safetensors") else _read_torch
    with TemporaryDirectory(prefix="i3d-") as folder:
        yield read(fetch_file(where, Path(folder)), where)


def choose_array(arrays: Mapping[str, StoredArray], where: str) -> StoredArray:
    """The one that holds videos: the only one, or the only one that is called so.

    Raises:
        DatasetError: there are several, or none.
    """
    found = arrays if len(arrays) == 1 else {n: a for n, a in arrays.items() if n in NAMES}
    if len(found) != 1:
        names = ", ".join(f"{name!r:.40}" for name in list(arrays)[:8]) or "none"
        raise DatasetError(
            f"{where} holds {len(arrays)} arrays ({names}); save one alone, or call the one that "
            "is meant 'videos'"
        )
    return next(iter(found.values()))


def _locate(
    path: Path,
    kind: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    *,
    start: int,
    stop: int,
) -> StoredArray:
    """An array whose elements lie within bytes ``start`` to ``stop`` of a file.

    Args:
        path: the file.
        kind: name of the type.
        shape: of the array.
        strides: in elements; None: one element after the other, and they fill the bytes.
        start: of the first element.
        stop: of the last one, at most.

    Raises:
        ValueError: it does not lie there.
    """
    dtype = np.dtype(np.uint16 if kind == "bfloat16" else kind).newbyteorder("<")
    size = dtype.itemsize
    if len(shape) > MAX_AXES or min(shape, default=0) < 0:
        raise ValueError(f"a shape of {len(shape)} axes")
    count = math.prod(shape)
    if strides is None:
        if count * size != stop - start:
            raise ValueError(f"shape {shape} in {stop - start} bytes")
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if count else -1
    if min(strides, default=0) < 0 or start < 0 or start + (last + 1) * size > stop:
        raise ValueError(f"shape {shape} lies outside of its {stop - start} bytes")
    if count == 0 or max(*shape, count) >= 1 << 62:
        raise ValueError(f"shape {shape} holds nothing, or too much")
    return StoredArray(path, start, dtype.str, shape, tuple(s * size for s in strides), kind)


# --- safetensors ----------------------------------------------------------------------------------


def _read_safetensors(path: Path, where: str) -> dict[str, StoredArray]:
    """Eight bytes with the header's length, the header as JSON, and the tensors' bytes."""

    def refuse(reason: str) -> DatasetError:
        return DatasetError(
            f"{where}: not a readable .safetensors file ({reason:.200}); save it again"
        )

    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise refuse(f"a header of {length} bytes in a file of {size}")
        text = file.read(length)
    begin = 8 + length
    found = {}
    try:
        header = json.loads(text)
        entries = {n: e for n, e in header.items() if n != "__metadata__"}
        if len(entries) > MAX_TENSORS:
            raise ValueError(f"{len(entries)} tensors; at most {MAX_TENSORS} are read")
        for name, entry in entries.items():
            kind = _SAFETENSORS.get(entry["dtype"])
            if kind is None:
                raise ValueError(f"tensor {name!r:.40} is of type {entry['dtype']!r:.20}")
            shape, offsets = _integers(entry["shape"]), _integers(entry["data_offsets"])
            start, stop = offsets
            if not 0 <= start <= stop <= size - begin:
                raise ValueError(f"tensor {name!r:.40} lies outside of the file")
            found[name] = _locate(path, kind, shape, None, start=begin + start, stop=begin + stop)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise refuse(f"{error}" or type(error).__name__) from error
    return found


def _integers(values: Any) -> tuple[int, ...]:
    """A list from outside as a tuple.

    Raises:
        ValueError: it holds anything but integers.
    """
    if not isinstance(values, list | tuple) or any(type(v) is not int for v in values):
        raise ValueError("a shape or place that is no list of integers")
    return tuple(values)


# --- PyTorch --------------------------------------------------------------------------------------


def _read_torch(path: Path, where: str) -> dict[str, StoredArray]:
    """The tensor of a file, or those of its dict."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            raise DatasetError(
                f"{where} is not in the format that torch.save has had since PyTorch 1.6; "
                f"{_TORCH_REMEDY}"
            )
    name = str(path)
    try:
        directory = find_directory(name)
        members: dict[str, Member] = {}
        bounds = {"name_bytes": _NAME_BYTES, "max_member_bytes": _MEMBER_BYTES}
        for entries in read_entries(name, directory.start, directory.stop, **bounds):
            for row in range(len(entries)):
                member = entries.member(row)
                if member.name in members:
                    raise ValueError(f"member {member.name!r:.80} is there twice")
                if member.method:
                    raise ValueError(f"member {member.name!r:.80} is compressed")
                members[member.name] = member
                if len(members) > 4 * MAX_TENSORS:
                    raise ValueError(f"more than {4 * MAX_TENSORS} members")
        programs = [n for n in members if n.rpartition("/")[2] == "data.pkl"]
        if len(programs) != 1:
            raise ValueError("it has no data.pkl, or several")
        folder = programs[0].removesuffix("data.pkl")
        if members[programs[0]].size > MAX_PROGRAM_BYTES:
            raise ValueError(f"its data.pkl has more than {MAX_PROGRAM_BYTES} bytes")
        order = members.get(f"{folder}byteorder")
        if order is not None and order.size < 16 and read_members(name, [order])[0] != b"little":
            raise ValueError("it was saved on a big-endian machine")
        tensors = _tensors_of(_run(read_members(name, [members[programs[0]]])[0]))
        return {n: _place(t, members, folder, path) for n, t in tensors.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = str(error).replace(name, where) or type(error).__name__
        raise DatasetError(
            f"{where}: not a PyTorch file of tensors alone ({reason:.300}); {_TORCH_REMEDY}"
        ) from error


@dataclass(frozen=True)
class _Global:
    """A function or class that the program names."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Elements one after the other in a member of the zip."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; all in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()


def _run(program: bytes) -> Any:
    """What a data.pkl describes: tensors, and plain values around them.

    Raises:
        ValueError: it does anything else, or is no pickle.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        at = len(stack) - 1 - next(i for i, x in enumerate(reversed(stack)) if x is _MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    try:
        for opcode, given, _ in pickletools.genops(program):
            argument: Any = given
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    stack.append(_MARK)
                case "GLOBAL":
                    stack.append(_Global(argument))
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE":
                    stack.append(tuple(pop_to_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "APPEND":
                    value = stack.pop()
                    stack[-1].append(value)
                case "APPENDS":
                    values = pop_to_mark()
                    stack[-1].extend(values)
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    _set(stack[-1], key, value)
                case "SETITEMS":
                    items = pop_to_mark()
                    for key, value in zip(items[::2], items[1::2], strict=True):
                        _set(stack[-1], key, value)
                case "BINPERSID":
                    stack.append(_make_storage(stack.pop()))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(_call(function, arguments))
                case (
                    "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1"
                    | "BINFLOAT"
                ):  # fmt: skip
                    stack.append(argument)
                case other:
                    raise ValueError(f"its program holds {other}, which no tensor needs")
    except StopIteration:
        raise ValueError("its program has no beginning of a tuple") from None
    raise ValueError("its program has no end")


def _set(target: Any, key: Any, value: Any) -> None:
    if type(target) is not dict or type(key) not in (str, int):
        raise ValueError("its program makes a dict with other keys than names")
    target[key] = value


def _make_storage(record: Any) -> _Storage:
    what, kind, key, _, count = record
    name = getattr(kind, "name", "")
    module, _, storage = name.partition(" ")
    known = _STORAGES.get(storage.removesuffix("Storage"))
    if what != "storage" or module != "torch" or known is None:
        raise ValueError(f"elements of type {name!r:.60}")
    if type(key) is not str or type(count) is not int:
        raise ValueError("a storage without a name")
    return _Storage(known, key, count)


def _call(function: Any, arguments: Any) -> Any:
    """What the few known functions give."""
    match function:
        case _Global("collections OrderedDict") if arguments == ():
            return {}
        case _Global("torch._utils _rebuild_tensor_v2"):
            storage, offset, shape, strides = arguments[:4]
            if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0:
                raise ValueError("a tensor without a storage")
            return _Tensor(storage, offset, _integers(shape), _integers(strides))
        case _Global("torch._utils _rebuild_parameter"):
            return arguments[0]
        case _Global(name):
            raise ValueError(f"it calls {name.replace(' ', '.')!r:.80}, which makes no tensor")
    raise ValueError("its program calls what is no function")


def _tensors_of(value: Any) -> dict[str, _Tensor]:
    """The tensors by name; one that is the whole file is called ``tensor``."""
    if isinstance(value, _Tensor):
        return {"tensor": value}
    if type(value) is not dict:
        raise ValueError(f"it holds a {type(value).__name__.strip('_')}, neither tensor nor dict")
    found = {str(name): tensor for name, tensor in value.items() if isinstance(tensor, _Tensor)}
    if not 1 <= len(found) <= MAX_TENSORS:
        raise ValueError(f"it holds {len(found)} tensors; 1 to {MAX_TENSORS} are read")
    return found


def _place(tensor: _Tensor, members: Mapping[str, Member], folder: str, path: Path) -> StoredArray:
    storage = tensor.storage
    member = members.get(f"{folder}data/{storage.key}")
    if member is None:
        raise ValueError(f"storage {storage.key!r:.40} is missing")
    size = np.dtype(np.uint16 if storage.kind == "bfloat16" else storage.kind).itemsize
    if not 0 <= storage.count * size <= member.size:
        raise ValueError(f"storage {storage.key!r:.40} has {member.size} bytes")
    begin = find_content(str(path), member)
    start, stop = begin + tensor.offset * size, begin + storage.count * size
    return _locate(path, storage.kind, tensor.shape, tensor.strides, start=start, stop=stop)
