"""Folders, shards and arrays -> the clips and features of a Fréchet Video Distance.

    video file   every decoded frame, at the file's own rate and size --+
    .npy, .npz   uint8 (N, T, H, W, 3) ---------------------------------+--> clip float32
    shards       frames at 25 fps, resized and coded as JPEG -----------+    (T, size, size, 3)

Resizing happens in the workers, so that what travels does not depend on the size of the videos.
"""

import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from i3d import files
from i3d.clips import Views
from i3d.data.kinetics import VIDEO_SUFFIXES, read_dataset
from i3d.data.reading.clips import Pixels
from i3d.data.shards import MANIFEST_FILE, ShardDataset, open_dataset
from i3d.errors import DatasetError, StorageError, UsageError, VideoError
from i3d.metrics.frechet import MAX_DIMENSIONS
from i3d.presets import Stream
from i3d.tasks.fvd.protocols import Protocol
from i3d.video import MAX_PIXELS, MAX_SIDE, VideoReader

MAX_VIDEOS = 1 << 24
MAX_MEMBERS = 64  # of an .npz
FEATURE_ROWS = 4096  # of an array of features, read at a time


# --- pixels ---------------------------------------------------------------------------------------


def resize_bilinear(
    frames: np.ndarray, height: int, width: int, *, half_pixel: bool, box: tuple[slice, slice]
) -> np.ndarray:
    """Part of bilinearly resized frames, without antialiasing: float32 (T, h, w, 3).

    With ``half_pixel`` the source of output pixel i is at ``(i + 0.5) * in / out - 0.5``, as in
    PyTorch; without, at ``i * in / out``, as TF1's ``resize_bilinear`` has it, which shifts the
    picture towards the first pixel. Beyond the border the outermost pixel is repeated.

    Args:
        frames: uint8 (T, H, W, 3).
        height: of the whole result.
        width: likewise.
        half_pixel: see above.
        box: rows and columns of the result that are computed.
    """
    top, bottom, down = _taps(frames.shape[1], height, half_pixel, box[0])
    left, right, across = _taps(frames.shape[2], width, half_pixel, box[1])
    across = across[:, None]  # (w, 1), beside the channels

    def line(rows: np.ndarray) -> np.ndarray:
        start = frames[:, rows[:, None], left].astype(np.float32)
        start += (frames[:, rows[:, None], right] - start) * across
        return start

    upper = line(top)
    upper += (line(bottom) - upper) * down[:, None, None]
    return upper


