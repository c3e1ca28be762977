"""Folders, shards and arrays -> the clips and features of a Fréchet Video Distance.

    video file   every decoded frame, at the file's own rate and size --+
    .npy, .npz   uint8 (N, T, H, W, 3) ---------------------------------+--> clip float32
    shards       frames at 25 fps, resized and coded as JPEG -----------+    (T, size, size, 3)

Resizing happens in the workers, so that what travels does not depend on the size of the videos.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from i3d.data.arrays import map_array
from i3d.data.precomputed import Precomputed
from i3d.data.videos import Contents
from i3d.errors import DatasetError, UsageError, VideoError
from i3d.metrics.frechet import MAX_DIMENSIONS
from i3d.tasks.fvd.pixels import check_videos, protocol_clip, protocol_frames
from i3d.tasks.fvd.protocols import Protocol
from i3d.video import VideoReader

MAX_VIDEOS = 1 << 24
MAX_FEATURE = 1e30  # absolute; its sixth power, in the kernel distance, is finite
FEATURE_ROWS = 4096  # of an array of features, read at a time


@dataclass(frozen=True)
class FileClips:
    """Video files, every decoded frame in its order: no protocol resamples time."""

    keys: tuple[str, ...]
    locations: tuple[str, ...]
    protocol: Protocol
    origin = "files"

    def clip(self, i: int) -> tuple[np.ndarray, str | None]:
        """Decode video i, no further than it is needed; and what was lost of it."""
        protocol, where = self.protocol, self.locations[i]
        with VideoReader(where, fps=None, short_side=None) as reader:
            needed = islice(reader, 0, protocol.frames_needed, protocol.stride)
            # One by one: at the file's own size a long clip would fill the memory.
            frames = [protocol_clip(frame[None], protocol)[0] for frame in needed]
            damage = reader.damage
        if len(frames) < protocol.frames:
            raise VideoError(
                f"{len(frames)} frames at stride {protocol.stride}; {protocol.frames} are needed"
            )
        return np.stack(frames), None if damage is None else damage.removeprefix(f"{where}: ")


@dataclass(frozen=True)
class ShardedClips:
    """The frames that precompute stored; keys are sorted, since the plan mixes the classes."""

    keys: tuple[str, ...]
    dataset: Precomputed
    protocol: Protocol

    @property
    def origin(self) -> str:
        """How the frames differ from those of the files."""
        return f"shards-{self.dataset.manifest.preset}"

    def clip(self, i: int) -> tuple[np.ndarray, str | None]:
        """Decode the JPEGs of video i that are needed; and what was lost when they were made."""
        sample = self.dataset.read_sample(
            self.keys[i], streams=("rgb",), stop=self.protocol.frames_needed
        )
        clip = protocol_clip(protocol_frames(sample.frames(), self.protocol), self.protocol)
        return clip, sample.info.damage


@dataclass(frozen=True)
class ArrayClips:
    """Videos in a ``.npy`` file, which is mapped and never read whole."""

    path: Path
    keys: tuple[str, ...]
    protocol: Protocol
    origin = "array"

    def clip(self, i: int) -> tuple[np.ndarray, str | None]:
        """Read video i, of which nothing is lost."""
        video = map_array(self.path, str(self.path))[i]
        clip = protocol_clip(np.asarray(protocol_frames(video, self.protocol)), self.protocol)
        return clip, None


ClipSet = FileClips | ShardedClips | ArrayClips


def read_clip(i: int, *, clips: ClipSet) -> tuple[dict[str, np.ndarray], str | None]:
    """Clip i, float32 (T, size, size, 3) in 0..255, and what was lost of the video.

    As `i3d.parallel.ahead.read_items` wants it.
    """
    clip, damage = clips.clip(i)
    return {"clip": clip}, damage


def open_clip_set(contents: Contents, protocol: Protocol) -> ClipSet:
    """The videos of a location, each cut as the protocol says.

    Raises:
        UsageError: an array of another type or shape.
    """
    if contents.arrays is not None:
        name, array = contents.arrays.only()
        check_videos(array, f"{contents.where}: {name}")
        if len(array) > MAX_VIDEOS:
            raise UsageError(f"{contents.where}: {len(array)} videos are too many")
        keys = tuple(f"[{i}]" for i in range(len(array)))
        return ArrayClips(contents.arrays.paths[name], keys, protocol)
    if contents.shards is not None:
        keys = tuple(sorted(sample.key for sample in contents.shards.manifest.samples()))
        return ShardedClips(keys, contents.shards, protocol)
    if contents.single:
        raise UsageError(f"{contents.videos[0].location} is one video; give a folder of them")
    keys = tuple(video.key for video in contents.videos)
    return FileClips(keys, tuple(video.location for video in contents.videos), protocol)


# --- features that were given ---------------------------------------------------------------------


def is_statistics(contents: Contents) -> bool:
    """Whether --save-statistics wrote it."""
    return contents.arrays is not None and "metadata" in contents.arrays.arrays


def given_features(contents: Contents) -> np.ndarray | None:
    """An array of features, float (N, D), mapped; None where there are videos or statistics.

    Raises:
        UsageError: an array of two axes that cannot be features.
    """
    if contents.arrays is None or is_statistics(contents):
        return None
    name, array = contents.arrays.only()
    if array.ndim != 2:
        return None
    if not np.issubdtype(array.dtype, np.floating) or not (
        1 <= array.shape[1] <= MAX_DIMENSIONS and len(array) <= MAX_VIDEOS
    ):
        raise UsageError(
            f"{contents.where}: {name} is {array.dtype} {array.shape}; features are float (N, D)"
        )
    return array


def feature_batches(features: np.ndarray, where: str) -> Iterator[np.ndarray]:
    """Some rows at a time, float64 (n, D).

    Raises:
        DatasetError: names ``where`` and the first value that is not finite, or too large.
    """
    for start in range(0, len(features), FEATURE_ROWS):
        with np.errstate(over="ignore"):  # said below
            rows = np.asarray(features[start : start + FEATURE_ROWS]).astype(np.float64)
        if (bad := ~(np.abs(rows) <= MAX_FEATURE)).any():
            row, column = np.argwhere(bad)[0]
            raise DatasetError(
                f"{where}: row {start + row}, column {column} is {rows[row, column]}; no distance "
                "can be told from it: leave the row out, or compute it again in fp32"
            )
        yield rows
