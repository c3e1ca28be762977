"""One video in the middle of its work: frames come in, windows go through networks, rows go out.

frame    0   1   2   3   4   5   6   7   8 ...
window   |------- 0 -------|
                 |------- 1 -------|              --window, --step
flow     0   1   2   3   4   5   6   7            between frame k and k + 1
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from math import floor

import numpy as np
import torch

from i3d.clips import loop_frames, scale_clip
from i3d.errors import VideoError
from i3d.presets import Stream, find_preset
from i3d.tasks.features.files import FeatureSettings, Rows
from i3d.tasks.features.options import FeatureOptions
from i3d.tasks.network import Batcher, Network

TIME_STRIDE = 8  # frames between time steps of Mixed_5c, two of which a feature averages


class VideoWindows:
    """The windows of every stream of one video.

    Attributes:
        frames: number taken so far.
        streams: stream -> its windows.
    """

    def __init__(
        self, networks: Mapping[Stream, Network], settings: FeatureSettings, options: FeatureOptions
    ) -> None:
        self.settings, self.frames = settings, 0
        self.streams = {
            stream: _Windows(network, settings, options) for stream, network in networks.items()
        }

    def add(self, frames: int, pixels: Mapping[Stream, torch.Tensor]) -> None:
        """Take the next frames' pixels: stream -> uint8 (t, crop, crop, C)."""
        self.frames += frames
        for stream, part in pixels.items():
            self.streams[stream].add(part)

    @property
    def looped(self) -> bool:
        """Whether the video is shorter than a window."""
        return self.frames < self.settings.window_frames

    def refusal(self) -> str | None:
        """Why a video that was read to its end has no features."""
        if self.frames < 2 and "flow" in self.streams:
            return "a video of one frame has no flow"
        if self.looped and self.settings.short == "error":
            return (
                f"{self.frames} frames are fewer than the window's {self.settings.window_frames}, "
                "and short videos are refused"
            )
        return None

    def finish(self) -> tuple[np.ndarray, dict[Stream, Rows]]:
        """Compute the last windows: every row's span, seconds, and stream -> rows.

        Raises:
            VideoError: rows hold NaN or infinity.
        """
        for windows in self.streams.values():
            windows.finish(self.frames)
            if windows.overflow is not None:
                raise VideoError(windows.overflow)
        starts = next(iter(self.streams.values())).starts
        spans = row_spans(starts, self.settings, self.frames)
        return spans, {stream: windows.rows for stream, windows in self.streams.items()}

    def close(self) -> None:
        """Give the temporary files' room back."""
        for windows in self.streams.values():
            windows.rows.close()


def row_spans(starts: Sequence[int], settings: FeatureSettings, frames: int) -> np.ndarray:
    """Which stretch of the video every row is of, in seconds: float64 (rows, 2).

    A row of a window is of all of it. A time step averages two neighbouring positions of Mixed_5c,
    which are 8 frames apart: step j is of frames 8 j to 8 j + 16 of its window, or to its end.
    (Its receptive field is wider: 107 frames.) A looped video's rows are all of the whole.
    """
    window = settings.window_frames
    inner = [(0, window)]
    if settings.endpoint == "steps":
        steps = -(-window // TIME_STRIDE) - 1
        inner = [(j * TIME_STRIDE, min((j + 2) * TIME_STRIDE, window)) for j in range(steps)]
    spans = [(start + a, start + b) for start in starts for a, b in inner]
    if frames < window:
        spans = [(0, frames)] * len(spans)
    return np.array(spans, np.float64).reshape(-1, 2) / settings.fps


class _Windows:
    """One stream of one video: frames come in, rows go out, a window and a chunk are kept.

    Attributes:
        rows: computed so far.
        starts: first frame of every window.
        overflow: why the video has no features, once a window's are not finite; what follows is
            not computed.
    """

    def __init__(
        self, network: Network, settings: FeatureSettings, options: FeatureOptions
    ) -> None:
        self.network, self.settings = network, settings
        self._preset = find_preset(settings.preset)
        self.window = settings.window_frames
        self.step = options.step_frames(settings.fps)
        self.rows = Rows()
        self.starts: list[int] = []
        self.overflow: str | None = None
        self._batcher = Batcher(
            partial(network.compute, endpoint=settings.endpoint),
            options,
            device=network.device,
            frames=self.window,
        )
        self._kept = torch.empty(0)  # uint8 (t, crop, crop, C), frames `_first` and on
        self._first = 0

    @property
    def _next(self) -> int:
        """First frame of the next window: a step in seconds is rounded for each, halves up."""
        return floor(len(self.starts) * self.step + Fraction(1, 2))

    @property
    def _have(self) -> int:
        return self._first + len(self._kept)

    def add(self, pixels: torch.Tensor) -> None:
        """Take the next frames, uint8 (t, crop, crop, C); run the batches that become full."""
        if self.overflow is not None:
            return
        pixels = pixels.to(self.network.device, non_blocking=True)
        self._kept = torch.cat([self._kept, pixels]) if len(self._kept) else pixels
        while self._next + self.window <= self._have:
            self._cut(self._next)
        # What may still be needed: from the next window on, or the last one's length.
        needed = self._next
        if self.settings.rest == "keep":
            needed = min(needed, self._have - self.window)
        unneeded = min(max(needed - self._first, 0), len(self._kept))
        self._kept = self._kept[unneeded:]
        self._first += unneeded

    def finish(self, frames: int) -> None:
        """Compute what is left of a video of so many frames."""
        if self.overflow is not None:
            return
        while self._next + self.window <= frames:  # flow, which lacks the last one
            self._cut(self._next)
        if frames < self.window:
            self._cut(0)
        elif self.settings.rest == "keep" and self.starts[-1] + self.window < frames:
            self._cut(frames - self.window)
        self._store(self._batcher.finish())

    def _cut(self, start: int) -> None:
        part = self._kept[start - self._first :][: self.window]
        clip = scale_clip(loop_frames(part, self.window), self.network.stream, self._preset)
        self._store(self._batcher.add(clip, start))
        self.starts.append(start)

    def _store(self, batches: Sequence[tuple[list[int], np.ndarray]]) -> None:
        for starts, rows in batches:
            for start, row in zip(starts, rows, strict=True):
                if (reason := self.network.explain_overflow(row)) is not None:
                    self.overflow = f"at {start / self.settings.fps:g} s {reason}"
                    return
            if self.settings.endpoint == "steps":
                rows = rows.reshape(-1, rows.shape[-1])  # (B, T', C) -> (B T', C)
            self.rows.add(rows)
