"""Footage of video files and of shards."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from i3d import files
from i3d.data.precomputed import Precomputed
from i3d.video import Source, VideoReader


@dataclass(frozen=True)
class FileFootage:
    """Video files: every decoded frame in its order, at the file's own rate and size."""

    keys: tuple[str, ...]
    locations: tuple[str, ...]
    origin = "files"

    @contextmanager
    def open(self, i: int) -> "Iterator[OpenVideoFile]":
        """Video i; see `Footage.open`."""
        yield OpenVideoFile(self.locations[i])

    def identify(self, videos: Sequence[int]) -> list[str | None]:
        """By the file of each; see `Footage.identify`."""
        return identify_files([self.locations[i] for i in videos])


class OpenVideoFile:
    """A video file: each reading decodes it from its beginning.

    Args:
        source: path, URL, or a binary file.
    """

    def __init__(self, source: Source) -> None:
        self.damage: str | None = None
        self._source = source

    def count_frames(self) -> int:
        """See `OpenVideo.count_frames`."""
        with VideoReader(self._source, fps=None, short_side=None) as reader:
            return reader.count_frames()

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """See `OpenVideo.read`."""
        with VideoReader(self._source, fps=None, short_side=None) as reader:
            yield from reader.read_numbers(numbers)
            damage = reader.damage
            self.damage = None if damage is None else damage.removeprefix(f"{reader.name}: ")


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
        return [join_identities(identify_files(paths), folder)] * len(videos)


class _OpenSample:
    """A video of a shard: only the JPEGs that are asked for are fetched and decoded."""

    def __init__(self, dataset: Precomputed, key: str) -> None:
        self.damage: str | None = None
        self._dataset, self._key = dataset, key

    def count_frames(self) -> int:
        """See `OpenVideo.count_frames`."""
        return self._dataset.read_sample(self._key, streams=("rgb",)).count("rgb")

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """See `OpenVideo.read`."""
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


def identify_files(locations: Sequence[files.Location]) -> list[str | None]:
    """As `i3d.files.identify`.

    Raises:
        StorageError: the server fails.
    """
    try:
        return files.identify(locations)
    except OSError as error:
        files.blame_storage(error.filename or locations[0], error)
        return [None] * len(locations)


def join_identities(found: Sequence[str | None], *words: object) -> str | None:
    """What tells several files, understood in some way, from others; None where one has none."""
    if None in found:
        return None
    text = "\n".join(map(str, (*found, *words)))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
