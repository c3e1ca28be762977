"""Videos -> the pixels that a network will see, decoded in worker processes.

    ShardClips  --read + decode JPEG/PNG, only the crop--+
                                                         +--> uint8 --> main process
    VideoClips  --decode + resize + TV-L1, cropped-------+

Pixels travel as uint8 through shared memory and become floats on the device that computes: that is
a quarter of the bytes. A video that cannot be read arrives as its reason, in its place; what is no
fault of the data (a server that is gone, a full disk) ends the job.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from i3d.clips import Views, quantize_flow
from i3d.data.kinetics import Video
from i3d.data.precomputed import Precomputed
from i3d.data.videos import Contents
from i3d.errors import DatasetError, VideoError
from i3d.presets import Preset, Stream


@dataclass(frozen=True)
class Placement:
    """Where a video's views are in the smallest box of pixels that holds them.

    Attributes:
        starts: stream -> first frame of each clip.
        corners: (top, left) of each crop, pixels.
        damage: what was lost of the video as far as it was decoded, or None.
    """

    starts: dict[Stream, tuple[int, ...]]
    corners: tuple[tuple[int, int], ...]
    damage: str | None = None


# stream -> uint8 (T, h, w, C), flow as stored; where the views are in them, and what was lost
ViewPixels = tuple[dict[str, np.ndarray], Placement]


class ClipSource(Protocol):
    """Labelled videos whose clips can be read one by one, in any process."""

    @property
    def keys(self) -> Sequence[str]:
        """Name of every video of the plan, in its order."""

    @property
    def labels(self) -> Sequence[int | None]:
        """Class index of every video; None when unlabelled."""

    def read(self, i: int, *, streams: Sequence[Stream], views: Views) -> ViewPixels:
        """Decode what the views need of video i.

        Raises:
            DatasetError, VideoError: the video is at fault.
        """

    def thumbnail(self, i: int) -> np.ndarray:
        """The middle frame of video i's first ten seconds, uint8 (H, W, 3)."""


def open_clips(
    contents: Contents,
    preset: Preset,
    *,
    max_seconds: float,
    positions: Sequence[int] | None = None,
) -> ClipSource:
    """The clips of shards, or of video files.

    Args:
        contents: where they are.
        preset: sampling and size.
        max_seconds: length of each video file, from its start.
        positions: label of the dataset -> label of the source; None: the same.

    Raises:
        UsageError: there are arrays, which have no labels and no frame rate.
    """
    if contents.shards is not None:
        return ShardClips(contents.shards, preset, positions=positions)
    return VideoClips(contents.videos, preset, max_seconds=max_seconds, positions=positions)


def _place(labels: Iterable[int | None], positions: Sequence[int] | None) -> tuple[int | None, ...]:
    if positions is None:
        return tuple(labels)
    return tuple(None if label is None else positions[label] for label in labels)


@dataclass(frozen=True)
class _Region:
    """The box of a video's views, and where they are in it."""

    rows: slice
    columns: slice
    corners: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, views: Views, height: int, width: int, preset: Preset) -> "_Region":
        crop = preset.crop
        if min(height, width) < crop:
            raise DatasetError(f"frames of {width}x{height} are smaller than the crop of {crop}")
        corners = views.corners(height, width, preset)
        top, left = min(t for t, _ in corners), min(x for _, x in corners)
        bottom, right = max(t for t, _ in corners) + crop, max(x for _, x in corners) + crop
        inside = tuple((t - top, x - left) for t, x in corners)
        return cls(slice(top, bottom), slice(left, right), inside)

    @property
    def box(self) -> tuple[slice, slice]:
        return self.rows, self.columns


def _last(starts: Sequence[int], views: Views) -> int:
    return starts[-1] + views.frames


