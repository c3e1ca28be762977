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
from i3d.data.shards.manifest import Manifest, read_document
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
    if not files.exists(folder):
        return []
    there = find_shards(list_names(folder), wanted)

    def is_complete(shard: int) -> bool:
        try:
            index = read_index(folder, manifest, shard)
            check_size(folder, index)
        except DatasetError:
            return False
        return True

    with ThreadPoolExecutor(_THREADS) as pool:
        complete = pool.map(is_complete, there)
        return [shard for shard, yes in zip(there, complete, strict=True) if yes]


def finish_folder(folder: Location, manifest: Manifest) -> bool:
    """If all shards are there, write ``failures.csv`` and remove what killed writers left behind.

    Every process calls it after its last shard; the last one finds all sidecars. When two do, both
    write the same bytes.

    Returns:
        Whether all shards are there.

    Raises:
        DatasetError: a sidecar is damaged or of another manifest.
    """
    names = list_names(folder)
    shards = range(len(manifest.shards))
    if not names >= {sidecar_name(i) for i in shards}:
        return False
    failures = sorted(shard_failures(folder, manifest, shards))
    data = write_table(["video", "reason"], ((f.key, f.reason) for f in failures))
    files.write(files.join(folder, FAILURES_FILE), data)
    mine = {"manifest", *(f"shard-{i:05d}" for i in shards)}
    for name in names:
        if files.temporary_stem(name) in mine:
            files.remove(files.join(folder, name))
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
