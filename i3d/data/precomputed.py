"""Frames and flow that were computed before, whoever did: what all such datasets have in common.

manifest.json and shard-00000.tar ----open_dataset---------+
                                                           +--> Precomputed
the Chainer program's zips -----------open_chainer_folder--+
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from i3d import files
from i3d.classes import ClassList
from i3d.data.chainer import is_chainer_folder, open_chainer_folder
from i3d.data.shards import MANIFEST_FILE, Manifest, Sample, VideoInfo, open_dataset
from i3d.errors import UsageError
from i3d.files import Location
from i3d.presets import Stream


class StoredVideo(Protocol):
    """A video where it lies, of which it reads what it is asked for."""

    @property
    def info(self) -> VideoInfo:
        """What is known of it; a small request."""

    def read(self, start: int = 0, stop: int | None = None) -> Sample:
        """Read and verify its pictures ``start:stop``."""


class Precomputed(Protocol):
    """A folder of videos whose pictures are read one video at a time, in any process.

    Attributes:
        manifest: the videos in their order, classes, preset and streams.
    """

    manifest: Manifest

    @property
    def folder(self) -> Location:
        """Path or URL."""

    @property
    def found(self) -> int:
        """Number of videos in the plan, those that failed included."""

    def failure(self, key: str) -> str | None:
        """Why a video cannot be used, where that is known without its pictures."""

    def find_pictures(self, stream: Stream) -> dict[str, bool]:
        """Key of every readable video -> whether it has pictures of a stream."""

    def find_sample(self, key: str, *, streams: Sequence[Stream] | None = None) -> StoredVideo:
        """Where a video lies."""

    def read_sample(
        self,
        key: str,
        *,
        streams: Sequence[Stream] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Sample:
        """Pictures ``start:stop`` of some streams (default: all) of a video."""


def is_precomputed(folder: Location) -> bool:
    """Whether `open_precomputed` knows what a folder holds."""
    return files.exists(files.join(folder, MANIFEST_FILE)) or is_chainer_folder(folder)


def open_precomputed(
    folder: Location,
    *,
    partial: bool = False,
    classes: Location | ClassList | None = None,
    say: Callable[[str], None] | None = None,
) -> Precomputed:
    """Open a folder of precomputed videos.

    Args:
        folder: path or URL.
        partial: also take a folder in which shards are missing.
        classes: of the Chainer program's folders, which hold labels without names.
        say: takes what the user should know, a line at a time.

    Raises:
        DatasetError: nothing of the kind, damage, or missing shards.
        UsageError: classes of shards that know them, or ``partial`` where it has no meaning.
    """
    if files.exists(files.join(folder, MANIFEST_FILE)) or not is_chainer_folder(folder):
        if classes is not None:
            raise UsageError(f"{folder} holds shards, which know their labels; leave --classes out")
        return open_dataset(folder, partial=partial)
    if partial:
        raise UsageError(f"{folder} holds no {MANIFEST_FILE}; --partial is for shards")
    return open_chainer_folder(folder, classes=classes, say=say)