def _taps(
    size: int, out: int, half_pixel: bool, part: slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every output pixel its two source pixels and the second one's weight, in float32."""
    positions = np.arange(out, dtype=np.float32)[part]
    scale = np.float32(size) / np.float32(out)
    if half_pixel:
        half = np.float32(0.5)
        positions = np.maximum((positions + half) * scale - half, np.float32(0))
    else:
        positions = positions * scale
    first = np.minimum(np.floor(positions).astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), positions - first.astype(np.float32)


def protocol_frames(frames: np.ndarray, protocol: Protocol) -> np.ndarray:
    """The part of a video that a protocol looks at: every stride-th frame from the first.

    Raises:
        DatasetError: the video is too short.
    """
    if len(frames) < protocol.frames_needed:
        raise DatasetError(
            f"{len(frames)} frames; {protocol.frames} with stride {protocol.stride} need "
            f"{protocol.frames_needed}"
        )
    return frames[: protocol.frames_needed : protocol.stride]


def protocol_clip(frames: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Resize and crop as the protocol does: uint8 (T, H, W, 3) -> float32 (T, size, size, 3).

    Values stay 0..255; nothing is rounded.
    """
    size, whole = protocol.size, slice(0, protocol.size)
    height, width = frames.shape[1:3]
    half_pixel = protocol.resize == "half-pixel"
    if protocol.fit == "squash":
        return resize_bilinear(frames, size, size, half_pixel=half_pixel, box=(whole, whole))
    # VideoGPT's rounding: the long side up, in floats; where a side is the short one, it is exact.
    scale = size / min(height, width)
    tall = size if height < width else math.ceil(height * scale)
    wide = math.ceil(width * scale) if height < width else size
    top, left = (tall - size) // 2, (wide - size) // 2
    box = slice(top, top + size), slice(left, left + size)
    return resize_bilinear(frames, tall, wide, half_pixel=half_pixel, box=box)


def check_videos(videos: np.ndarray, what: str) -> None:
    """Refuse what is not uint8 (N, T, H, W, 3).

    Raises:
        UsageError: another type or shape.
    """
    if videos.ndim != 5 or videos.shape[-1] != 3 or videos.dtype != np.uint8:
        raise UsageError(
            f"{what} is {videos.dtype} {videos.shape}; videos are uint8 (N, T, H, W, 3), RGB, and "
            "features float (N, D)"
        )
    _, frames, height, width, _ = videos.shape
    if not frames or not 0 < min(height, width) <= max(height, width) <= MAX_SIDE:
        raise UsageError(f"{what} has shape {videos.shape}: nothing to look at, or too large")
    if height * width > MAX_PIXELS:
        raise UsageError(f"{what} has frames of {width}x{height}; at most {MAX_PIXELS} pixels")


# --- sets of videos -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """Video files, every decoded frame in its order: no protocol resamples time."""

    keys: tuple[str, ...]
    locations: tuple[str, ...]
    protocol: Protocol
    origin = "files"

    def clip(self, i: int) -> np.ndarray:
        """Decode video i, no further than it is needed."""
        protocol = self.protocol
        with VideoReader(self.locations[i], fps=None, short_side=None) as reader:
            needed = islice(reader, 0, protocol.frames_needed, protocol.stride)
            # One by one: at the file's own size a long clip would fill the memory.
            frames = [protocol_clip(frame[None], protocol)[0] for frame in needed]
        if len(frames) < protocol.frames:
            raise VideoError(
                f"{len(frames)} frames at stride {protocol.stride}; {protocol.frames} are needed"
            )
        return np.stack(frames)


@dataclass(frozen=True)
class Shards:
    """The frames that precompute stored; keys are sorted, since the plan mixes the classes."""

    keys: tuple[str, ...]
    dataset: ShardDataset
    protocol: Protocol

    @property
    def origin(self) -> str:
        """How the frames differ from those of the files."""
        return f"shards-{self.dataset.manifest.preset}"

    def clip(self, i: int) -> np.ndarray:
        """Decode the JPEGs of video i that are needed."""
        sample = self.dataset.read_sample(
            self.keys[i], streams=("rgb",), stop=self.protocol.frames_needed
        )
        return protocol_clip(protocol_frames(sample.frames(), self.protocol), self.protocol)


@dataclass(frozen=True)
class Array:
    """Videos in a ``.npy`` file, which is mapped and never read whole."""

    path: Path
    keys: tuple[str, ...]
    protocol: Protocol
    origin = "array"

    def clip(self, i: int) -> np.ndarray:
        """Read video i."""
        video = _mapped(self.path, str(self.path))[i]
        return protocol_clip(np.asarray(protocol_frames(video, self.protocol)), self.protocol)


Videos = Files | Shards | Array


@dataclass(frozen=True)
class ClipSource:
    """Videos as `i3d.data.reading.clips.load_videos` reads them: ``rgb`` is the protocol's clip."""

    videos: Videos

    @property
    def keys(self) -> Sequence[str]:
        """Of every video."""
        return self.videos.keys

    @property
    def labels(self) -> Sequence[int | None]:
        """There are none."""
        return [None] * len(self.keys)

    def read(self, i: int, streams: Sequence[Stream], views: Views) -> Pixels:
        """The clip, float32 (T, size, size, 3) in 0..255."""
        return Pixels({"rgb": self.videos.clip(i)}, {"rgb": (0,)}, ((0, 0),))


# --- what a location holds ------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """What REAL or FAKE is: a folder, or arrays on this machine's disk.

    Attributes:
        where: as the user named it.
        arrays: name -> mapped array; empty for a folder.
        paths: name -> its ``.npy`` file.
    """

    where: str
    arrays: dict[str, np.ndarray]
    paths: dict[str, Path]

    @property
    def is_statistics(self) -> bool:
        """Whether --save-statistics wrote it."""
        return "metadata" in self.arrays

    @property
    def is_features(self) -> bool:
        """Whether it is an array of features."""
        return bool(self.arrays) and not self.is_statistics and self._only()[1].ndim == 2

    def features(self) -> Iterator[np.ndarray]:
        """Batches float (n, D) of an array of features."""
        name, array = self._only()
        if not np.issubdtype(array.dtype, np.floating) or not (
            1 <= array.shape[1] <= MAX_DIMENSIONS and len(array) <= MAX_VIDEOS
        ):
            raise UsageError(
                f"{self.where}: {name} is {array.dtype} {array.shape}; features are float (N, D)"
            )
        for start in range(0, len(array), FEATURE_ROWS):
            yield np.asarray(array[start : start + FEATURE_ROWS])

    @property
    def dimensions(self) -> int:
        """D of an array of features."""
        return int(self._only()[1].shape[1])

    def videos(self, protocol: Protocol) -> Videos:
        """The videos in it.

        Raises:
            DatasetError: there are none.
            UsageError: an array of another type or shape.
        """
        if self.arrays:
            name, array = self._only()
            check_videos(array, f"{self.where}: {name}")
            if len(array) > MAX_VIDEOS:
                raise UsageError(f"{self.where}: {len(array)} videos are too many")
            keys = tuple(f"[{i}]" for i in range(len(array)))
            return Array(self.paths[name], keys, protocol)
        if files.exists(files.join(self.where, MANIFEST_FILE)):
            shards = open_dataset(self.where)
            keys = tuple(sorted(sample.key for sample in shards.manifest.samples()))
            return Shards(keys, shards, protocol)
        found = read_dataset(self.where, labels="optional").videos
        keys = tuple(video.key for video in found)
        return Files(keys, tuple(video.location for video in found), protocol)

    def _only(self) -> tuple[str, np.ndarray]:
        """The array that is meant."""
        for name in ("videos", "features"):
            if name in self.arrays:
                return name, self.arrays[name]
        if len(self.arrays) != 1:
            raise UsageError(
                f"{self.where} holds the arrays {', '.join(self.arrays)}; name one of them "
                "'videos' or 'features' (statistics of other programs do not say what they are of)"
            )
        return next(iter(self.arrays.items()))


@contextmanager
def opened(location: files.Location) -> Iterator[Contents]:
    """Look at a location; what an ``.npz`` or a URL holds is unpacked for as long.

    Raises:
        UsageError: a file that is neither ``.npy`` nor ``.npz``.
        DatasetError: a damaged file, or one that would fill the disk.
    """
    where = os.fspath(location)
    suffix = where.rpartition(".")[2].lower()
    if suffix not in ("npy", "npz"):
        if f".{suffix}" in VIDEO_SUFFIXES:
            raise UsageError(f"{where} is one video; give a folder of them")
        yield Contents(where, {}, {})
        return
    if not files.exists(where):
        raise DatasetError(f"{where}: no such file")
    with TemporaryDirectory(prefix="i3d-") as folder:
        path = files.local_path(where)
        if path is None:
            path = Path(folder) / f"file.{suffix}"
            _check_room(files.size(where), folder, where)
            with files.open_read(where) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        paths = {"array": path} if suffix == "npy" else _unpacked(path, Path(folder), where)
        arrays = {name: _mapped(p, f"{where}: {name}") for name, p in paths.items()}
        yield Contents(where, arrays, paths)


def _unpacked(path: Path, folder: Path, where: str) -> dict[str, Path]:
    """The arrays of an ``.npz`` as files that can be mapped."""
    paths: dict[str, Path] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if not 1 <= len(members) <= MAX_MEMBERS:
                raise DatasetError(f"{where}: {len(members)} arrays; 1 to {MAX_MEMBERS} are read")
            _check_room(sum(member.file_size for member in members), folder, where)
            for i, member in enumerate(members):
                name = member.filename.removesuffix(".npy")
                paths[name] = folder / f"{i}.npy"  # never a name from the archive
                with archive.open(member) as source, paths[name].open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DatasetError(f"{where}: not a readable .npz file ({error})") from error
    return paths


def _check_room(needed: int, folder: str | Path, where: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{where} unpacks to {needed >> 20} MiB and {folder} has {free >> 20} MiB free; set "
            "TMPDIR to a larger disk, or give a .npy file"
        )


def _mapped(path: Path, name: str) -> np.ndarray:
    """A ``.npy`` file as a read-only map; objects, which would be pickles, are refused."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        if "Python objects" in str(error):
            raise DatasetError(f"{name} holds a pickle, which is never loaded") from None
        raise DatasetError(f"{name} is not a readable array ({error})") from error
    if array.size == 0:
        raise DatasetError(f"{name} is empty: {array.shape}")
    return array
