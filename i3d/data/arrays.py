"""Arrays in ``.npy`` and ``.npz`` files, mapped from the disk and never read whole.

They come from outside: no pickle is loaded, and what would fill the disk is refused.
"""

import errno
import os
import shutil
import struct
import warnings
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
MAX_HEADER_BYTES = 10_000  # NumPy's own limit, which it applies to what it has read
REMEDY = "save it again with numpy.save, numpy.savez or numpy.savez_compressed"
_ENCRYPTED = 1  # in a member's flags


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
        if not files.exists(where):
            raise DatasetError(f"{where}: no such file")
        if files.is_dir(where):
            raise DatasetError(f"{where} is a folder; .npy and .npz are files of arrays")
        files.check_regular(where)
    with TemporaryDirectory(prefix="i3d-") as folder:
        path = fetch_file(where, Path(folder))
        is_npy = where.lower().endswith(".npy")
        paths = {"array": path} if is_npy else _unpack(path, Path(folder), where)
        yield Arrays(where, paths, {n: map_array(p, f"{where}: {n}") for n, p in paths.items()})


def fetch_file(where: str, folder: Path) -> Path:
    """The file at a path or URL on this machine: itself, or a copy in the folder.

    Raises:
        DatasetError: it cannot be read.
        StorageError: a copy would fill the disk; the server or disk fails.
    """
    path = files.local_path(where)
    if path is None:
        path = folder / f"file.{where.rpartition('.')[2].lower()}"
        with readable(where):
            _check_room(files.size(where), folder, where)
            with files.open_read(where) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
    return path


def _unpack(path: Path, folder: Path, where: str) -> dict[str, Path]:
    """The arrays of an ``.npz`` as files that can be mapped."""
    paths: dict[str, Path] = {}
    try:
        with _readable_zip(where), zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except FileNotFoundError:
        raise DatasetError(f"{where}: no such file") from None
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise DatasetError(f"{where}: {len(members)} arrays; 1 to {MAX_MEMBERS} are read")
    for member in members:
        name = member.filename.removesuffix(".npy")
        if reason := _refusal(member, name in paths):
            raise DatasetError(f"{where}: {member.filename!r:.80} {reason}; {REMEDY}")
        paths[name] = folder / f"{len(paths)}.npy"  # never a name from the archive
    _check_room(sum(member.file_size for member in members), folder, where)
    with zipfile.ZipFile(path) as archive:
        for member, target_path in zip(members, paths.values(), strict=True):
            with (
                _readable_zip(f"{where}: {member.filename!r:.80}"),
                archive.open(member) as source,
                target_path.open("wb") as target,
            ):
                shutil.copyfileobj(source, target)
    return paths


def _refusal(member: zipfile.ZipInfo, again: bool) -> str | None:
    """Why a member of an ``.npz`` is none that NumPy writes; None where it is one."""
    if not member.filename.endswith(".npy"):
        return "is no array (its name does not end in .npy)"
    if not member.filename.isprintable():
        return "has a name that cannot be shown"
    if again:
        return "is there twice"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # the others' decompressors give back as much as they like at a time
        return f"is compressed by method {member.compress_type}, and NumPy has Deflate alone"
    return None


@contextmanager
def _readable_zip(what: str) -> Iterator[None]:
    """Say of what `zipfile` cannot read, for which it has half a dozen errors, that it is damaged.

    What the disk says has a number and stays what it is.
    """
    try:
        yield
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = f"{error}" or type(error).__name__
        raise DatasetError(f"{what}: not a readable .npz file ({reason:.200}); {REMEDY}") from error
    except (NotImplementedError, RuntimeError) as error:
        raise DatasetError(f"{what}: not a readable .npz file ({error}); {REMEDY}") from error


def _check_room(needed: int, folder: str | Path, where: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{where} unpacks to {needed >> 20} MiB and {folder} has {free >> 20} MiB free; set "
            "TMPDIR to a larger disk, or give a .npy file"
        )


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def map_array(path: Path, name: str) -> np.ndarray:
    """A ``.npy`` file as a read-only map; objects, which would be pickles, are refused.

    Args:
        path: a file on this machine.
        name: what messages call it.

    Raises:
        DatasetError: a pickle, not an array, or empty.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that overflow, and of Python 2's headers
            _check_header(path)
            array = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        if error.errno is not None and error.errno not in (errno.EINVAL, errno.ENOMEM):
            raise  # the disk's
        raise DatasetError(f"{name} is not a readable array ({error}); {REMEDY}") from error
    except Exception as error:  # NumPy parses headers as Python does, which has a dozen kinds
        if "Python objects" in str(error):
            raise DatasetError(f"{name} holds a pickle, which is never loaded; {REMEDY}") from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DatasetError(f"{name} is not a readable array ({reason}); {REMEDY}") from error
    if array.nbytes == 0:
        raise DatasetError(f"{name} is empty: {array.dtype} {array.shape}")
    return array


def _check_header(path: Path) -> None:
    """Refuse headers that NumPy would take gigabytes for, or end the process over.

    Raises:
        ValueError: no ``.npy`` file, a header that is longer than any, or elements of no bytes,
            by whose size NumPy's map divides.
    """
    with path.open("rb") as file:
        start = file.read(12)
    version = tuple(start[6:8])
    if start[:6] != np.lib.format.MAGIC_PREFIX or version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"it begins with {start[:8]!r}, as no .npy file does")
    size = int.from_bytes(start[8:10] if version == (1, 0) else start[8:12], "little")
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {size} bytes; at most {MAX_HEADER_BYTES} are read")
    with path.open("rb") as file:
        read_header = _HEADERS.get(np.lib.format.read_magic(file))
        if read_header is None:
            raise ValueError("a table with named columns")  # what alone needs version 3.0
        dtype = read_header(file)[2]
    if dtype.itemsize == 0:
        raise ValueError(f"elements of type {dtype} hold nothing")
