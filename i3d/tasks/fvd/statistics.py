"""Saved statistics of one set: an ``.npz`` with mean, covariance, count and what they are of.

    metadata   uint8: a sealed JSON object (`i3d.data.sealed`), the fields of `Record`
    mu         float64 (D,)
    sigma      float64 (D, D), with the protocol's divisor
    n          int64
    features   float64 (N, D), where N is at most the larger of D and 256; else absent

Every key but ``metadata`` and ``features`` has the name that other programs use. The features are
what a small set's distance and interval are computed from, so a set gives the same number to the
digit from its videos and from its file.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from i3d import files
from i3d.errors import DatasetError, UsageError
from i3d.metrics.frechet import MAX_DIMENSIONS, Moments
from i3d.models.released import CHECKPOINTS
from i3d.records import added, differences, read_sealed, seal
from i3d.tasks.fvd.protocols import Protocol, find_protocol

FORMAT = "i3d-fvd-statistics-2"
MAX_METADATA = 1 << 16  # bytes
MAX_COUNT = 1 << 40
MAX_ROWS = 1 << 15  # of features: twice MAX_DIMENSIONS


@dataclass(frozen=True)
class WeightsRecord:
    """The network that made the features.

    Attributes:
        name: as it was named: a checkpoint's name, path or URL.
        source: where the weights came from, in words.
        sha256: `i3d.models.checkpoints.fingerprint`.
        released: name of the released network whose arrays they are, by their hash; else empty.
    """

    name: str
    source: str
    sha256: str
    released: str = ""

    @property
    def words(self) -> str:
        """What a result says of weights that are not its protocol's."""
        for checkpoint in CHECKPOINTS.values():
            if checkpoint.source == self.source:
                return f"weights {checkpoint.folder} of kinetics-i3d"
        return f"unverified weights {self.sha256[:12]}"


@dataclass(frozen=True)
class Record:
    """What saved statistics are of.

    Attributes:
        protocol: all of it, with what was changed.
        weights: the network's.
        precision: its arithmetic's.
        origin: ``files``, ``frames-png`` and others, ``array``, ``array:RANGE``, ``shards-PRESET``.
        found: videos in the set.
        left_out: videos beyond the protocol's number.
        skipped: videos that could not be used; found = used + left_out + skipped.
        damaged: videos among the used ones of which something was lost.
        i3d: version that wrote it.
        arrays_sha256: hash of the other arrays.
        clips: n, where it is not one for each used video.
        sizes: height and width of the frames, each pair once; empty where nobody knows.
    """

    protocol: Protocol
    weights: WeightsRecord
    precision: str
    origin: str
    found: int
    left_out: int
    skipped: int
    damaged: int
    i3d: str
    arrays_sha256: str
    clips: int | None = added()
    sizes: tuple[tuple[int, int], ...] = added()

    @property
    def settings(self) -> dict[str, Any]:
        """What features must have in common to be compared."""
        return {
            **self.protocol.settings,
            "protocol": self.protocol.name,
            "weights": self.weights.sha256,
            "precision": self.precision,
        }


def write_statistics(location: files.Location, record: Record, moments: Moments) -> None:
    """Write a set's statistics, atomically; ``record.arrays_sha256`` is filled in.

    Raises:
        UsageError: the name does not end in ``.npz``.
        I3DError: fewer than two videos.
    """
    check_name(location)
    arrays = {
        "mu": moments.mean,
        "sigma": moments.covariance(unbiased=record.protocol.unbiased),
        "n": np.array(moments.count, np.int64),
    }
    rows = moments.rows
    if rows is not None and len(rows) <= min(MAX_ROWS, max(256, moments.dimensions)):
        arrays["features"] = rows
    data = seal(FORMAT, replace(record, arrays_sha256=_digest(arrays)))
    with files.atomic_file(location) as path, path.open("wb") as f:
        np.savez(f, metadata=np.frombuffer(data, np.uint8), **arrays)  # type: ignore[arg-type]  # savez's own flag


def check_name(location: files.Location) -> None:
    """Refuse early what could not be read again.

    Raises:
        UsageError: the name does not end in ``.npz``.
    """
    if not str(location).endswith(".npz"):
        raise UsageError(f"{location}: statistics are an .npz file; end the name so")


def read_statistics(arrays: Mapping[str, np.ndarray], where: str) -> tuple[Record, Moments]:
    """Read what `write_statistics` wrote, from the file's arrays.

    Raises:
        DatasetError: damaged, edited, or not what this module writes.
    """
    metadata = arrays["metadata"]
    if metadata.dtype != np.uint8 or metadata.ndim != 1 or len(metadata) > MAX_METADATA:
        raise DatasetError(f"{where}: its metadata are not what i3d writes")
    record = read_sealed(FORMAT, Record, metadata.tobytes(), where)
    try:
        find_protocol(record.protocol.name)
    except UsageError as error:
        raise DatasetError(f"{where}: {error}; a newer version may know it") from None
    needed = {"metadata", "mu", "sigma", "n"}
    if set(arrays) - {"features"} != needed:
        raise DatasetError(f"{where}: holds {', '.join(sorted(arrays))}; statistics hold {needed}")
    mu, sigma, n = arrays["mu"], arrays["sigma"], arrays["n"]
    if not (
        all(x.dtype == np.float64 for x in (mu, sigma))
        and mu.ndim == 1
        and len(mu) <= MAX_DIMENSIONS
        and sigma.shape == (len(mu), len(mu))
        and n.shape == ()
        and n.dtype == np.int64
        and 2 <= int(n) <= MAX_COUNT
    ):
        raise DatasetError(f"{where}: mu, sigma and n have shapes or types that do not fit")
    rows = arrays.get("features")
    if rows is not None and not (
        rows.dtype == np.float64 and rows.shape == (int(n), len(mu)) and len(rows) <= MAX_ROWS
    ):
        raise DatasetError(f"{where}: features are {rows.dtype} {rows.shape}, which do not fit n")
    for name, array in (("mu", mu), ("sigma", sigma), ("features", rows)):
        if array is not None and not np.isfinite(array).all():
            raise DatasetError(f"{where}: {name} holds NaN or infinity; save the statistics again")
    if record.arrays_sha256 != _digest({k: v for k, v in arrays.items() if k != "metadata"}):
        raise DatasetError(f"{where} is damaged or was edited: its arrays do not match its seal")
    if rows is not None:
        return record, Moments.from_arrays({"rows": np.array(rows)})
    scatter = np.array(sigma) * (int(n) - record.protocol.unbiased)
    return record, Moments.from_arrays({"count": n, "mean": np.array(mu), "scatter": scatter})


def check_same(one: Record, other: Record, names: tuple[str, str]) -> None:
    """Refuse to compare features that were made in different ways.

    Raises:
        UsageError: names every difference.
    """
    different = differences(one.settings, other.settings, between=" and ")
    if different:
        raise UsageError(
            f"{names[0]} and {names[1]} were not made alike: {'; '.join(different)}. Make both "
            "with the same checkpoint, protocol and options"
        )


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {list(arrays[name].shape)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
