"""The labels of a dataset -> classes, and what the readers of all layouts have in common."""

from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

from i3d.classes import ClassList, class_list, detect
from i3d.data.kinetics.dataset import Dataset, Layout, Video
from i3d.data.kinetics.listing import REPLACEMENT, Folder
from i3d.errors import DatasetError, UsageError
from i3d.files import Location


class Inputs(NamedTuple):
    """What `read_dataset` gives to the reader of a layout.

    Attributes:
        folder: where the videos are.
        layout: how they lie there.
        classes: the list that the user asked for, see `read_dataset`.
        labels_required: whether a video without a label is an error.
        table: location of the CSV or list file; empty where there is none.
        lines: its lines.
    """

    folder: Folder
    layout: Layout
    classes: Location | ClassList | None
    labels_required: bool
    table: str
    lines: list[str]


class Labeller:
    """The class list of a dataset, and the class of every label in it.

    Args:
        inputs: says which list was asked for.
        places: every label of the dataset, and where it was seen.
        also: more names by which to recognise the list.

    Raises:
        DatasetError: no single list has all the labels.
    """

    def __init__(
        self, inputs: Inputs, places: Mapping[str, str], *, also: Collection[str] = ()
    ) -> None:
        if inputs.classes == "folders":
            raise UsageError(f"--classes folders needs class folders; this is a {inputs.layout}")
        self.warnings: list[str] = []
        self.classes: ClassList | None = None
        self._indices: dict[str, int] = {}
        if inputs.classes is not None:
            self.classes = class_list(inputs.classes)
        elif places or inputs.labels_required:
            try:
                self.classes = detect({*places, *also})
            except DatasetError as e:
                if inputs.labels_required:
                    raise DatasetError(f"{inputs.table or inputs.folder.location}: {e}") from e
                self.warnings.append(f"labels are ignored: {e}")
        if self.classes is None:
            return
        for label, place in places.items():
            try:
                self._indices[label] = self.classes.index(label)
            except DatasetError as e:
                raise DatasetError(f"{place}: {e}") from e

    def __call__(self, label: str | int | None) -> tuple[str | None, int | None]:
        """Class name and index; both None for a video without a label."""
        if self.classes is None or label is None:
            return None, None
        index = label if isinstance(label, int) else self._indices[label]
        return self.classes.names[index], index


def assemble(
    inputs: Inputs,
    videos: Iterable[Video],
    labeller: Labeller,
    *,
    understood: str,
    replaced: int = 0,
    missing: Iterable[tuple[str, str]] = (),
    warnings: Iterable[str] = (),
) -> Dataset:
    """The dataset, in the order of its keys and described for people.

    Args:
        inputs: what was read.
        videos: what has a file, in any order.
        labeller: what gave them their classes.
        understood: how many there are and where, in words.
        replaced: number of videos that CVDF's good copies stand in for.
        missing: (key, reason) of every clip without a usable file.
        warnings: what the user should know, after the labeller's.

    Raises:
        DatasetError: two videos have the same key.
    """
    ordered = sorted(videos, key=lambda video: video.key)
    for one, other in pairwise(ordered):
        if one.key == other.key:
            raise DatasetError(f"{one.location} and {other.location} have the same key {one.key}")
    labelled = sum(video.index is not None for video in ordered)
    classes = labeller.classes if labelled else None
    parts = [f"{inputs.layout}: {understood}"]
    if replaced:
        parts.append(f"{replaced} taken from {REPLACEMENT}")
    parts.append("no labels" if classes is None else f"{len(classes)} classes of {classes.name}")
    if 0 < labelled < len(ordered):
        parts.append(f"{len(ordered) - labelled} without a label")
    return Dataset(
        videos=tuple(ordered),
        classes=classes,
        layout=inputs.layout,
        missing=tuple(sorted(missing)),
        description="; ".join(parts),
        warnings=(*labeller.warnings, *warnings),
    )


def count(number: int, noun: str) -> str:
    """``1 video``, ``2 videos``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def mention_ignored(folders: Iterable[Folder]) -> str:
    """``, 3 other files ignored`` for the end of a description; empty where there are none."""
    others = sum(len(folder.others) + folder.hidden for folder in folders)
    return f", {count(others, 'other file')} ignored" if others else ""
