"""What every kind of footage can do: say which videos there are, and give frames by their numbers.

    footage.open(i) -> one video: read([0, 1, 2, ...]) -> frame, frame, frame, ...

No frame is resampled in time or resized here: what is read is what was stored.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np


class OpenVideo(Protocol):
    """One video while it is read.

    Attributes:
        damage: what was lost of the part that was read, in words without the video's name; None
            where nothing was.
    """

    damage: str | None

    def count_frames(self) -> int:
        """Number of frames; a video file is decoded for it, to its end.

        Raises:
            DatasetError, VideoError: the video is at fault.
        """

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames by their numbers, one by one; fewer where the video ends before.

        Args:
            numbers: of the frames, from 0, none smaller than the one before.

        Returns:
            uint8 (H, W, 3) RGB, or float32 (H, W, 3) in 0..255 where floats are stored; the size
            may differ from video to video.

        Raises:
            DatasetError, VideoError: the video is at fault.
        """


class Footage(Protocol):
    """A set of videos that can be read in any process (it is picklable).

    Attributes:
        keys: unique name of every video, sorted or in the order of an array.
        origin: kind of the set, for a result's line: ``files``, ``frames-png``, ``array-0..1``, ...
    """

    @property
    def keys(self) -> tuple[str, ...]:
        """See above."""

    @property
    def origin(self) -> str:
        """See above."""

    def open(self, i: int) -> AbstractContextManager[OpenVideo]:
        """Video i.

        Raises:
            DatasetError, VideoError: it cannot be opened.
        """

    def identify(self, videos: Sequence[int]) -> list[str | None]:
        """What tells the content of each of these videos from another that took its place.

        By their files, and without decoding them. None where nothing does: what was computed of
        such a video is not kept.

        Raises:
            StorageError: the server fails.
        """
