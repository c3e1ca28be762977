"""Files of arrays on this machine, of which each array is mapped where it is read.

.npy .npz        NumPy's: `i3d.data.arrays`
.pt .pth         a tensor, or a dict of them, as torch.save writes them: `i3d.torch_files`
.safetensors     tensors by name
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from i3d import files
from i3d.classes import readable
from i3d.data.arrays import fetch_file, map_array, open_arrays
from i3d.errors import DatasetError

if TYPE_CHECKING:  # torch is imported where such a file is: other footage does without
    import torch

    Mapped = np.ndarray | torch.Tensor

ARRAY_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors")
NAMES = ("video", "videos", "frames")  # of the array that is meant, where there are several

MAX_HEADER_BYTES = 8 << 20  # of .safetensors
MAX_TENSORS = 1024  # of a file
MAX_AXES = 8


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, which is mapped where it is read.

    Attributes:
        path: a file on this machine, but no ``.npz``.
        where: what messages call it.
        name: the array's in the file.
        shape: as NumPy's.
        kind: name of the type.
    """

    path: Path
    where: str
    name: str
    shape: tuple[int, ...]
    kind: str

    @classmethod
    def of(
        cls, path: Path, array: "Mapped", *, where: str | None = None, name: str = "array"
    ) -> "StoredArray":
        """An array that was mapped; ``.npy`` files have no name for theirs."""
        kind = str(array.dtype).removeprefix("torch.")
        if isinstance(array, np.ndarray):
            kind = array.dtype.name  # in either order of bytes
        return cls(path, str(path) if where is None else where, name, tuple(array.shape), kind)

    def __str__(self) -> str:
        return f"{self.kind} {self.shape}"

    def map(self) -> np.ndarray:
        """The array, read-only; of bfloat16 its bits.

        Raises:
            DatasetError: the file has become another.
        """
        array = _map_file(self.path, self.where).get(self.name)
        if array is None or self != self.of(self.path, array, where=self.where, name=self.name):
            raise DatasetError(f"{self.where} was replaced while it was read; run it again")
        mapped = array if isinstance(array, np.ndarray) else _to_numpy(array)
        mapped.flags.writeable = False
        return mapped

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
    with TemporaryDirectory(prefix="i3d-") as folder:
        path = fetch_file(where, Path(folder))
        mapped = _map_file(path, where).items()
        yield {name: StoredArray.of(path, array, where=where, name=name) for name, array in mapped}


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


def _to_numpy(tensor: "torch.Tensor") -> np.ndarray:
    import torch

    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _map_file(path: Path, where: str) -> Mapping[str, "Mapped"]:
    """The arrays of a file by name, mapped; one that is the whole of it is ``array`` or ``tensor``.

    Raises:
        DatasetError: a damaged file, or one that holds more than tensors and plain values.
        StorageError: the disk fails.
    """
    if path.suffix.lower() == ".npy":
        return {"array": map_array(path, where)}
    what, remedy = (
        "PyTorch file of tensors alone",
        "save the tensor alone: torch.save(videos, PATH)",
    )
    read = _map_torch
    if path.suffix.lower() == ".safetensors":
        what, remedy, read = "readable .safetensors file", "save it again", _map_safetensors
    try:
        tensors = read(path)
        for name, tensor in tensors.items():
            shape = tuple(tensor.shape)
            if len(shape) > MAX_AXES or not 1 <= math.prod(shape) < 1 << 62:
                raise ValueError(f"tensor {name!r:.40} of shape {shape!s:.80}")
        return tensors
    except MemoryError:
        raise
    except Exception as error:  # the libraries' parsers raise a dozen types
        files.blame_storage(path, error)
        reason = files.explain(error).replace(str(path), where)
        raise DatasetError(f"{where}: not a {what} ({reason}); {remedy}, or as .npy") from error


def _map_safetensors(path: Path) -> dict[str, "torch.Tensor"]:
    from safetensors import safe_open

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:  # bounded before a parser of all of it sees it
        raise ValueError(f"a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    with safe_open(path, "pt") as opened:
        names = opened.keys()
        if len(names) > MAX_TENSORS:
            raise ValueError(f"{len(names)} tensors; at most {MAX_TENSORS} are read")
        return {name: opened.get_tensor(name) for name in names}


def _map_torch(path: Path) -> dict[str, "torch.Tensor"]:
    import torch

    from i3d.torch_files import map_torch_file

    value = map_torch_file(path)
    if isinstance(value, torch.Tensor):
        value = {"tensor": value}
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, neither tensor nor dict")
    found = {str(n): t.detach() for n, t in value.items() if isinstance(t, torch.Tensor)}
    if not 1 <= len(found) <= MAX_TENSORS:
        raise ValueError(f"it holds {len(found)} tensors; 1 to {MAX_TENSORS} are read")
    if any(tensor.is_neg() or tensor.is_conj() for tensor in found.values()):
        raise ValueError("a tensor whose numbers are not those that are stored")
    return found
