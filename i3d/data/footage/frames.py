"""Footage of folders of pictures: every folder is a video, every picture one of its frames."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from i3d import files
from i3d.classes import readable
from i3d.data.footage.pictures import (
    MAX_PICTURE_BYTES,
    PICTURE_SUFFIXES,
    OpenPictures,
    order_frames,
)
from i3d.data.footage.videos import identify_files, join_identities
from i3d.errors import DatasetError

_THREADS = 16  # that list folders


def is_picture(name: str) -> bool:
    """Whether a file of that name is taken for a frame."""
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".")


def name_formats(suffixes: set[str]) -> str:
    """What a set of frames is called for its formats, such as ``frames-png``: JPEG has losses."""
    names = {s.removeprefix(".").replace("jpeg", "jpg").replace("tiff", "tif") for s in suffixes}
    return f"frames-{'+'.join(sorted(names))}"


@dataclass(frozen=True)
class FrameFootage:
    """Folders of pictures; a folder is listed when its video is opened.

    Attributes:
        keys: see `i3d.data.footage.source.Footage`.
        locations: path or URL of each folder.
        origin: ``frames-png``, or whatever formats there are.
    """

    keys: tuple[str, ...]
    locations: tuple[str, ...]
    origin: str

    @contextmanager
    def open(self, i: int) -> Iterator[OpenPictures]:
        """Video i; see `Footage.open`."""
        folder = self.locations[i]
        names = _list_pictures(folder)
        names = [names[place] for place in order_frames(names)]

        def load(number: int) -> bytes:
            location = files.join(folder, names[number])
            with readable(location), files.open_read(location) as file:
                data = files.read_bounded(file, MAX_PICTURE_BYTES + 1)
            if len(data) > MAX_PICTURE_BYTES:
                raise DatasetError(f"{location} has more than {MAX_PICTURE_BYTES:,} bytes")
            return data

        yield OpenPictures(names, load)

    def identify(self, videos: Sequence[int]) -> list[str | None]:
        """By all pictures of each; see `Footage.identify`."""

        def find(folder: str) -> str | None:
            try:
                names = _list_pictures(folder)
            except DatasetError:
                return None
            return join_identities(identify_files([files.join(folder, name) for name in names]))

        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(find, [self.locations[i] for i in videos]))


def _list_pictures(folder: str) -> list[str]:
    with readable(folder):
        return [n for n, is_dir in files.list_folder(folder) if not is_dir and is_picture(n)]


def suffix_of(name: str) -> str:
    """The suffix in lower case, with its dot."""
    return PurePosixPath(name).suffix.lower()
