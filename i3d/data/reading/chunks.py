"""Videos of any length -> their pixels in chunks, decoded in worker processes in bounded memory.

    VideoChunks  --decode, resize, TV-L1 once a pair, crop--+
                                                            +--> Chunk, Chunk, ... --> main process
    ShardChunks  --range reads, JPEG/PNG, only the crop-----+

Each worker reads one video after another; chunks of the workers' videos arrive interleaved, those
of one video in order. What `clips` is for clips of ten seconds, this is for whole videos: no
process ever holds more than a few chunks.
"""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from i3d.clips import center_crop, quantize_flow
from i3d.data.kinetics import Video
from i3d.data.precomputed import Precomputed
from i3d.data.shards import PlannedSample, Sample, VideoInfo
from i3d.data.videos import Contents
from i3d.errors import DatasetError, I3DError, VideoError
from i3d.parallel.ahead import out_of_memory, read_ahead
from i3d.presets import STREAMS, Preset, Stream

CHUNK_FRAMES = 32  # 8 MB of both streams at 224 pixels
READ_FRAMES = 256  # of a shard's sample in one request; those of precompute's 10 s are whole

# Frames read (a number) and stream -> uint8 (t, crop, crop, C), flow as stored; t may differ.
Piece = tuple[int, dict[Stream, np.ndarray]]
Pieces = Generator[Piece, None, str | None]  # returns what was lost of a damaged video


class ChunkSource(Protocol):
    """Videos that can be read one by one, in any process."""

    @property
    def keys(self) -> Sequence[str]:
        """The key of every video of the plan, in its order."""

    @property
    def sources(self) -> Sequence[str]:
        """The path of every video below the dataset's folder."""

    def read(self, i: int, streams: Sequence[Stream], *, threads: int) -> Pieces:
        """Read video i from its first frame to its last.

        Raises:
            DatasetError, VideoError: the video is at fault.
        """


class _Waiting:
    """The pictures of a video that are no chunk yet, cropped.

    Attributes:
        frames: number of frames that were read since the last chunk.
    """

    def __init__(self, streams: Sequence[Stream], preset: Preset) -> None:
        self.frames = 0
        self._preset = preset
        self._pictures: dict[Stream, list[np.ndarray]] = {stream: [] for stream in streams}

    def __bool__(self) -> bool:
        return bool(self.frames or any(self._pictures.values()))

    def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass whole frames on, and keep their crops where RGB is wanted."""
        for frame in frames:
            self.frames += 1
            if "rgb" in self._pictures:
                self._pictures["rgb"].append(center_crop(frame[None], self._preset.crop)[0])
            yield frame

    def keep_flow(self, flows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass whole flows on, and keep their crops as they are stored."""
        bound = self._preset.flow_bound_pixels
        for flow in flows:
            cropped = center_crop(flow[None], self._preset.crop)
            self._pictures["flow"].append(quantize_flow(cropped, bound_pixels=bound)[0])
            yield flow

    def take(self) -> Piece:
        """What waits, and nothing waits any more."""
        arrays = {s: np.stack(pictures) for s, pictures in self._pictures.items() if pictures}
        piece, self.frames = (self.frames, arrays), 0
        for pictures in self._pictures.values():
            pictures.clear()
        return piece


class VideoChunks:
    """Video files, decoded as `precompute` decodes them, without its JPEGs between.

    Args:
        videos: sorted by key.
        preset: sampling, size and crop.
        root: the dataset's folder, which messages leave out.
    """

    def __init__(self, videos: Sequence[Video], preset: Preset, *, root: str) -> None:
        self.videos, self.preset = tuple(videos), preset
        self.keys = tuple(video.key for video in self.videos)
        folder = root.rstrip("/") + "/"
        self.sources = tuple(
            v.location.removeprefix(folder)
            if v.location.startswith(folder)
            else v.location.rsplit("/", 1)[-1]
            for v in self.videos
        )

    def read(self, i: int, streams: Sequence[Stream], *, threads: int) -> Pieces:
        """See `ChunkSource`; flow is computed between whole frames, as TV-L1 looks beyond them."""
        from i3d.flow import stream_flow
        from i3d.video import VideoReader

        video, preset = self.videos[i], self.preset
        waiting = _Waiting(streams, preset)
        try:
            with VideoReader(
                video.location,
                start_seconds=video.start_seconds or 0.0,
                end_seconds=video.end_seconds,
                fps=preset.fps,
                short_side=preset.short_side,
            ) as reader:
                frames = waiting.watch(reader)
                if "flow" in streams:
                    steps = waiting.keep_flow(stream_flow(frames, threads=threads))
                else:
                    steps = frames
                for _ in steps:
                    if waiting.frames >= CHUNK_FRAMES:
                        yield waiting.take()
                damage = reader.damage
        except VideoError as error:
            raise VideoError(str(error).replace(video.location, self.sources[i])) from error
        if waiting:
            yield waiting.take()
        return None if damage is None else damage.replace(video.location, self.sources[i])


