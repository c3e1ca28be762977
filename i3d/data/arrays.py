"""Arrays in ``.npy`` and ``.npz`` files, mapped from the disk and never read whole.

They come from outside: no pickle is loaded, and what would fill the disk is refused.
"""

import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from i3d import files
from i3d.classes import readable
from i3d.errors import DatasetError, StorageError, UsageError

SUFFIXES = (".npy", ".npz")
MAX_MEMBERS = 64  # arrays in an .npz


@dataclass(frozen=True)
class Arrays:
    """The arrays of one file.

    Attributes:
        where: path or URL, as the user named it.
        paths: name -> a ``.npy`` file on this machine.
        arrays: name -> the same, mapped.
    """

    where: str
    paths: Mapping[str, Path]
    arrays: Mapping[str, np.ndarray]

    def only(self) -> tuple[str, np.ndarray]:
        """Name and array of what is meant: "videos", "features", or the only one there is.

        Raises:
            UsageError: there are several.
        """
        for name in ("videos", "features"):
            if name in self.arrays:
                return name, self.arrays[name]
        if len(self.arrays) != 1:
            raise UsageError(
                f"{self.where} holds the arrays {', '.join(self.arrays)}; name one of them "
                "'videos' or 'features' (statistics of other programs do not say what they are of)"
            )
        return next(iter(self.arrays.items()))


@contextmanager
def open_arrays(location: files.Location) -> Iterator[Arrays]:
    """Map a file's arrays; what an ``.npz`` or a URL holds is unpacked for as long.

    Raises:
        DatasetError: no such file, a damaged one, or a pickle.
        StorageError: it would fill the disk; the server or disk fails.
    """
    where = os.fspath(location)
    with readable(where):
        if files.exists(where):
            files.check_regular(where)
        else:
            raise DatasetError(f"{where}: no such file")
    with TemporaryDirectory(prefix="i3d-") as folder:
        suffix = where.rpartition(".")[2].lower()
        path = files.local_path(where)
        if path is None:
            path = Path(folder) / f"file.{suffix}"
            with readable(where):
                _check_room(files.size(where), folder, where)
                with files.open_read(where) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
        paths = {"array": path} if suffix == "npy" else _unpack(path, Path(folder), where)
        yield Arrays(where, paths, {n: map_array(p, f"{where}: {n}") for n, p in paths.items()})


def _unpack(path: Path, folder: Path, where: str) -> dict[str, Path]:
    """The arrays of an ``.npz`` as files that can be mapped."""
    paths: dict[str, Path] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if not 1 <= len(members) <= MAX_MEMBERS:
                raise DatasetError(f"{where}: {len(members)} arrays; 1 to {MAX_MEMBERS} are read")
            _check_room(sum(member.file_size for member in members), folder, where)
            for i, member in enumerate(members):
                name = member.filename.removesuffix(".npy")
                paths[name] = folder / f"{i}.npy"  # never a name from the archive
                with archive.open(member) as source, paths[name].open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DatasetError(f"{where}: not a readable .npz file ({error})") from error
    return paths


def _check_room(needed: int, folder: str | Path, where: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{where} unpacks to {needed >> 20} MiB and {folder} has {free >> 20} MiB free; set "
            "TMPDIR to a larger disk, or give a .npy file"
        )


def map_array(path: Path, name: str) -> np.ndarray:
    """A ``.npy`` file as a read-only map; objects, which would be pickles, are refused.

    Args:
        path: a file on this machine.
        name: what messages call it.

    Raises:
        DatasetError: a pickle, not an array, or empty.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        if "Python objects" in str(error):
            raise DatasetError(f"{name} holds a pickle, which is never loaded") from None
        raise DatasetError(f"{name} is not a readable array ({error})") from error
    if array.size == 0:
        raise DatasetError(f"{name} is empty: {array.shape}")
    return array
