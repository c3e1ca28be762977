"""Videos with their labels, and the keys that name them.

A video's key is its portable name: the path under the root (cvdf: the clip's name) without the
suffix, percent-encoded except for letters, digits, spaces and ``_ - ~ / ' ( )``. Dots are encoded
too, since WebDataset takes what follows a base name's first dot for a suffix. Files that differ in
their suffix alone keep it: ``a.mp4`` beside ``a.mkv`` gives ``a%2Emp4`` and ``a%2Emkv``. So
``urllib.parse.unquote`` gives the name back, and no two files share a key.
"""

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from i3d.classes import ClassList

Layout = Literal["folders", "cvdf", "list", "flat"]

SUFFIXES = ["mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "mpeg", "flv", "wmv", "3gp", "ogv"]
SUFFIXES += ["gif", "y4m"]
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in SUFFIXES)  # compared in lower case


def stem_of(path: str) -> str:
    """The path without its suffix."""
    return posixpath.splitext(path)[0]


def is_video(name: str) -> bool:
    """Whether a file of that name is taken for a video."""
    return posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES


def escape(name: str) -> str:
    """A name without suffix as a key."""
    # Names on disk that are no UTF-8 come as surrogate escapes and are encoded as their bytes.
    return quote(name, safe=" /_-~'()", errors="surrogateescape").replace(".", "%2E")


def make_keys(paths: Sequence[str]) -> list[str]:
    """The keys of distinct relative paths of videos; see the module's docstring."""
    stems = [stem_of(path) for path in paths]
    uses = Counter(stems)
    # A stem that itself ends like a video (a.mp4.mp4) would meet a kept suffix.
    return [
        escape(path if uses[stem] > 1 or is_video(stem) else stem)
        for path, stem in zip(paths, stems, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Video:
    """One video, or a stretch of one, and its label.

    Attributes:
        key: unique portable name, safe as a tar member's; the module's docstring says more.
        location: path or URL of the file.
        class_name: the name in the class list; None when unlabelled.
        index: the position of that name in the class list.
        start_seconds: where to begin an untrimmed video; None for its start.
        end_seconds: where to end it; None for the end of the file.
    """

    key: str
    location: str
    class_name: str | None = None
    index: int | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True)
class Dataset:
    """What `read_dataset` found.

    Attributes:
        videos: every video that has a file, sorted by key.
        classes: the class list that `Video.index` refers to; None when unlabelled.
        layout: how they lie, see `read_dataset`.
        missing: (key, reason) of every clip that the annotations name and that has no usable file.
        description: one line that says what was understood, for people: it holds paths.
        warnings: what the user should know, one line each.
    """

    videos: tuple[Video, ...]
    classes: ClassList | None
    layout: Layout
    missing: tuple[tuple[str, str], ...]
    description: str
    warnings: tuple[str, ...]
