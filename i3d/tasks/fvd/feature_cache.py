"""Features of videos that were measured before, in the user's cache folder.

    CACHE/fvd/SETTINGS/BLOCK.npz     rows of up to `BLOCK` videos, sealed

SETTINGS is a hash of all that moves a feature: protocol, weights, precision, kind of device and
versions. BLOCK is a hash of which videos they are: each one's key, and what tells that its file was
not replaced. So a job that was killed goes on where it was, and a reference set is measured once.

A file that is damaged, or that was edited, is measured again. The oldest ones go when all of them
together are larger than `MAX_BYTES`.
"""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np

from i3d import files
from i3d.errors import DatasetError, I3DError
from i3d.models.download import cache_folder
from i3d.records import check_archive, seal_archive
from i3d.tasks.fvd.embedder import Embedder
from i3d.tasks.fvd.packing import pack_arrays, unpack_arrays
from i3d.version import VERSION

MAX_BYTES = 1 << 31  # 1.3 million videos with 400 logits
MAX_FILE_BYTES = 1 << 28
_PACKAGES = ("torch", "numpy", "av", "pillow", "simplejpeg")


@dataclass
class BlockRows:
    """What was measured of a block's videos.

    Attributes:
        videos: number of the video that each row is of, in ascending order.
        rows: float32 (n, K, D), the features of every clip at K lengths.
        skipped: (number of the video, reason) of those that cannot be used.
        damaged: (number of the video, what was lost) of those that are used.
        sizes: height and width of frames, each pair once.
    """

    videos: np.ndarray
    rows: np.ndarray
    skipped: list[tuple[int, str]]
    damaged: list[tuple[int, str]]
    sizes: list[tuple[int, int]]

    def to_bytes(self, first: int) -> bytes:
        """As a sealed ``.npz``; videos are counted from ``first``."""
        about = {
            "skipped": [(i - first, text) for i, text in self.skipped],
            "damaged": [(i - first, text) for i, text in self.damaged],
            "sizes": self.sizes,
        }
        arrays = {"videos": self.videos - first, "rows": self.rows}
        buffer = io.BytesIO(pack_arrays(about, arrays))
        seal_archive(buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, first: int, shape: tuple[int, int], where: str) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            DatasetError: it is damaged, or none of ours.
        """
        check_archive(io.BytesIO(data), where)
        try:
            about, arrays = unpack_arrays(data)
            videos, rows = arrays["videos"], arrays["rows"]
            fits = rows.dtype == np.float32 and rows.shape == (len(videos), *shape)
            if videos.dtype != np.int64 or not fits or not np.isfinite(rows).all():
                raise DatasetError(f"{where}: its arrays are not what i3d writes")
            return cls(
                videos + first,
                rows,
                [(int(i) + first, str(text)) for i, text in about["skipped"]],
                [(int(i) + first, str(text)) for i, text in about["damaged"]],
                [(int(h), int(w)) for h, w in about["sizes"]],
            )
        except (KeyError, ValueError, TypeError) as error:
            raise DatasetError(f"{where}: not what i3d writes ({error})") from error


class FeatureCache:
    """The blocks of one kind of features.

    Args:
        embedder: what makes them.
        device: ``cpu`` or ``cuda:N``.
    """

    def __init__(self, embedder: Embedder, device: str) -> None:
        settings = {
            **embedder.protocol.settings,
            "divisor": None,  # no feature depends on it
            "weights": embedder.weights.sha256,
            "precision": embedder.precision,
            "lengths": list(embedder.lengths),
            "device": device.partition(":")[0],
            "versions": {"i3d": VERSION, **{name: version(name) for name in _PACKAGES}},
        }
        self._shape = len(embedder.lengths), embedder.dimensions
        self._folder = cache_folder() / "fvd" / _hash(settings)

    def find(self, videos: Sequence[tuple[str, str]], first: int) -> BlockRows | None:
        """A block that was measured before; None where it was not.

        Args:
            videos: key and identity of every video of the block, in order.
            first: number of the first one.
        """
        path = self._path(videos)
        try:
            with path.open("rb") as file:
                data = files.read_bounded(file, MAX_FILE_BYTES)
            with suppress(OSError):  # it may lie on a disk that is only read
                os.utime(path)  # the oldest go first
            return BlockRows.from_bytes(data, first, self._shape, str(path))
        except (OSError, I3DError):
            return None  # it is not there, or is damaged: it is measured again

    def keep(self, videos: Sequence[tuple[str, str]], first: int, rows: BlockRows) -> None:
        """Write a block, if the disk has room: without it nothing is lost but time."""
        data = rows.to_bytes(first)
        if len(data) > MAX_FILE_BYTES:
            return
        with suppress(OSError, I3DError):
            self._folder.mkdir(parents=True, exist_ok=True)
            files.write(self._path(videos), data)

    def _path(self, videos: Sequence[tuple[str, str]]) -> Path:
        return self._folder / f"{_hash(list(videos))}.npz"


def drop_oldest(most: int = MAX_BYTES) -> None:
    """Remove the features that were not used for longest, until the rest has ``most`` bytes."""
    with suppress(OSError):
        found = []
        for path in (cache_folder() / "fvd").glob("*/*.npz"):
            state = path.stat()
            found.append((state.st_mtime_ns, state.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= most:
                return
            path.unlink(missing_ok=True)
            total -= size


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, allow_nan=False)  # ASCII: half surrogates are escaped
    return hashlib.sha256(text.encode()).hexdigest()[:40]
