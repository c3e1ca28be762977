"""All videos' features in one Parquet or HDF5 file, made from a finished folder."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from i3d import files
from i3d.data.shards import Failure
from i3d.errors import DatasetError, UsageError
from i3d.presets import STREAMS, Stream
from i3d.records import plain
from i3d.tasks.features.files import (
    BLOCK_BYTES,
    KIND,
    FeatureFolder,
    FeatureSettings,
    Outcomes,
    block_rows,
    parse_document,
    refuse_other_features,
    take,
)
from i3d.tasks.features.options import MERGED


def output_format(output: files.Location, wanted: str) -> tuple[str, str]:
    """(format, format of the videos' files) of an output.

    Raises:
        UsageError: the format and the suffix contradict, or a library is missing.
    """
    text = os.fspath(output)
    suffix = text[text.rfind(".") :] if "." in text.rpartition("/")[2] else ""
    merged = MERGED.get(suffix)
    if merged is None:
        if wanted in MERGED.values():
            endings = " or ".join(s for s, f in MERGED.items() if f == wanted)
            raise UsageError(f"{text}: --format {wanted} makes one file; let it end in {endings}")
        return wanted or "npz", wanted or "npz"
    if wanted not in ("", merged):
        raise UsageError(f"{text} is one {merged} file; --format {wanted} needs a folder")
    _library(merged)
    return merged, "npz"


def _library(merged: str) -> Any:
    try:
        if merged == "parquet":
            import pyarrow.parquet

            return pyarrow
        import h5py

        return h5py
    except ImportError as error:
        package = {"parquet": "pyarrow", "hdf5": "h5py"}[merged]
        raise UsageError(
            f"{merged} needs {package}: pip install {package}, or name a folder"
        ) from error


def merge(folder: FeatureFolder, outcomes: Outcomes, output: files.Location, merged: str) -> None:
    """Write one file from a finished folder, in which some video has features.

    Raises:
        DatasetError: a video's file is damaged; the message names it.
        FileNotFoundError: one is gone: another run has merged them, or somebody has removed it.
    """
    for i in outcomes.done:
        folder.check(i)
    write = {"parquet": _write_parquet, "hdf5": _write_hdf5}[merged]
    failures = sorted(outcomes.failures.items())
    skipped = [Failure(folder.keys[i], reason) for i, reason in failures]
    files.write_by(output, partial(write, folder=folder, done=outcomes.done, skipped=skipped))


def _merged_about(
    folder: FeatureFolder, done: Sequence[int], skipped: Sequence[Failure]
) -> dict[str, Any]:
    looped, damaged = [], []
    for i in done:
        with folder.open(i) as video:
            if video.about.looped:
                looped.append(folder.keys[i])
            if video.about.damage is not None:
                damaged.append({"video": folder.keys[i], "damage": video.about.damage})
    with folder.open(done[0]) as video:
        shapes = {stream: list(video.shape(stream))[1:] for stream in _streams(folder)}
    return {
        "format": KIND,
        **plain(folder.settings),
        "row_shapes": shapes,
        "found": len(folder.keys),
        "skipped": [{"video": failure.key, "reason": failure.reason} for failure in skipped],
        "looped": looped,
        "damaged": damaged,
    }


def _streams(folder: FeatureFolder) -> list[Stream]:
    return [stream for stream in STREAMS if stream in folder.settings.checkpoints]


def _write_parquet(
    path: Path, folder: FeatureFolder, done: Sequence[int], skipped: Sequence[Failure]
) -> None:
    """One row a row: video, start_seconds, end_seconds, and a list of floats a stream."""
    pa = _library("parquet")
    about = _merged_about(folder, done, skipped)
    streams = _streams(folder)
    sizes = {s: int(np.prod(about["row_shapes"][s], dtype=np.int64)) for s in streams}
    columns = [("video", pa.string()), ("start_seconds", pa.float64())]
    columns += [("end_seconds", pa.float64())]
    columns += [(s, pa.list_(pa.float32(), sizes[s])) for s in streams]
    schema = pa.schema(
        columns, metadata={"i3d": json.dumps(about, allow_nan=False).encode("ascii")}
    )
    waiting: list[Any] = []
    with pa.parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting.clear()

        for i in done:
            with folder.open(i) as video:
                start = 0
                size = min(block_rows(about["row_shapes"][s]) for s in streams)
                for blocks in zip(*(video.blocks(s, rows=size) for s in streams), strict=True):
                    end = start + len(blocks[0])
                    arrays = [
                        pa.array([folder.keys[i]] * (end - start)),
                        pa.array(video.start_seconds[start:end]),
                        pa.array(video.end_seconds[start:end]),
                        *(
                            pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), sizes[s])
                            for s, block in zip(streams, blocks, strict=True)
                        ),
                    ]
                    waiting.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
                    start = end
                    if sum(batch.nbytes for batch in waiting) > BLOCK_BYTES:
                        flush()
        flush()


def _write_hdf5(
    path: Path, folder: FeatureFolder, done: Sequence[int], skipped: Sequence[Failure]
) -> None:
    """videos/KEY/rgb, flow, start_seconds, end_seconds; ``/`` in a key is ``%2F``; about beside."""
    h5py = _library("hdf5")
    about = _merged_about(folder, done, skipped)
    with files.open_for_library(path) as target, h5py.File(target, "w") as file:
        # of fixed length: damage to where HDF5 keeps others makes its library run for ever
        file["about"] = np.bytes_(json.dumps(about, allow_nan=False))
        videos = file.create_group("videos")
        for i in done:
            with folder.open(i) as video:
                # No key has a literal %2F of its own: a percent sign in a name is %25 there.
                group = videos.create_group(folder.keys[i].replace("/", "%2F"))
                group["start_seconds"] = video.start_seconds
                group["end_seconds"] = video.end_seconds
                for stream in _streams(folder):
                    stored = group.create_dataset(stream, video.shape(stream), "<f4")
                    start = 0
                    for block in video.blocks(stream, rows=block_rows(stored.shape[1:])):
                        stored[start : start + len(block)] = block
                        start += len(block)


@dataclass(frozen=True)
class _Skipped:
    """A video without features, as it stands in a merged file."""

    video: str
    reason: str


@dataclass(frozen=True)
class _Outcome:
    """What a merged file says of the job."""

    found: int
    skipped: tuple[_Skipped, ...]


def read_merged(
    location: str, settings: FeatureSettings
) -> tuple[int, tuple[tuple[str, str], ...]]:
    """What a finished file says of itself: videos found, and (video, reason) of the skipped ones.

    Raises:
        DatasetError: not a file of ours.
        UsageError: it is of other settings.
    """
    about = _read_about(location)
    refuse_other_features(location, about, settings)
    outcome = take(_Outcome, about, location)
    return outcome.found, tuple((skipped.video, skipped.reason) for skipped in outcome.skipped)


def _read_about(text: str) -> dict[str, Any]:
    """What stands beside the rows in a Parquet or HDF5 file."""
    merged = next(kind for suffix, kind in MERGED.items() if text.endswith(suffix))
    library = _library(merged)
    data: bytes | str
    try:
        with files.open_read(text) as file:
            if merged == "parquet":
                data = (library.parquet.read_schema(file).metadata or {}).get(b"i3d", b"")
            else:
                with library.File(file, "r") as stored:
                    about = stored["about"]
                    # looked at before anything of it is read
                    if not isinstance(about, library.Dataset) or about.shape != ():
                        raise ValueError("its about is no text")
                    if about.dtype.kind != "S" or about.nbytes > files.size(text):
                        raise ValueError(f"its about is {about.dtype}, no text of fixed length")
                    data = bytes(about[()])
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        files.blame_storage(text, error)
        reason = files.explain(error)
        raise DatasetError(f"{text}: not a feature file ({reason}); name another output") from error
    return parse_document(data, KIND, text)
