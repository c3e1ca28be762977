"""Which shards of a folder are there, and what is done once all are."""

from collections.abc import Iterable, Set
from concurrent.futures import ThreadPoolExecutor

from i3d import files
from i3d.classes import readable
from i3d.data.shards.format import (
    FAILURES_FILE,
    REMEDY,
    Failure,
    ShardIndex,
    sidecar_name,
    tar_name,
)
from i3d.data.shards.manifest import MANIFEST_FILE, Manifest, read_document
from i3d.errors import DatasetError
from i3d.files import Location
from i3d.spreadsheet import write_table

_THREADS = 16  # for small files: a request to S3 takes 20 ms or more


def complete_shards(
    folder: Location, manifest: Manifest, *, shards: Iterable[int] | None = None
) -> list[int]:
    """Which of the shards (default: all) need not be made again, in order.

    A shard is complete when its sidecar is sound and of this manifest, and its tar has the size
    that the sidecar says. The tar's bytes are not read.
    """
    wanted = range(len(manifest.shards)) if shards is None else shards
    return [index.shard for index in _read_complete(folder, manifest, wanted)]


def _read_complete(folder: Location, manifest: Manifest, shards: Iterable[int]) -> list[ShardIndex]:
    """The sidecars of those of the shards that are complete, in order."""
    if not files.exists(folder):
        return []

    def read(shard: int) -> ShardIndex | None:
        try:
            index = read_index(folder, manifest, shard)
            check_size(folder, index)
        except DatasetError:
            return None
        return index

    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(read, find_shards(list_names(folder), shards))
        return [index for index in found if index is not None]


def finish_folder(folder: Location, manifest: Manifest) -> bool:
    """If all shards are complete, write ``failures.csv`` and remove temporary files.

    Every process calls it after its last shard; the last one finds all complete. When two do, both
    write the same bytes. Another run of the same plan may still be writing: it finds the shards
    complete (`i3d.data.shards.writer.write_shard`).

    Returns:
        Whether all shards are complete.
    """
    shards = range(len(manifest.shards))
    indexes = _read_complete(folder, manifest, shards)
    if len(indexes) < len(shards):
        return False
    failures = sorted(failure for index in indexes for failure in index.failures)
    data = write_table(["video", "reason"], ((f.key, f.reason) for f in failures))
    files.write(files.join(folder, FAILURES_FILE), data)
    names = [MANIFEST_FILE, FAILURES_FILE]
    names += [name for i in shards for name in (tar_name(i), sidecar_name(i))]
    files.remove_leftovers(files.join(folder, name) for name in names)
    return True


def list_names(folder: Location) -> set[str]:
    """The names of what is in a folder.

    Raises:
        DatasetError: there is none.
    """
    with readable(str(folder)):
        return set(files.names_in(folder))


def find_shards(names: Set[str], shards: Iterable[int]) -> list[int]:
    """Those of the shards whose tar and sidecar are among the names."""
    return [i for i in shards if names >= {tar_name(i), sidecar_name(i)}]


def read_index(folder: Location, manifest: Manifest, shard: int) -> ShardIndex:
    """The sidecar of a shard.

    Raises:
        DatasetError: missing, damaged, or of another manifest.
    """
    location = files.join(folder, sidecar_name(shard))
    return ShardIndex.from_json(read_document(location), manifest, shard, location)


def shard_failures(folder: Location, manifest: Manifest, shards: Iterable[int]) -> list[Failure]:
    """The videos of complete shards that could not be encoded, by key; reads the sidecars.

    Raises:
        DatasetError: a sidecar is missing, damaged or of another manifest.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        indexes = pool.map(lambda shard: read_index(folder, manifest, shard), shards)
        return sorted(failure for index in indexes for failure in index.failures)


def check_size(folder: Location, index: ShardIndex) -> None:
    """Refuse a tar that has not the size that its sidecar says.

    Raises:
        DatasetError: another size, or no tar.
    """
    location = files.join(folder, tar_name(index.shard))
    with readable(location):
        size = files.size(location)
    if size != index.tar_bytes:
        raise DatasetError(
            f"{location} has {size:,} bytes, but its sidecar says {index.tar_bytes:,}; {REMEDY}"
        )