class ShardClips:
    """The videos of precomputed shards, in the order of the plan."""

    def __init__(
        self, dataset: Precomputed, preset: Preset, *, positions: Sequence[int] | None = None
    ) -> None:
        self.dataset, self.preset = dataset, preset
        samples = list(dataset.manifest.samples())
        self.keys = tuple(sample.key for sample in samples)
        self.labels = _place((sample.class_index for sample in samples), positions)

    def read(self, i: int, *, streams: Sequence[Stream], views: Views) -> ViewPixels:
        """See `ClipSource`; one request to the storage for a sample that is needed whole."""
        key = self.keys[i]
        if (reason := self.dataset.failure(key)) is not None:
            raise DatasetError(reason)
        longest = float(self.dataset.manifest.parameters.get("max_seconds") or np.inf)
        whole = views.clips > 1 or longest * self.preset.fps <= views.frames
        if whole and set(streams) == set(self.dataset.manifest.streams):
            sample = self.dataset.read_sample(key)
        else:
            stop = None if whole else views.frames
            sample = self.dataset.read_sample(key, streams=streams, stop=stop)
        region = _Region.of(views, sample.info.height, sample.info.width, self.preset)
        arrays: dict[str, np.ndarray] = {}
        starts: dict[Stream, tuple[int, ...]] = {}
        for stream in streams:
            if not sample.count(stream):
                raise DatasetError("a video of one frame has no flow")
            starts[stream] = views.starts(sample.count(stream))
            last = _last(starts[stream], views)
            arrays[stream] = sample.decode(stream, 0, last, box=region.box)
        return arrays, Placement(starts, region.corners, sample.info.damage)

    def thumbnail(self, i: int) -> np.ndarray:
        """See `ClipSource`."""
        stored = self.dataset.find_sample(self.keys[i], streams=("rgb",))
        middle = min(stored.info.length("rgb"), self.preset.clip_frames) // 2
        return stored.read(middle, middle + 1).decode("rgb")[0]


class VideoClips:
    """Video files, decoded as `precompute` decodes them, without its JPEGs between.

    Args:
        videos: sorted by key.
        preset: sampling and size.
        max_seconds: length of each video, from its start; 0 for all of it.
        positions: see `open_clips`.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        preset: Preset,
        *,
        max_seconds: float,
        positions: Sequence[int] | None = None,
    ) -> None:
        self.videos, self.preset, self.max_seconds = tuple(videos), preset, max_seconds
        self.keys = tuple(video.key for video in self.videos)
        self.labels = _place((video.index for video in self.videos), positions)

    def _frames(self, i: int, most: int | None = None) -> tuple[np.ndarray, str | None]:
        """Uint8 (T, H, W, 3), and what was lost of the file as far as it was decoded."""
        from i3d.video import VideoReader

        video = self.videos[i]
        start, end = video.start_seconds or 0.0, video.end_seconds
        if self.max_seconds:
            longest = start + self.max_seconds
            end = longest if end is None else min(end, longest)
        with VideoReader(
            video.location,
            start_seconds=start,
            end_seconds=end,
            fps=self.preset.fps,
            short_side=self.preset.short_side,
        ) as reader:
            frames = list(islice(reader, most))
            damage = reader.damage
        if not frames:
            raise VideoError(f"{video.location}: no frames")
        where = f"{video.location}: "  # the key says it
        return np.stack(frames), None if damage is None else damage.removeprefix(where)

    def read(self, i: int, *, streams: Sequence[Stream], views: Views) -> ViewPixels:
        """See `ClipSource`; flow is computed between whole frames: TV-L1 looks beyond the crop."""
        from i3d.flow import stream_flow

        # One frame more than the views need, for the last flow.
        frames, damage = self._frames(i, views.frames + 1 if views.clips == 1 else None)
        region = _Region.of(views, frames.shape[1], frames.shape[2], self.preset)
        arrays: dict[str, np.ndarray] = {}
        starts: dict[Stream, tuple[int, ...]] = {}
        if "rgb" in streams:
            starts["rgb"] = views.starts(len(frames))
            arrays["rgb"] = frames[: _last(starts["rgb"], views), region.rows, region.columns]
        if "flow" in streams:
            if len(frames) < 2:
                raise VideoError(f"{self.videos[i].location}: a video of one frame has no flow")
            starts["flow"] = views.starts(len(frames) - 1)
            needed = frames[: _last(starts["flow"], views) + 1]
            bound = self.preset.flow_bound_pixels
            arrays["flow"] = np.stack(
                [
                    quantize_flow(flow[None, *region.box], bound_pixels=bound)[0]
                    for flow in stream_flow(needed)
                ]
            )
        return arrays, Placement(starts, region.corners, damage)

    def thumbnail(self, i: int) -> np.ndarray:
        """See `ClipSource`."""
        frames, _ = self._frames(i, self.preset.clip_frames)
        return frames[len(frames) // 2]


def clip_bytes(views: Views, preset: Preset) -> int:
    """An upper bound for what a worker hands over of a video: 5 bytes a pixel for both streams."""
    sides = 2 if views.crops > 1 else 1
    return 5 * views.frames * preset.crop**2 * sides * min(views.clips, 4)
