"""Footage of arrays: one with all videos, or a file for each."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from i3d.data.footage.layouts import (
    check_frames,
    check_values,
    find_layout,
    frames_first,
    make_frame,
)
from i3d.data.footage.options import Layout, ValueRange
from i3d.data.footage.tensors import StoredArray, choose_array, open_array_file
from i3d.data.footage.videos import identify_files, join_identities


def name_origin(kind: str, value_range: ValueRange | None) -> str:
    """What a set of arrays is called: ``array``, or with the range of its floats."""
    return "array" if kind == "uint8" else f"array:{value_range}"


@dataclass(frozen=True)
class ArrayFootage:
    """An array with all videos, which is mapped and never read whole.

    Attributes:
        keys: ``[0]``, ``[1]``, ...
        location: the file that the user named.
        array: (N, ...).
        layout: axes of a video.
        value_range: of floats.
    """

    keys: tuple[str, ...]
    location: str
    array: StoredArray
    layout: str
    value_range: ValueRange | None

    @property
    def origin(self) -> str:
        """See `name_origin`."""
        return name_origin(self.array.kind, self.value_range)

    @contextmanager
    def open(self, i: int) -> "Iterator[_OpenArray]":
        """Video i; see `Footage.open`."""
        yield _OpenArray(self.array, self.array.map()[i], self.layout, self.value_range)

    def identify(self, videos: Sequence[int]) -> list[str | None]:
        """By each video's bytes: what is written through a map moves no time of the file."""
        found = identify_files([self.location])
        array = self.array.map()
        return [
            join_identities([*found, _digest(self.array, array[i])], self.layout, self.value_range)
            for i in videos
        ]


@dataclass(frozen=True)
class ArrayFilesFootage:
    """Files of one array a video, each of which is mapped while it is read.

    Attributes:
        keys: see `i3d.data.footage.source.Footage`.
        locations: paths or URLs.
        layout: axes of a video where its shape leaves a choice; None: that is the video's error.
        value_range: of floats; None: they are the video's error.
        origin: ``array``, or with the range of floats.
    """

    keys: tuple[str, ...]
    locations: tuple[str, ...]
    layout: Layout | None
    value_range: ValueRange | None
    origin: str

    @contextmanager
    def open(self, i: int) -> "Iterator[_OpenArray]":
        """Video i; see `Footage.open`."""
        where = self.locations[i]
        with open_array_file(where) as arrays:
            array = choose_array(arrays, where)
            what = f"{where}: {array}"
            layout = find_layout(array.shape, self.layout, many=False, what=what)
            check_values(array, self.value_range, what=what)
            check_frames(array.shape, layout, what=what)
            yield _OpenArray(array, array.map(), layout, self.value_range)

    def identify(self, videos: Sequence[int]) -> list[str | None]:
        """By the file of each; see `Footage.identify`."""
        found = identify_files([self.locations[i] for i in videos])
        return [join_identities([x], self.layout, self.value_range) for x in found]


def _digest(array: StoredArray, video: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for part in video:  # some at a time: a video may be larger than the memory
        digest.update(np.ascontiguousarray(array.values(part)).data)
    return digest.hexdigest()


class _OpenArray:
    """A video of an array, of which nothing is lost; only the wanted frames are read."""

    damage: str | None = None

    def __init__(
        self,
        array: StoredArray,
        video: np.ndarray,
        layout: str,
        value_range: ValueRange | None,
    ) -> None:
        self._frames = frames_first(video, layout)  # (T, H, W, C)
        self._array, self._range = array, value_range

    def count_frames(self) -> int:
        """See `OpenVideo.count_frames`."""
        return len(self._frames)

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """See `OpenVideo.read`."""
        for number in numbers:
            if number >= len(self._frames):
                return
            values = self._array.values(self._frames[number])
            yield make_frame(values, self._range, number)
