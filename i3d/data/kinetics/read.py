"""A video dataset on disk -> labelled videos.

Four layouts, told apart by looking (or by `layout=`):

    folders   root/<class name>/<file>.mp4         the official crawler, torchvision, mmaction
    cvdf      root/<id>_<start>_<end>.mp4 + CSV    CVDF's mirror: val/ beside annotations/val.csv
    list      lines of `path label`                mmaction's .txt, SlowFast's .csv
    flat      root/<file>.mp4                      no labels; only where labels are optional

The CSV of Kinetics has the columns ``label,youtube_id,time_start,time_end[,split][,is_cc]``.
Everything may lie behind a URL. Files are listed, never opened or stat'ed: a damaged video shows
when it is decoded.
"""

import posixpath
from collections.abc import Sequence
from typing import Literal, get_args

from i3d import files
from i3d.classes import ClassList, read_lines
from i3d.data.kinetics.cvdf import read_cvdf
from i3d.data.kinetics.dataset import Dataset, Layout, stem_of
from i3d.data.kinetics.folders import read_flat, read_folders
from i3d.data.kinetics.labels import Inputs
from i3d.data.kinetics.listing import (
    NOT_CLASSES,
    SPLITS,
    Folder,
    clean,
    is_file,
    make_absolute,
    parent_of,
    scan,
    scan_class_folders,
    split_of,
)
from i3d.data.kinetics.lists import read_list
from i3d.errors import DatasetError, UsageError
from i3d.files import Location

Labels = Literal["required", "optional"]


def read_dataset(
    root: Location,
    *,
    classes: Location | ClassList | None = None,
    annotations: Location | None = None,
    layout: Layout | None = None,
    split: str | None = None,
    trim: bool = False,
    labels: Labels = "required",
) -> Dataset:
    """The videos at `root` with their labels, in an order that depends on their names alone.

    Args:
        root: folder or URL that holds the videos; or a list file or CSV that lies with them.
        classes: "kinetics400", "kinetics600", a file of names, a `ClassList`, or "folders" (the
            sorted folder names). By default the one Kinetics list that has all the names.
        annotations: the CSV or list file. By default a CSV in the folder or its `annotations/`,
            then ``annotations/<folder>.csv`` and ``<folder>.csv`` beside it.
        layout: forces a layout instead of looking.
        split: "train", "val" or "test": the folder of that name under `root`, and the rows of
            the CSV with that `split`.
        trim: the videos are whole (``<id>.mp4``): cut them by the CSV's times.
        labels: "optional" also takes videos without a label.

    Raises:
        DatasetError: nothing there; files that cannot be understood; an unknown or ambiguous
            class. The message names file, line and value.
        UsageError: arguments that are unknown or contradict each other.
    """
    if layout is not None and layout not in get_args(Layout):
        raise UsageError(f"layout {layout!r} is not one of {', '.join(get_args(Layout))}")
    if labels not in get_args(Labels):
        raise UsageError(f"labels {labels!r} is not one of {', '.join(get_args(Labels))}")
    if split is not None and split_of(split) is None:
        raise UsageError(f"split {split!r} is not one of train, val, test")
    if layout in ("folders", "flat") and (annotations is not None or trim):
        raise UsageError(f"layout {layout!r} takes neither annotations nor trim")

    top = clean(root)
    table = None if annotations is None else clean(annotations)
    if table is None and layout not in ("folders", "flat") and is_file(top):
        top, table = parent_of(top) or top, top
    folder = scan(top)
    split_folder = None if split is None else _find_split(folder, split)
    if split_folder is not None:
        folder = scan(files.join(top, split_folder))

    needed = layout in ("cvdf", "list") or trim
    if table is None and (needed or (layout is None and _may_have_annotations(folder))):
        table = _find_annotations(folder, split)
        if table is None and needed:
            raise DatasetError(f"{folder.location}: no CSV in or beside it; pass --annotations")
    lines = [] if table is None else read_lines(table)
    found = layout or _detect_layout(folder, table, lines)

    if trim and found != "cvdf":
        raise DatasetError(f"{table}: trim needs a CSV with times; this is a list of paths")
    if split is not None and split_folder is None and found != "cvdf":
        raise DatasetError(f"{top}: no folder for the split {split!r}; pass the folder itself")
    inputs = Inputs(folder, found, classes, labels == "required", table or "", lines)
    if found == "cvdf":
        # A CSV of one split may lack the column once a folder has selected the split.
        return read_cvdf(inputs, split=split, split_optional=split_folder is not None, trim=trim)
    return {"folders": read_folders, "list": read_list, "flat": read_flat}[found](inputs)


def _find_split(folder: Folder, split: str) -> str | None:
    """The name of the folder that holds a split; None without one."""
    names = [name for name in folder.folders if split_of(name) == split_of(split)]
    if len(names) > 1:
        raise DatasetError(
            f"{folder.location}: the split {split!r} could be {' or '.join(names)}; pass the"
            " folder itself"
        )
    return names[0] if names else None


def _may_have_annotations(folder: Folder) -> bool:
    return bool(folder.videos) or NOT_CLASSES.issuperset(folder.folders)


def _find_annotations(folder: Folder, split: str | None) -> str | None:
    """The CSV in the folder, in its `annotations/`, or of the folder's name beside it."""
    name = posixpath.basename(make_absolute(folder.location))
    wanted = split_of(split or name)
    inner = [folder]
    if "annotations" in folder.folders:
        inner.append(scan(files.join(folder.location, "annotations")))
    for place in inner:
        tables = [other for other in place.others if other.lower().endswith(".csv")]
        if len(tables) > 1:
            of_split = [t for t in tables if wanted and split_of(stem_of(t)) == wanted]
            if len(of_split) != 1:
                raise DatasetError(
                    f"{place.location}: {len(tables)} files could be the annotations"
                    f" ({', '.join(tables[:3])}, ...); pass --annotations"
                )
            tables = of_split
        if tables:
            return files.join(place.location, tables[0])
    parent = parent_of(folder.location)
    spellings = [name, *(s for s in SPLITS if SPLITS[s] == wanted and s != name)]
    for beside in [] if parent is None else [files.join(parent, "annotations"), parent]:
        for spelling in spellings:
            table = files.join(beside, f"{spelling}.csv")
            if is_file(table):
                return table
    return None


def _detect_layout(folder: Folder, table: str | None, lines: Sequence[str]) -> Layout:
    if table is not None:
        header = next((line.lower() for line in lines if line.strip()), "")
        # A header with a time but no id is for the reader of the CSV to complain about.
        return "cvdf" if "youtube_id" in header or "time_start" in header else "list"
    if not folder.videos:
        return "folders"
    mixed = [name for name, inner in scan_class_folders(folder).items() if inner.videos]
    if mixed:
        raise DatasetError(
            f"{folder.location} holds videos itself and in folders such as {mixed[0]!r};"
            " pass --layout folders or --layout flat"
        )
    return "flat"
