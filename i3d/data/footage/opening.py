"""What a location holds -> footage.

folder of folders of pictures --------------+
zip or tar of such folders, or of videos ---+
folder of arrays, one a video --------------+--> Opened: footage
one array with all videos ------------------+
folder of videos, shards -- open_videos ----+
features, statistics ------ open_videos -------> Opened: arrays
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from i3d import files
from i3d.classes import readable
from i3d.data.arrays import Arrays
from i3d.data.footage.archives import (
    ARCHIVE_SUFFIXES,
    ArchiveFrames,
    ArchiveVideos,
    Index,
    open_archive,
)
from i3d.data.footage.arrays import ArrayFilesFootage, ArrayFootage, name_origin
from i3d.data.footage.frames import FrameFootage, name_formats
from i3d.data.footage.layouts import check_frames, check_values, find_layout
from i3d.data.footage.options import FootageOptions, Layout
from i3d.data.footage.source import Footage
from i3d.data.footage.survey import MAX_VIDEOS, Survey, look_through
from i3d.data.footage.tensors import (
    ARRAY_SUFFIXES,
    NAMES,
    StoredArray,
    choose_array,
    open_array_file,
)
from i3d.data.footage.videos import FileFootage, ShardFootage
from i3d.data.kinetics.dataset import escape, make_keys
from i3d.data.precomputed import is_precomputed
from i3d.data.videos import Contents, open_videos
from i3d.errors import DatasetError, UsageError

_NUMPY = (".npy", ".npz")
_TRIES = 16  # files of arrays that are looked at for one that can be read
_ALIKE = "give a set of one kind, in a folder of its own"


@dataclass(frozen=True)
class Opened:
    """What a location holds: footage, or arrays that are no videos.

    Attributes:
        where: path or URL, for messages.
        footage: the videos; None where there are features or statistics.
        arrays: features or statistics, mapped; None where there are videos.
        uses: which of ``--layout`` and ``--range`` say something of this set.
    """

    where: str
    footage: Footage | None = None
    arrays: Arrays | None = None
    uses: frozenset[str] = frozenset()


def check_options(sets: Sequence[Opened], options: FootageOptions) -> None:
    """Refuse a word on arrays that is true of no set.

    Raises:
        UsageError: names the option.
    """
    for name, value in (("layout", options.layout), ("range", options.value_range)):
        if value is not None and not any(name in opened.uses for opened in sets):
            what = "floats" if name == "range" else "array with these axes"
            places = " and ".join(opened.where for opened in sets)
            raise UsageError(f"--{name} {value}: {places} hold no {what}; leave the option out")


@contextmanager
def open_footage(
    location: files.Location, options: FootageOptions = FootageOptions()
) -> Iterator[Opened]:
    """Look at what a location holds; what must be unpacked is there for as long.

    Args:
        location: path or URL.
        options: what arrays of videos do not say themselves.

    Raises:
        DatasetError: nothing there, nothing that can be understood, or things of several kinds.
        UsageError: one video alone; arrays of another type or shape, or which need an option.
        StorageError: the disk or server fails.
    """
    where = os.fspath(location)
    if not where.strip("/ "):
        raise UsageError(f"{where!r} names no set; give a folder or file")
    where = where.rstrip("/")
    lower = where.lower()
    if lower.endswith((*ARRAY_SUFFIXES, *ARCHIVE_SUFFIXES)) or not _is_folder(where):
        if lower.endswith(ARCHIVE_SUFFIXES) and not _is_folder(where):
            with open_archive(where) as (survey, index):
                _check_alike(survey, where)
                yield Opened(where, _archive_footage(survey, index, where))
            return
        if lower.endswith(ARRAY_SUFFIXES) and not lower.endswith(_NUMPY) and not _is_folder(where):
            with open_array_file(where) as arrays:
                yield _one_array(choose_array(arrays, where), where, options)
            return
        with open_videos(where, labels="optional", say=_warn) as contents:
            yield _known(contents, options)
        return
    if not is_precomputed(where):
        survey = look_through(where)
        _check_alike(survey, where)
        if survey.folders:
            yield Opened(where, _frame_footage(survey, where))
            return
        if survey.arrays:
            yield _array_files(survey, where, options)
            return
        if any(path.count("/") > 1 for path in survey.videos) or 0 < sum(
            "/" not in path for path in survey.videos
        ) < len(survey.videos):
            # deeper than datasets have them, or on several levels
            locations = tuple(files.join(where, path) for path in survey.videos)
            yield Opened(where, FileFootage(tuple(make_keys(survey.videos)), locations))
            return
    with open_videos(where, labels="optional", say=_warn) as contents:
        yield _known(contents, options)


def _warn(line: str) -> None:
    """Pass a warning on, but for those of labels, which no footage has."""
    if line.startswith("warning: ") and not line.startswith("warning: labels"):
        warnings.warn(line.removeprefix("warning: "), stacklevel=2)


def _is_folder(where: str) -> bool:
    with readable(where):
        return files.is_dir(where)


def _known(contents: Contents, options: FootageOptions) -> Opened:
    """What `open_videos` opens."""
    where = contents.where
    if contents.shards is not None:
        keys = tuple(sorted(sample.key for sample in contents.shards.manifest.samples()))
        return Opened(where, ShardFootage(keys, contents.shards))
    if contents.arrays is None:
        if contents.single:
            raise UsageError(f"{contents.videos[0].location} is one video; give a folder of them")
        keys = tuple(video.key for video in contents.videos)
        locations = tuple(video.location for video in contents.videos)
        return Opened(where, FileFootage(keys, locations))
    arrays = contents.arrays
    if "metadata" in arrays.arrays:
        return Opened(where, arrays=arrays)
    meant = [name for name in NAMES if name in arrays.arrays]
    name, array = (meant[0], arrays.arrays[meant[0]]) if len(meant) == 1 else arrays.only()
    if array.ndim == 2:
        return Opened(where, arrays=arrays)
    return _one_array(StoredArray.of(arrays.paths[name], array), where, options)


# --- arrays ---------------------------------------------------------------------------------------


def _one_array(array: StoredArray, where: str, options: FootageOptions) -> Opened:
    what = f"{where}: {array}"
    if len(array.shape) not in (3, 4, 5):
        raise UsageError(
            f"{what} holds no videos; those are uint8 or floats (N, T, H, W, C), (N, T, C, H, W), "
            "(N, C, T, H, W) or gray (N, T, H, W), and features float (N, D)"
        )
    axes = find_layout(array.shape, options.layout, many=True, what=what, error=UsageError)
    check_values(array, options.value_range, what=what, error=UsageError)
    check_frames(array.shape[1:], axes, what=what, error=UsageError)
    count = array.shape[0]
    if count > MAX_VIDEOS:
        raise UsageError(f"{where}: {count} videos are too many")
    keys = tuple(f"[{i}]" for i in range(count))
    footage = ArrayFootage(keys, where, array, axes, options.value_range)
    return Opened(where, footage, uses=_uses(axes, array.kind, options.layout))


def _uses(axes: str, kind: str, layout: Layout | None) -> frozenset[str]:
    said = layout is not None and layout.removeprefix("N") == axes
    return frozenset(["layout"] * said + ["range"] * (kind != "uint8"))


def _array_files(survey: Survey, where: str, options: FootageOptions) -> Opened:
    """A folder of arrays; one of them tells whether an option is missing, and the axes of all."""
    locations = tuple(files.join(where, path) for path in survey.arrays)
    keys = tuple(make_keys(survey.arrays))
    if len(set(keys)) < len(keys):  # a.npy, a.pt and a.npy.pt
        keys = tuple(escape(path) for path in survey.arrays)
    kind, uses = "uint8", frozenset[str]()
    for location in locations[:_TRIES]:
        try:
            with open_array_file(location) as arrays:
                array = choose_array(arrays, location)
        except DatasetError:
            continue
        what = f"{location}: {array}"
        axes = find_layout(array.shape, options.layout, many=False, what=what, error=UsageError)
        check_values(array, options.value_range, what=what, error=UsageError)
        kind, uses = array.kind, _uses(axes, array.kind, options.layout)
        break
    origin = name_origin(kind, options.value_range)
    footage = ArrayFilesFootage(keys, locations, options.layout, options.value_range, origin)
    return Opened(where, footage, uses=uses)


# --- folders and archives -------------------------------------------------------------------------


def _check_alike(survey: Survey, where: str) -> None:
    """Refuse a set of several kinds, and one video that was given itself.

    Raises:
        DatasetError: says what there is of each kind.
        UsageError: one video.
    """
    kinds = []
    for paths, one, several in (
        (survey.videos, "video", "videos"),
        (survey.folders, "folder of pictures", "folders of pictures"),
        (survey.arrays, "array", "arrays"),
    ):
        if paths:
            what = one if len(paths) == 1 else several
            kinds.append(f"{len(paths):,} {what} (such as {paths[0] or 'itself'!r:.100})")
    if len(kinds) > 1:
        raise DatasetError(f"{where} holds {' and '.join(kinds)}; {_ALIKE}")
    if survey.folders == [""]:
        raise UsageError(
            f"{where} holds the pictures of one video; give the folder that its folder is in"
        )
    if survey.folders and survey.folders[0] == "":
        raise DatasetError(
            f"{where} holds pictures itself and in {len(survey.folders) - 1:,} folders (such as "
            f"{survey.folders[1]!r:.100}); each folder with pictures is a video, so move those "
            "in it to one of their own"
        )


def _frame_footage(survey: Survey, where: str) -> Footage:
    keys = tuple(escape(path) for path in survey.folders)
    locations = tuple(files.join(where, path) for path in survey.folders)
    return FrameFootage(keys, locations, name_formats(survey.suffixes))


def _archive_footage(survey: Survey, index: Index, where: str) -> Footage:
    if survey.arrays:
        raise DatasetError(f"{where} holds arrays, which are not read from an archive; unpack it")
    if survey.folders:
        keys = [escape(path) for path in _without_top(survey.folders)]
        return ArchiveFrames(tuple(keys), index, name_formats(survey.suffixes))
    if survey.videos:
        return ArchiveVideos(tuple(make_keys(_without_top(survey.videos))), index)
    raise DatasetError(
        f"{where} holds neither folders of pictures nor videos; their names end in .png, .jpg, "
        ".mp4 and the like"
    )


def _without_top(paths: Sequence[str]) -> list[str]:
    """Paths without the one folder that all of them are in, as if that had been given."""
    top = paths[0].partition("/")[0]
    if all(path.startswith(f"{top}/") for path in paths):
        return [path[len(top) + 1 :] for path in paths]
    return list(paths)
