"""A set of videos -> the clips of a Fréchet Video Distance, and features that were given.

    footage --numbers of the frames, by the rule for clips--> frames, at their own size
      --as the protocol prepares them--> float32 (T, size, size, 3)

Resizing happens in the workers, so that what travels does not depend on the size of the videos.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from i3d.data.footage.opening import Opened
from i3d.data.footage.source import Footage, OpenVideo
from i3d.data.footage.survey import MAX_VIDEOS
from i3d.errors import DatasetError, UsageError
from i3d.metrics.frechet import MAX_DIMENSIONS
from i3d.tasks.fvd.cutting import cut_every, cut_one, explain_short
from i3d.tasks.fvd.pixels import prepare_frames
from i3d.tasks.fvd.protocols import Protocol

MAX_FEATURE = 1e30  # absolute; its sixth power, in the kernel distance, is finite
FEATURE_ROWS = 4096  # of an array of features, read at a time
PIECE_FRAMES = 128  # of a video of many clips, read at a time: 77 MB at 224 pixels


class Piece(NamedTuple):
    """What a worker reads at a time: a video's one clip, or some of its clips.

    Attributes:
        video: number of the video.
        clips: which of every clip; None: the only one.
        total: number of the video's frames, where it was counted.
    """

    video: int
    clips: range | None = None
    total: int = 0


class Look(NamedTuple):
    """What is to be said of a piece that was read.

    Attributes:
        damage: what was lost of the video, in words; None where nothing was.
        size: height and width of its frames in pixels.
    """

    damage: str | None
    size: tuple[int, int]


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

    @property
    def planned(self) -> int:
        """How many of the videos are looked at: the protocol's number at most."""
        found, most = len(self.keys), self.protocol.videos
        return found if most is None else min(found, most)

    def read(self, piece: Piece) -> tuple[np.ndarray, Look]:
        """A piece's clips: float32 (K, T, size, size, 3) in 0..255, and what is to be said.

        Raises:
            DatasetError, VideoError: the video is at fault.
        """
        protocol = self.protocol
        with self.footage.open(piece.video) as video:
            if piece.clips is None:
                cuts = [cut_one(self.keys[piece.video], video.count_frames, protocol)]
            else:
                every = list(cut_every(piece.total, protocol))
                cuts = [every[i] for i in piece.clips]
            frames, size = _prepare(video, cuts, protocol)
            clips = np.empty((len(cuts), protocol.frames, *frames[cuts[0][0]].shape), np.float32)
            for clip, numbers in zip(clips, cuts, strict=True):
                for place, number in zip(clip, numbers, strict=True):
                    place[...] = frames[number]
            return clips, Look(video.damage, size)


def _prepare(
    video: OpenVideo, cuts: Sequence[Sequence[int]], protocol: Protocol
) -> tuple[dict[int, np.ndarray], tuple[int, int]]:
    """The frames that clips need by their numbers, prepared one by one, and the video's size.

    One by one: at the file's own size a long clip would fill the memory.
    """
    looked_at = {number for numbers in cuts for number in numbers}
    if protocol.short == "refuse":  # strides may have to be whole
        looked_at.add(protocol.frames_needed - 1)
    wanted = sorted(looked_at)
    frames: dict[int, np.ndarray] = {}
    size = (0, 0)
    # the frames first, so that they are read to their end, where damage is told
    for frame, number in zip(video.read(wanted), wanted, strict=False):
        size = frame.shape[0], frame.shape[1]
        frames[number] = prepare_frames(torch.from_numpy(frame)[None], protocol)[0].numpy()
    if len(frames) < len(wanted):
        # the first frame that is missing, but for a stride, is the video's end
        raise DatasetError(explain_short(video.count_frames(), protocol))
    return frames, size


def read_piece(
    i: int, *, clips: ClipSet, pieces: Sequence[Piece]
) -> tuple[dict[str, np.ndarray], Look]:
    """The clips of piece i, as `i3d.parallel.ahead.read_items` wants it."""
    read, look = clips.read(pieces[i])
    return {"clips": read}, look


def count_frames(i: int, *, clips: ClipSet) -> tuple[dict[str, np.ndarray], int]:
    """How many frames video i has, as `read_items` wants it; one too short is at fault."""
    with clips.footage.open(i) as video:
        total = video.count_frames()
    next(cut_every(total, clips.protocol))
    return {}, total


def divide_clips(video: int, total: int, protocol: Protocol) -> list[Piece]:
    """The clips of a video of so many frames in pieces that fit into the memory."""
    step = max(1, PIECE_FRAMES // protocol.frames)
    count = sum(1 for _ in cut_every(total, protocol))
    return [Piece(video, range(i, min(i + step, count)), total) for i in range(0, count, step)]


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