class ShardChunks:
    """The videos of precomputed shards, in the order of the plan."""

    def __init__(self, dataset: Precomputed, preset: Preset) -> None:
        self.dataset, self.preset = dataset, preset
        self._samples: list[PlannedSample] = list(dataset.manifest.samples())
        self.keys = tuple(sample.key for sample in self._samples)
        self.sources = tuple(sample.location for sample in self._samples)

    def read(self, i: int, streams: Sequence[Stream], *, threads: int) -> Pieces:
        """See `ChunkSource`; one request for a sample of ten seconds."""
        folder = os.fspath(self.dataset.folder).rstrip("/")
        try:
            return (yield from self._read(self.keys[i], streams))
        except DatasetError as error:
            # no absolute path in a message, which is stored
            text = str(error).replace(f"{folder}/", "").removeprefix(f"{folder}: ")
            raise DatasetError(text) from error

    def _read(self, key: str, streams: Sequence[Stream]) -> Pieces:
        manifest = self.dataset.manifest
        info: VideoInfo
        longest = float(manifest.parameters.get("max_seconds") or np.inf) * self.preset.fps
        if longest <= READ_FRAMES and set(streams) == set(manifest.streams):
            sample = self.dataset.read_sample(key)
            info = sample.info
            yield from self._decode(sample)
        else:
            stored = self.dataset.find_sample(key, streams=streams)
            info = stored.info
            for start in range(0, info.length("rgb"), READ_FRAMES):
                yield from self._decode(stored.read(start, start + READ_FRAMES))
        yield info.length("rgb"), {}
        return info.damage

    def _decode(self, sample: Sample) -> Iterator[Piece]:
        """The pictures that were read of a sample, a chunk at a time; their frames count later."""
        (height, width), crop = (sample.info.height, sample.info.width), self.preset.crop
        if min(height, width) < crop:
            raise DatasetError(f"{sample.key}: {width}x{height} is smaller than the crop of {crop}")
        top, left = self.preset.find_corner(height, width)
        box = slice(top, top + crop), slice(left, left + crop)
        for first in range(0, max(map(sample.count, STREAMS)), CHUNK_FRAMES):
            yield (
                0,
                {
                    stream: sample.decode(stream, first, first + CHUNK_FRAMES, box=box)
                    for stream in STREAMS
                    if first < sample.count(stream)
                },
            )


def open_chunks(contents: Contents, preset: Preset) -> ChunkSource:
    """Whole videos from shards or from video files.

    Raises:
        UsageError: there are arrays, which have no frame rate.
    """
    if contents.shards is not None:
        return ShardChunks(contents.shards, preset)
    return VideoChunks(contents.videos, preset, root=contents.where)


@dataclass
class Chunk:
    """A part of a video as it leaves a worker.

    Attributes:
        video: number of the video in its source.
        frames: frames of the video that it adds.
        pixels: stream -> uint8 tensor (t, crop, crop, C) in shared memory, pinned for CUDA.
        last: whether the video ends here.
        damage: what was lost of the video; said with the last chunk.
        error: why the video cannot be used; nothing follows.
        fatal: what ends the job, for it is not this video's fault.
    """

    video: int
    frames: int = 0
    pixels: dict[Stream, torch.Tensor] = field(default_factory=dict)
    last: bool = False
    damage: str | None = None
    error: str | None = None
    fatal: Exception | None = None

    def pin_memory(self) -> Self:
        """Called by PyTorch's loader, so that copies to the GPU overlap with its work."""
        self.pixels = {stream: tensor.pin_memory() for stream, tensor in self.pixels.items()}
        return self


class _Chunks(IterableDataset[Chunk]):
    """What a worker process runs, as PyTorch's loader wants it: its share, video by video."""

    def __init__(
        self, source: ChunkSource, indices: Sequence[int], streams: Sequence[Stream], threads: int
    ) -> None:
        self.source, self.indices = source, tuple(indices)
        self.streams, self.threads = tuple(streams), threads

    def __iter__(self) -> Iterator[Chunk]:
        info = get_worker_info()
        mine = self.indices if info is None else self.indices[info.id :: info.num_workers]
        for i in mine:
            yield from self._video(i)

    def _video(self, i: int) -> Iterator[Chunk]:
        pieces = self.source.read(i, self.streams, threads=self.threads)
        try:
            while True:
                try:
                    frames, arrays = next(pieces)
                except StopIteration as end:
                    yield Chunk(i, last=True, damage=end.value)
                    return
                contiguous = {s: np.ascontiguousarray(a) for s, a in arrays.items()}
                yield Chunk(i, frames, {s: torch.from_numpy(a) for s, a in contiguous.items()})
        except (DatasetError, VideoError) as error:
            yield Chunk(i, error=str(error))
        except (I3DError, OSError) as error:
            yield Chunk(i, fatal=error)
        except MemoryError as error:
            yield Chunk(i, fatal=out_of_memory(error))


def load_chunks(
    source: ChunkSource,
    indices: Sequence[int],
    *,
    streams: Sequence[Stream],
    workers: int,
    threads: int = 1,
    pin: bool = False,
) -> Iterator[Chunk]:
    """Read whole videos, each once.

    Args:
        source: the videos.
        indices: numbers of the videos in the source.
        streams: ``"rgb"``, ``"flow"`` or both.
        workers: processes that read ahead, two chunks each; 0 reads in this one.
        threads: number that each worker computes flow with.
        pin: put the pixels into page-locked memory, for CUDA.

    Raises:
        I3DError: what is no single video's fault, or a worker died.
    """
    return read_ahead(_Chunks(source, indices, streams, threads), workers=workers, pin=pin)
