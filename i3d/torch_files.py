"""PyTorch's files that come from outside: ``torch.load(weights_only=True)`` within bounds.

That runs no code but its own. It takes the memory, though, that a compressed member declares, and
reads the archive by a reader of its own: so an archive is checked first, and in a way that leaves
both readers one list of members to see. What is mapped is checked further (`map_torch_file`).
"""

import math
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from i3d.archives import check_members, open_archive
from i3d.copies import ShortReads

ZIP_MAGIC = b"PK\3\4"
MAX_PROGRAM_BYTES = 1 << 20  # that makes a mapped file's tensors; one tensor's has 200
MAX_TEXT_CHARS = 256  # of a name in it that is there twice
_END = struct.Struct("<4sHHHHIIH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_FUNCTIONS = {
    "collections OrderedDict",  # of hooks, which are none
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
}


class TorchScriptError(ValueError):
    """A file is a program, whose code is never run."""


def load_torch_file(file: IO[bytes]) -> Any:
    """What a file holds, in memory: tensors, and plain values around them.

    Args:
        file: is open at its start, and left open.

    Raises:
        TorchScriptError: it holds a program.
        Exception: it holds anything else, or is damaged; torch.load has a dozen types for it.
    """
    size = file.seek(0, 2)
    file.seek(0)
    zipped = file.read(4) == ZIP_MAGIC  # as torch.load tells them apart
    if zipped:
        _check_archive(file, size)
    file.seek(0)
    return _load(file if zipped else ShortReads(file, size))


def map_torch_file(path: Path) -> Any:
    """What a file on this machine holds: its tensors mapped, and not read.

    Nothing but tensors and plain values in lists, tuples and dicts is read, and each of them in one
    place: what refers to one thing again and again becomes gigabytes where it is shown or compared.

    Raises:
        ValueError: it is of before PyTorch 1.6, or holds anything else.
        Exception: it is damaged; see `load_torch_file`.
    """
    with path.open("rb") as file:
        if file.read(4) != ZIP_MAGIC:
            raise ValueError("not the format that torch.save has had since PyTorch 1.6")
        _check_archive(file, file.seek(0, 2), max_program_bytes=MAX_PROGRAM_BYTES)
    return _load(path, mmap=True)


def _load(source: Any, *, mmap: bool = False) -> Any:
    with _FixedStorages(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on sparse tensors and protocols of pickles
        try:
            return torch.load(source, map_location="cpu", mmap=mmap, weights_only=True)
        except pickle.UnpicklingError as error:
            # its own message says how to run what the file holds
            reason = str(error.__context__ or "no program that makes tensors")
            raise ValueError(reason.partition(". ")[0]) from error


class _FixedStorages(TorchDispatchMode):
    """Where this is entered, no tensor is laid over more bytes than its storage has.

    A pickle of before PyTorch 1.6 says how large storages are, and then how large tensors, before
    their bytes come; torch.load would enlarge the storage, and copy it.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.set_.source_Storage_storage_offset:
            tensor, storage, offset, shape, *rest = args
            strides = rest[0] if rest else ()  # of a scalar they are left out
            last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
            if math.prod(shape) and (offset + last + 1) * tensor.element_size() > storage.nbytes():
                raise ValueError(f"shape {tuple(shape)} in a storage of {storage.nbytes():,} bytes")
        return func(*args, **(kwargs or {}))


# --- the archive ----------------------------------------------------------------------------------


def _check_archive(file: IO[bytes], size: int, *, max_program_bytes: int | None = None) -> None:
    """Refuse what takes more memory than it has bytes, or what two readers see differently.

    torch.save compresses nothing: then no member is larger than the file, nor do they share bytes.

    Args:
        file: the archive, which is left open.
        size: of the file.
        max_program_bytes: of all but the tensors' numbers; None: they are not to be mapped.
    """
    _check_end(file, size)
    with open_archive(file) as archive:
        members = archive.infolist()
        names = [member.filename.partition("/")[2] for member in members]  # below the one folder
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            raise TorchScriptError("TorchScript, whose code is never run")
        check_members(archive, deflate=False)
        if (declared := sum(member.file_size for member in members)) > size:
            raise zipfile.BadZipFile(f"members of {declared:,} bytes in a file of {size:,}")
        if max_program_bytes is None:
            return
        others = [m for m, name in zip(members, names, strict=True) if not name.startswith("data/")]
        if (needed := sum(member.file_size for member in others)) > max_program_bytes:
            raise ValueError(f"{needed:,} bytes beside its tensors; {max_program_bytes:,} are read")
        programs = [m for m in others if m.filename.lower().endswith("data.pkl")]
        if len(programs) != 1:
            raise zipfile.BadZipFile(f"{len(programs)} members are called data.pkl")
        _check_program(archive.read(programs[0]))


def _check_end(file: IO[bytes], size: int) -> None:
    """Hold the list of members to one place, where every reader finds it: right before the end.

        member, member, ..., list of members, (zip64 end, its locator), end

    Raises:
        zipfile.BadZipFile: it does not lie there.
    """
    tail = _END_64.size + _LOCATOR.size + _END.size
    file.seek(max(0, size - tail))
    data = file.read(tail).rjust(tail, b"\0")
    at = size - _END.size
    signature, *_, length, offset, comment = _END.unpack(data[-_END.size :])
    if signature != b"PK\5\6" or comment:
        raise zipfile.BadZipFile("it does not end as an archive, or is cut short")
    locator, _, place, _ = _LOCATOR.unpack_from(data, _END_64.size)
    if locator == b"PK\6\7":
        at = size - tail
        end, *_, length, offset = _END_64.unpack_from(data)
        if end != b"PK\6\6" or place != at:
            raise zipfile.BadZipFile("its list of members has two ends")
    if offset + length != at:
        raise zipfile.BadZipFile("its list of members does not lie before its end")


def _check_program(program: bytes) -> None:
    """Refuse what torch.save does not write for tensors, and torch.load takes gigabytes for.

    torch.load walks what it has made to compare and to show it, so that 300 bytes of lists, each
    holding the one before twice, are without end; and some of its functions take memory by number.

    Raises:
        ValueError: names what it holds.
    """
    kept: dict[Any, tuple[str, Any]] = {}
    made: tuple[str, Any] = ("", None)  # by the instruction before, what it made
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name in ("BINPUT", "LONG_BINPUT"):
            kept[argument] = made
            continue
        if made == ("GLOBAL", "collections OrderedDict") and name != "EMPTY_TUPLE":
            raise ValueError("it makes an OrderedDict of other things than none")
        if name == "GLOBAL":
            called = str(argument)
            if called not in _FUNCTIONS and not re.fullmatch(r"torch \w+Storage", called):
                raise ValueError(f"it calls {called!r:.80}, which makes no plain tensor")
        if name in ("BINGET", "LONG_BINGET"):
            made = kept.get(argument, ("", None))
            if made[0] == "BINUNICODE" and len(made[1]) > MAX_TEXT_CHARS:
                raise ValueError(f"it refers twice to a text of {len(made[1]):,} characters")
            if made[0] not in ("GLOBAL", "BINUNICODE"):
                raise ValueError("it refers to one thing twice")
        else:
            made = (name, argument)
