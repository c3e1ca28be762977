"""What the user names -> videos: files and URLs, folders with all in them, standard input."""

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, cast

from i3d import files
from i3d.console import say
from i3d.copies import keep_copy
from i3d.data.kinetics import VIDEO_SUFFIXES
from i3d.data.kinetics.listing import scan
from i3d.errors import StorageError, UsageError
from i3d.presets import KINETICS_I3D
from i3d.video import AheadReader

# They say no of a name that the system refuses (too long, in a closed folder), which is then that
# video's error when it is opened; pathlib's raise.
is_file, is_folder = os.path.isfile, os.path.isdir

STANDARD_INPUT = "-"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Input:
    """A video that is to be looked at.

    Attributes:
        name: as the user named it, or as it was found.
        early: what reads it already (`read_early`).
    """

    name: str
    early: AheadReader | None = None

    def open(self) -> str | IO[bytes] | AheadReader:
        """What a `Predictor` takes.

        Raises:
            StorageError: what comes on standard input does not fit onto the disk.
        """
        if self.early is not None:
            return self.early
        return _read_standard_input() if self.name == STANDARD_INPUT else self.name


def read_early(names: Sequence[str], *, clip_alone: bool) -> AheadReader | None:
    """Begin to read the first video while PyTorch is imported and the networks are loaded.

    As most networks want it; a `Predictor` that wants it otherwise reads it again.

    Args:
        names: what the user named.
        clip_alone: whether only the test clip is looked at.
    """
    path = files.local_path(names[0])
    if path is None or names[0] == STANDARD_INPUT or not is_file(path):
        return None
    preset = KINETICS_I3D
    return AheadReader(
        names[0],
        end_seconds=preset.clip_frames / preset.fps if clip_alone else None,
        fps=preset.fps,
        short_side=preset.short_side,
    )


def find_inputs(names: Sequence[str]) -> list[Input]:
    """The videos behind the names, each folder's in the order of their paths.

    Raises:
        UsageError: a folder without videos, or standard input twice or from a terminal.
        StorageError: a folder cannot be read.
    """
    if "" in names:
        raise UsageError("a video's name is empty; is a variable not set?")
    if names.count(STANDARD_INPUT) > 1:
        raise UsageError(f"{STANDARD_INPUT} is standard input, and can be read once")
    if STANDARD_INPUT in names and sys.stdin is None:
        raise UsageError(f"{STANDARD_INPUT} is standard input, which is closed")
    if STANDARD_INPUT in names and sys.stdin.isatty():
        raise UsageError(
            f"{STANDARD_INPUT} is standard input, a terminal here; pipe a video into it: "
            "i3d predict - < video.mp4"
        )
    return [found for name in names for found in _find(name)]


def refuse_own_input(output: files.Location, given: Input) -> None:
    """Refuse an output that is the video itself, under whatever name.

    Raises:
        UsageError: it is.
    """
    path, source = files.local_path(output), files.local_path(given.name)
    if path is None or source is None or not is_file(path):
        return
    try:
        read = os.fstat(0) if given.name == STANDARD_INPUT else source.stat()
    except OSError:  # what is not there is another one
        return
    if os.path.samestat(read, path.stat()):
        raise UsageError(f"{output}: that is the video itself; give another name")


def _find(name: str) -> list[Input]:
    path = files.local_path(name)
    there = name.endswith("/") if path is None else is_folder(path)
    if name == STANDARD_INPUT or not there:
        return [Input(name)]
    others = 0
    found: list[Input] = []
    for folder, videos, left_out in _walk(name.rstrip("/") or "/"):
        found += [Input(files.join(folder, video)) for video in videos]
        others += left_out
    if not found:
        suffixes = ", ".join(sorted(suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES))
        raise UsageError(f"{name}: no videos in this folder; their suffixes are {suffixes}")
    rest = f"; {others:,} other files are left out" if others else ""
    say(f"{name}: {len(found):,} video{'s' if len(found) > 1 else ''}{rest}")
    return found


def _walk(top: str) -> Iterator[tuple[str, list[str], int]]:
    """(folder, names of its videos, number of its other files) of a folder and all below it.

    What begins with a dot is left out. A link back to a folder above is not followed.
    """
    above: list[tuple[str, tuple[str, ...]]] = [(top, ())]
    while above:
        folder, parents = above.pop()
        real = folder if files.is_url(folder) else os.path.realpath(folder)
        if real in parents:
            continue
        found = scan(folder)
        yield folder, found.videos, len(found.others)
        inner = [(files.join(folder, name), (*parents, real)) for name in found.folders]
        above += reversed(inner)


class _StandardInput(io.BufferedReader):
    """A copy of what came, which can be read from any place."""

    name = "<stdin>"


def _read_standard_input() -> IO[bytes]:
    def chunks() -> Iterable[bytes]:
        return iter(lambda: sys.stdin.buffer.read(_CHUNK_BYTES), b"")

    try:
        copy = keep_copy(
            chunks(), total=None, where=_StandardInput.name, origin="from standard input"
        )
    except OSError as error:
        raise StorageError(f"{_StandardInput.name}: {error.strerror or error}") from error
    return _StandardInput(cast(io.BufferedRandom, copy).detach())
