"""What lies in a folder and the folders in it: videos, folders of pictures, arrays."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from i3d import files
from i3d.classes import readable
from i3d.data.footage.frames import is_picture, suffix_of
from i3d.data.footage.tensors import ARRAY_SUFFIXES
from i3d.data.kinetics.dataset import is_video
from i3d.errors import DatasetError

MAX_VIDEOS = 1 << 24  # of a set
_SCAN_THREADS = 16


def is_array(name: str) -> bool:
    """Whether a file of that name is taken for arrays."""
    return name.lower().endswith(ARRAY_SUFFIXES)


@dataclass(frozen=True)
class Survey:
    """What lies in a folder and the folders in it, or in an archive.

    Attributes:
        videos: paths of video files, relative to the folder.
        folders: paths of folders with pictures; "" is the folder itself.
        arrays: paths of files of arrays.
        suffixes: of the pictures, in lower case.
    """

    videos: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)
    suffixes: set[str] = field(default_factory=set)


def look_through(top: str) -> Survey:
    """List a folder and all that are in it; nothing is opened, hidden names are left out.

    Raises:
        DatasetError: a folder cannot be read, or a link leads to a folder that it is in.
    """
    survey = Survey()
    level = [""]
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:  # on S3 a listing takes a moment
        while level:
            listings = pool.map(lambda path: _list(top, path), level)
            deeper: list[str] = []
            for folder, entries in zip(level, listings, strict=True):
                for name, is_folder in entries:
                    path = f"{folder}/{name}" if folder else name
                    if is_folder:
                        deeper.append(path)
                    elif is_picture(name):
                        survey.suffixes.add(suffix_of(name))
                        if not survey.folders or survey.folders[-1] != folder:
                            survey.folders.append(folder)
                    elif is_video(name):
                        survey.videos.append(path)
                    elif is_array(name):
                        survey.arrays.append(path)
            if len(deeper) > MAX_VIDEOS:
                raise DatasetError(f"{top} has more than {MAX_VIDEOS:,} folders")
            level = deeper
    for paths in (survey.videos, survey.folders, survey.arrays):
        paths.sort()
    return survey


def _list(top: str, path: str) -> list[tuple[str, bool]]:
    location = files.join(top, path) if path else top
    with readable(location):
        entries = [e for e in files.list_folder(location) if not e[0].startswith(".")]
    local = files.local_path(location)
    if local is not None and local.is_symlink() and path:
        _refuse_loop(local)
    return entries


def _refuse_loop(folder: Path) -> None:
    """A link to a folder that it lies in would be followed for ever."""
    real = folder.resolve()
    if folder.parent.resolve().is_relative_to(real):
        raise DatasetError(f"{folder} is a link to a folder that it lies in; remove it")
