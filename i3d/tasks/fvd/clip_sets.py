"""Folders, shards and arrays -> the clips and features of a Fréchet Video Distance.

    video file   every decoded frame, at the file's own rate and size --+
    .npy, .npz   uint8 (N, T, H, W, 3) ---------------------------------+--> clip float32
    shards       frames at 25 fps, resized and coded as JPEG -----------+    (T, size, size, 3)

Resizing happens in the workers, so that what travels does not depend on the size of the videos.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from i3d.data.footage.opening import Opened
from i3d.data.footage.source import Footage
from i3d.data.footage.survey import MAX_VIDEOS
from i3d.errors import DatasetError, UsageError, VideoError
from i3d.metrics.frechet import MAX_DIMENSIONS
from i3d.tasks.fvd.pixels import protocol_clip
from i3d.tasks.fvd.protocols import Protocol

MAX_FEATURE = 1e30  # absolute; its sixth power, in the kernel distance, is finite
FEATURE_ROWS = 4096  # of an array of features, read at a time


@dataclass(frozen=True)
class ClipSet:
    """A set of videos, each cut as a protocol says."""

    footage: Footage
    protocol: Protocol

    @property
    def keys(self) -> tuple[str, ...]:
        """Every video's key."""
        return self.footage.keys

    @property
    def origin(self) -> str:
        """What the videos are."""
        return self.footage.origin


def read_clip(i: int, *, clips: ClipSet) -> tuple[dict[str, np.ndarray], str | None]:
    """Clip i, float32 (T, size, size, 3) in 0..255, and what was lost of the video.

    As `i3d.parallel.ahead.read_items` wants it.
    """
    protocol = clips.protocol
    numbers = range(0, protocol.frames_needed, protocol.stride)
    with clips.footage.open(i) as video:
        # One by one: at the file's own size a long clip would fill the memory.
        frames = [protocol_clip(frame[None], protocol)[0] for frame in video.read(numbers)]
        damage = video.damage
    if len(frames) < protocol.frames:
        raise VideoError(
            f"{len(frames)} frames at stride {protocol.stride}; {protocol.frames} are needed"
        )
    return {"clip": np.stack(frames)}, damage


# --- features that were given ---------------------------------------------------------------------


def is_statistics(opened: Opened) -> bool:
    """Whether --save-statistics wrote it."""
    return opened.arrays is not None and "metadata" in opened.arrays.arrays


def given_features(opened: Opened) -> np.ndarray | None:
    """An array of features, float (N, D), mapped; None where there are videos or statistics.

    Raises:
        UsageError: an array of two axes that cannot be features.
    """
    if opened.arrays is None or is_statistics(opened):
        return None
    name, array = opened.arrays.only()
    if not np.issubdtype(array.dtype, np.floating) or not (
        1 <= array.shape[1] <= MAX_DIMENSIONS and len(array) <= MAX_VIDEOS
    ):
        raise UsageError(
            f"{opened.where}: {name} is {array.dtype} {array.shape}; features are float (N, D)"
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
