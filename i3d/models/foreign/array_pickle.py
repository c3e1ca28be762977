"""Nested dicts of float32 arrays from a pickle, without running any of it.

A pickle is a program, and this reader knows the words of one kind alone: what NumPy's arrays need
in protocol 4. Before anything is read, every instruction is looked at; those that take memory
by a number in the file instead of by bytes that are there (a memo's index, a byte array's length)
are not among the words. Then NumPy's three names stand for functions of this module, which give an
array only where the bytes for it have come: no object of the file's own choice is ever made.
Sources: Python's ``pickletools``, which documents each instruction; ``ndarray.__reduce__`` and
``dtype.__reduce__`` of NumPy 1 and 2.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from i3d.errors import CheckpointError

MAX_BYTES = 256 << 20
MAX_INSTRUCTIONS = 100_000  # 230 arrays take 8,000
MAX_DEPTH = 16
MAX_ARRAYS = 2_000
MAX_RANK = 8

WORDS = {"PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "STACK_GLOBAL"}
WORDS |= {"EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
WORDS |= {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "SHORT_BINUNICODE"}
WORDS |= {"SHORT_BINBYTES", "BINBYTES", "REDUCE", "BUILD"}


def read_array_pickle(data: bytes, name: str) -> dict[str, np.ndarray]:
    """The arrays of a pickle of nested dicts, by their paths: ``"params/Conv_0/kernel"``.

    Args:
        data: the whole file.
        name: what error messages call it.

    Raises:
        CheckpointError: too long, damaged, or holding anything but dicts of float32 arrays.
    """
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{name}: {len(data):,} bytes; at most {MAX_BYTES:,} are read")
    try:
        _check_words(data)
        tree = _ArrayUnpickler(io.BytesIO(data)).load()
        arrays = dict(_walk(tree))
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{name}: not a file of arrays alone ({error})") from None
    except Exception as error:  # a malformed program fails in the unpickler in many ways
        raise CheckpointError(
            f"{name}: damaged, not a file of arrays alone ({type(error).__name__})"
        ) from error
    return arrays


def _check_words(data: bytes) -> None:
    count = 0
    try:
        for instruction, _, position in pickletools.genops(data):
            count += 1
            if instruction.name not in WORDS:
                raise pickle.UnpicklingError(f"{instruction.name} at byte {position}")
            if count > MAX_INSTRUCTIONS:
                raise pickle.UnpicklingError(f"more than {MAX_INSTRUCTIONS:,} instructions")
    except ValueError as error:
        raise pickle.UnpicklingError(f"{error}"[:200]) from None


class _Dtype:
    """Stands for ``numpy.dtype``: little-endian float32 is the only one."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] != "<":
            raise pickle.UnpicklingError("an array that is not little-endian")


class _Array:
    """Stands for an array whose bytes come in its state.

    Attributes:
        value: float32; None before they came.
    """

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        match state:
            case (1, tuple(shape), _Dtype(), bool(fortran), bytes(content)):
                pass
            case _:
                raise pickle.UnpicklingError("an array that is not plain float32")
        if len(shape) > MAX_RANK or not all(type(n) is int and 0 <= n < 1 << 32 for n in shape):
            raise pickle.UnpicklingError(f"an array of shape {shape!r:.100}")
        if math.prod(shape) * 4 != len(content):
            raise pickle.UnpicklingError(f"{len(content)} bytes for an array of shape {shape}")
        self.value = np.frombuffer(content, "<f4").reshape(shape, order="F" if fortran else "C")


def _make_dtype(kind: Any, *_: Any) -> _Dtype:
    if kind != "f4":
        raise pickle.UnpicklingError(f"an array of dtype {kind!r:.40}")
    return _Dtype()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Ours in the place of NumPy's three, under both of the names that it gave them."""
        # New objects each time: BUILD may set attributes of what it is given.
        if (module, name) == ("numpy", "ndarray"):
            return object()  # the file only mentions it
        if (module, name) == ("numpy", "dtype"):
            return lambda *arguments: _make_dtype(*arguments)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *_: _Array()
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")


def _walk(
    tree: Any, path: tuple[str, ...] = (), count: list[int] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays below a dict; bounded, since one dict may stand in many places."""
    count = [0] if count is None else count
    if not isinstance(tree, Mapping):
        raise pickle.UnpicklingError(f"{'/'.join(path) or 'all of it'} is no dict of arrays")
    if len(path) >= MAX_DEPTH:
        raise pickle.UnpicklingError(f"dicts in dicts, {MAX_DEPTH} deep")
    for key, value in tree.items():
        count[0] += 1
        if count[0] > MAX_ARRAYS:
            raise pickle.UnpicklingError(f"more than {MAX_ARRAYS:,} arrays and dicts")
        if not isinstance(key, str):
            raise pickle.UnpicklingError(f"a key that is no string: {key!r:.40}")
        if isinstance(value, _Array):
            if value.value is None:
                raise pickle.UnpicklingError(f"{'/'.join((*path, key))} has no content")
            yield "/".join((*path, key)), value.value
        else:
            yield from _walk(value, (*path, key), count)
