"""Footage of video files, of shards and of an array with all videos."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from i3d import files
from i3d.data.arrays import map_array
from i3d.data.precomputed import Precomputed
from i3d.video import VideoReader


@dataclass(frozen=True)
class FileFootage:
    """Video files: every decoded frame in its order, at the file's own rate and size."""

    keys: tuple[str, ...]
    locations: tuple[str, ...]
    origin = "files"

    @contextmanager
    def open(self, i: int) -> "Iterator[_OpenFile]":
        """Video i; see `Footage.open`."""
        yield _OpenFile(self.locations[i])

    def identify(self, videos: Sequence[int]) -> list[str | None]:
        """By the file of each; see `Footage.identify`."""
        return identify_files([self.locations[i] for i in videos])


class _OpenFile:
    """A video file: each reading decodes it from its beginning."""

    def __init__(self, location: str) -> None:
        self.damage: str | None = None
        self._location = location

    def count_frames(self) -> int:
        with VideoReader(self._location, fps=None, short_side=None) as reader:
            return reader.count_frames()

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        with VideoReader(self._location, fps=None, short_side=None) as reader:
            yield from reader.read_numbers(numbers)
            damage = reader.damage
        self.damage = None if damage is None else damage.removeprefix(f"{self._location}: ")


@dataclass(frozen=True)
class ShardFootage:
    """The frames that precompute stored: 25 a second, resized, JPEG.

    Keys are sorted, since a folder's plan mixes the classes.
    """

    keys: tuple[str, ...]
    dataset: Precomputed

    @property
    def origin(self) -> str:
        """How the frames differ from those of the files."""
        return f"shards-{self.dataset.manifest.preset}"

    @contextmanager
    def open(self, i: int) -> "Iterator[_OpenSample]":
        """Video i; see `Footage.open`."""
        yield _OpenSample(self.dataset, self.keys[i])

    def identify(self, videos: Sequence[int]) -> list[str | None]:
        """By all files of the folder; see `Footage.identify`."""
        folder = self.dataset.folder
        try:
            paths = [files.join(folder, name) for name in sorted(files.names_in(folder))]
        except OSError as error:
            files.blame_storage(folder, error)
            return [None] * len(videos)
        found = identify_files(paths)
        if None in found:
            return [None] * len(videos)
        digest = hashlib.sha256("\n".join(map(str, found)).encode("utf-8", "surrogateescape"))
        return [f"{folder} {digest.hexdigest()}"] * len(videos)


class _OpenSample:
    """A video of a shard: only the JPEGs that are asked for are fetched and decoded."""

    def __init__(self, dataset: Precomputed, key: str) -> None:
        self.damage: str | None = None
        self._dataset, self._key = dataset, key

    def count_frames(self) -> int:
        return self._dataset.read_sample(self._key, streams=("rgb",)).count("rgb")

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        if not numbers:
            return
        first = numbers[0]
        sample = self._dataset.read_sample(
            self._key, streams=("rgb",), start=first, stop=numbers[-1] + 1
        )
        self.damage = sample.info.damage
        for number in numbers:
            if number - first >= sample.count("rgb"):
                return
            yield sample.frames(number - first, number - first + 1)[0]


@dataclass(frozen=True)
class ArrayFootage:
    """Videos uint8 (N, T, H, W, 3) in one array, which is mapped and never read whole.

    Attributes:
        location: the file that the user named.
        path: ``.npy`` file on this machine, of it or unpacked from it.
    """

    location: str
    path: Path
    keys: tuple[str, ...]
    origin = "array"

    @contextmanager
    def open(self, i: int) -> "Iterator[_OpenRow]":
        """Video i; see `Footage.open`."""
        yield _OpenRow(map_array(self.path, self.location)[i])

    def identify(self, videos: Sequence[int]) -> list[str | None]:
        """By the one file; see `Footage.identify`."""
        return identify_files([self.location]) * len(videos)


def identify_files(locations: Sequence[files.Location]) -> list[str | None]:
    """As `i3d.files.identify`.

    Raises:
        StorageError: the server fails.
    """
    try:
        return files.identify(locations)
    except OSError as error:
        files.blame_storage(locations[0], error)
        return [None] * len(locations)


class _OpenRow:
    """A video of an array, of which nothing is lost."""

    damage: str | None = None

    def __init__(self, video: np.ndarray) -> None:
        self._video = video

    def count_frames(self) -> int:
        return len(self._video)

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        return (np.array(self._video[i]) for i in numbers if i < len(self._video))
