"""What lies in a folder, local or behind a URL: listed, never opened or stat'ed."""

import os
import posixpath
import re
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

from i3d import files
from i3d.classes import normalize, readable
from i3d.data.kinetics.dataset import is_video, stem_of
from i3d.files import Location

# Kinetics-400 and 600 say "val", Kinetics-700 "validate"; mmaction's folders say "videos_val".
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

# CVDF's archive of good copies of damaged videos, which its scripts unpack into `replacement/`.
REPLACEMENT = "replacement_for_corrupted_k400"
NOT_CLASSES = frozenset({"annotations", "replacement", REPLACEMENT})

_SCAN_THREADS = 16  # on S3, listing 600 folders one after the other takes a minute


class Folder(NamedTuple):
    """What a folder holds.

    Attributes:
        location: path or URL.
        videos: sorted names of the files that look like a video.
        folders: sorted names of the folders.
        others: sorted names of the other files.
        hidden: number of entries whose name begins with a dot.
    """

    location: str
    videos: list[str]
    folders: list[str]
    others: list[str]
    hidden: int


def clean(location: Location) -> str:
    """A local path without ``~`` and ``file://``, or the URL without a slash at its end."""
    path = files.local_path(location)
    return str(path) if path is not None else os.fspath(location).rstrip("/")


def make_absolute(location: str) -> str:
    """The location without ``.``, ``..`` and doubled slashes; links are not followed."""
    scheme, mark, path = location.rpartition("://")
    if mark:
        return f"{scheme}{mark}{posixpath.normpath(path)}"
    return os.path.abspath(path)  # noqa: PTH100 (Path.resolve would follow links)


def without_login(location: str) -> str:
    """A URL without user name and password, which must not get into keys."""
    return re.sub("(?<=://)[^/]*@", "", location, count=1)


def parent_of(location: str) -> str | None:
    """The folder that `location` lies in; None at the top of a URL."""
    scheme, mark, path = make_absolute(location).rpartition("://")
    parent = posixpath.dirname(path)
    return f"{scheme}{mark}{parent}" if parent else None


def is_file(location: str) -> bool:
    """Whether there is something that is no folder."""
    with readable(location):
        return files.exists(location) and not files.is_dir(location)


def scan(location: str) -> Folder:
    """What is in a folder; nothing in it is opened."""
    with readable(location):
        names = files.list_folder(location)
    folder = Folder(location, [], [], [], hidden=sum(n.startswith(".") for n, _ in names))
    for name, is_folder in names:
        if not name.startswith("."):
            others = folder.videos if is_video(name) else folder.others
            (folder.folders if is_folder else others).append(name)
    return folder


def scan_class_folders(folder: Folder) -> dict[str, Folder]:
    """By name, the folders of a folder that may be classes. One level deep: no loop of links."""
    names = [name for name in folder.folders if name not in NOT_CLASSES]
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        scans = pool.map(scan, [files.join(folder.location, name) for name in names])
        return dict(zip(names, scans, strict=True))


def find_replacements(folder: Folder) -> dict[str, str]:
    """Location by stem of CVDF's good copies of damaged videos, if they lie in or beside."""
    for place in (folder.location, parent_of(folder.location)):
        for inner in (REPLACEMENT, f"replacement/{REPLACEMENT}"):
            with readable(folder.location):
                there = place is not None and files.is_dir(files.join(place, inner))
            if place is not None and there:
                good = scan(files.join(place, inner))
                return {stem_of(name): files.join(good.location, name) for name in good.videos}
    return {}


@lru_cache(1024)  # a CSV asks for every row
def split_of(name: str) -> str | None:
    """``"train"``, ``"val"`` or ``"test"`` if a folder or a row of that name is one."""
    return SPLITS.get(normalize(name).removeprefix("videos"))
