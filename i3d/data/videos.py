"""Which videos a job works on: one way to name them, and one to open what is there.

    folder, list or CSV of videos --read_dataset--+
    folder of shards ------------open_precomputed-+--> Contents
    .npy or .npz ------------------open_arrays----+

This module is imported by the command line: what is heavy is imported where it is used.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from i3d import files
from i3d.errors import DatasetError, UsageError
from i3d.presets import STREAMS, Stream
from i3d.settings import option

if TYPE_CHECKING:
    from i3d.classes import ClassList
    from i3d.data.arrays import Arrays
    from i3d.data.kinetics import Dataset, Video
    from i3d.data.precomputed import Precomputed

HEADING = "Videos"


@dataclass(frozen=True)
class VideoSet:
    """Where videos are and, for a folder of them, what they are.

    Attributes:
        location: folder of videos or shards, list file or CSV, or array; path or URL.
        classes: ``kinetics400``, ``kinetics600``, ``folders`` or a file of names; also of the
            Chainer program's folders, which hold numbers alone.
        annotations: CSV of a flat folder of videos.
        layout: how the dataset lies on disk, where it is not to be found out.
        split: part of a dataset that has several.
        trim: cut untrimmed videos by the CSV's times.
        partial: take shards of which some are missing.
    """

    location: files.Location
    classes: str | None = option(
        None,
        "Labels of a folder of videos, or of the Chainer program's zips: kinetics400, kinetics600, "
        "folders (the sorted folder names) or a file.",
        metavar="LIST",
    )
    annotations: files.Location | None = option(
        None, "Annotations of a flat folder of videos.", metavar="CSV", heading=HEADING
    )
    layout: Literal["folders", "cvdf", "list", "flat"] | None = option(
        None, "How the videos lie on disk.", default_is="found out", heading=HEADING
    )
    split: str | None = option(
        None, "Part of a dataset that has several: train, val or test.", heading=HEADING
    )
    trim: bool = option(False, "Cut untrimmed videos by the CSV's times.", heading=HEADING)
    partial: bool = option(False, "Take shards of which some are missing.", heading=HEADING)

    @classmethod
    def of(cls, videos: files.Location | VideoSet) -> VideoSet:
        """A set from a path or URL, or the set itself."""
        return videos if isinstance(videos, VideoSet) else cls(videos)


@dataclass(frozen=True)
class Contents:
    """What a location holds; exactly one of dataset, shards and arrays is there.

    Attributes:
        where: path or URL, for messages.
        name: the folder's, for results: no path.
        dataset: video files with their labels.
        shards: what precompute made of videos.
        arrays: videos or features, mapped.
        single: whether the dataset is one video that was named itself.
    """

    where: str
    name: str
    dataset: Dataset | None = None
    shards: Precomputed | None = None
    arrays: Arrays | None = None
    single: bool = False

    @property
    def videos(self) -> tuple[Video, ...]:
        """The video files, sorted by key.

        Raises:
            UsageError: there are none, but shards or arrays.
        """
        if self.dataset is None:
            what = "shards" if self.shards is not None else "arrays"
            raise UsageError(f"{self.where} holds {what}; this takes a dataset of videos")
        return self.dataset.videos

    @property
    def classes(self) -> ClassList | None:
        """The class list that labels refer to; None without labels."""
        if self.shards is not None:
            return self.shards.manifest.classes
        return None if self.dataset is None else self.dataset.classes

    @property
    def preset(self) -> str | None:
        """The shards' preprocessing; None for what takes the network's."""
        return None if self.shards is None else self.shards.manifest.preset

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What can be read: RGB, and flow where it was or can be computed."""
        return STREAMS if self.shards is None else self.shards.manifest.streams

    @property
    def versions(self) -> Mapping[str, str]:
        """Software that made the shards."""
        if self.shards is None:
            return {}
        return {f"shards: {name}": v for name, v in self.shards.manifest.versions.items()}

    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of the labels.

        Raises:
            DatasetError: there are no labels.
        """
        if self.classes is None:
            raise DatasetError(f"{self.where}: its videos have no labels, so there is no accuracy")
        return self.classes.names

    def require(self, streams: Sequence[Stream]) -> None:
        """Refuse streams that precompute left out.

        Raises:
            UsageError: names the first one.
        """
        for stream in streams:
            if stream not in self.streams:
                raise UsageError(
                    f"{self.where} was made without {stream}; leave that checkpoint out, or run "
                    "precompute without --no-flow"
                )


@contextmanager
def open_videos(
    videos: files.Location | VideoSet,
    *,
    labels: Literal["required", "optional"],
    say: Callable[[str], None] | None = None,
) -> Iterator[Contents]:
    """Look at what a location holds; arrays are unpacked for as long.

    Args:
        videos: where, and what they are.
        labels: whether every video must have one.
        say: shows a line to the user: what was understood; None: warnings become Python's.

    Raises:
        DatasetError: nothing there, or nothing that can be understood.
        UsageError: settings that do not fit what is there.
    """
    videos = VideoSet.of(videos)
    where = os.fspath(videos.location).rstrip("/")
    name = where.rpartition("/")[2] or "videos"
    if where.lower().endswith((".npy", ".npz")):
        from i3d.data.arrays import open_arrays

        _refuse_settings(videos, f"{where} holds arrays")
        with open_arrays(where) as arrays:
            yield Contents(where, name, arrays=arrays)
        return
    from i3d.data.precomputed import is_precomputed, open_precomputed

    if is_precomputed(where):
        _refuse_settings(replace(videos, classes=None), f"{where} holds shards")
        shards = open_precomputed(
            where, partial=videos.partial, classes=videos.classes, say=say or warnings.warn
        )
        yield Contents(where, shards.manifest.dataset, shards=shards)
        return
    if videos.partial:
        raise UsageError(f"{where} holds no manifest.json; --partial is for shards")
    dataset = _read_file(where) if labels == "optional" else None
    if dataset is None:
        dataset = _read(videos, labels, say)
        yield Contents(where, name, dataset=dataset)
    else:
        yield Contents(where.rpartition("/")[0], name, dataset=dataset, single=True)


def _refuse_settings(videos: VideoSet, what: str) -> None:
    """Refuse settings of a folder of videos where there is none."""
    if replace(videos, partial=False) != VideoSet(videos.location):
        raise UsageError(
            f"{what}; classes, annotations, layout, split and trim are for a folder of videos"
        )


def _read_file(where: str) -> Dataset | None:
    """A single video as a dataset; None for anything else."""
    from i3d.data.kinetics import VIDEO_SUFFIXES, Dataset, Video

    stem, dot, suffix = where.rpartition("/")[2].rpartition(".")
    if not dot or f".{suffix.lower()}" not in VIDEO_SUFFIXES or files.is_dir(where):
        return None
    # as the keys of a folder's videos are made
    key = quote(stem, safe=" _-~'()", errors="surrogateescape").replace(".", "%2E")
    return Dataset((Video(key, where),), None, "flat", (), where, ())


def _read(
    videos: VideoSet,
    labels: Literal["required", "optional"],
    say: Callable[[str], None] | None,
) -> Dataset:
    from i3d.data.kinetics import read_dataset

    dataset = read_dataset(
        videos.location,
        classes=videos.classes,
        annotations=videos.annotations,
        layout=videos.layout,
        split=videos.split,
        trim=videos.trim,
        # Videos without any labels are a dataset for features, where it is asked for.
        labels="optional" if videos.layout == "flat" else labels,
    )
    if say is not None:
        say(dataset.description)
    for warning in dataset.warnings:
        if say is None:
            warnings.warn(warning, stacklevel=5)
        else:
            say(f"warning: {warning}")
    return dataset
