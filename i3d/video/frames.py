"""Frames that are in memory already, read as those of a file are."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import numpy as np

from i3d.errors import UsageError
from i3d.presets import KINETICS_I3D
from i3d.video.picture import check_size, resize, scale_size

if TYPE_CHECKING:
    import torch

LEAST_FPS = 1e-3  # of what is given: a picture every 17 minutes


class FrameReader:
    """The frames of an array, at another rate and size: what `VideoReader` is for files.

    Iterate; each frame is uint8 (H, W, 3), RGB.

    Args:
        frames: uint8 (T, H, W, 3), RGB, T at least 1; NumPy's or PyTorch's, on any device.
        source_fps: their frames a second.
        end_seconds: what is after this is left out; None: nothing.
        fps: frames a second that are put out; each is the one on show then.
        short_side: pixels of the shorter side of what is put out.

    Attributes:
        name: a description.
        duration_seconds: of all frames.
        damage: None; an array has none.

    Raises:
        UsageError: another type or shape, or no frames a second.
        VideoError: the pictures are, or would be, too large.
    """

    damage: str | None = None

    def __init__(
        self,
        frames: "np.ndarray | torch.Tensor",
        *,
        source_fps: float = KINETICS_I3D.fps,
        end_seconds: float | None = None,
        fps: float = KINETICS_I3D.fps,
        short_side: int = KINETICS_I3D.short_side,
    ) -> None:
        kind = str(frames.dtype).removeprefix("torch.")
        shape = tuple(frames.shape)
        if kind != "uint8" or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise UsageError(f"frames are uint8 (T, H, W, 3), RGB; these are {kind} {shape}")
        if not LEAST_FPS <= source_fps < float("inf"):
            raise UsageError(f"{source_fps} frames a second: it must be {LEAST_FPS:g} or more")
        self.name = f"<{len(frames)} frames>"
        self.duration_seconds = len(frames) / source_fps
        check_size(self.name, shape[2], shape[1])
        self._size = scale_size(self.name, shape[1], shape[2], short_side)
        self._frames, self._step = frames, source_fps / fps
        count = max(1, round(self.duration_seconds * fps))
        self._count = count if end_seconds is None else min(count, round(end_seconds * fps))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __iter__(self) -> Iterator[np.ndarray]:
        newest, made = -1, np.empty(0)
        for k in range(self._count):
            # the last one that begins by then; 1e-6 of a frame is the rounding of the rates
            i = min(int(k * self._step + 1e-6), len(self._frames) - 1)
            if i != newest:
                frame = self._frames[i]
                whole = frame if isinstance(frame, np.ndarray) else frame.cpu().numpy()
                newest, made = i, resize(np.ascontiguousarray(whole), self._size)
            yield made
